"""Target caches against every other way of storing soft targets: a shuffled epoch, a durable write, bytes and memory.

python -m benchmarks.storage [--quick] [--json FILE]

All store the same float16 rows. Each is read in one process, in rounds, an epoch of the baseline before and after each of its
own; a ratio is the baseline's seconds over those of the other, so that more is faster. What a peer does is in benchmarks/peers/.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.ours import Form, Read, Reading, write
from benchmarks.peers import BASELINE, PEERS
from benchmarks.peers.measure import BATCH_SIZE, bytes_per_row, timed_epoch, timed_write
from benchmarks.peers.peer import Epochs, Peer, Targets
from benchmarks.peers.source import make_source
from benchmarks.rounds import Findings, Row, at_least, reported, run

FORMS = (
    Form(),
    Form("hdf5"),
    Form(encoding="log-uint16"),
    Form(encoding="log-uint8"),
    Form(encoding="float32"),
    Form(encoding="top-64"),
    Form(compression="blosc-lz4"),
    Form(compression="zstd"),
)
PLAIN = (Form(), Form("hdf5"))
READS = (
    *(Read(form, order) for form in PLAIN for order in ("global", "window", "sequential")),
    *(Read(form, "global", decode=True) for form in FORMS[:6]),
    *(Read(form, "window", decode=True) for form in PLAIN[:1]),
    Read(FORMS[6], "window"),
    Read(FORMS[7], "window"),
)
SLOW_EPOCH_SECONDS = 2.0  # of a peer whose epoch takes longer, only a part is read in each round
SLOW_WRITE_SECONDS = 4.0  # such a write is measured once
SECONDS_BETWEEN_READINGS = 0.002

# Peers that a target of the issue names, by what ours must reach of their speed.
AT_LEAST = {
    "huggingface": 10.0,
    "mosaic": 100.0,
    "litdata": 100.0,
    "webdataset": 100.0,
    "torch-files": 100.0,
    "arrow-array": 1.0,
    "lmdb-buffers": 1.0,
}


@dataclass(frozen=True)
class Measured:
    """One way of reading: ratios to the baseline, one for each round, and the first epoch's."""

    name: str
    ratios: list[float]
    first: float
    part: bool

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    def words(self) -> str:
        """For a table."""
        part = " (a part of an epoch)" if self.part else ""
        spread = f"{_digits(min(self.ratios))} to {_digits(max(self.ratios))} in {len(self.ratios)} rounds{part}"
        return f"{_digits(self.ratio)} of the baseline ({spread}; first epoch {_digits(self.first)})"


def measured(
    name: str,
    epoch: Callable[[int | None], float],
    baseline: Callable[[], float],
    batches: int,
    rounds: int,
    only_whole: bool = False,
) -> Measured:
    """Rounds of baseline, epoch, baseline. `epoch(batches)` returns the seconds of an epoch, or of its first batches.

    Of a slow one each round reads a part; one that pays much at the start of an epoch (`only_whole`) is read whole, twice.
    """
    started = baseline()
    warm_up = epoch(None)
    is_slow = warm_up > SLOW_EPOCH_SECONDS
    some = max(1, round(SLOW_EPOCH_SECONDS / warm_up * batches)) if is_slow and not only_whole else None
    ratios = []
    for _ in range(min(rounds, 2) if is_slow and only_whole else rounds):
        before, seconds, after = baseline(), epoch(some), baseline()
        ratios.append((before + after) / 2 * (1.0 if some is None else some / batches) / seconds)
    return Measured(name, ratios, (started + baseline()) / 2 / warm_up, some is not None)


@contextmanager
def opened(peer: Peer, folder: Path) -> Iterator[Callable[[int | None], float]]:
    """A peer's epochs, each with another order."""
    numbers = iter(range(10**9))
    with peer.open(folder) as epochs:

        def epoch(batches: int | None, epochs: Epochs = epochs) -> float:
            return timed_epoch(epochs, next(numbers), batches=batches)

        yield epoch


def folder_of(place: Path, name: str) -> Path:
    """Where a peer's or a form's files are."""
    return place / name.replace(" ", "-")


