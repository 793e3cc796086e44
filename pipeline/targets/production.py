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
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.canonical import short
from pipeline.devices import own_thread_count
from pipeline.errors import UserError
from pipeline.targets.certificate import Sums, error_at, measure, measured_positions
from pipeline.targets.encoders import Encoder, Filling, encoder_for
from pipeline.targets.encodings import encoding_name
from pipeline.targets.known_rows import KnownRows
from pipeline.targets.writer import CachePlan, CacheWriter

WORKS_IN_FLIGHT = 2  # one being committed while the next is computed; more would only hold memory

# Dataset indices (B,) to logits (B, *positions, C), float32 or of lower precision, on any device. Those on a GPU need not be
# computed yet when they are returned.
TeacherForward = Callable[[NDArray[np.int64]], Tensor]


@dataclass(frozen=True)
class Work:
    """What the teacher is run on in one go: the blocks whose new rows these are, and the new rows, ascending."""

    blocks: tuple[int, ...]
    rows: range | NDArray[np.int64]


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
            works.append(Work((block,), held))
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
    encoder: Encoder | None = None,
) -> int:
    """Run the teacher on all works and commit their blocks; returns the number of rows that it ran on.

    `teacher` maps dataset indices (B,) to logits (B, *positions, C), see TeacherForward. Batches never cross a work, so which
    rows share a batch does not depend on what an earlier run had finished. A background thread measures and commits a work
    while the next is computed, and fills in the rows that are `known`; where logits become stored arrays, `encoder` says
    (default: what suits the device that they are on). `tick` is called with the rows of each batch, once a GPU was asked for it.

    A logit of -inf is a probability of exactly 0. Raises TeacherOutputError naming the first sample whose logits are NaN,
    infinite otherwise (or -inf for every class), or of the wrong number of classes, and UserError for a block whose
    encoding loses what the plan's students need; blocks finished before it stay.
    """
    known = known or KnownRows.none(len(writer.plan.rows))
    for block, sums in writer.committed_sums().items():
        _refuse_useless(writer.plan, f"block {block}", sums)
    pending: deque[Future[None]] = deque()
    computed = 0

    def begun(parts: Sequence[Part], logits: Tensor) -> Filling:
        nonlocal encoder
        encoder = encoder or encoder_for(logits.device, writer.plan, writer.rows_per_block)
        return encoder.begin(np.concatenate([part.measured for part in parts]), background)

    with (
        own_thread_count(),
        # A second team of threads would take turns with the teacher's on the same cores.
        ThreadPoolExecutor(1, thread_name_prefix="commit", initializer=lambda: torch.set_num_threads(1)) as background,
    ):
        try:
            for work in works:
                parts = parts_of(writer, work, known)
                filling = _compute(writer, teacher, work, partial(begun, parts), batch_size, tick)
                computed += len(work.rows)
                while len(pending) >= WORKS_IN_FLIGHT:
                    pending.popleft().result()
                pending.append(background.submit(_commit, writer, parts, known, filling, temperatures))
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


def _compute(
    writer: CacheWriter,
    teacher: TeacherForward,
    work: Work,
    filling: Callable[[Tensor], Filling],
    batch_size: int,
    tick: Callable[[int], None],
) -> Filling:
    """Run the teacher on a work, batch by batch; `filling` begins it once the first logits say where they are."""
    indices, begun = writer.plan.rows.first_index, None
    for start in range(0, len(work.rows), batch_size):
        batch = indices[work.rows[start : start + batch_size]].astype(np.int64, copy=False)
        logits = teacher(batch)
        begun = begun or filling(logits)
        begun.add(logits, batch)
        tick(len(batch))
    assert begun is not None, "a work has rows"
    return begun


@dataclass(frozen=True)
class Part:
    """The new rows of one block among the positions of a work, and which of all these positions are measured."""

    block: int
    new: NDArray[np.int64]
    at: slice
    measured: NDArray[np.int64]


def parts_of(writer: CacheWriter, work: Work, known: KnownRows) -> list[Part]:
    """The parts of a work whose blocks are not committed."""
    plan, of_row, first, parts = writer.plan, writer.plan.positions.count, 0, []
    for block in work.blocks:
        new = known.new_rows(writer.rows_of_block(block))
        at = slice(first * of_row, (first + len(new)) * of_row)
        first += len(new)
        if not writer.is_committed(block):
            full, classes = writer.rows_per_block * of_row, len(plan.class_names)
            sample = measured_positions(plan.key, block, len(new) * of_row, full, classes)
            parts.append(Part(block, new, at, sample + at.start))
    return parts


def _commit(
    writer: CacheWriter, parts: Sequence[Part], known: KnownRows, filling: Filling, temperatures: Sequence[float]
) -> None:
    """Measure and write the blocks of one work."""
    try:
        encoded, plan, measured = filling.encoded(), writer.plan, 0
        for part in parts:
            logits = encoded.measured_logits[measured : measured + len(part.measured)]
            measured += len(part.measured)
            stored = tuple(array[torch.from_numpy(part.measured)] for array in encoded.stored)
            sums = measure(logits, stored, plan.encoding, plan.temperature, temperatures)
            shape, rows = (len(part.new), *plan.positions.sizes), writer.rows_of_block(part.block)
            computed = [array[part.at].reshape(*shape, *array.shape[1:]).numpy() for array in encoded.stored]
            writer.commit(part.block, _whole(writer, rows, part.new, computed, known), sums, known.taken(rows))
            _refuse_useless(plan, f"block {part.block}", sums)
    finally:
        filling.close()


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
