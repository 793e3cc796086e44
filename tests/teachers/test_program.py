"""torch.export programs as teachers: any batch size, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import Dim

from pipeline.errors import WeightsError
from pipeline.teachers.program import load_program
from pipeline.weights import load_weights
from tests.teachers.source import write_torchscript

CPU = torch.device("cpu")


class Network(nn.Module):
    """A tiny CNN whose batch normalisation and dropout differ between training and evaluation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5))
        self.head = nn.Linear(64, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.body(inputs))
        return logits


def saved(
    path: Path, network: nn.Module, batch: int = 4, dynamic: object = None, shape: tuple[int, ...] = (1, 6, 6)
) -> Path:
    """Export a network to `path`; `dynamic` says what is known of its batch size (None: it is fixed)."""
    shapes = None if dynamic is None else ({0: dynamic},)
    program = torch.export.export(network, (torch.randn(batch, *shape),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


@pytest.mark.parametrize(
    "dynamic", [None, Dim("batch"), Dim("batch", min=3, max=5), Dim.AUTO], ids=["fixed", "any", "3 to 5", "auto"]
)
def test_a_program_takes_any_number_of_samples_whatever_it_was_exported_for(tmp_path: Path, dynamic: object) -> None:
    network = Network().eval()
    program = load_program(saved(tmp_path / "a.pt2", network, dynamic=dynamic), (1, 6, 6), CPU).eval()
    with torch.inference_mode():
        for count in (1, 2, 4, 5, 9):
            inputs = torch.randn(count, 1, 6, 6)
            torch.testing.assert_close(program(inputs), network(inputs), rtol=1e-5, atol=1e-6)


def test_a_program_of_half_precision_is_given_its_dtype(tmp_path: Path) -> None:
    network = Network().eval().to(torch.bfloat16)
    exported = torch.export.export(network, (torch.randn(4, 1, 6, 6, dtype=torch.bfloat16),))
    torch.export.save(exported, tmp_path / "a.pt2")
    inputs = torch.randn(4, 1, 6, 6)
    found = load_program(tmp_path / "a.pt2", (1, 6, 6), CPU)(inputs)
    torch.testing.assert_close(found, network(inputs.to(torch.bfloat16)))


def test_a_program_that_converts_its_inputs_runs_in_mixed_precision(tmp_path: Path) -> None:
    class Converting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(6, 3)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.layer(inputs.float()).float().softmax(dim=1)
            return found

    network = Converting().eval()
    torch.export.save(torch.export.export(network, (torch.randn(4, 6),)), tmp_path / "a.pt2")
    program, inputs = load_program(tmp_path / "a.pt2", (6,), CPU), torch.randn(4, 6)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = program(inputs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, network(inputs), atol=2e-2, rtol=0)


def test_a_program_of_other_samples_is_refused_with_both_shapes(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt2", Network().eval())
    with pytest.raises(WeightsError, match=r"inputs of shape \(4, 1, 6, 6\), but the samples are \(batch, 1, 8, 8\)"):
        load_program(path, (1, 8, 8), CPU)


def test_a_program_that_was_exported_in_training_mode_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt2", Network().train())
    with pytest.raises(WeightsError, match=r"training mode .*model\.eval"):
        load_program(path, (1, 6, 6), CPU)


def test_a_program_of_two_inputs_is_refused(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            return one + other

    torch.export.save(torch.export.export(Sum(), (torch.ones(2, 3), torch.ones(2, 3))), tmp_path / "a.pt2")
    with pytest.raises(WeightsError, match="takes 2 inputs; one batch of samples"):
        load_program(tmp_path / "a.pt2", (3,), CPU)


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.pt2", "a.safetensors"])
def test_torchscript_is_refused_by_its_content_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    path = write_torchscript(tmp_path / name, Network().eval(), torch.randn(2, 1, 6, 6))
    with pytest.raises(WeightsError, match=r"TorchScript, which is refused: it holds code.*torch\.export\.save"):
        load_weights(path)
    with pytest.raises(WeightsError, match="TorchScript, which is refused"):
        load_program(path, (1, 6, 6), CPU)


def test_a_program_is_no_weights_of_a_model(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"torch\.export program, which holds its own network"):
        load_weights(saved(tmp_path / "a.pt2", Network().eval()))


def test_weights_and_damaged_files_are_no_program(tmp_path: Path) -> None:
    torch.save(Network().state_dict(), tmp_path / "a.pt2")
    with pytest.raises(WeightsError, match=r"no torch\.export program\. Write one with"):
        load_program(tmp_path / "a.pt2", (1, 6, 6), CPU)
    whole = saved(tmp_path / "b.pt2", Network().eval()).read_bytes()
    (tmp_path / "b.pt2").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"no torch\.export program"):
        load_program(tmp_path / "b.pt2", (1, 6, 6), CPU)
    at = whole.index(b'"graph"')
    (tmp_path / "b.pt2").write_bytes(whole[:at] + b'"grapf"' + whole[at + 7 :])
    with pytest.raises(WeightsError, match=r"cannot be loaded as a torch\.export program"):
        load_program(tmp_path / "b.pt2", (1, 6, 6), CPU)
