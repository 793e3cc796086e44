"""Caches of random rows, written without a dataset and a teacher: for programs in which only their size counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.workload import TEMPERATURE, class_names, plan_of
from data.arrays import ArrayDataset
from pipeline.dataset import Rows
from pipeline.sorting import all_indices
from pipeline.targets.certificate import Sums
from pipeline.targets.writer import CachePlan, CacheWriter

INDEX_BYTES = 28  # of a row, whatever its soft targets are: digest, view and label


def random_rows(count: int, classes: int) -> Rows:
    """Rows of random digests and labels, in the types that `rows_of` gives."""
    generator = np.random.default_rng(0)
    digests = generator.integers(0, 256, (count, 16), dtype=np.uint8)
    labels = generator.integers(0, classes, count, dtype=np.int64)
    return Rows(all_indices(count), digests, np.zeros(count, np.int32), labels)


def random_plan(rows: int, classes: int) -> CachePlan:
    """The plan of a float16 cache of so many random rows, as a recipe with default settings has it."""
    noise = ArrayDataset(np.zeros((2, 1), np.uint8), np.arange(2), class_names(classes), "training", "noise")
    return replace(plan_of(noise), rows=random_rows(rows, classes))


def write_cache(folder: Path, plan: CachePlan) -> None:
    """Commit every block of the plan, and seal: from soft targets that take no time, with sums that are given."""
    generator = torch.Generator().manual_seed(0)
    logits_NC = torch.randn(2 * plan.rows_per_block, len(plan.class_names), generator=generator)
    pool = [array.numpy() for array in plan.encoding.encode(logits_NC, plan.temperature)]
    writer = CacheWriter(folder, plan)
    for block in range(writer.blocks):
        first, held = 37 * block % plan.rows_per_block, len(writer.rows_of_block(block))  # no block like the one before
        writer.commit(block, [array[first : first + held] for array in pool], {str(TEMPERATURE): _without_error(held)})
    writer.seal({"recipe": "benchmark"})
    writer.close()


def _without_error(rows: int) -> Sums:
    nothing = dict.fromkeys(("kl_sum", "kl_max", "infinite_rows", "absolute_error_max"), 0.0)
    return {**nothing, "retained_mass_sum": float(rows), "rows": float(rows)}
