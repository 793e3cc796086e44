"""Timing a teacher's pass: small caches are really made, the first to warm up, the last to measure."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.batch_size import with_batch_size
from pipeline.dataset import Rows
from pipeline.planning.price import PassSpeed
from pipeline.progress import no_bar
from pipeline.sorting import Indices
from pipeline.targets.production import TeacherForward
from pipeline.targets.shelf import Shelf
from pipeline.targets.writer import CachePlan
from pipeline.teacher_pass import make_cache

TIMED_SECONDS = 4.0  # of the pass that counts, as near as the one before it tells; half of that is enough
BATCHES_BEFORE = 2  # of the first pass

Opening = Callable[[Indices], TeacherForward]


@dataclass(frozen=True)
class TimedPass:
    """How fast the teacher fills a cache, in batches of which size, and the folder of the last cache that was made."""

    speed: PassSpeed
    batch_size: int
    folder: Path


@dataclass(frozen=True)
class _Made:
    """One cache: seconds until the teacher was open, by when its index is written, and of all that followed."""

    folder: Path
    rows: int
    setup_seconds: float
    row_seconds: float


def timed_rows(rows: int, block: int, batch: int, affordable: int) -> int:
    """How many of `rows` to time: all that are affordable, in whole blocks, or in whole batches where that is less than one."""
    if affordable >= rows:
        return rows
    unit = block if affordable >= block else min(batch, block)
    return min(rows, max(1, affordable // unit) * unit)


def timed_pass(plan: CachePlan, open_teacher: Opening, folder: Path) -> TimedPass:
    """Time the pass that `plan` asks for, on some of its rows.

    Caches are made until one took long enough to count; each has rows of its own as long as there are enough, so that no
    sample is met a second time. `folder` must be empty, and keeps what is made. Raises what making a cache raises.
    """
    started = time.monotonic()
    searched = with_batch_size(plan, open_teacher, lambda: np.arange(len(plan.rows)))
    search_seconds = time.monotonic() - started if searched is not plan else 0.0
    plan, batch, rows = searched, searched.resumable["batch_size"], len(searched.rows)
    block, first = plan.block_arrays()[0].rows_per_chunk, 0
    cold = made = _made(plan, 0, min(rows, BATCHES_BEFORE * batch), open_teacher, folder / "0")
    for number in (1, 2, 3):
        first += made.rows
        many = timed_rows(rows, block, batch, int(TIMED_SECONDS / made.row_seconds))
        made = _made(plan, first, many, open_teacher, folder / str(number))
        if many == rows or many * made.row_seconds >= TIMED_SECONDS / 2:
            break
    later = search_seconds + made.setup_seconds
    startup = search_seconds + cold.setup_seconds + cold.rows * max(0.0, cold.row_seconds - made.row_seconds)
    speed = PassSpeed(max(startup, later), later, made.row_seconds, made.rows)
    return TimedPass(speed, batch, made.folder)


def _made(plan: CachePlan, first: int, count: int, open_teacher: Opening, folder: Path) -> _Made:
    """Make a cache of `count` rows of the plan, from `first` on or, where these are too few, of the last."""
    first, opened = min(first, len(plan.rows) - count), 0.0

    def opening(order: Indices) -> TeacherForward:
        nonlocal opened
        teacher = open_teacher(order)
        opened = time.monotonic()
        return teacher

    part = replace(plan, rows=_some(plan.rows, slice(first, first + count)))
    started = time.monotonic()
    made = make_cache(Shelf(folder), part, opening, no_bar, lambda text: None, {"recipe": "plan"})
    setup = opened - started
    return _Made(made.folder, count, setup, max(made.seconds - setup, 1e-9) / count)


def _some(rows: Rows, at: slice) -> Rows:
    return Rows(rows.first_index[at], rows.digests[at], rows.views[at], rows.labels[at])
