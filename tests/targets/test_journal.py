"""The journal: whole lines count, and what a kill or a fault left after them does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.targets.block_table import Checksums
from pipeline.targets.journal import JOURNAL_FILE, CommittedBlock, Journal


def block(number: int) -> CommittedBlock:
    return CommittedBlock(number, (Checksums(34, number * 7, f"{number:064x}"),), {"4.0": {"kl_sum": 0.1 + number}})


def journal_of(folder: Path, *numbers: int) -> bytes:
    journal = Journal(folder)
    for number in numbers:
        journal.append(block(number))
    journal.close()
    return (folder / JOURNAL_FILE).read_bytes()


def reopened(folder: Path) -> dict[int, CommittedBlock]:
    journal = Journal(folder)
    journal.close()
    return journal.committed


def test_a_block_is_one_line_of_json(tmp_path: Path) -> None:
    [line] = journal_of(tmp_path, 3).splitlines()
    assert json.loads(line) == {
        "block": 3,
        "objects": [{"size": 34, "crc32c": 21, "sha256": f"{3:064x}"}],
        "certificate": {"4.0": {"kl_sum": 3.1}},
        "inherited": {},
    }


def test_what_was_appended_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    journal_of(tmp_path, 2, 0)
    journal_of(tmp_path, 1)
    assert reopened(tmp_path) == {number: block(number) for number in (0, 1, 2)}


def test_a_line_cut_short_anywhere_is_dropped_and_written_over(tmp_path: Path) -> None:
    whole = journal_of(tmp_path, 0, 1, 2)
    second = len(b"".join(whole.splitlines(keepends=True)[:2]))
    for length in range(second, len(whole)):
        (tmp_path / JOURNAL_FILE).write_bytes(whole[:length])
        assert reopened(tmp_path) == {0: block(0), 1: block(1)}
        assert (tmp_path / JOURNAL_FILE).read_bytes() == whole[:second]
    assert journal_of(tmp_path, 2) == whole


@pytest.mark.parametrize(
    "garbage",
    [
        b"\n",
        b"\0" * 4096,
        b"\0" * 100 + b"\n",
        b"\xff\xfe\n",
        b"{}\n",
        b"[]\n",
        b"null\n",
        b'{"block":1}\n',
        b'{"block":1,"objects":[{}],"certificate":{}}\n',
        b'{"block":1,"objects":7,"certificate":{}}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_garbage_and_all_after_it_is_dropped(garbage: bytes, tmp_path: Path) -> None:
    whole = journal_of(tmp_path, 0)
    later = journal_of(tmp_path, 1)[len(whole) :]
    (tmp_path / JOURNAL_FILE).write_bytes(whole + garbage + later)
    assert reopened(tmp_path) == {0: block(0)}
    assert (tmp_path / JOURNAL_FILE).read_bytes() == whole


def test_a_forgotten_block_comes_back_with_its_later_line(tmp_path: Path) -> None:
    journal_of(tmp_path, 0, 1)
    journal = Journal(tmp_path)
    journal.forget(0)
    assert set(journal.committed) == {1}
    other = CommittedBlock(0, (Checksums(34, 99, "f" * 64),), {})
    journal.append(other)
    journal.close()
    assert reopened(tmp_path) == {0: other, 1: block(1)}
