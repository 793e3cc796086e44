"""What a teacher may not return, and what is kept when it does, or when the user stops it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.arrays import ArrayDataset
from pipeline.batches import Preprocess
from pipeline.devices import Laid, memory_format_of
from pipeline.errors import Interrupted, TeacherOutputError, UserError
from pipeline.progress import no_bar
from pipeline.recipe import Normalise
from pipeline.sorting import Indices
from pipeline.targets.production import TeacherForward
from pipeline.targets.reader import TargetCache
from pipeline.targets.shelf import Shelf
from pipeline.teacher_pass import forward_of, make_cache
from tests.targets.killed import committed_blocks
from tests.targets.tiny import DTYPES, LAYOUT_NAMES, Tiny, made_content


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_logit_that_is_not_finite_is_refused_with_the_first_sample(value: float, layout: str, tmp_path: Path) -> None:
    tiny = Tiny(layout)
    broken = torch.from_numpy(tiny.logits())
    broken[[13, 14, 20], 2] = value
    with pytest.raises(TeacherOutputError, match="NaN or infinity for sample 13 of the training split") as refused:
        tiny.make(tmp_path, lambda indices: broken[torch.from_numpy(indices)])
    assert refused.value.exit_code == 1
    cache = tmp_path / tiny.plan().key
    assert committed_blocks(cache) == {0, 1}
    assert not (cache / "manifest.json").exists()

    computed: list[int] = []

    def mended(indices: NDArray[np.int64]) -> Tensor:
        computed.extend(indices.tolist())
        return tiny.teacher()(indices)

    assert made_content(tiny.make(tmp_path, mended).folder) == made_content(tiny.make(tmp_path / "whole").folder)
    assert computed == list(range(10, 23))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_logit_of_minus_infinity_is_a_probability_of_exactly_0(dtype: str, tmp_path: Path) -> None:
    tiny = Tiny(dtype=dtype)
    forest = torch.from_numpy(tiny.logits())
    forest[[3, 13], 2] = -torch.inf
    forest[4, 1:] = -torch.inf  # certain of one class
    cache = TargetCache(tiny.make(tmp_path, lambda indices: forest[torch.from_numpy(indices)]).folder)
    for temperature in (1.0, 4.0, 8.0):
        found = cache.soft_targets(np.arange(tiny.rows), temperature, max_kl=math.inf)
        wanted = torch.softmax(forest / temperature, dim=1)
        tolerance = {"float16": 2e-3, "float32": 1e-6, "log-uint8": 2e-2, "log-uint16": 1e-4}[dtype]
        np.testing.assert_allclose(found, wanted, atol=tolerance)
        assert found[[3, 13], 2].tolist() == [0, 0]
        assert found[4].tolist() == [1, 0, 0, 0]
    error = cache.manifest.certificate["temperatures"]["4.0"]
    assert error["infinite_rows"] == 0
    assert error["kl_mean"] < 3e-5


def test_a_row_of_minus_infinity_alone_is_refused(tmp_path: Path) -> None:
    tiny = Tiny()
    broken = torch.from_numpy(tiny.logits())
    broken[13] = -torch.inf
    with pytest.raises(TeacherOutputError, match="NaN or infinity for sample 13 of the training split"):
        tiny.make(tmp_path, lambda indices: broken[torch.from_numpy(indices)])


def test_a_teacher_that_returns_no_tensor_is_refused() -> None:
    class Wrapping(nn.Module):
        def forward(self, inputs: Tensor) -> dict[str, Tensor]:
            return {"logits": inputs}

    dataset = ArrayDataset(np.zeros((3, 2), np.float32), np.zeros(3, np.int64), ("a", "b"), "training", "made up")
    forward = forward_of(Wrapping(), dataset, Preprocess(Normalise(), (2,)), "float32", torch.device("cpu"))
    with pytest.raises(TeacherOutputError, match="the teacher returned dict; a tensor of logits is needed"):
        forward(np.arange(3))


def test_a_network_gets_images_pixel_by_pixel_unless_it_views_them() -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 2)
            self.five_axes = nn.Parameter(torch.ones(1, 2, 1, 2, 1))

        def forward(self, images: Tensor) -> Tensor:
            self.seen = images.is_contiguous(memory_format=torch.channels_last)
            found: Tensor = self.convolution(images).view(len(images), -1)
            return found

    torch.manual_seed(0)
    images, viewing = torch.rand(2, 3, 4, 4), Viewing().eval()
    expected = viewing(images)
    weight = viewing.convolution.weight
    laid = Laid(viewing, torch.channels_last)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(laid(images), expected)  # refused once, then given as view() takes them
    assert not viewing.seen
    assert weight.is_contiguous()
    convolution = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten())
    expected = convolution(images)
    laid = Laid(convolution, torch.channels_last)
    torch.testing.assert_close(laid(images), expected)
    assert laid.laid(images).is_contiguous(memory_format=torch.channels_last)
    flat = images.flatten(1)
    assert laid.laid(flat) is flat
    with pytest.raises(RuntimeError, match="expected input"):
        laid(torch.rand(2, 5, 4, 4))


def test_images_lie_pixel_by_pixel_on_a_gpu_where_a_network_has_convolutions() -> None:
    convolutions, layers = nn.Sequential(nn.Conv2d(3, 4, 1)), nn.Sequential(nn.Linear(3, 4))
    assert memory_format_of(convolutions, torch.device("cuda")) is torch.channels_last
    assert memory_format_of(layers, torch.device("cuda")) is torch.contiguous_format
    assert memory_format_of(convolutions, torch.device("cpu")) is torch.contiguous_format


@pytest.mark.parametrize("batches_ahead", [0, 1])
def test_a_teacher_gives_the_same_logits_in_any_order_of_asking(batches_ahead: int) -> None:
    class Slow(ArrayDataset):
        pass

    Slow.batches_ahead = batches_ahead  # type: ignore[attr-defined]
    samples = np.random.default_rng(0).integers(0, 256, (30, 5), dtype=np.uint8)
    dataset = Slow(samples, np.zeros(30, np.int64), ("a", "b"), "training", "made up")
    network, preprocess = nn.Linear(5, 2), Preprocess(Normalise(mean=(100.0,), std=(70.0,)), (5,))
    forward = forward_of(network, dataset, preprocess, "float32", torch.device("cpu"), np.arange(30))
    for indices in (
        np.arange(7),
        np.arange(7, 14),
        np.arange(14, 17),
        np.arange(17, 24),
        np.array([3, 1]),
        np.arange(24, 30),
    ):
        wanted = network((torch.from_numpy(samples[indices]).float() - 100.0) / 70.0)
        assert torch.equal(forward(indices), wanted)
        assert forward(indices).dtype == torch.float32


@pytest.mark.parametrize(
    ("cut", "shape"),
    [
        (lambda logits: logits[:, :3], r"\(2, 3\)"),
        (lambda logits: torch.cat([logits, logits], dim=1), r"\(2, 8\)"),
        (lambda logits: logits[:1], r"\(1, 4\)"),
        (lambda logits: logits[:, :, None], r"\(2, 4, 1\)"),
    ],
)
def test_outputs_of_another_shape_are_refused_with_the_first_sample(cut: object, shape: str, tmp_path: Path) -> None:
    tiny = Tiny()

    def teacher(indices: NDArray[np.int64]) -> Tensor:
        logits = tiny.teacher()(indices)
        if indices[0] < 5:
            return logits
        assert callable(cut)
        shaped: Tensor = cut(logits)
        return shaped

    expected = rf"shape {shape} for 2 samples of 4 classes, first at sample 5 of the training split"
    with pytest.raises(TeacherOutputError, match=expected):
        tiny.make(tmp_path, teacher)
    assert committed_blocks(tmp_path / tiny.plan().key) == {0}


def test_logits_as_large_as_float32_allows_are_cached(tmp_path: Path) -> None:
    tiny = Tiny(spread=1e37, dtype="float32", certify=(4.0,))
    cache = tiny.open(tmp_path)
    np.testing.assert_allclose(cache.soft_targets(np.arange(tiny.rows)).numpy(), tiny.exact(), atol=1e-6)


def test_an_interrupt_keeps_what_was_computed_and_says_how_to_go_on(tmp_path: Path) -> None:
    tiny = Tiny()

    def teacher(indices: NDArray[np.int64]) -> Tensor:
        if indices[0] >= 10:
            raise KeyboardInterrupt
        return tiny.teacher()(indices)

    cache = tmp_path / tiny.plan().key
    with pytest.raises(Interrupted) as stopped:
        tiny.make(tmp_path, teacher)
    assert str(stopped.value).startswith(f"interrupted: 2 of 5 blocks are kept in {cache}. Run the same command again")
    assert stopped.value.exit_code == 130
    made = tiny.make(tmp_path)
    assert (made.rows_computed, made.rows_resumed) == (13, 10)


def test_a_resumed_run_reuses_the_settings_it_was_begun_with(tmp_path: Path) -> None:
    begun = Tiny(batch_size=2, rows_per_block=5)

    def teacher(indices: NDArray[np.int64]) -> Tensor:
        if indices[0] >= 10:
            raise KeyboardInterrupt
        return begun.teacher()(indices)

    with pytest.raises(Interrupted):
        begun.make(tmp_path, teacher)
    batches: list[int] = []

    def counting(indices: NDArray[np.int64]) -> Tensor:
        batches.append(len(indices))
        return begun.teacher()(indices)

    other = Tiny("hdf5", batch_size=7, rows_per_block=11, certify=(4.0,))
    assert other.plan().key == begun.plan().key
    made = other.make(tmp_path, counting)
    assert batches == [2, 2, 1, 2, 2, 1, 2, 1]
    assert made_content(made.folder) == made_content(begun.make(tmp_path / "whole").folder)


def test_the_first_block_that_no_student_could_use_is_the_one_that_is_named(tmp_path: Path) -> None:
    tiny = Tiny(temperature=0.05, certify=(0.05,))
    plan = replace(tiny.plan(), wanted_at=0.05)
    with pytest.raises(UserError, match=r"rows of block 0 have probabilities at temperature 0\.05 that vanish"):
        make_cache(Shelf(tmp_path), plan, lambda order: tiny.teacher(), no_bar, lambda text: None, {})


def test_a_resumed_run_that_would_certify_what_no_student_asks_for_is_refused_first(tmp_path: Path) -> None:
    tiny, said = Tiny(), list[str]()
    broken = torch.from_numpy(tiny.logits())
    broken[13] = float("nan")
    with pytest.raises(TeacherOutputError):
        tiny.make(tmp_path, lambda indices: broken[torch.from_numpy(indices)])
    plan = tiny.plan()
    wanted = replace(plan, wanted_at=2.5, resumable={**plan.resumable, "certify": [1.0, 2.0, 2.5, 4.0, 8.0]})

    def never(order: Indices) -> TeacherForward:
        raise AssertionError("the teacher was built")

    with pytest.raises(UserError, match=r"without certifying temperature 2\.5.*one of 1, 2, 4, 8\."):
        make_cache(Shelf(tmp_path), wanted, never, no_bar, said.append, {})
    assert committed_blocks(tmp_path / plan.key) == {0, 1}
