"""Timing a teacher's pass: which rows are run, and that real caches of them are made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from pipeline.planning.pass_timing import timed_pass, timed_rows
from pipeline.targets.manifest import read_manifest
from pipeline.targets.reader import TargetCache
from tests.targets.tiny import Tiny


@pytest.mark.parametrize(
    ("rows", "block", "batch", "affordable", "timed"),
    [
        (1000, 100, 10, 5000, 1000),
        (1000, 100, 10, 1000, 1000),
        (1000, 100, 10, 399, 300),
        (1000, 100, 10, 100, 100),
        (1000, 100, 10, 99, 90),
        (1000, 100, 10, 3, 10),
        (1000, 100, 10, 0, 10),
        (1000, 100, 256, 40, 100),
        (7, 7, 256, 0, 7),
    ],
)
def test_whole_blocks_are_timed_or_else_whole_batches(
    rows: int, block: int, batch: int, affordable: int, timed: int
) -> None:
    assert timed_rows(rows, block, batch, affordable) == timed


def test_every_sample_is_met_once_where_there_are_enough(tmp_path: Path) -> None:
    tiny, asked = Tiny(rows=900, batch_size=8, rows_per_block=16), []
    teacher = tiny.teacher()

    def forward(indices: NDArray[np.int64]) -> Tensor:
        asked.append(indices)
        return teacher(indices)

    timed = timed_pass(tiny.plan(), lambda order: forward, tmp_path)
    np.testing.assert_array_equal(np.concatenate(asked[:2]), np.arange(16))
    assert asked[2][0] == 16 or len(asked[2:]) * 8 > 900 - 16
    made = [len(TargetCache(folder)) for folder in sorted(tmp_path.glob("*/*")) if (folder / "manifest.json").exists()]
    assert sum(made) == sum(map(len, asked))
    assert made[-1] == timed.speed.timed_rows == len(TargetCache(timed.folder))
    assert timed.batch_size == 8
    assert timed.speed.row_seconds > 0
    assert timed.speed.startup_seconds >= timed.speed.cache_seconds > 0


def test_a_dataset_smaller_than_a_batch_is_timed_whole(tmp_path: Path) -> None:
    tiny = Tiny(rows=5, batch_size=256)
    timed = timed_pass(tiny.plan(), lambda order: tiny.teacher(), tmp_path)
    assert timed.speed.timed_rows == len(TargetCache(timed.folder)) == 5


def test_a_batch_size_that_is_left_to_the_machine_is_found_first(tmp_path: Path) -> None:
    tiny = Tiny(rows=64, rows_per_block=32)
    plan = tiny.plan()
    plan = replace(plan, resumable={**plan.resumable, "batch_size": "auto"})
    timed = timed_pass(plan, lambda order: tiny.teacher(), tmp_path)
    assert timed.batch_size in (1, 2, 4, 8, 16, 32)
    provenance = read_manifest(timed.folder).provenance
    assert provenance["batch_size"] == timed.batch_size
