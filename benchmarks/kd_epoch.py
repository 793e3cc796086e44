"""A distillation epoch from a cache against a label-only epoch of the same student on the same batches.

python -m benchmarks.kd_epoch [--quick]
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from benchmarks.rounds import QUICK_ROUNDS, ROUNDS, Findings, Row, alternately, at_most, median_ratio, run
from benchmarks.workload import TEMPERATURE, cache_in, epoch_seconds, made_up_teacher, plan_of, random_images
from pipeline.recipe import Model
from pipeline.student_data import CachedSoftTargets, learning_set
from pipeline.targets.reader import TargetCache

SMALL = Model(model="cnn", options={"channels": (16, 32), "halved_after": (1,)})  # steps not far above 10 ms
LARGE = Model(model="cnn", options={"channels": (32, 64), "halved_after": (1,)})
BATCH_SIZE = 128
LEAST_STEP_SECONDS = 0.010


def compared(student: Model, samples: int, classes: int, rounds: int, folder: Path) -> Row:
    """One row: the real loop with cached soft targets over the real loop with labels alone."""
    dataset = random_images(samples, classes)
    learn = learning_set(dataset)
    cache = cache_in(folder, plan_of(dataset), made_up_teacher(classes)).folder

    def distilled() -> float:
        # Opened anew, so that the checksums of first use are paid in each epoch.
        soft_targets = CachedSoftTargets(TargetCache(cache), learn, TEMPERATURE, None).for_loss
        return epoch_seconds(student, learn, BATCH_SIZE, soft_targets)

    def labels_only() -> float:
        return epoch_seconds(student, learn, BATCH_SIZE, None)

    measured = alternately(rounds, **{"distilled": distilled, "labels only": labels_only})
    ratio, words = median_ratio(measured, "distilled", "labels only")
    step = min(measured["labels only"]) / (samples // BATCH_SIZE)
    words += f"; a label-only step takes {1000 * step:.1f} ms"
    row = at_most(
        f"{classes} classes, {samples:,} samples, batch {BATCH_SIZE}, CNN of {student.options['channels']}",
        words,
        ratio,
        1.05,
    )
    if step < LEAST_STEP_SECONDS:
        print(f"warning: a label-only step takes {1000 * step:.1f} ms here; at least 10 ms are meant", flush=True)
    return row


def measure(quick: bool) -> Findings:
    """Few and many classes: reading and the loss grow with them."""
    rounds, samples = (QUICK_ROUNDS, 128) if quick else (ROUNDS, 10_240)
    rows = []
    for student, classes in ((SMALL, 10), (SMALL, 1000), (LARGE, 1000)):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(compared(student, samples, classes, rounds, Path(folder)))
    return Findings(
        f"A distillation epoch from the cache against a label-only epoch, {torch.get_num_threads()} threads",
        rows,
        {
            "names": ["10 classes", "1000 classes", "1000 classes, larger student"],
            "ratios": [row.value for row in rows],
            "limit": 1.05,
        },
    )


if __name__ == "__main__":
    run(measure)
