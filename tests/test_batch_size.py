"""The automatic batch size: the searches exactly, on functions that stand for a machine, and the bounds they keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from data.arrays import ArrayDataset
from pipeline import batch_size
from pipeline.batch_size import available_bytes, bytes_of_sample, fastest, largest_fitting, powers_of_two, size_on_cpu
from pipeline.batch_size import with_batch_size as with_number
from pipeline.batches import Preprocess
from pipeline.errors import Interrupted
from pipeline.progress import no_bar
from pipeline.recipe import Normalise
from pipeline.sorting import Indices
from pipeline.targets.production import TeacherForward
from pipeline.targets.shelf import Shelf
from pipeline.targets.writer import CachePlan
from pipeline.teacher_pass import forward_of, make_cache
from tests.targets.tiny import Tiny, made_content


@given(room=st.integers(0, 5000), most=st.integers(0, 5000))
def test_the_largest_that_fits_is_found_within_a_sixteenth_and_in_few_trials(room: int, most: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= room

    found, largest = largest_fitting(fits, most), min(room, most)
    assert found <= largest
    assert largest - found < max(1, found // 16)
    assert max(tried, default=0) <= most
    assert len(tried) <= 2 + largest.bit_length() + 5


@pytest.mark.parametrize(
    ("room", "most", "found"), [(0, 9, 0), (1, 9, 1), (9, 9, 9), (7, 9, 7), (1000, 700, 700), (31, 99, 31)]
)
def test_small_batches_are_found_exactly(room: int, most: int, found: int) -> None:
    assert largest_fitting(lambda size: size <= room, most) == found


def test_trials_double_and_then_bisect() -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= 100

    assert largest_fitting(fits, 4096) == 100
    assert tried == [1, 2, 4, 8, 16, 32, 64, 128, 96, 112, 104, 100]


def test_powers_of_two_go_up_to_the_most() -> None:
    assert list(powers_of_two(9)) == [1, 2, 4, 8]
    assert list(powers_of_two(8)) == [1, 2, 4, 8]
    assert list(powers_of_two(0)) == []


def tried_by_fastest(seconds: dict[int, float], enough: float = 9.0) -> tuple[int, list[int]]:
    tried: list[int] = []

    def taken(size: int) -> float:
        tried.append(size)
        return seconds[size]

    return fastest(seconds, taken, enough), tried


def test_the_fastest_size_has_the_most_samples_a_second_and_of_equals_is_the_smaller() -> None:
    assert tried_by_fastest({1: 1.0, 2: 1.0, 4: 2.0, 8: 3.0}) == (8, [1, 2, 4, 8])
    assert tried_by_fastest({1: 1.0, 2: 1.0, 4: 2.0}) == (2, [1, 2, 4])


def test_the_search_ends_after_two_slower_sizes_in_a_row_or_a_call_that_takes_long() -> None:
    assert tried_by_fastest({1: 1.0, 2: 1.0, 4: 3.0, 8: 7.0, 16: 1.0}) == (2, [1, 2, 4, 8])
    assert tried_by_fastest({1: 1.0, 2: 1.0, 4: 3.0, 8: 3.0, 16: 1.0}) == (16, [1, 2, 4, 8, 16])
    assert tried_by_fastest({1: 1.0, 2: 1.5, 4: 2.0, 8: 2.1}, enough=1.5) == (2, [1, 2])


def network_forward(network: nn.Module, features: int, samples: int = 64) -> TeacherForward:
    labels = np.zeros(samples, np.int64)
    dataset = ArrayDataset(np.zeros((samples, features), np.float32), labels, ("a", "b"), "training", "made up")
    return forward_of(network, dataset, Preprocess(Normalise(), (features,)), "float32", torch.device("cpu"))


def test_bytes_of_a_sample_are_those_of_every_tensor_that_its_forward_pass_makes() -> None:
    forward = network_forward(nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2)), 5)
    # The difference and the quotient of the normalisation, the two layers and the ReLU; views count as often as they are made.
    least = 4 * (5 + 5 + 7 + 7 + 2)
    assert least <= bytes_of_sample(forward, np.arange(2)) <= 2 * least


def test_weights_that_are_cast_do_not_count_for_a_sample() -> None:
    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 1000))

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs @ self.weight.double().float()[:, :5].T

    assert bytes_of_sample(network_forward(Casting(), 5), np.arange(2)) < 1000


def test_a_cpu_never_tries_a_batch_that_could_need_more_than_its_share_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward, tried = network_forward(nn.Linear(5, 2), 5, 4096), list[int]()

    def counting(indices: NDArray[np.int64]) -> Tensor:
        tried.append(len(indices))
        return forward(indices)

    monkeypatch.setattr(batch_size, "available_bytes", lambda: 4 * 10 * bytes_of_sample(forward, np.arange(2)))
    assert size_on_cpu(counting, np.arange(4096)) <= 8
    assert max(tried) <= 8
    assert available_bytes() > 2**20


def test_a_plan_with_a_number_is_left_as_it_is_and_opens_no_teacher() -> None:
    def never(order: Indices) -> TeacherForward:
        raise AssertionError("the teacher was opened")

    plan = Tiny().plan()
    assert with_number(plan, never, lambda: np.arange(23)) is plan
    said: list[str] = []
    found = with_number(automatic(plan), never, lambda: np.arange(0), said.append)
    assert found.resumable["batch_size"] == 256
    assert said == [f"cache {plan.key[:12]}: batch size 256 (auto: there are no new rows)"]


def automatic(plan: CachePlan) -> CachePlan:
    return replace(plan, resumable={**plan.resumable, "batch_size": "auto"})


def test_a_cache_notes_the_number_that_was_found_and_a_resumed_run_reuses_it(tmp_path: Path) -> None:
    tiny, opened, batches, said = Tiny(rows_per_block=5), list[Indices](), list[int](), list[str]()
    stop = True

    def opening(order: Indices) -> TeacherForward:
        opened.append(order)
        live = tiny.teacher()

        def teacher(indices: NDArray[np.int64]) -> Tensor:
            if stop and indices[0] >= 10:
                raise KeyboardInterrupt
            batches.append(len(indices))
            return live(indices)

        return teacher

    plan = automatic(tiny.plan())
    with pytest.raises(Interrupted):
        make_cache(Shelf(tmp_path), plan, opening, no_bar, said.append, {})
    assert len(opened) == 1  # the same teacher is tried and run
    assert max(batches) <= 5  # a batch never crosses a block
    [line] = said
    number = int(line.split("batch size ")[1].split()[0])
    assert number in (1, 2, 4)

    stop = False
    batches.clear()
    made = make_cache(Shelf(tmp_path), plan, opening, no_bar, said.append, {})
    assert f"batch_size {number} (not auto)" in said[1]
    expected = [min(number, rows - start) for rows in (5, 5, 3) for start in range(0, rows, number)]
    assert batches == expected  # no trial: the first batch is that of the first missing block
    whole = Tiny(rows_per_block=5, batch_size=number).make(tmp_path / "whole")
    assert made_content(made.folder) == made_content(whole.folder)
