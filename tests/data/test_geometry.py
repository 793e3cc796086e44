"""Resize, crop and mode: torchvision's sizes, Pillow's pixels, and what cannot be is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from data.arrays import ArrayDataset
from data.errors import DatasetError
from data.geometry import Geometry, resized_sides
from data.shaping import ShapedDataset, shaped
from data.workers import Memory, Workers
from pipeline.dataset import Dataset, refuse_malformed
from tests.data.pictures import as_sample, colour, grey, settings

sides = st.integers(1, 40)


@pytest.mark.parametrize(
    ("shape", "resize", "expected"),
    [
        ((10, 20), 5, (5, 10)),
        ((20, 10), 5, (10, 5)),
        ((7, 7), 5, (5, 5)),
        ((30, 100), 7, (7, 23)),  # 7 * 100 / 30 = 23.3, rounded down
        ((640, 480), 256, (341, 256)),
        ((10, 20), (3, 4), (3, 4)),
        ((10, 20), None, (10, 20)),
    ],
)
def test_the_shorter_side_gets_the_size_and_the_longer_one_follows(
    shape: tuple[int, int], resize: int | tuple[int, int] | None, expected: tuple[int, int]
) -> None:
    assert resized_sides(*shape, resize) == expected


@given(sides, sides, st.one_of(sides, st.tuples(sides, sides)), st.booleans())
def test_resizing_is_pillow_s_bilinear_filter(
    height: int, width: int, resize: int | tuple[int, int], in_colour: bool
) -> None:
    pixels = colour(1, height, width) if in_colour else grey(1, height, width)
    expected_height, expected_width = resized_sides(height, width, resize)
    image = Image.fromarray(pixels).resize((expected_width, expected_height), Image.Resampling.BILINEAR)
    made = Geometry(resize=resize)(as_sample(pixels))
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(made, as_sample(np.asarray(image)))
    assert made.shape == Geometry(resize=resize).shape_of(as_sample(pixels).shape)


@given(sides, sides, sides, sides)
def test_resizing_agrees_with_torch_within_one_level(height: int, width: int, to_height: int, to_width: int) -> None:
    sample = grey(2, height, width)[None]
    batch = torch.from_numpy(sample.astype(np.float32))[None]
    expected = torch.nn.functional.interpolate(batch, size=(to_height, to_width), mode="bilinear", antialias=True)[0]
    geometry = Geometry(resize=(to_height, to_width))
    assert np.abs(geometry(sample).astype(np.float64) - expected.numpy()).max() <= 1.0
    in_float = geometry(sample.astype(np.float64))
    assert in_float.dtype == np.float32
    np.testing.assert_allclose(in_float.astype(np.float32), expected.numpy(), atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "crop", "rows", "columns"),
    [
        ((8, 8), 4, (2, 6), (2, 6)),
        ((9, 9), 4, (2, 6), (2, 6)),  # (9 - 4) / 2 = 2.5, which round() takes to 2, as torchvision does
        ((11, 11), 4, (4, 8), (4, 8)),  # and 3.5 to 4
        ((8, 6), (8, 2), (0, 8), (2, 4)),
        ((8, 6), (8, 6), (0, 8), (0, 6)),
    ],
)
def test_a_crop_is_cut_from_the_centre(
    shape: tuple[int, int], crop: int | tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    sample = grey(3, *shape)[None]
    np.testing.assert_array_equal(Geometry(crop=crop)(sample), sample[:, slice(*rows), slice(*columns)])


def test_mode_comes_before_resizing_and_resizing_before_cropping() -> None:
    pixels = colour(4, 12, 20)
    image = Image.fromarray(pixels).convert("L").resize((10, 6), Image.Resampling.BILINEAR)
    made = Geometry(mode="L", resize=6, crop=4)(as_sample(pixels))
    np.testing.assert_array_equal(made, np.asarray(image)[None, 1:5, 3:7])


@pytest.mark.parametrize(
    ("geometry", "shape", "message"),
    [
        (Geometry(crop=5), (1, 4, 9), r"crop = 5 is larger than the image, 4 x 9 \(height x width\)"),
        (Geometry(resize=4, crop=(4, 9)), (1, 8, 8), r"crop = \(4, 9\) is larger than the image, 4 x 4"),
        (Geometry(resize=4), (6,), r"mode, resize and crop are for images .*, not for samples of shape \(6,\)"),
        (
            Geometry(mode="L"),
            (4, 8, 8),
            r"mode = 'L' is for images of 1 or 3 channels, not for samples of shape \(4, 8, 8\)",
        ),
        (Geometry(resize=2000), (1, 1, 60_000), r"would make 2000 x 120000000 pixels of 1 x 60000; at most 89,478,485"),
    ],
)
def test_what_cannot_be_made_is_refused(geometry: Geometry, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        geometry.shape_of(shape)


def test_a_mode_is_not_for_samples_that_have_no_eight_bits() -> None:
    with pytest.raises(
        DatasetError, match=r"mode = 'L' converts images of 8 bits \(uint8\), not samples of dtype float32"
    ):
        Geometry(mode="L")(np.zeros((3, 4, 4), np.float32))


def pictures(count: int = 9) -> ArrayDataset:
    values = np.stack([as_sample(colour(seed)) for seed in range(count)])
    return ArrayDataset(values, np.arange(count) % 2, ("a", "b"), "training", "made up")


@pytest.mark.parametrize("memory_mb", [0, 1])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_shaped_dataset_is_the_same_whatever_the_workers_and_the_memory(workers: int, memory_mb: int) -> None:
    raw, geometry = pictures(), Geometry("L", (5, 4), 3)
    dataset = ShapedDataset(raw, geometry, Workers(workers), Memory(memory_mb))
    assert isinstance(dataset, Dataset)
    assert dataset.sample_shape == (1, 3, 3)
    assert dataset.batches_ahead == (0 if memory_mb else 2)
    for indices in ([4, 0, 4, 8], [1], list(range(9))):
        expected = np.stack([geometry(raw.sample(index)) for index in indices])
        np.testing.assert_array_equal(dataset.samples(np.array(indices)), expected)
    np.testing.assert_array_equal(dataset.sample(3), raw.sample(3))
    np.testing.assert_array_equal(dataset.sample_digests(), raw.sample_digests())
    np.testing.assert_array_equal(dataset.labels(), raw.labels())
    assert dataset.label(1) == 1


def test_without_geometry_an_array_dataset_is_left_as_it_is() -> None:
    raw = {"training": pictures()}
    assert shaped(raw, settings())["training"] is raw["training"]


def test_memory_is_taken_and_given_back() -> None:
    memory = Memory(1)
    assert memory.take(600_000)
    assert not memory.take(400_001)
    memory.give_back(1)
    assert memory.take(400_001)


def test_workers_raise_the_error_of_the_first_item_that_has_one() -> None:
    def inverse(number: int) -> float:
        return 1 / (number - 3) if number != 7 else [][number]

    for count in (1, 2, 8):
        with pytest.raises(ZeroDivisionError):
            Workers(count).map(inverse, list(range(9)))
        assert Workers(count).map(inverse, [4, 5]) == [1.0, 0.5]
        assert Workers(count).map(inverse, []) == []


class Drawings:
    """A user's own dataset, which knows nothing of geometry."""

    class_names = ("a", "b")
    split = "training"
    sample_shape = (1, 8, 6)

    def __len__(self) -> int:
        return 4

    def sample(self, index: int) -> NDArray[np.generic]:
        return grey(index)[None]

    def samples(self, indices: NDArray[np.int64]) -> NDArray[np.generic]:
        return np.stack([self.sample(int(index)) for index in indices])

    def label(self, index: int) -> int | None:
        return index % 2

    def labels(self) -> NDArray[np.int64]:
        return np.arange(4) % 2

    def sample_digests(self) -> NDArray[np.uint8]:
        return np.arange(64, dtype=np.uint8).reshape(4, 16)


def test_a_user_s_own_dataset_is_shaped_as_well() -> None:
    part = shaped({"training": Drawings()}, settings(kind="digits", path=None, resize=4, crop=3, mode="RGB"))[
        "training"
    ]
    refuse_malformed(part, "here")
    assert part.sample_shape == (3, 3, 3)
    geometry = Geometry("RGB", 4, 3)
    np.testing.assert_array_equal(part.samples(np.array([2, 0])), [geometry(grey(2)[None]), geometry(grey(0)[None])])
    np.testing.assert_array_equal(part.sample_digests(), Drawings().sample_digests())
    with pytest.raises(DatasetError, match="the dataset: sample 0: crop = 9 is larger than the image, 8 x 6"):
        shaped({"training": Drawings()}, settings(crop=9))
