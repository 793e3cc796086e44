""".npz files of outputs that are hostile or mistaken are refused by name, before what cannot be is decompressed."""

from __future__ import annotations

import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import OutputsError
from pipeline.teachers.outputs_file import read_outputs
from tests.teachers.source import CLASSES, ROWS, Written, one_part, whole, write_npz

VALUES = Written().values()
DIGESTS = whole().sample_digests()
MEGABYTE = 1_000_000
BOMB = np.zeros(48 * MEGABYTE, np.uint8)  # 47 kB when compressed


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"junk": BOMB}, "'junk' is no array of outputs"),
        ({"logits": BOMB.reshape(-1, 16).view(np.float32)}, r"shape \(3000000, 4\), but the teacher has 3 classes"),
        ({"logits": BOMB.view(np.float64)}, r"shape \(6000000,\)"),
        (
            {"logits": VALUES, "class_names": BOMB.view("<U1")},
            r"class_names is <U1 of shape \(12000000,\); one text for",
        ),
        ({"logits": VALUES, "class_names": BOMB.view("<U4000000")}, r"class_names is <U4000000 of shape \(3,\)"),
        ({"logits": VALUES, "temperature": BOMB}, r"temperature is uint8 of shape \(48000000,\); one number"),
        ({"logits": VALUES, "index": BOMB.view(np.int64)}, "40 rows, but 6000000 in index"),
        ({"logits": VALUES, "digest": BOMB.reshape(ROWS, -1)}, r"digest is uint8 of shape \(40, 1200000\)"),
        ({"logits": VALUES, "view": BOMB.view("V1200000")}, r"view is \|V1200000 of shape \(40,\)"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, dict) else None,
)
def test_what_cannot_be_is_refused_without_being_decompressed(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    tracemalloc.start()
    try:
        with pytest.raises(OutputsError, match=message):
            read_outputs(tmp_path / "a.npz", "logits", CLASSES)
        assert (
            tracemalloc.get_traced_memory()[1] < 16 * MEGABYTE
        )  # the readers, where they are imported only now, take some
    finally:
        tracemalloc.stop()


def test_labels_and_provenance_are_not_read_at_all(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", logits=VALUES, label=BOMB, provenance=BOMB)
    tracemalloc.start()
    try:
        [rows] = read_outputs(tmp_path / "a.npz", "logits", CLASSES).rows
        assert (
            tracemalloc.get_traced_memory()[1] < 16 * MEGABYTE
        )  # the readers, where they are imported only now, take some
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(rows.values, VALUES)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"logits": VALUES[:0], "digest": DIGESTS[:0]}, "logits has no rows"),
        ({"logits": VALUES, "logits_test": VALUES[:0]}, r"logits_test\): logits_test has no rows"),
        ({"logits": VALUES, "temperature": np.array("four")}, "temperature is <U4 of shape .*; one number"),
        ({"logits": VALUES, "temperature": np.zeros(0)}, r"temperature is float64 of shape \(0,\); one number"),
        (
            {"logits": VALUES, "temperature": np.array([1.0, 2.0])},
            r"temperature is float64 of shape \(2,\); one number",
        ),
        (
            {"logits": VALUES, "class_names": np.array(["ant", "bee"])},
            r"shape \(2,\); one text for each of the 3 classes",
        ),
    ],
)
def test_wrong_arrays_are_told_by_name(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = write_npz(tmp_path / "a.npz", **arrays)
    with pytest.raises(OutputsError, match=message) as refused:
        Written().joined(path, one_part())
    assert str(path) in str(refused.value)


def encrypted(content: bytearray, local: int, central: int) -> None:
    content[local + 6] |= 1
    content[central + 8] |= 1


def of_unknown_compression(content: bytearray, local: int, central: int) -> None:
    content[local + 8] = content[central + 10] = 77


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(encrypted, "encrypted"), (of_unknown_compression, "compression")],
)
def test_an_archive_that_cannot_be_opened_is_named(
    tmp_path: Path, spoil: Callable[[bytearray, int, int], None], message: str
) -> None:
    path = write_npz(tmp_path / "a.npz", logits=VALUES)
    content = bytearray(path.read_bytes())
    spoil(content, content.index(b"PK\x03\x04"), content.index(b"PK\x01\x02"))
    path.write_bytes(content)
    with pytest.raises(OutputsError, match=rf"not a whole \.npz file of numbers .*{message}") as refused:
        Written().joined(path, one_part())
    assert str(path) in str(refused.value)


def test_a_header_of_any_size_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("logits.npy", "w") as member:
        member.write(np.lib.format.magic(2, 0) + b"\xff\xff\xff\xff" + BOMB.tobytes()[:MEGABYTE])
    with pytest.raises(OutputsError, match=r"logits\.npy is of version \(2, 0\) of the \.npy format"):
        Written().joined(path, one_part())


def test_a_header_that_promises_more_than_there_is_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("logits.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 3)})
    with pytest.raises(OutputsError, match=r"logits\.npy has 128 bytes, but an array of 12000000000000 bytes is said"):
        Written().joined(path, one_part())


def test_two_arrays_of_one_part_are_refused_with_the_first_rows(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", logits=VALUES, logits_all=VALUES[::-1])
    with pytest.raises(
        OutputsError,
        match=r"logits and logits_all both have rows of part 'all'.* 40 places.*row 0 of logits and row 0 of",
    ):
        Written().joined(path, one_part())
    index = np.arange(ROWS)
    path = write_npz(
        tmp_path / "b.npz", logits=VALUES[:30], index=index[:30], logits_all=VALUES[:27:-1], index_all=index[:27:-1]
    )
    with pytest.raises(OutputsError, match=r" 2 places.*place 28: row 28 of logits and row 11 of logits_all"):
        Written().joined(path, one_part())


def test_two_arrays_of_one_part_may_share_its_places_between_them(tmp_path: Path) -> None:
    index, splits = np.arange(ROWS), one_part()
    path = write_npz(
        tmp_path / "a.npz", logits=VALUES[:30], index=index[:30], logits_all=VALUES[:29:-1], index_all=index[:29:-1]
    )
    joined = Written().joined(path, splits)
    for split, dataset in splits.items():
        found = joined.forward(split)(np.arange(len(dataset))).numpy()
        np.testing.assert_array_equal(found, VALUES[dataset.positions])
