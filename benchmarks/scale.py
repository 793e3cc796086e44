"""Seconds and anonymous memory against the rows of a cache that is written, verified and served, each in a fresh process.

python -m benchmarks.scale [--quick] [--json FILE] [--folder FOLDER] [--rows N]

Caches of N (default 100,000) and 10 N rows are written for real in FOLDER (default: where temporary files go), and
removed. Seconds are those of the work alone, taken by the process that does it, its imports done. Files stay in the page
cache, but fsync counts: what it waits for, and what the kernel spends on new files and pages, is up to the file system and
to others who use it, so the processor's seconds in the program and in the kernel are told beside.

The parent reads the process's RssAnon from /proc every 2 ms; memory is the largest of these readings less what the process
held after its imports. Of what writing holds, 28 bytes a row are the list of rows that the writer is given.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import numpy as np
import zarr  # noqa: F401 - verifying would import it within its seconds

from benchmarks.rounds import Findings, Row, at_most, median_ratio, run
from benchmarks.synthetic import INDEX_BYTES, random_plan, write_cache
from pipeline.allocator import keep_freed_memory
from pipeline.sorting import Indices
from pipeline.targets.loader import TargetLoader
from pipeline.targets.reader import TargetCache
from pipeline.targets.verification import verify

ROWS, QUICK_ROWS, GROWTH = 100_000, 5000, 10
CLASSES, FEW_CLASSES = 64, 8  # in float16, 128 and 16 bytes a row
ROUNDS = 3
BATCH_SIZE = 256
SECONDS_BETWEEN_READINGS = 0.002
LEAST_SECONDS = 0.001  # the kernel may count none at all

MOST_TIMES_THE_SECONDS = 10.5
MOST_BYTES_A_ROW = 40.0
MOST_SECONDS_TO_SERVE = 0.5
MOST_SECONDS_TO_JOIN = 5.0


@dataclass(frozen=True)
class Sized:
    """A cache, made or to be made, and its size."""

    folder: Path
    rows: int
    classes: int

    @property
    def nbytes(self) -> int:
        """Bytes of all its rows on disk."""
        return self.rows * (2 * self.classes + INDEX_BYTES)


@dataclass(frozen=True)
class Took:
    """Time of one work: by the clock, and what the processor spent in the program and in the kernel (all threads)."""

    seconds: float
    program_seconds: float
    kernel_seconds: float


def timed(work: Callable[[], object]) -> Took:
    """What one call takes."""
    clock, before = time.perf_counter(), getrusage(RUSAGE_SELF)
    work()
    seconds, after = time.perf_counter() - clock, getrusage(RUSAGE_SELF)
    return Took(seconds, after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime)


def write(cache: Sized) -> Took:
    """Commit every block, and seal."""
    plan = random_plan(cache.rows, cache.classes)
    return timed(lambda: write_cache(cache.folder, plan))


def verified(cache: Sized) -> Took:
    """Check every byte, and what a stock reader makes of them."""
    return timed(lambda: verify(cache.folder))


def window_epoch(cache: Sized) -> Took:
    """Open the cache, and go through an epoch in the order `window`."""

    def work() -> None:
        loader = TargetLoader(TargetCache(cache.folder), BATCH_SIZE, order="window", decode=False)
        assert sum(len(batch.positions) for batch in loader) == cache.rows

    return timed(work)


def first_batch(cache: Sized) -> Took:
    """Open the cache, and serve a batch of rows from all over it."""
    rows = np.random.default_rng(1).integers(0, cache.rows, BATCH_SIZE)
    return timed(lambda: TargetCache(cache.folder).soft_targets(rows))


def join(cache: Sized) -> Took:
    """Find the row of every digest, in another order than that of the cache."""
    order = np.random.default_rng(2).permutation(cache.rows)
    digests = np.take(TargetCache(cache.folder).sample_digests(), order, axis=0)
    opened = TargetCache(cache.folder)  # another one, which has checked nothing yet
    found: list[Indices] = []
    took = timed(lambda: found.append(opened.join(digests)))
    assert np.array_equal(found[0], order)
    return took


WORKS: dict[str, Callable[[Sized], Took]] = {
    "write": write,
    "verify": verified,
    "window epoch": window_epoch,
    "first batch": first_batch,
    "join": join,
}
GROWING = ("write", "verify", "window epoch")


@dataclass(frozen=True)
class Ran:
    """What one work took in a process of its own."""

    took: Took
    anonymous_bytes: int  # at most at once, beyond what the imports hold


def anonymous_bytes(process: str) -> int:
    """RssAnon of a process ("self" or its number); 0 once it has ended."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def work_here(name: str, cache: Sized) -> None:
    """What a process of its own does: one work, and a line of JSON about it."""
    keep_freed_memory()  # as every stage does
    imported = anonymous_bytes("self")
    print(json.dumps({"took": asdict(WORKS[name](cache)), "imported": imported}))


def work_apart(name: str, cache: Sized) -> Ran:
    """One work in a process of its own, whose memory is watched."""
    command = [sys.executable, "-m", "benchmarks.scale", "work", name, str(cache.folder), str(cache.rows)]
    largest = 0
    with subprocess.Popen([*command, str(cache.classes)], stdout=subprocess.PIPE, text=True) as child:
        while child.poll() is None:
            largest = max(largest, anonymous_bytes(str(child.pid)))
            time.sleep(SECONDS_BETWEEN_READINGS)
        said = child.communicate()[0]
    if child.returncode != 0:
        raise RuntimeError(f"{name} of {cache} ended with {child.returncode}")
    found = json.loads(said)
    return Ran(Took(**found["took"]), largest - found["imported"])


