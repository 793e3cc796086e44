"""Too little space, a disk that fills up, and folders that may not be written."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from pipeline.dataset import Rows
from pipeline.errors import StorageError
from pipeline.targets.writer import CacheWriter
from tests.targets.killed import CONTEXT, committed_blocks
from tests.targets.tiny import LAYOUT_NAMES, Tiny, made_content


class ManyRows(Rows):
    """Stands for 10**12 rows without holding them."""

    def __len__(self) -> int:
        return 10**12


@pytest.mark.parametrize(("layout", "trailers"), [("zarr", True), ("hdf5", False)])
def test_too_little_space_is_said_before_anything_is_written(layout: str, trailers: bool, tmp_path: Path) -> None:
    tiny = Tiny(layout, rows_per_block=1_000_000)
    few = tiny.plan().rows
    plan = replace(tiny.plan(), rows=ManyRows(few.first_index, few.digests, few.views, few.labels))
    needed = 10**12 * (16 + 4 + 8 + 2 * 4)
    if trailers:
        needed += 4 * (10**6 + 250_000 + 500_000 + 10**6)
    with pytest.raises(StorageError) as refused:
        CacheWriter(tmp_path / "caches" / "key", plan)
    status = os.statvfs(tmp_path)
    assert f"needs {needed:,} bytes, but only " in str(refused.value)
    said = int(str(refused.value).split("but only ")[1].split(" are free")[0].replace(",", ""))
    assert 0 <= said <= status.f_blocks * status.f_frsize
    assert refused.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if mounted.returncode != 0:
        pytest.skip(f"mounting a small file system is not allowed here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_a_disk_that_fills_up_keeps_what_was_finished(layout: str, small_disk: Path, tmp_path: Path) -> None:
    tiny = Tiny(layout, rows=64, classes=4096, rows_per_block=4, dtype="float16", batch_size=4)  # blocks of 32 KiB
    expected = made_content(tiny.make(tmp_path / "whole").folder)
    caches, filler = small_disk / "caches", small_disk / "filler"

    def filling(indices: NDArray[np.int64]) -> Tensor:
        if indices[0] == 20:
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    continue
        return tiny.teacher()(indices)

    with pytest.raises(OSError, match="No space left") as full:
        tiny.make(caches, filling)
    assert full.value.errno == errno.ENOSPC
    kept = committed_blocks(caches / tiny.plan().key)
    assert {0, 1, 2} <= kept <= {0, 1, 2, 3, 4, 5}
    with pytest.raises(OSError, match="No space left"):  # still full
        tiny.make(caches)
    assert committed_blocks(caches / tiny.plan().key) >= kept
    filler.unlink()
    made = tiny.make(caches)
    assert made.rows_resumed >= 4 * len(kept)
    assert made_content(made.folder) == expected


def test_a_disk_too_small_for_the_cache_is_refused_before_the_teacher_runs(small_disk: Path) -> None:
    tiny = Tiny(rows=600, classes=4096)

    def never(indices: NDArray[np.int64]) -> Tensor:
        raise AssertionError("the teacher ran")

    with pytest.raises(StorageError, match=r"needs 4,93\d,\d{3} bytes, but only 4,\d{3},\d{3} are free"):
        tiny.make(small_disk / "caches", never)


def make_as_nobody(caches: Path, told: Path) -> None:
    """What a process without rights does; it writes down which error it met."""
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    try:
        Tiny().make(caches)
    except OSError as problem:
        told.write_text(f"{problem.errno} {problem.filename}")


def test_a_folder_that_may_not_be_written_is_an_error_that_names_it(fast_folder: Path) -> None:
    caches, told = fast_folder / "caches", fast_folder / "told"
    fast_folder.chmod(0o755)
    caches.mkdir()
    caches.chmod(0o555)
    told.touch()
    told.chmod(0o666)
    process = CONTEXT.Process(target=make_as_nobody, args=(caches, told))
    process.start()
    process.join()
    assert told.read_text() == f"{errno.EACCES} {caches / '.locks'}"
    caches.chmod(0o755)
    assert list(caches.iterdir()) == []
