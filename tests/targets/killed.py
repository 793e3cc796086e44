"""Teacher passes in processes of their own that are really killed: at a chosen point of the protocol, or from outside.

Processes come from a fork server that has imported torch, zarr and h5py but has run nothing: forking after OpenMP or
zarr's event loop have started would hang.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.targets.journal import JOURNAL_FILE
from tests.targets.tiny import Tiny

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pytest", "hypothesis", "zarr", "h5py", "torch", "tests.targets.killed"])

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")  # audit events, os.replace is os.rename


@dataclass(frozen=True)
class Death:
    """The process kills itself just before the `point`-th change of the folder, or halfway through it if that writes."""

    point: int
    halfway: bool = False


@dataclass
class Points:
    """Counts the points at which a process changes a folder on disk, from 0, and dies at one of them.

    A point is a call of open for writing, pwrite, fsync, rename, unlink, mkdir, rmdir or truncate. Killed between two
    points, a process leaves the folder as if it was killed just before the later one.
    """

    folder: Path
    death: Death | None
    writes: list[int] = field(default_factory=list)
    passed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def install(self) -> None:
        """Watch this process until it ends."""
        pwrite, fsync = os.pwrite, os.fsync

        def watched_pwrite(descriptor: int, data: Any, offset: int) -> int:
            if self._passes(is_write=True):
                pwrite(descriptor, memoryview(data)[: len(data) // 2], offset)
                die()
            return pwrite(descriptor, data, offset)

        def watched_fsync(descriptor: int) -> None:
            self._passes()
            fsync(descriptor)

        patch.object(os, "pwrite", watched_pwrite).start()
        patch.object(os, "fsync", watched_fsync).start()
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in CHANGES or (event == "open" and arguments[2] & WRITING)
        if changes and self._is_inside(arguments[0]):
            self._passes()

    def _is_inside(self, path: Any) -> bool:
        # A relative name or a descriptor comes from rmtree, which works within the folder that it removes.
        return isinstance(path, int) or not Path(path).is_absolute() or Path(path).is_relative_to(self.folder)

    def _passes(self, is_write: bool = False) -> bool:
        """Count one point; dies here, or returns True where the process is to die halfway through the write."""
        with self._lock:
            point, self.passed = self.passed, self.passed + 1
            if is_write:
                self.writes.append(point)
        if self.death is None or self.death.point != point:
            return False
        if not (is_write and self.death.halfway):
            die()
        return True


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Attempt:
    """One run of a teacher pass. The teacher appends each row that it computes to `log`."""

    tiny: Tiny
    folder: Path
    log: Path
    death: Death | None = None
    seconds_per_batch: float = 0.0
    counted: Path | None = None

    @property
    def cache(self) -> Path:
        return self.folder / self.tiny.plan().key

    def start(self) -> ForkServerProcess:
        process = CONTEXT.Process(target=self.run, daemon=True)
        process.start()
        return process

    def wait(self) -> int | None:
        """Run to the end; the exit code, which is -9 for a process that was killed."""
        process = self.start()
        process.join()
        return process.exitcode

    def run(self) -> None:
        """What the process does."""
        torch.set_num_threads(1)
        points = Points(self.folder, self.death)
        points.install()
        self.tiny.make(self.folder, self._logging_teacher())
        if self.counted is not None:
            self.counted.write_text(json.dumps({"points": points.passed, "writes": points.writes}))

    def _logging_teacher(self) -> Any:
        forward = self.tiny.teacher()
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

        def logging_forward(indices: NDArray[np.int64]) -> Tensor:
            os.write(log, "".join(f"{index}\n" for index in indices).encode())
            time.sleep(self.seconds_per_batch)
            return forward(indices)

        return logging_forward


def computed_rows(log: Path) -> list[int]:
    """The rows that teachers computed, in order."""
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def committed_rows(tiny: Tiny, cache: Path) -> set[int]:
    """The rows of the blocks that a cache's journal holds, read without the library."""
    return {
        row
        for block in committed_blocks(cache)
        for row in range(block * tiny.rows_per_block, min((block + 1) * tiny.rows_per_block, tiny.rows))
    }


def committed_blocks(cache: Path) -> set[int]:
    """The blocks in the whole lines of a cache's journal."""
    try:
        lines = (cache / JOURNAL_FILE).read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return set()
    return {json.loads(line)["block"] for line in lines if line.endswith(b"\n")}


def folders_in(parent: Path) -> Iterator[Path]:
    """New folders of `parent`, one after another."""
    for number in itertools.count():
        folder = parent / str(number)
        folder.mkdir()
        yield folder