def grown(place: Path, sizes: tuple[int, int], rounds: int) -> dict[str, dict[int, list[Ran]]]:
    """Each of GROWING at both sizes in every round, every second round the larger first."""
    ran: dict[str, dict[int, list[Ran]]] = {name: {rows: [] for rows in sizes} for name in GROWING}
    for number in range(rounds):
        for rows in reversed(sizes) if number % 2 else sizes:
            cache = Sized(place / f"{rows}-{number}", rows, CLASSES)
            for name in GROWING:
                ran[name][rows].append(work_apart(name, cache))
            shutil.rmtree(cache.folder)
    return ran


def seconds_row(name: str, ran: dict[int, list[Ran]]) -> Row:
    """How many times the seconds the larger cache takes."""
    small, large = (f"{rows:,} rows" for rows in ran)

    def compared(number: Callable[[Took], float]) -> tuple[float, str]:
        return median_ratio({f"{rows:,} rows": [number(one.took) for one in ran[rows]] for rows in ran}, large, small)

    ratio, words = compared(lambda took: took.seconds)
    program, _ = compared(lambda took: max(took.program_seconds, LEAST_SECONDS))
    kernel, _ = compared(lambda took: max(took.kernel_seconds, LEAST_SECONDS))
    words += f"; of processor seconds {program:.1f} in the program, {kernel:.1f} in the kernel"
    what = f"{name}, {CLASSES} classes: seconds of {GROWTH} times the rows"
    return at_most(what, words, ratio, MOST_TIMES_THE_SECONDS)


def memory_row(name: str, ran: dict[int, list[Ran]]) -> Row:
    """How much more memory each row more takes."""
    (small, low), (large, high) = (
        (rows, statistics.median(one.anonymous_bytes for one in runs)) for rows, runs in ran.items()
    )
    per_row = (high - low) / (large - small)
    words = (
        f"{low / 1e6:.1f} MB at {small:,} rows, {high / 1e6:.1f} MB at {large:,}: {per_row:.1f} bytes for each row more "
        f"(medians of {len(ran[small])})"
    )
    return at_most(f"{name}, {CLASSES} classes: peak RssAnon beyond the imports", words, per_row, MOST_BYTES_A_ROW)


def large_rows(cache: Sized, rounds: int) -> list[Row]:
    """Opening a cache of many rows, and joining as many digests to it."""
    written = work_apart("write", cache).took.seconds
    of = f"{cache.rows:,} rows of {2 * cache.classes} bytes of soft targets"
    return [
        _at_most_seconds(
            f"open a cache of {of} (written in {written:.3g} s) and serve {BATCH_SIZE} of them, chosen at random",
            [work_apart("first batch", cache).took.seconds for _ in range(rounds)],
            MOST_SECONDS_TO_SERVE,
        ),
        _at_most_seconds(
            f"join {cache.rows:,} digests to it, in another order",
            [work_apart("join", cache).took.seconds for _ in range(rounds)],
            MOST_SECONDS_TO_JOIN,
        ),
    ]


def _at_most_seconds(what: str, seconds: list[float], limit: float) -> Row:
    median = statistics.median(seconds)
    words = f"{median:.3g} s ({min(seconds):.3g} to {max(seconds):.3g} in {len(seconds)} processes)"
    return at_most(what, words, median, limit)


def measure(quick: bool) -> Findings:
    """Growth with the rows, then what the larger number of rows costs before the first batch."""
    rows = QUICK_ROWS if quick else int(_argument("--rows") or ROWS)
    rounds, sizes = 1 if quick else ROUNDS, (rows, GROWTH * rows)
    with tempfile.TemporaryDirectory(dir=_argument("--folder")) as place:
        _refuse_without_space(Sized(Path(place), sizes[1], CLASSES))
        ran = grown(Path(place), sizes, rounds)
        opened = large_rows(Sized(Path(place, "large"), sizes[1], FEW_CLASSES), rounds)
    found = [*(seconds_row(name, ran[name]) for name in GROWING), *(memory_row(name, ran[name]) for name in GROWING)]
    return Findings("Seconds and memory against rows", [*found, *opened], _series(ran, sizes))


def _series(ran: dict[str, dict[int, list[Ran]]], sizes: tuple[int, int]) -> dict[str, object]:
    def medians(number: Callable[[Ran], float]) -> dict[str, list[float]]:
        return {name: [statistics.median(map(number, ran[name][rows])) for rows in sizes] for name in ran}

    peaks = medians(lambda one: one.anonymous_bytes)
    return {"rows": list(sizes), "seconds": medians(lambda one: one.took.seconds), "peaks": peaks}


def _argument(name: str) -> str | None:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else None


def _refuse_without_space(largest: Sized) -> None:
    free = shutil.disk_usage(largest.folder).free
    if free < 1.1 * largest.nbytes:
        raise SystemExit(
            f"{largest.folder} has {free:,} bytes free; caches of up to {largest.nbytes:,} are written there. "
            "Name another folder (--folder), or fewer rows (--rows)."
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work_here(sys.argv[2], Sized(Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])))
    else:
        run(measure)
