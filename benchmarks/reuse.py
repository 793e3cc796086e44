"""A dataset that grew by a tenth against a full pass: the same teacher, the same rows, with and without the earlier cache.

python -m benchmarks.reuse [--quick]
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.rounds import QUICK_ROUNDS, ROUNDS, Findings, Row, alternately, at_most, median_ratio, run, seconds_of
from benchmarks.workload import cache_in, forward_over, mflop_per_sample, network, plan_of, random_images
from pipeline.dataset import Rows
from pipeline.targets.production import TeacherForward
from pipeline.targets.writer import CachePlan

TEACHER: dict[str, object] = {"channels": (32, 64, 128), "halved_after": (2,)}
BATCH_SIZE = 256
CLASSES = 1000
LIMIT = 0.15


def compared(what: str, order: NDArray[np.int64], earlier: int, rounds: int, folder: Path) -> Row:
    """One row: making a cache of samples in `order` beside one of the first `earlier` samples, over making it alone."""
    dataset = random_images(len(order), CLASSES)
    teacher = network(TEACHER, CLASSES)
    forward = forward_over(teacher, dataset)
    whole = plan_of(dataset, BATCH_SIZE)
    plan, known = _of(whole, order), _of(whole, np.arange(earlier))
    cache_in(folder / "earlier", known, forward)
    calls = 0

    def counting(indices: NDArray[np.int64]) -> Tensor:
        nonlocal calls
        calls += len(indices)
        return forward(indices)

    places = (folder / str(number) for number in count())

    def made(beside: bool, by: TeacherForward) -> float:
        place = next(places)
        if beside:
            shutil.copytree(folder / "earlier", place)
        seconds = seconds_of(lambda: cache_in(place, plan, by))
        shutil.rmtree(place)
        return seconds

    measured = alternately(
        rounds, **{"with the earlier cache": lambda: made(True, counting), "full pass": lambda: made(False, forward)}
    )
    assert calls == (rounds + 1) * (len(order) - earlier), "the teacher runs on the new rows alone"
    ratio, words = median_ratio(measured, "with the earlier cache", "full pass")
    mflop = mflop_per_sample(teacher)
    return at_most(
        f"{what}: {len(order):,} samples of {CLASSES} classes, {len(order) - earlier:,} of them new to a teacher of "
        f"{mflop:.0f} MFLOP a sample",
        words,
        ratio,
        LIMIT,
    )


def _of(plan: CachePlan, samples: NDArray[np.int64]) -> CachePlan:
    rows = plan.rows
    chosen = Rows(samples, rows.digests[samples], rows.views[samples], rows.labels[samples])
    return replace(plan, rows=chosen)


def measure(quick: bool) -> Findings:
    """The new samples at the end, whole blocks being shared; and among the others, all being copied."""
    rounds, earlier = (QUICK_ROUNDS, 200) if quick else (ROUNDS, 20_480)
    samples = earlier * 11 // 10
    shuffled = np.random.default_rng(0).permutation(samples)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        rows = [
            compared("appended", np.arange(samples), earlier, rounds, Path(one)),
            compared("shuffled in", shuffled, earlier, rounds, Path(other)),
        ]
    return Findings("A dataset grown by a tenth against a full pass", rows)


if __name__ == "__main__":
    run(measure)
