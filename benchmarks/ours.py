"""Target caches of the soft targets that the peers store, in each encoding, layout and order: ours, seen as one more peer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.peer import Targets
from benchmarks.synthetic import random_plan
from pipeline.canonical import digest_of
from pipeline.targets.certificate import measure
from pipeline.targets.loader import OrderName, TargetLoader
from pipeline.targets.reader import TargetCache
from pipeline.targets.sparse import SparseTargets
from pipeline.targets.writer import CachePlan, CacheWriter

TEMPERATURE = 4.0  # of the source


@dataclass(frozen=True)
class Form:
    """One way of storing them."""

    layout: str = "zarr"
    encoding: str = "float16"
    compression: str = "none"

    @property
    def name(self) -> str:
        """For folders and tables."""
        return " ".join([self.layout, self.encoding, *([self.compression] if self.compression != "none" else [])])

    def parameters(self) -> dict[str, Any]:
        """Of the encoding: "top-64", or the number format of a dense one."""
        if self.encoding.startswith("top-"):
            k = int(self.encoding.removeprefix("top-"))
            return {"name": "top-k", "k": k, "value_bits": 16, "temperatures": [TEMPERATURE]}
        return {"name": "dense", "dtype": self.encoding}

    def plan(self, rows: int, classes: int) -> CachePlan:
        """The plan of a cache of this form."""
        plan = random_plan(rows, classes)
        made_from = {**plan.row_made_from, "encoding": self.parameters(), "temperature": TEMPERATURE}
        return replace(
            plan,
            row_made_from=made_from,
            row_key=digest_of(made_from),
            layout=self.layout,
            compression=self.compression,
            resumable={**plan.resumable, "certify": [TEMPERATURE]},
        )


def write(form: Form, source: Targets, folder: Path, times: int = 1) -> float:
    """Seal a cache of all rows of `source`, so many times over; returns the seconds of the commits alone.

    float16 is stored as it is; other encodings are encoded before the time begins. The certificate is measured on a few rows.
    """
    rows, classes = source.shape
    plan = form.plan(times * rows, classes)
    writer, seconds = CacheWriter(folder, plan), 0.0
    for block in range(writer.blocks):
        held = writer.rows_of_block(block)
        logits_NC = _logits(source, [row % rows for row in (held.start, held.stop - 1)])
        few = plan.encoding.encode(logits_NC, TEMPERATURE)
        sums = measure(logits_NC, few, plan.encoding, TEMPERATURE, [TEMPERATURE])
        values = _values(form, plan, source, held)
        started = time.perf_counter()
        writer.commit(block, values, sums)
        seconds += time.perf_counter() - started
    writer.seal({})
    writer.close()
    return seconds


def _values(form: Form, plan: CachePlan, source: Targets, held: range) -> list[Any]:
    first = held.start % len(source)
    some = source[first : first + len(held)]
    if len(some) < len(held):  # where the source begins anew
        some = np.concatenate([some, source[: len(held) - len(some)]])
    if form.encoding == "float16":
        return [some]
    return [
        array.numpy()
        for array in plan.encoding.encode(torch.from_numpy(some.copy()).float().log() * TEMPERATURE, TEMPERATURE)
    ]


def _logits(source: Targets, rows: list[int]) -> Tensor:
    return torch.from_numpy(source[rows]).float().log() * TEMPERATURE


@dataclass(frozen=True)
class Read:
    """One way of reading them."""

    form: Form
    order: OrderName = "global"
    decode: bool = False

    @property
    def name(self) -> str:
        """For tables."""
        return f"softcache {self.form.name}, {self.order}{', decoded to float32' if self.decode else ''}"


class Reading:
    """An opened cache whose epochs are timed one after another."""

    def __init__(self, read: Read, folder: Path, batch_size: int = 256):
        self.loader = TargetLoader(TargetCache(folder), batch_size, order=read.order, decode=read.decode)

    def epoch(self, batches: int | None = None) -> float:
        """Seconds of the next epoch."""
        started = time.perf_counter()
        total = 0.0
        for soft_targets in islice(_tensors(self.loader), batches):
            total += float(soft_targets[0, 0]) + float(soft_targets[-1, -1])
        return time.perf_counter() - started


def _tensors(loader: TargetLoader) -> Iterator[Tensor]:
    for batch in loader:
        served = batch.soft_targets
        if isinstance(served, SparseTargets):
            yield served.probabilities
        else:
            yield served if isinstance(served, Tensor) else served[0]
