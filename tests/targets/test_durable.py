"""Sharing a file between caches: links where there can be, copies where not, and never a way to change the source."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.durable import share_durably, write_durably


def test_a_shared_file_has_the_same_bytes_and_nothing_is_left_beside(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"rows")
    for _ in range(2):  # again after a kill between the link and what notes it
        share_durably(source, target)
        assert target.read_bytes() == b"rows"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


def test_what_a_killed_run_left_beside_is_replaced(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"rows")
    (tmp_path / ".unfinished-link-target").hardlink_to(source)
    share_durably(source, target)
    assert target.read_bytes() == source.read_bytes() == b"rows"
    assert not (tmp_path / ".unfinished-link-target").exists()


def test_replacing_a_shared_file_leaves_its_source_as_it_was(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"rows")
    share_durably(source, target)
    write_durably(target, b"others")
    assert (source.read_bytes(), target.read_bytes()) == (b"rows", b"others")


def test_a_file_of_another_file_system_is_copied(tmp_path: Path, fast_folder: Path) -> None:
    if os.stat(fast_folder).st_dev == os.stat(tmp_path).st_dev:  # noqa: PTH116
        pytest.skip("one file system alone is here")
    (fast_folder / "source").write_bytes(b"rows")
    share_durably(fast_folder / "source", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"rows"
    assert (tmp_path / "target").stat().st_nlink == 1