def writes(source: Targets, place: Path, peers: list[Peer], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way of writing, in rounds, all of them in each unless they are slow; the files of the last remain."""
    seconds: dict[str, list[float]] = {}
    works: dict[str, Callable[[], float]] = {
        peer.name: partial(timed_write, peer, source, folder_of(place, peer.name)) for peer in peers
    }
    works |= {form.name: partial(_written, form, source, place) for form in FORMS}
    for number in range(rounds + 1):
        for name, work in works.items():
            if number == 0 or seconds[name][0] <= SLOW_WRITE_SECONDS:
                seconds.setdefault(name, []).append(work())
                print(f"written: {name}, {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return {name: values[1:] or values for name, values in seconds.items()}


def _written(form: Form, source: Targets, place: Path) -> float:
    folder = folder_of(place, form.name)
    shutil.rmtree(folder, ignore_errors=True)
    os.sync()
    return write(form, source, folder)


def reads(place: Path, peers: list[Peer], rows: int, rounds: int) -> dict[str, Measured]:
    """Every peer, and ours, against the baseline."""
    batches, found = -(-rows // BATCH_SIZE), {}
    with opened(PEERS[BASELINE], folder_of(place, BASELINE)) as base:
        for peer in peers:
            with opened(peer, folder_of(place, peer.name)) as epoch:
                only_whole = peer.order == "own"
                found[peer.name] = measured(peer.name, epoch, lambda: base(None), batches, rounds, only_whole)
            print(f"read: {peer.name}, {found[peer.name].words()}", file=sys.stderr, flush=True)
        for read in READS:
            reading = Reading(read, folder_of(place, read.form.name))
            found[read.name] = measured(read.name, reading.epoch, lambda: base(None), batches, rounds)
            print(f"read: {read.name}, {found[read.name].words()}", file=sys.stderr, flush=True)
    return found


def ten_times(source: Targets, place: Path, rounds: int) -> list[Row]:
    """Ours at ten times the rows, for each row against the same baseline."""
    folder, rows = place / "ten-times", []
    write(PLAIN[0], source, folder, times=10)
    batches = -(-10 * len(source) // BATCH_SIZE)
    with opened(PEERS[BASELINE], folder_of(place, BASELINE)) as base:
        for order in ("global", "window"):
            read = Read(PLAIN[0], order)
            one = measured(read.name, Reading(read, folder).epoch, lambda: 10 * base(None), batches, rounds)
            rows.append(reported(f"{read.name}, {10 * len(source):,} rows", one.words(), one.ratio))
    return rows


def anonymous_memory(arguments: list[str]) -> float:
    """MB of RssAnon that a process of this program reached beyond what it had when its imports were done."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.storage", *arguments], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()  # the imports are done
        status, readings = Path(f"/proc/{child.pid}/status"), []
        while child.poll() is None:
            lines = [line for line in status.read_text().splitlines() if line.startswith("RssAnon:")]
            readings += [1024 * int(line.split()[1]) for line in lines]
            time.sleep(SECONDS_BETWEEN_READINGS)
    if child.returncode != 0:
        raise RuntimeError(f"benchmarks.storage {' '.join(arguments)} ended with {child.returncode}")
    return (max(readings) - readings[0]) / 1e6


def alone(name: str, folder: Path) -> None:
    """Two epochs of a peer, or of one of ours, in this process, for the parent that reads its memory."""
    if name in PEERS:
        PEERS[name].load()
    print("ready", flush=True)
    time.sleep(0.05)
    if name in PEERS:
        with opened(PEERS[name], folder) as epoch:
            epoch(200)
            epoch(200)
    else:
        reading = Reading(next(read for read in READS if read.name == name), folder)
        reading.epoch()
        reading.epoch()


