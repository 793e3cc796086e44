"""Sample digests: what content means, and the values that no release may ever change."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from data.digests import array_digests, image_digest, text_digests

Stack = NDArray[np.int32]

stacks = arrays(
    np.int32,
    array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=4),
    elements=st.integers(-2, 2),
    fill=st.nothing(),
)
fields = st.lists(st.text(alphabet=st.sampled_from("aé\0"), max_size=3), max_size=3).map(tuple)


def digests(samples: NDArray[np.generic]) -> list[str]:
    return [digest.tobytes().hex() for digest in array_digests(samples)]


def test_array_digests_of_the_format_never_change() -> None:
    assert digests(np.array([[0, 1], [2, 255]], dtype=np.uint8)) == [
        "281934e16d57fdff2e076ce1199dd591",
        "de77d8cd19aa17b927eea8b12d4cb713",
    ]
    assert digests(np.array([[[0.5, -1.0], [0.0, 2.0]]], dtype=np.float32)) == ["ae9419ea2423cfaba8c2443c706e42b2"]
    assert digests(np.array([3, -1], dtype=np.int64)) == [
        "7891d0c2901404f151aff7206d88dd62",
        "23f173c1ee1226e3bea370a59e0cfdc4",
    ]
    assert digests(np.array([[True, False]])) == ["f74c01ba2e73b4889b68dcbf0f227cee"]


def test_text_digests_of_the_format_never_change() -> None:
    found = [digest.tobytes().hex() for digest in text_digests([("ab", "c"), ("",), (), ("Grüße, 世界",)])]
    assert found == [
        "22c21b2bc6c27cf7213840c7b3520655",
        "5f85efd24a9681efe17db36fad3a5193",
        "b38efaf1d74638f0c2dc43f2ecfd3642",
        "1072977a6031985fdc7042a3397ea6b2",
    ]


def test_an_array_digest_is_blake2b_128_of_tag_dtype_shape_and_little_endian_bytes() -> None:
    sample = np.array([[1, 2, 3], [4, 5, 6]], dtype=">i2")
    content = b"softcache array 1\0i2\0[2, 3]\0" + b"\1\0\2\0\3\0\4\0\5\0\6\0"
    assert digests(sample[None]) == [hashlib.blake2b(content, digest_size=16).hexdigest()]


def test_a_text_digest_is_blake2b_128_of_tag_and_length_prefixed_utf_8() -> None:
    content = b"softcache text 1\0" + b"\2\0\0\0\0\0\0\0\xc3\xa9" + b"\1\0\0\0\0\0\0\0c"
    assert text_digests([("é", "c")])[0].tobytes().hex() == hashlib.blake2b(content, digest_size=16).hexdigest()


@given(stacks)
def test_samples_have_equal_digests_exactly_when_their_content_is_equal(samples: Stack) -> None:
    found = digests(samples)
    for first in range(len(samples)):
        for second in range(len(samples)):
            assert (found[first] == found[second]) == np.array_equal(samples[first], samples[second])


@given(stacks)
def test_a_digest_does_not_depend_on_the_place_of_a_sample(samples: Stack) -> None:
    order = np.random.default_rng(len(samples)).permutation(len(samples))
    np.testing.assert_array_equal(array_digests(samples[order]), array_digests(samples)[order])
    np.testing.assert_array_equal(array_digests(samples[:1]), array_digests(samples)[:1])


@given(stacks)
def test_endianness_and_memory_layout_do_not_matter(samples: Stack) -> None:
    expected = digests(samples)
    assert digests(samples.astype(">i4")) == expected
    assert digests(np.asfortranarray(samples)) == expected
    assert digests(samples[::-1].copy()[::-1]) == expected
    assert digests(np.repeat(samples, 2, axis=-1)[..., ::2]) == expected


@given(st.lists(fields, max_size=6))
def test_text_samples_have_equal_digests_exactly_when_their_fields_are_equal(samples: list[tuple[str, ...]]) -> None:
    found = [digest.tobytes().hex() for digest in text_digests(samples)]
    for first, content in enumerate(samples):
        for second, other in enumerate(samples):
            assert (found[first] == found[second]) == (content == other)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "float16", "float32", "float64", "int64", "bool"])
def test_the_dtype_is_content(dtype: str) -> None:
    ones = np.ones((1, 4), dtype=np.int32)
    assert digests(ones.astype(dtype)) != digests(ones)


def test_the_shape_is_content() -> None:
    flat = np.arange(12).reshape(1, 12)
    shapes = [(1, 12), (1, 3, 4), (1, 4, 3), (1, 12, 1), (1, 1, 12)]
    assert len({digests(flat.reshape(shape))[0] for shape in shapes}) == len(shapes)


def test_fields_are_length_prefixed_so_that_moving_a_letter_changes_the_digest() -> None:
    first, second, joined = text_digests([("ab", "c"), ("a", "bc"), ("abc",)])
    assert len({first.tobytes().hex(), second.tobytes().hex(), joined.tobytes().hex()}) == 3


def test_text_is_not_normalised() -> None:
    composed, decomposed = text_digests([("\u00e9",), ("e\u0301",)])
    assert composed.tobytes().hex() != decomposed.tobytes().hex()


def test_text_and_array_digests_live_in_different_domains() -> None:
    assert digests(np.zeros((1, 8), np.uint8)) != [text_digests([("",)])[0].tobytes().hex()]


def test_digests_of_no_samples_are_an_empty_array_of_rows() -> None:
    assert array_digests(np.empty((0, 3))).shape == (0, 16)
    assert text_digests([]).shape == (0, 16)


@pytest.mark.parametrize("shape", [(1, 8, 6), (3, 2, 5), (1, 1, 1)])
def test_the_digest_of_an_image_is_that_of_the_array(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for one in (pixels, np.asfortranarray(pixels)):
        assert image_digest(one) == array_digests(pixels[None]).tobytes()
