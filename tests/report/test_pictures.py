"""Samples as pictures: the pixels of the PNG are those of the sample."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.report.pictures import LARGEST_SIDE, first_values, grey_range, is_image, png_uri, shown_samples


def pixels_of(uri: str) -> NDArray[np.uint8]:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_bytes_that_use_their_range_are_shown_as_they_are() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    assert np.array_equal(pixels_of(png_uri(grey, *grey_range([grey]))), grey[0])
    colour = np.arange(192, dtype=np.uint8).reshape(3, 8, 8)
    assert np.array_equal(pixels_of(png_uri(colour, *grey_range([colour]))), colour.transpose(1, 2, 0))


def test_other_ranges_are_stretched_from_black_to_white_alike_for_all_samples() -> None:
    digits = [np.array([[[0, 8]]], dtype=np.uint8), np.array([[[4, 16]]], dtype=np.uint8)]
    shown = [pixels_of(one["picture"]) for one in shown_samples(digits)]
    assert [one.tolist() for one in shown] == [[[0, 128]], [[64, 255]]]


def test_samples_of_unlike_sizes_and_modes_are_shown_by_one_range() -> None:
    grey, coloured = np.full((1, 2, 3), 10, np.uint8), np.full((3, 4, 2), 20, np.uint8)
    shown = [pixels_of(one["picture"]) for one in shown_samples([grey, coloured])]
    assert [one.shape for one in shown] == [(2, 3), (4, 2, 3)]
    assert (shown[0].max(), shown[1].min()) == (0, 255)
    assert [list(one) for one in shown_samples([grey, np.zeros(4, np.uint8)])] == [["values"], ["values"]]


@pytest.mark.parametrize("value", [0.0, -3.5])
def test_a_constant_or_not_finite_sample_is_no_error(value: float) -> None:
    flat = np.full((1, 4, 4), value, dtype=np.float32)
    assert pixels_of(png_uri(flat, *grey_range([flat]))).max() == 0
    broken = np.array([[[np.nan, np.inf]]], dtype=np.float32)
    assert pixels_of(png_uri(broken, *grey_range([broken]))).shape == (1, 2)


def test_large_pictures_are_made_smaller() -> None:
    large = np.zeros((3, 400, 200), dtype=np.uint8)
    assert pixels_of(png_uri(large, 0, 255)).shape == (LARGEST_SIDE, LARGEST_SIDE // 2, 3)


def test_samples_of_other_shapes_are_shown_by_their_first_values() -> None:
    assert [is_image(shape) for shape in [(1, 8, 8), (3, 2, 2), (2, 8, 8), (64,), (8, 8)]] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert first_values(np.array([0.123456, 2.0], dtype=np.float64)) == "0.1235, 2"
    assert first_values(np.arange(20)) == "0, 1, 2, 3, 4, 5, 6, 7, …"
    assert shown_samples([np.array([1, 2])]) == [{"values": "1, 2"}]
    assert shown_samples([]) == []