def table(
    found: dict[str, Measured], seconds: dict[str, list[float]], sizes: dict[str, float], memory: dict[str, float]
) -> str:
    """All of it, the fastest first."""
    lines = [
        "| what | order | epoch, of the baseline's speed | first epoch | write, s | bytes a row | RssAnon, MB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    orders = {peer.name: peer.order for peer in PEERS.values()} | {read.name: read.order for read in READS}
    files = {read.name: read.form.name for read in READS}
    for name, one in sorted(found.items(), key=lambda item: -item[1].ratio):
        stored = files.get(name, name)
        durable = " (fsync)" if name in files or PEERS[name].durable else ""
        how = f"**{name}**" if name in files else f"{name}: {PEERS[name].how}"
        lines.append(
            f"| {how} | {orders[name]} | {_digits(one.ratio)} ({_digits(min(one.ratios))} to {_digits(max(one.ratios))}) | "
            f"{_digits(one.first)} | {statistics.median(seconds[stored]):.2f}{durable} | {sizes[stored]:,.0f} | "
            f"{memory[name]:.0f} |"
        )
    return "\n".join(lines)


def targets_of(found: dict[str, Measured], seconds: dict[str, list[float]]) -> list[Row]:
    """What must be reached."""
    rows = []
    for form in PLAIN:
        for order, limit in (("global", 0.85), ("window", 1.2)):
            one = found[Read(form, order).name]  # type: ignore[arg-type]
            rows.append(at_least(one.name, one.words(), one.ratio, limit))
    blosc = found[Read(FORMS[6], "window").name]
    rows.append(at_least(blosc.name, blosc.words(), blosc.ratio, 0.5))
    ours = found[Read(PLAIN[0], "global").name].ratio
    for name, limit in AT_LEAST.items():
        if name in found:
            times = ours / found[name].ratio
            rows.append(
                at_least(
                    f"softcache zarr float16, global, over {name}", f"{_digits(times)} times as fast", times, limit
                )
            )
    window = found[Read(PLAIN[0], "window").name].ratio
    for name in (name for name in found if name in PEERS and PEERS[name].order == "window"):
        times = window / found[name].ratio
        rows.append(reported(f"softcache zarr float16, window, over {name}", f"{_digits(times)} times as fast", times))
    bare = statistics.median(seconds["block-files"])
    for form in PLAIN:
        ours_seconds = statistics.median(seconds[form.name])
        rounds = len(seconds[form.name])
        words = f"commits {ours_seconds:.3f} s, bare write and fsync of each block {bare:.3f} s (medians of {rounds})"
        rows.append(at_least(f"durable write, {form.name}", words, bare / ours_seconds, 0.5))
    for name in found:
        if name in PEERS and PEERS[name].durable and name != "block-files":
            times = statistics.median(seconds[name]) / statistics.median(seconds[PLAIN[0].name])
            rows.append(
                at_least(f"durable write, {PLAIN[0].name}, over {name}", f"{_digits(times)} times as fast", times, 1.0)
            )
    return rows


def _digits(value: float) -> str:
    return f"{value:.2f}" if 0.1 <= value < 100 else f"{value:.3g}"


def measure(quick: bool) -> Findings:
    """All ways of writing, then all ways of reading what they wrote."""
    rows, rounds = (5000, 1) if quick else (200_000, 5)
    peers = [peer for peer in PEERS.values() if not peer.missing()]
    torch.set_num_threads(1)  # as the baseline is read by one thread; peers have what threads they start themselves
    with tempfile.TemporaryDirectory(prefix="softcache-storage-") as name:
        place = Path(name)
        source = make_source(place / "source.npy", rows, 1000)
        seconds = writes(source, place, peers, rounds)
        found = reads(place, peers, rows, rounds)
        sizes = {peer.name: bytes_per_row(folder_of(place, peer.name)) for peer in peers}
        sizes |= {form.name: _bytes_of(folder_of(place, form.name)) / rows for form in FORMS}
        files = {read.name: read.form.name for read in READS}
        large = ten_times(source, place, rounds)
        memory = {
            which: anonymous_memory(["alone", which, str(folder_of(place, files.get(which, which)))]) for which in found
        }
    print(
        f"### Every way of storing and reading {rows:,} rows of 1000 classes\n\n{table(found, seconds, sizes, memory)}\n"
    )
    ratios = {which: one.ratio for which, one in found.items()}
    return Findings(
        f"Target caches against other ways of storing {rows:,} rows of 1000 classes",
        [*targets_of(found, seconds), *large],
        {"ratios": ratios, "bytes": {which: sizes[files.get(which, which)] for which in found}, "ours": sorted(files)},
    )


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    if sys.argv[1:2] == ["alone"]:
        alone(sys.argv[2], Path(sys.argv[3]))
    else:
        run(measure)
