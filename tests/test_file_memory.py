"""Remembered digests: a file that was rewritten is read again, however well it hides."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.file_memory import FileMemory, sha256_of_file


def test_a_file_rewritten_in_place_with_its_old_size_and_time_is_read_again(tmp_path: Path) -> None:
    file, memory = tmp_path / "labels", FileMemory(tmp_path / "files.json")
    file.write_bytes(b"before")
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    before = memory.recall(file, sha256_of_file)
    with file.open("r+b") as opened:
        opened.write(b"after!")
    os.utime(file, ns=times)
    assert file.stat().st_mtime_ns == times[1]
    assert memory.recall(file, sha256_of_file) == sha256_of_file(file) != before
