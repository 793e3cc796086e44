"""Running the teacher once over the rows that no cache holds yet, and committing all rows block by block.

Shape legend: B samples of a batch, N positions (samples, times the tokens or pixels of each), C classes.
"""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.canonical import short
from pipeline.devices import own_thread_count
from pipeline.errors import TeacherOutputError, UserError
from pipeline.targets.certificate import Sums, error_at, measure, measured_positions
from pipeline.targets.encodings import Encoding, encoding_name
from pipeline.targets.known_rows import KnownRows
from pipeline.targets.writer import CachePlan, CacheWriter

WORKS_IN_FLIGHT = 2  # one being committed while the next is computed; more would only hold memory

# Logits encoded at once. Their temporaries then stay in the processor's cache and in memory that the process has
# already: in one piece, 4096 x 1000 logits take 15 times as long, nearly all of it for fresh pages.
ENCODED_AT_ONCE = 2**16
# Positions, however many classes: one at a time, calls of top-k would take several times as long as what they do.
FEWEST_ENCODED_AT_ONCE = 64

TeacherForward = Callable[[NDArray[np.int64]], Tensor]


@dataclass(frozen=True)
class Work:
    """What the teacher is run on in one go: the blocks whose new rows these are, and the new rows, ascending."""

    blocks: tuple[int, ...]
    rows: NDArray[np.int64]


def works_of(writer: CacheWriter, known: KnownRows) -> list[Work]:
    """The work that is left, in the order of the rows.

    A block of which no row is known is a work of its own. Blocks of which some are known share one, up to as many new
    rows as a block has, so that the teacher's batches are full. Which rows share a batch depends on what was known when
    the cache was begun, never on what an interrupted run had finished.
    """
    works: list[Work] = []
    blocks: list[int] = []
    rows: list[NDArray[np.int64]] = []
    for block in range(writer.blocks):
        held = writer.rows_of_block(block)
        new = known.new_rows(held)
        if len(new) == len(held):
            works.append(Work((block,), new))
        elif len(new):
            if blocks and sum(map(len, rows)) + len(new) > writer.rows_per_block:
                works.append(Work(tuple(blocks), np.concatenate(rows)))
                blocks, rows = [], []
            blocks.append(block)
            rows.append(new)
    if blocks:
        works.append(Work(tuple(blocks), np.concatenate(rows)))
    left = (work for work in works if not all(map(writer.is_committed, work.blocks)))
    return sorted(left, key=lambda work: work.blocks)


def take_known(
    writer: CacheWriter, known: KnownRows, blocks: Sequence[int], tick: Callable[[int], None] = lambda rows: None
) -> None:
    """Commit blocks of which all rows are known: shared with their donor where they are stored alike, else copied."""
    for block in blocks:
        rows = writer.rows_of_block(block)
        whole = known.whole_block(rows, writer.block_arrays, writer.plan.layout)
        if whole is not None:
            writer.adopt(block, *whole)
        else:
            values = [np.empty((len(rows), *spec.shape[1:]), spec.numpy_dtype) for spec in writer.block_arrays]
            known.fill(rows, values)
            writer.commit(block, values, {}, known.taken(rows))
        tick(len(rows))


def produce(
    writer: CacheWriter,
    works: Sequence[Work],
    teacher: TeacherForward,
    *,
    batch_size: int,
    temperatures: Sequence[float],
    known: KnownRows | None = None,
    tick: Callable[[int], None] = lambda rows: None,
) -> int:
    """Run the teacher on all works and commit their blocks; returns the number of rows that it ran on.

    `teacher` maps dataset indices (B,) to float32 logits (B, *positions, C) on the CPU. Batches never cross a work, so which
    rows share a batch does not depend on what an earlier run had finished. A background thread encodes, measures and commits
    a work while the next is computed, and fills in the rows that are `known`. `tick` is called with the rows of each batch.

    A logit of -inf is a probability of exactly 0. Raises TeacherOutputError naming the first sample whose logits are NaN,
    infinite otherwise (or -inf for every class), or of the wrong number of classes, and UserError for a block whose
    encoding loses what the plan's students need; blocks finished before it stay.
    """
    known = known or KnownRows.none(len(writer.plan.rows))
    for block, sums in writer.committed_sums().items():
        _refuse_useless(writer.plan, f"block {block}", sums)
    pending: deque[Future[None]] = deque()
    computed = 0
    with (
        own_thread_count(),
        # A second team of threads would take turns with the teacher's on the same cores.
        ThreadPoolExecutor(1, thread_name_prefix="commit", initializer=lambda: torch.set_num_threads(1)) as background,
    ):
        try:
            for work in works:
                batches = _logits_of(writer, teacher, work, batch_size, tick)
                computed += len(work.rows)
                while len(pending) >= WORKS_IN_FLIGHT:
                    pending.popleft().result()
                pending.append(background.submit(_commit, writer, work, known, batches, temperatures))
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


