"""Peers by themselves: one in a process of its own, or the check of all.

python -m benchmarks.peers --check                      one line for each peer
python -m benchmarks.peers source FILE.npy              make the soft targets
python -m benchmarks.peers PEER write FOLDER FILE.npy   store them: seconds and bytes per row, as JSON
python -m benchmarks.peers PEER epoch FOLDER            read epochs: seconds of the first and of the others, as JSON
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import PEERS
from benchmarks.peers.check import check
from benchmarks.peers.measure import BATCH_SIZE, bytes_per_row, consume, timed_write
from benchmarks.peers.peer import BLOCKS, Blocks, Peer
from benchmarks.peers.source import CLASSES, ROWS, make_source, open_source
from pipeline.allocator import keep_freed_memory

ROWS_TO_WARM_UP = 100


def check_all() -> bool:
    """Print for each peer whether it serves what it was given; returns whether all that are installed do."""
    right = True
    for peer in PEERS.values():
        missing, started = peer.missing(), time.perf_counter()
        if missing:
            print(f"{peer.name:24}not installed: {', '.join(missing)}", flush=True)
            continue
        try:
            with tempfile.TemporaryDirectory() as place:
                check(peer, Path(place, "check"))
        except Exception:  # of any package: one line for each peer, and the others are checked all the same
            right = False
            print(f"{peer.name:24}FAILED", traceback.format_exc(), sep="\n", flush=True)
        else:
            print(f"{peer.name:24}ok, {time.perf_counter() - started:.1f} s", flush=True)
    return right


def write(peer: Peer, folder: Path, source: Path, blocks: Blocks) -> dict[str, Any]:
    """Store the source, after little data: what a package imports and sets up once is not counted."""
    with tempfile.TemporaryDirectory() as place:
        peer.write(make_source(Path(place, "source.npy"), ROWS_TO_WARM_UP, 10), Path(place, "warm"), blocks)
    seconds = timed_write(peer, open_source(source), folder, blocks)
    return {"peer": peer.name, "seconds": seconds, "durable": peer.durable, "bytes_per_row": bytes_per_row(folder)}


def epochs(peer: Peer, folder: Path, count: int, batch_size: int, batches: int | None) -> dict[str, Any]:
    """Open, then read `count` epochs after a first one."""
    started = time.perf_counter()
    with peer.open(folder) as opened:
        marks, seen = [time.perf_counter()], []
        for epoch in range(count + 1):
            seen.append(consume(islice(opened(0, epoch, batch_size), batches)))
            marks.append(time.perf_counter())
    seconds = [after - before for before, after in pairwise(marks)]
    return {
        "peer": peer.name,
        "open": marks[0] - started,
        "first": seconds[0],
        "seconds": seconds[1:],
        "rows": [consumed.rows for consumed in seen],
        "sums": [consumed.total for consumed in seen],
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("peer", nargs="?", help=", ".join(["source", *PEERS]))
    parser.add_argument("paths", nargs="*", help="write FOLDER FILE.npy, or epoch FOLDER; of source: FILE.npy")
    parser.add_argument("--check", action="store_true", help="check all peers on little data")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--rows-per-block", type=int, default=BLOCKS.rows_per_block)
    parser.add_argument("--blocks-per-window", type=int, default=BLOCKS.blocks_per_window)
    parser.add_argument("--epochs", type=int, default=3, help="after the first one")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--batches", type=int, help="of each epoch only so many, for slow peers")
    # a second thread of torch waits for the first at every batch, for milliseconds where others use the cores too
    parser.add_argument("--threads", type=int, default=1, help="of torch; packages have threads of their own")
    return parser.parse_args()


def main() -> int:
    """Run what the arguments say; returns the exit code."""
    given = _arguments()
    keep_freed_memory()  # as every stage of softcache does
    torch.set_num_threads(given.threads)
    match [given.peer, *given.paths]:
        case [None] if given.check:
            return 0 if check_all() else 1
        case ["source", file]:
            make_source(Path(file), given.rows, given.classes)
        case [name, "write", folder, source] if name in PEERS:
            blocks = Blocks(given.rows_per_block, given.blocks_per_window)
            print(json.dumps(write(PEERS[name], Path(folder), Path(source), blocks)))
        case [name, "epoch", folder] if name in PEERS:
            print(json.dumps(epochs(PEERS[name], Path(folder), given.epochs, given.batch_size, given.batches)))
        case _:
            print(__doc__, "peers: ", ", ".join(PEERS), sep="\n", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
