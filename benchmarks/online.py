"""Distillation from a cache against distillation with the teacher in the loop, and the epoch that pays for the cache.

python -m benchmarks.online [--quick]

With SOFTCACHE_DATA the images are those of Fashion-MNIST.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from benchmarks.rounds import (
    QUICK_ROUNDS,
    ROUNDS,
    Findings,
    alternately,
    at_least,
    at_most,
    median_ratio,
    run,
    seconds_of,
)
from benchmarks.workload import (
    TEMPERATURE,
    cache_in,
    epoch_seconds,
    fashion,
    forward_over,
    live,
    mflop_per_sample,
    network,
    plan_of,
)
from pipeline.models import parameter_count
from pipeline.recipe import Model
from pipeline.student_data import CachedSoftTargets, learning_set
from pipeline.targets.reader import TargetCache

TEACHER: dict[str, object] = {
    "channels": (32, 64, 128, 128),
    "kernels": (5, 3, 3, 3),
    "strides": (2, 1, 1, 1),
    "halved_after": (2, 4),
    "head": "flatten",
    "dropout": 0.3,
}
STUDENT: dict[str, object] = {"channels": (8, 16, 32), "strides": (2,), "halved_after": (), "head": "flatten"}
BATCH_SIZE = 128


def measure(quick: bool) -> Findings:
    """Whole epochs of the real loop, reading and its checks included; the cache is made once, as a user makes it."""
    rounds, samples = (QUICK_ROUNDS, 128) if quick else (ROUNDS, 60_000)
    dataset, images = fashion(samples)
    learn, teacher, student = learning_set(dataset), network(TEACHER, 10), Model(model="cnn", options=STUDENT)
    with tempfile.TemporaryDirectory() as folder:
        plan, forward = plan_of(dataset), forward_over(teacher, dataset)
        making = seconds_of(lambda: cache_in(Path(folder), plan, forward))
        cache = Path(folder) / plan.key

        def cached() -> float:
            opened: list[CachedSoftTargets] = []
            opening = seconds_of(lambda: opened.append(CachedSoftTargets(TargetCache(cache), learn, TEMPERATURE, None)))
            return opening + epoch_seconds(student, learn, BATCH_SIZE, opened[0])

        def online() -> float:
            return epoch_seconds(student, learn, BATCH_SIZE, live(teacher, dataset))

        measured = alternately(rounds, cached=cached, online=online)
    ratio, words = median_ratio(measured, "online", "cached")
    medians = {name: statistics.median(values) for name, values in measured.items()}
    saved = medians["online"] - medians["cached"]
    break_even = making / saved if saved > 0 else float("inf")
    few = network(STUDENT, 10)
    what = (
        f"teacher of {parameter_count(teacher):,} parameters ({mflop_per_sample(teacher):.0f} MFLOP a sample), student of "
        f"{parameter_count(few):,} ({mflop_per_sample(few):.1f}), {len(dataset):,} images: {images}"
    )
    rows = [
        at_least(f"online over cached epoch; {what}", words, ratio, 3.0),
        at_most(
            "break-even epoch",
            f"making the cache took {making:.3g} s, an epoch saves {saved:.3g} s; {break_even:.2f} epochs",
            break_even,
            1.5,
        ),
    ]
    return Findings("Cached against online distillation", rows, {**medians, "making": making})


if __name__ == "__main__":
    run(measure)
