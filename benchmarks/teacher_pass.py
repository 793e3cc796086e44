"""teacher-targets against a bare loop: the same batches of the same loader through the same teacher, logits discarded.

python -m benchmarks.teacher_pass [--quick]
"""

from __future__ import annotations

import shutil
import tempfile
from itertools import count
from pathlib import Path

import numpy as np

from benchmarks.rounds import QUICK_ROUNDS, ROUNDS, Findings, Row, alternately, at_most, median_ratio, run, seconds_of
from benchmarks.workload import cache_in, forward_over, mflop_per_sample, network, plan_of, random_images

TEACHER: dict[str, object] = {"channels": (32, 64, 128), "halved_after": (2,)}
BATCH_SIZE = 256
LEAST_MFLOP = 50.0


def compared(samples: int, classes: int, rounds: int, folder: Path) -> Row:
    """One row: making a cache, everything included, over the bare loop."""
    teacher = network(TEACHER, classes)
    dataset = random_images(samples, classes)
    mflop, plan, forward = mflop_per_sample(teacher), plan_of(dataset, BATCH_SIZE), forward_over(teacher, dataset)
    assert mflop >= LEAST_MFLOP
    places = (folder / f"{classes}-{number}" for number in count())

    def cached() -> float:
        place = next(places)
        seconds = seconds_of(lambda: cache_in(place, plan, forward))
        shutil.rmtree(place)
        return seconds

    def bare() -> None:
        for start in range(0, samples, BATCH_SIZE):
            forward(np.arange(start, min(start + BATCH_SIZE, samples)))

    ratio, words = median_ratio(
        alternately(rounds, **{"teacher-targets": cached, "bare loop": lambda: seconds_of(bare)}),
        "teacher-targets",
        "bare loop",
    )
    what = f"{classes} classes, {samples:,} samples, teacher of {mflop:.0f} MFLOP a sample"
    return at_most(what, words, ratio, 1.05)


def measure(quick: bool) -> Findings:
    """Few and many classes: what is stored for a sample grows with them, what the teacher computes hardly."""
    rounds, samples = (QUICK_ROUNDS, 64) if quick else (ROUNDS, 8192)
    with tempfile.TemporaryDirectory() as folder:
        rows = [compared(samples, classes, rounds, Path(folder)) for classes in (10, 1000)]
    return Findings(
        "teacher-targets against a bare forward loop",
        rows,
        {"names": ["10 classes", "1000 classes"], "ratios": [row.value for row in rows], "limit": 1.05},
    )


if __name__ == "__main__":
    run(measure)
