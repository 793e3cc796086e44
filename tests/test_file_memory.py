"""Remembered digests: a file that was rewritten is read again, however well it hides."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.file_memory import FileMemory, sha256_of_file, sha256_of_source


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


def test_the_source_of_a_stage_is_a_syntax_tree_for_python_and_bytes_for_a_template(tmp_path: Path) -> None:
    code, template = tmp_path / "code.py", tmp_path / "page.html"
    code.write_text("a = 1\n")
    template.write_text("<p>\n")
    before = sha256_of_source(code), sha256_of_source(template)
    code.write_text("# a remark\na  =  1\n")
    template.write_text("<p>\n\n")
    assert sha256_of_source(code) == before[0]
    assert sha256_of_source(template) != before[1]
