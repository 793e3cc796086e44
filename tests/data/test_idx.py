"""The IDX source: the four files plain or gzipped, and every malformed one refused by file and row."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from data.errors import DatasetError
from data.idx import FILES, IdxSource, read_idx

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILES
ROWS = {TRAIN_IMAGES: 50, TRAIN_LABELS: 50, TEST_IMAGES: 8, TEST_LABELS: 8}


def idx(array: NDArray[np.uint8]) -> bytes:
    """An IDX file, written by the format's description alone."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


def content_of(name: str) -> NDArray[np.uint8]:
    generator = np.random.default_rng(FILES.index(name))
    if "images" in name:
        return generator.integers(0, 256, (ROWS[name], 4, 3), dtype=np.uint8)
    return (np.arange(ROWS[name]) % 3).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The four files; the first and the last are gzipped."""
    for name in FILES:
        content = idx(content_of(name))
        if name in (TRAIN_IMAGES, TEST_LABELS):
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (tmp_path / name).write_bytes(content)
    return tmp_path


def source_of(folder: Path, **options: object) -> IdxSource:
    return IdxSource(folder, validation=0.2, test=0.2, split_seed=0, **options)  # type: ignore[arg-type]


def refusal(folder: Path, **options: object) -> str:
    with pytest.raises(DatasetError) as refused:
        source_of(folder, **options).load()
    return str(refused.value)


@given(arrays(np.uint8, array_shapes(min_dims=1, max_dims=3, max_side=5)))
def test_any_array_is_read_back_plain_and_gzipped(
    tmp_path_factory: pytest.TempPathFactory, array: NDArray[np.uint8]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "any-ubyte").write_bytes(idx(array))
    (folder / "any-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    for name in ("any-ubyte", "any-ubyte.gz"):
        np.testing.assert_array_equal(read_idx(folder / name, array.ndim), array)


def test_the_test_split_is_t10k_and_the_others_are_split_by_content(folder: Path) -> None:
    splits = source_of(folder).load()
    assert list(splits) == ["training", "validation", "test"]
    assert len(splits["training"]) + len(splits["validation"]) == 50
    np.testing.assert_array_equal(splits["test"].values, content_of(TEST_IMAGES)[:, None])
    np.testing.assert_array_equal(splits["test"].labels(), content_of(TEST_LABELS))
    for split in ("training", "validation"):
        positions = splits[split].positions
        assert len(positions) > 0
        np.testing.assert_array_equal(splits[split].values, content_of(TRAIN_IMAGES)[positions][:, None])
        np.testing.assert_array_equal(splits[split].labels(), content_of(TRAIN_LABELS)[positions])
        assert splits[split].sample_shape == (1, 4, 3)
        assert splits[split].class_names == ("0", "1", "2")


def test_files_names_what_is_there_whether_gzipped_or_not(folder: Path) -> None:
    assert source_of(folder).files() == {
        TRAIN_IMAGES: folder / f"{TRAIN_IMAGES}.gz",
        TRAIN_LABELS: folder / TRAIN_LABELS,
        TEST_IMAGES: folder / TEST_IMAGES,
        TEST_LABELS: folder / f"{TEST_LABELS}.gz",
    }


def test_class_names_are_those_of_the_recipe(folder: Path) -> None:
    assert source_of(folder, class_names=("ant", "bee", "cat", "dog")).load()["test"].class_names == (
        "ant",
        "bee",
        "cat",
        "dog",
    )


def test_the_sha256_of_the_decompressed_content_is_checked(folder: Path) -> None:
    right = {name: hashlib.sha256(idx(content_of(name))).hexdigest().upper() for name in FILES}
    assert len(source_of(folder, sha256=right).load()["test"]) == 8
    for name in (TRAIN_IMAGES, TEST_IMAGES):
        said = refusal(folder, sha256={name: "0" * 64})
        assert said.startswith(str(folder / name))
        assert f"has sha256 {right[name].lower()}, but data.sha256 gives {'0' * 64}" in said


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_and_where_to_get_it(folder: Path, name: str) -> None:
    for path in folder.glob(f"{name}*"):
        path.unlink()
    said = refusal(folder, source="https://example.org/fashion")
    assert said.startswith(
        f"{folder / name}: no such file, nor with .gz at its end. Get it from: https://example.org/fas"
    )
    assert "SOFTCACHE_DATA" in said
    assert "Get it from" not in refusal(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere").startswith(f"{tmp_path / 'nowhere' / TRAIN_IMAGES}: no such file")


Change = Callable[[bytes], bytes]
DAMAGES: dict[str, tuple[Change, str]] = {
    "nothing": (lambda whole: b"", "cut short; it ends within its header, after 0 bytes"),
    "half a header": (lambda whole: whole[:9], "cut short; it ends within its header, after 9 bytes"),
    "truncated": (
        lambda whole: whole[: 16 + 12 * 3 + 5],
        r"cut short in row 3; its header (8, 4, 3) announces 96 bytes, but 41",
    ),
    "one byte short": (lambda whole: whole[:-1], "cut short in row 7"),
    "trailing byte": (lambda whole: whole + b"\0", "there are bytes after the 96 that its header (8, 4, 3) announces"),
    "labels' magic": (
        lambda whole: b"\0\0\x08\x01" + whole[4:],
        "the magic number is 00000801, but 00000803 is needed",
    ),
    "floats": (lambda whole: b"\0\0\x0d\x03" + whole[4:], "the magic number is 00000d03, but 00000803 is needed"),
    "gzipped": (
        gzip.compress,
        "is needed for an IDX file of unsigned bytes with 3 dimensions (it is gzipped: its name must",
    ),
    "huge": (lambda whole: whole[:4] + b"\xff" * 12 + whole[16:], "cut short in row 0; its header (4294967295, "),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_refused_by_name(folder: Path, name: str) -> None:
    change, message = DAMAGES[name]
    path = folder / TEST_IMAGES
    path.write_bytes(change(path.read_bytes()))
    said = refusal(folder)
    assert said.startswith(f"{path}: ")
    assert message in said


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_gzip_file_is_refused(folder: Path, kept: float) -> None:
    path = folder / f"{TRAIN_IMAGES}.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    said = refusal(folder)
    assert said.startswith(f"{path}: ")
    assert "cut short" in said


def test_changed_bytes_in_a_gzip_file_are_refused(folder: Path) -> None:
    path = folder / f"{TRAIN_IMAGES}.gz"
    whole = bytearray(path.read_bytes())
    for place in (3, len(whole) // 2, len(whole) - 6):
        changed = bytearray(whole)
        changed[place] ^= 0x5A
        path.write_bytes(changed)
        assert refusal(folder).startswith(f"{path}: ")
    path.write_bytes(b"no gzip file at all")
    assert "the gzip file is damaged or cut short" in refusal(folder)


def test_unequal_lengths_are_refused_with_both_files(folder: Path) -> None:
    (folder / TEST_IMAGES).write_bytes(idx(content_of(TEST_IMAGES)[:7]))
    assert refusal(folder) == (
        f"{folder / TEST_IMAGES} has 7 images, but {folder / TEST_LABELS}.gz has 8 labels; they must be equal."
    )


def test_a_label_out_of_range_is_refused_by_file_and_row(folder: Path) -> None:
    labels = content_of(TRAIN_LABELS)
    labels[17] = 9
    (folder / TRAIN_LABELS).write_bytes(idx(labels))
    said = refusal(folder, class_names=("a", "b", "c"))
    assert said.startswith(f"{folder / TRAIN_LABELS}: row 17 has label 9; 0 to 2 are allowed")


def test_images_of_another_size_than_those_of_training_are_refused(folder: Path) -> None:
    (folder / TEST_IMAGES).write_bytes(idx(np.zeros((8, 5, 5), np.uint8)))
    assert "samples of x_test have shape (1, 5, 5), those of x_training (1, 4, 3)" in refusal(folder)


def test_the_real_fashion_mnist_is_read_and_verified() -> None:
    folder = Path(os.environ.get("SOFTCACHE_DATA", ".")) / "fashion-mnist"
    if not folder.is_dir():
        pytest.skip("SOFTCACHE_DATA names no folder with fashion-mnist in it")
    sha256 = {
        TRAIN_IMAGES: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        TEST_IMAGES: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    }
    splits = source_of(folder, sha256=sha256).load()
    assert {split: len(part) for split, part in splits.items()} == {
        "training": 47854,
        "validation": 12146,
        "test": 10000,
    }
    assert np.bincount(splits["test"].labels()).tolist() == [1000] * 10
    assert splits["training"].sample_shape == (1, 28, 28)
