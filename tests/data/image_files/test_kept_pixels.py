"""Decoded images that stay in memory: each there once it was put, of one shape or of many."""

from __future__ import annotations

import numpy as np
import pytest

from data.image_files.kept_pixels import KeptPixels, joined, sizes_of
from data.image_files.pixels import Pixels
from tests.data.pictures import as_sample, colour, grey

ONE_SHAPE = [as_sample(grey(seed)) for seed in range(5)]
MANY_SHAPES = [as_sample(grey(1, 3, 4)), as_sample(colour(2, 2, 2)), as_sample(grey(3, 1, 1)), as_sample(grey(4, 3, 4))]


def shapes_of(images: list[Pixels]) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    return np.array([image.shape for image in images], np.int32)


@pytest.mark.parametrize("images", [ONE_SHAPE, MANY_SHAPES])
def test_an_image_is_there_from_when_it_was_put(images: list[Pixels]) -> None:
    kept = KeptPixels(shapes_of(images))
    everything = np.arange(len(images))
    assert kept.nbytes == sum(image.nbytes for image in images)
    for number in reversed(range(len(images))):
        assert kept.missing(everything).tolist() == list(range(number + 1))
        assert kept.one(number) is None
        kept.put(number, images[number])
        np.testing.assert_array_equal(kept.one(number), images[number])
    assert kept.missing(everything).tolist() == []


@pytest.mark.parametrize("images", [ONE_SHAPE, MANY_SHAPES])
def test_images_that_were_decoded_before_are_all_there(images: list[Pixels]) -> None:
    kept = KeptPixels(shapes_of(images), joined([image.reshape(-1) for image in images]))
    for number, image in enumerate(images):
        np.testing.assert_array_equal(kept.one(number), image)
    alike = np.array([3, 0])
    np.testing.assert_array_equal(kept.gathered(alike), np.stack([images[3], images[0]]))


def test_joining_empties_the_list_and_sizes_are_in_bytes() -> None:
    pieces = [np.arange(3, dtype=np.uint8), np.arange(2, dtype=np.uint8)]
    assert joined(pieces).tolist() == [0, 1, 2, 0, 1]
    assert pieces == []
    assert sizes_of(np.array([[3, 40_000, 40_000]], np.int32)).tolist() == [4_800_000_000]
