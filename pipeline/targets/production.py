"""Running the teacher once over a dataset and committing its soft targets, block by block.

Shape legend: B samples of a batch, C classes.
"""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import TeacherOutputError
from pipeline.targets.certificate import measure
from pipeline.targets.encodings import encoding_of
from pipeline.targets.writer import CacheWriter

BLOCKS_IN_FLIGHT = 2  # one being committed while the next is computed; more would only hold memory

TeacherForward = Callable[[NDArray[np.int64]], Tensor]


def produce(
    writer: CacheWriter,
    teacher: TeacherForward,
    *,
    batch_size: int,
    temperatures: Sequence[float],
    tick: Callable[[int], None] = lambda rows: None,
) -> int:
    """Compute and commit every missing block; returns the number of rows that the teacher ran on.

    `teacher` maps dataset indices (B,) to float32 logits (B, C) on the CPU. Batches never cross a block, so which rows
    share a batch does not depend on what an earlier run had finished. A background thread encodes, measures and commits
    a block while the next is computed. `tick` is called with the rows of each finished batch.

    A logit of -inf is a probability of exactly 0. Raises TeacherOutputError naming the first sample whose logits are NaN,
    infinite otherwise (or -inf for every class), or of the wrong number of classes; blocks finished before it stay.
    """
    pending: deque[Future[None]] = deque()
    computed = 0
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit") as background:
        try:
            for block in writer.missing_blocks():
                logits_BC = _logits_of_block(writer, teacher, block, batch_size, tick)
                computed += len(logits_BC)
                while len(pending) >= BLOCKS_IN_FLIGHT:
                    pending.popleft().result()
                pending.append(background.submit(_commit, writer, block, logits_BC, temperatures))
        finally:
            with _without_interrupts():
                while pending:  # also on Ctrl-C or a bad row: what was computed is committed
                    pending.popleft().result()
    return computed


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ctrl-C waits: the commits under way take well under a second, and the lock must outlive them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _logits_of_block(
    writer: CacheWriter, teacher: TeacherForward, block: int, batch_size: int, tick: Callable[[int], None]
) -> Tensor:
    rows = writer.rows_of_block(block)
    indices = writer.plan.rows.first_index
    class_count = len(writer.plan.class_names)
    parts = []
    for start in range(rows.start, rows.stop, batch_size):
        batch = indices[start : min(start + batch_size, rows.stop)]
        parts.append(_checked(teacher(batch), batch, class_count, writer.plan.split))
        tick(len(batch))
    return torch.cat(parts)


def _checked(logits_BC: Tensor, indices: NDArray[np.int64], class_count: int, split: str) -> Tensor:
    if logits_BC.shape != (len(indices), class_count):
        raise TeacherOutputError(
            f"the teacher returned shape {tuple(logits_BC.shape)} for {len(indices)} samples of {class_count} classes, "
            f"first at sample {int(indices[0])} of the {split} split."
        )
    highest_B = logits_BC.amax(dim=1)  # NaN where a logit is; -inf below a finite one is a probability of 0
    if not bool(torch.isfinite(highest_B).all()):
        first = int(indices[int(torch.argmin(torch.isfinite(highest_B).int()))])
        raise TeacherOutputError(
            f"the teacher returned NaN or infinity for sample {first} of the {split} split; finished blocks are kept."
        )
    return logits_BC


def _commit(writer: CacheWriter, block: int, logits_BC: Tensor, temperatures: Sequence[float]) -> None:
    encoding = encoding_of(writer.plan.row_made_from["encoding"])
    temperature = writer.plan.temperature
    stored = encoding.encode(logits_BC, temperature)
    sums = measure(logits_BC, stored, encoding, temperature, temperatures)
    writer.commit(block, [array.numpy() for array in stored], sums)
