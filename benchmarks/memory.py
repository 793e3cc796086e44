"""Anonymous memory of a student's epoch against the rows of its cache, each epoch in a fresh process.

python -m benchmarks.memory [--quick]

A process reads the inputs from a memory-mapped file, which is no anonymous memory. It holds everything else as any run
does: labels, digests of the samples (which it computes), the join with the cache, the order of the epoch, the network.
The parent reads the process's RssAnon from /proc every 2 ms.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.rounds import Findings, at_most, run

BATCH_SIZE = 128  # large batches have temporaries of many MB, whose peaks would hide what grows with the rows
VALUES = 16  # numbers in a sample
SECONDS_BETWEEN_READINGS = 0.002


def make(folder: Path, rows: int, classes: int) -> None:
    """The inputs of one size, shuffled against the rows of their cache, and the cache."""
    from benchmarks.workload import cache_in, class_names, made_up_teacher, plan_of
    from data.arrays import ArrayDataset

    values = np.random.default_rng(0).integers(0, 256, (rows, VALUES), dtype=np.uint8)
    labels = np.arange(rows) % classes
    dataset = ArrayDataset(values, labels, class_names(classes), "training", "noise")
    cache_in(folder / "caches", plan_of(dataset, batch_size=4096), made_up_teacher(classes))
    shuffled = np.random.default_rng(1).permutation(rows)
    np.save(folder / "values.npy", values[shuffled])
    np.save(folder / "labels.npy", labels[shuffled])


def epoch(folder: Path, classes: int) -> None:
    """Open the cache, join the samples to it, train one epoch."""
    from benchmarks.workload import TEMPERATURE, class_names, epoch_seconds
    from data.arrays import ArrayDataset
    from pipeline.recipe import Model
    from pipeline.student_data import CachedSoftTargets, learning_set
    from pipeline.targets.reader import TargetCache

    values = np.load(folder / "values.npy", mmap_mode="r")
    labels = np.load(folder / "labels.npy")
    dataset = ArrayDataset(values, labels, class_names(classes), "training", "noise")
    learn = learning_set(dataset)
    [cache] = (folder / "caches").glob("[!.]*")
    soft_targets = CachedSoftTargets(TargetCache(cache), learn, TEMPERATURE, None).for_loss
    epoch_seconds(Model(model="mlp", options={"hidden": (64,)}), learn, BATCH_SIZE, soft_targets)


def process(*arguments: str) -> int:
    """Run this program as a process of its own; returns the largest RssAnon that was seen, in bytes."""
    largest = 0
    with subprocess.Popen([sys.executable, "-m", "benchmarks.memory", *arguments]) as child:
        status = Path(f"/proc/{child.pid}/status")
        while child.poll() is None:
            lines = [line for line in status.read_text().splitlines() if line.startswith("RssAnon:")]
            largest = max([largest, *(1024 * int(line.split()[1]) for line in lines)])
            time.sleep(SECONDS_BETWEEN_READINGS)
    if child.returncode != 0:
        raise RuntimeError(f"benchmarks.memory {' '.join(arguments)} ended with {child.returncode}")
    return largest


def measure(quick: bool) -> Findings:
    """The peak at two sizes, in alternation."""
    rounds, sizes, classes = (1, (1000, 3000), 10) if quick else (3, (50_000, 500_000), 1000)
    peaks: dict[int, list[int]] = {rows: [] for rows in sizes}
    with tempfile.TemporaryDirectory() as place:
        for rows in sizes:
            folder = Path(place, str(rows))
            folder.mkdir()
            process("make", str(folder), str(rows), str(classes))
        for _ in range(rounds):
            for rows in sizes:
                peaks[rows].append(process("epoch", str(Path(place, str(rows))), str(classes)))
    small, large = (int(statistics.median(peaks[rows])) for rows in sizes)
    per_row = (large - small) / (sizes[1] - sizes[0])
    words = (
        f"{small / 1e6:.1f} MB at {sizes[0]:,} rows, {large / 1e6:.1f} MB at {sizes[1]:,}: {per_row:.1f} bytes for each row "
        f"more (medians of {rounds})"
    )
    rows_ = [
        at_most(
            f"peak RssAnon of a student's epoch, {classes} classes, batch {BATCH_SIZE}, samples in another order",
            words,
            per_row,
            40.0,
        )
    ]
    return Findings("Memory against rows", rows_, {"rows": list(sizes), "peaks": [small, large]})


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        make(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    elif sys.argv[1:2] == ["epoch"]:
        epoch(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        run(measure)