def _logits_of(
    writer: CacheWriter, teacher: TeacherForward, work: Work, batch_size: int, tick: Callable[[int], None]
) -> list[Tensor]:
    """The logits (N, C) of each batch of a work; joining them would copy all of them once more."""
    indices = writer.plan.rows.first_index
    shape = (*writer.plan.positions.sizes, len(writer.plan.class_names))
    parts = []
    for start in range(0, len(work.rows), batch_size):
        batch = indices[work.rows[start : start + batch_size]].astype(np.int64, copy=False)
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


def _commit(
    writer: CacheWriter, work: Work, known: KnownRows, batches: Sequence[Tensor], temperatures: Sequence[float]
) -> None:
    """Encode, measure and write the blocks of one work, from the logits (N, C) of its batches."""
    plan, of_row = writer.plan, writer.plan.positions.count
    stored = _encoded(plan.encoding, batches, plan.temperature)
    first = 0
    for block in work.blocks:
        rows = writer.rows_of_block(block)
        new = known.new_rows(rows)
        at = slice(first * of_row, (first + len(new)) * of_row)  # where the block's new rows are among the positions
        first += len(new)
        if writer.is_committed(block):
            continue
        classes = batches[0].shape[1]
        sample = measured_positions(plan.key, block, len(new) * of_row, writer.rows_per_block * of_row, classes)
        sample += at.start
        measured = tuple(array[torch.from_numpy(sample)] for array in stored)
        sums = measure(_rows_at(batches, sample), measured, plan.encoding, plan.temperature, temperatures)
        shaped = [array[at].reshape(len(new), *plan.positions.sizes, *array.shape[1:]).numpy() for array in stored]
        writer.commit(block, _whole(writer, rows, new, shaped, known), sums, known.taken(rows))
        _refuse_useless(plan, f"block {block}", sums)


def _whole(
    writer: CacheWriter,
    rows: range,
    new: NDArray[np.int64],
    computed: Sequence[NDArray[np.generic]],
    known: KnownRows,
) -> Sequence[NDArray[np.generic]]:
    """All rows of a block: those that were `computed`, of which `new` are the numbers, and those that are known."""
    if len(new) == len(rows):
        return computed
    values = [np.empty((len(rows), *spec.shape[1:]), spec.numpy_dtype) for spec in writer.block_arrays]
    known.fill(rows, values)
    for array, part in zip(values, computed, strict=True):
        array[new - rows.start] = part
    return values


def refuse_useless_donors(plan: CachePlan, known: KnownRows) -> None:
    """Stop before any work when the rows of a donor make sure that no student will be served."""
    taken = known.taken()
    for donor in known.donors:
        error = None if plan.wanted_at is None else error_at(donor.certificate, plan.wanted_at)
        if error is not None and donor.key in taken:
            _refuse_useless(plan, f"cache {short(donor.key)}", {str(plan.wanted_at): error})


def _refuse_useless(plan: CachePlan, where: str, sums: dict[str, Sums]) -> None:
    """Stop at the first block that makes sure that no student will be served: the teacher's time is dear."""
    wanted = sums.get(str(plan.wanted_at))
    if wanted is None or not wanted["infinite_rows"]:
        return
    raise UserError(
        f"{wanted['infinite_rows']:.0f} of {wanted['rows']:.0f} measured rows of {where} have probabilities at temperature "
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
