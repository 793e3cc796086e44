"""Running the teacher once over a dataset and committing its soft targets, block by block.

Shape legend: B samples of a batch, N positions (samples, times the tokens or pixels of each), C classes.
"""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.devices import own_thread_count
from pipeline.errors import TeacherOutputError, UserError
from pipeline.targets.certificate import Sums, measure, measured_positions
from pipeline.targets.encodings import Encoding, encoding_name
from pipeline.targets.writer import CachePlan, CacheWriter

BLOCKS_IN_FLIGHT = 2  # one being committed while the next is computed; more would only hold memory

# Logits encoded at once. Their temporaries then stay in the processor's cache and in memory that the process has
# already: in one piece, 4096 x 1000 logits take 15 times as long, nearly all of it for fresh pages.
ENCODED_AT_ONCE = 2**16
# Positions, however many classes: one at a time, calls of top-k would take several times as long as what they do.
FEWEST_ENCODED_AT_ONCE = 64

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

    `teacher` maps dataset indices (B,) to float32 logits (B, *positions, C) on the CPU. Batches never cross a block, so which
    rows share a batch does not depend on what an earlier run had finished. A background thread encodes, measures and commits
    a block while the next is computed. `tick` is called with the rows of each finished batch.

    A logit of -inf is a probability of exactly 0. Raises TeacherOutputError naming the first sample whose logits are NaN,
    infinite otherwise (or -inf for every class), or of the wrong number of classes, and UserError for a block whose
    encoding loses what the plan's students need; blocks finished before it stay.
    """
    for block, sums in writer.committed_sums().items():
        _refuse_useless(writer.plan, block, sums)
    pending: deque[Future[None]] = deque()
    computed = 0
    with (
        own_thread_count(),
        # A second team of threads would take turns with the teacher's on the same cores.
        ThreadPoolExecutor(1, thread_name_prefix="commit", initializer=lambda: torch.set_num_threads(1)) as background,
    ):
        try:
            for block in writer.missing_blocks():
                batches = _logits_of_block(writer, teacher, block, batch_size, tick)
                computed += len(writer.rows_of_block(block))
                while len(pending) >= BLOCKS_IN_FLIGHT:
                    pending.popleft().result()
                pending.append(background.submit(_commit, writer, block, batches, temperatures))
        except BaseException:  # Ctrl-C, or a bad row: what was computed is committed, and the first problem is told
            with _without_interrupts():
                wait(pending)
            raise
        with _without_interrupts():
            while pending:
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
) -> list[Tensor]:
    """The logits (N, C) of each batch of a block; joining them would copy all of them once more."""
    rows = writer.rows_of_block(block)
    indices = writer.plan.rows.first_index
    shape = (*writer.plan.positions.sizes, len(writer.plan.class_names))
    parts = []
    for start in range(rows.start, rows.stop, batch_size):
        batch = indices[start : min(start + batch_size, rows.stop)].astype(np.int64, copy=False)
        parts.append(
            checked_logits(teacher(batch), batch, shape, writer.plan.split, "; finished blocks are kept").flatten(0, -2)
        )
        tick(len(batch))
    return parts


def checked_logits(
    logits: Tensor, indices: NDArray[np.int64], shape: tuple[int, ...], split: str, kept: str = ""
) -> Tensor:
    """The teacher's logits (B, *positions, C) of samples at `indices` (B,), if they are that; `shape` is of one sample.

    Raises TeacherOutputError naming the first sample whose logits are NaN or infinite (-inf is a probability of 0).
    """
    if logits.shape != (len(indices), *shape):
        raise TeacherOutputError(
            f"the teacher returned shape {tuple(logits.shape)} for {len(indices)} samples of {_described(shape)}, "
            f"first at sample {int(indices[0])} of the {split} split."
        )
    highest = logits.amax(dim=-1)  # NaN where a logit is; -inf below a finite one is a probability of 0
    right_B = torch.isfinite(highest).reshape(len(indices), -1).all(dim=1)
    if not bool(right_B.all()):
        first = int(indices[int(torch.argmin(right_B.int()))])
        raise TeacherOutputError(f"the teacher returned NaN or infinity for sample {first} of the {split} split{kept}.")
    return logits


def _described(shape: tuple[int, ...]) -> str:
    classes = f"{shape[-1]} classes"
    return classes if len(shape) == 1 else f"{' x '.join(map(str, shape[:-1]))} positions of {classes}"


def _commit(writer: CacheWriter, block: int, batches: Sequence[Tensor], temperatures: Sequence[float]) -> None:
    """Encode, measure and write one block, from the logits (N, C) of its batches."""
    plan, rows = writer.plan, writer.rows_of_block(block)
    stored = _encoded(plan.encoding, batches, plan.temperature)
    of_row, classes = plan.positions.count, batches[0].shape[1]
    sample = measured_positions(plan.key, block, len(rows) * of_row, writer.rows_per_block * of_row, classes)
    measured = tuple(array[torch.from_numpy(sample)] for array in stored)
    sums = measure(_rows_at(batches, sample), measured, plan.encoding, plan.temperature, temperatures)
    shaped = [array.reshape(len(rows), *plan.positions.sizes, *array.shape[1:]) for array in stored]
    writer.commit(block, [array.numpy() for array in shaped], sums)
    _refuse_useless(plan, block, sums)


def _refuse_useless(plan: CachePlan, block: int, sums: dict[str, Sums]) -> None:
    """Stop at the first block that makes sure that no student will be served: the teacher's time is dear."""
    wanted = sums.get(str(plan.wanted_at))
    if wanted is None or not wanted["infinite_rows"]:
        return
    raise UserError(
        f"{wanted['infinite_rows']:.0f} of {wanted['rows']:.0f} measured rows of block {block} have probabilities at temperature "
        f"{plan.wanted_at:g} that vanish in {encoding_name(plan.row_made_from['encoding'])}: KL(exact || decoded) is infinite, "
        "and the recipe's student would be refused. The teacher was stopped, so that it does not run in vain. Set "
        'targets.dtype = "log-uint16" (as many bytes as float16), or a higher targets.temperature.'
    )


def _encoded(encoding: Encoding, batches: Sequence[Tensor], temperature: float) -> tuple[Tensor, ...]:
    """The stored arrays of the positions of all batches, encoded a few at a time."""
    at_once = max(FEWEST_ENCODED_AT_ONCE, ENCODED_AT_ONCE // batches[0].shape[1])
    pieces = [encoding.encode(piece, temperature) for batch in batches for piece in torch.split(batch, at_once)]
    return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))


def _rows_at(batches: Sequence[Tensor], rows: NDArray[np.int64]) -> Tensor:
    """The given rows (ascending) of batches that follow each other."""
    taken, start = [], 0
    for batch in batches:
        inside = rows[(rows >= start) & (rows < start + len(batch))] - start
        taken.append(batch[torch.from_numpy(inside)])
        start += len(batch)
    return torch.cat(taken)
