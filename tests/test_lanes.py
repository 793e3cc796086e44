"""The lane of a CPU: what is sent is the value itself, what is fetched is there at once."""

from __future__ import annotations

import torch

from pipeline.batches import Batch
from pipeline.lanes import HostLane, lane_to, one_tensor
from pipeline.targets.sparse import SparseTargets

CPU = torch.device("cpu")


def test_on_a_cpu_a_value_is_sent_by_being_used() -> None:
    lane, tensor = lane_to(CPU), torch.arange(3)
    assert isinstance(lane, HostLane)
    assert lane.send(tensor, one_tensor).arrived() is tensor
    assert lane.batches_ahead == 0


def test_what_is_fetched_lies_in_the_given_memory() -> None:
    lane = lane_to(CPU)
    memory = lane.buffer((4, 2), torch.uint16)
    assert memory.shape == (4, 2)
    lane.fetch(torch.tensor([[1, 65535], [3, 4]]).to(torch.uint16), memory[1:3])
    lane.fetched().wait()
    lane.computed().wait()
    assert memory[1:3].tolist() == [[1, 65535], [3, 4]]


def test_every_tensor_of_a_batch_is_changed_once() -> None:
    def doubled(tensor: torch.Tensor) -> torch.Tensor:
        return 2 * tensor

    sparse = SparseTargets(torch.tensor([[1]]), torch.tensor([[0.25]]), torch.tensor([0.5]), 3)
    found = Batch(torch.tensor([1.0]), torch.tensor([2]), sparse).each(doubled)
    assert isinstance(found.soft_targets, SparseTargets)
    assert (found.inputs.tolist(), found.labels.tolist()) == ([2.0], [4])
    assert (found.soft_targets.class_ids.tolist(), found.soft_targets.class_count) == ([[2]], 3)
    assert (found.soft_targets.probabilities.tolist(), found.soft_targets.tail_mass.tolist()) == ([[0.5]], [1.0])
    dense = Batch(torch.tensor([1.0]), torch.tensor([2]), torch.tensor([[0.5, 0.5]])).each(doubled)
    assert isinstance(dense.soft_targets, torch.Tensor)
    assert dense.soft_targets.tolist() == [[1.0, 1.0]]
    assert Batch(torch.tensor([1.0]), torch.tensor([2]), None).each(doubled).soft_targets is None
