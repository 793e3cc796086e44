"""Decoding an image file: every mode either gives its exact pixels or the promised error."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from data.digests import array_digests
from data.errors import DatasetError
from data.image_files.pixels import bombs_are_errors, decoded, in_mode
from tests.data.pictures import Pixels, as_sample, colour, grey, png

GREY_FORMATS = ["PNG", "BMP", "TIFF", "PPM"]
COLOUR_FORMATS = ["PNG", "BMP", "TIFF", "PPM", "WEBP"]


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels_of(content: bytes) -> Pixels:
    return decoded(io.BytesIO(content), "a/picture")


def refusal(content: bytes) -> str:
    with pytest.raises(DatasetError) as refused:
        pixels_of(content)
    assert str(refused.value).startswith("a/picture: ")
    return str(refused.value)


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9)), st.sampled_from(GREY_FORMATS))
def test_grey_pixels_are_read_back_exactly_from_every_lossless_format(pixels: Pixels, kind: str) -> None:
    np.testing.assert_array_equal(pixels_of(encoded(Image.fromarray(pixels), kind)), pixels[None])


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), st.sampled_from(COLOUR_FORMATS))
def test_coloured_pixels_are_read_back_exactly_from_every_lossless_format(
    height: int, width: int, seed: int, kind: str
) -> None:
    pixels = colour(seed, height, width)
    content = encoded(Image.fromarray(pixels), kind, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(pixels_of(content), as_sample(pixels))


def test_digests_do_not_depend_on_the_file_format_and_are_those_of_the_array() -> None:
    for pixels, formats in ((grey(1), GREY_FORMATS), (colour(2), COLOUR_FORMATS[:-1])):
        expected = array_digests(as_sample(pixels)[None]).tolist()
        for kind in formats:
            assert array_digests(pixels_of(encoded(Image.fromarray(pixels), kind))[None]).tolist() == expected


def test_one_bit_palette_cmyk_and_ycbcr_join_with_their_decoded_form() -> None:
    bits = Image.fromarray(grey(3)).convert("1")
    np.testing.assert_array_equal(pixels_of(encoded(bits))[0], np.asarray(bits, np.uint8) * np.uint8(255))
    palette = Image.fromarray(colour(4)).quantize(7)
    np.testing.assert_array_equal(pixels_of(encoded(palette)), as_sample(np.asarray(palette.convert("RGB"))))
    in_gif = pixels_of(encoded(Image.fromarray(grey(4)), "GIF"))  # a GIF has nothing but palettes
    np.testing.assert_array_equal(in_gif, np.stack([grey(4)] * 3))
    for mode in ("CMYK", "YCbCr"):
        other = Image.fromarray(colour(5)).convert(mode)
        stored = encoded(other, "TIFF")
        expected = np.asarray(Image.open(io.BytesIO(stored)).convert("RGB"))
        np.testing.assert_array_equal(pixels_of(stored), as_sample(expected))


def test_few_bits_of_grey_are_scaled_to_the_whole_range() -> None:
    assert pixels_of(png(0, 2, 4, [bytes([0b00011011])])).tolist() == [[[0, 85, 170, 255]]]


OPAQUE, GLASS = Image.new("L", (6, 8), 255), Image.new("L", (6, 8), 254)


def with_alpha(mode: str, alpha: Image.Image) -> Image.Image:
    image = Image.fromarray(grey(6) if mode == "LA" else colour(6))
    image.putalpha(alpha)
    return image


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_dropped_where_it_is_wholly_opaque_and_refused_elsewhere(mode: str) -> None:
    opaque = with_alpha(mode, OPAQUE)
    assert opaque.mode == mode
    expected = grey(6) if mode == "LA" else colour(6)
    np.testing.assert_array_equal(pixels_of(encoded(opaque)), as_sample(expected))
    assert f"(mode {mode}) is not opaque, its least alpha is 254 of 255. Flatten it" in refusal(
        encoded(with_alpha(mode, GLASS))
    )


def test_a_transparent_colour_counts_only_where_a_pixel_has_it() -> None:
    for pixels, absent, present in (
        (np.full((2, 3), 9, np.uint8), 8, 9),
        (np.full((2, 3, 3), 9, np.uint8), (9, 9, 8), (9, 9, 9)),
    ):
        image = Image.fromarray(pixels)
        np.testing.assert_array_equal(pixels_of(encoded(image, transparency=absent)), as_sample(pixels))
        assert "its least alpha is 0 of 255" in refusal(encoded(image, transparency=present))
    palette = Image.fromarray(colour(4)).quantize(7)
    assert "(mode P) is not opaque" in refusal(encoded(palette, transparency=0))
    assert pixels_of(encoded(palette, transparency=200)).shape == (3, 8, 6)


SIXTEEN = np.full((2, 2), 40_000, np.uint16)
DEEP = {
    "16-bit grey PNG": encoded(Image.fromarray(SIXTEEN)),
    "16-bit colour PNG": png(2, 16, 2, [bytes(12)] * 2),
    "16-bit grey and alpha PNG": png(4, 16, 2, [bytes(8)] * 2),
    "16-bit TIFF": encoded(Image.fromarray(SIXTEEN), "TIFF"),
    "16-bit PPM": b"P6\n2 2\n65535\n" + bytes(24),
    "16-bit PGM": b"P5\n2 2\n65535\n" + bytes(8),
    "float TIFF": encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"),
    "32-bit TIFF": encoded(Image.fromarray(np.ones((2, 2), np.int32)), "TIFF"),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_eight_bits_are_refused_and_never_clipped(name: str) -> None:
    said = refusal(DEEP[name])
    assert "8 bits a channel, grey or colour, are needed, and nothing is clipped silently. Convert it" in said
    assert "16 bits a channel" in said or "mode F" in said or "mode I" in said


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM"])
def test_a_truncated_image_is_refused(kind: str, kept: float) -> None:
    whole = encoded(Image.fromarray(grey(7, 40, 40)), kind)
    assert "this image cannot be decoded" in refusal(whole[: int(kept * len(whole))])


@pytest.mark.parametrize("content", [b"", b"name,age\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_image_is_refused_and_postscript_is_never_run(content: bytes) -> None:
    assert "this image cannot be decoded (it is no image of a known format)" in refusal(content)


def test_several_frames_are_refused() -> None:
    frames = [Image.fromarray(grey(seed)) for seed in range(3)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert "the file holds 3 frames; one image a file is needed" in refusal(content)


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    bomb = png(0, 8, side, [b""])  # its header alone decides
    bomb = bomb[:20] + side.to_bytes(4, "big") + bomb[24:]
    bomb = bomb[:29] + zlib.crc32(bomb[12:29]).to_bytes(4, "big") + bomb[33:]
    with bombs_are_errors():
        said = refusal(bomb)
    assert "more pixels; the 89,478,485 that Pillow accepts (PIL.Image.MAX_IMAGE_PIXELS)" in said


def test_the_orientation_that_a_camera_noted_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert pixels_of(encoded(Image.fromarray(grey(8)), "PNG", exif=exif)).tolist() == as_sample(grey(8)).tolist()


def test_modes_are_converted_as_by_pillow() -> None:
    pixels = colour(9)
    assert in_mode(as_sample(pixels), "L").tolist() == [np.asarray(Image.fromarray(pixels).convert("L")).tolist()]
    assert in_mode(grey(9)[None], "RGB").tolist() == [grey(9).tolist()] * 3
    assert in_mode(grey(9)[None], "L").tolist() == [grey(9).tolist()]


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    closed = (tmp_path / "x.png").open("wb")
    closed.close()
    with pytest.raises(DatasetError, match="here: this image cannot be decoded"):
        decoded(closed, "here")
