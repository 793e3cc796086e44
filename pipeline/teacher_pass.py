"""The teacher's one pass over a split: resume settings, locks, the pass itself and the seal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.batch_size import with_batch_size
from pipeline.batches import Preprocess
from pipeline.canonical import short
from pipeline.devices import Laid, autocast, memory_format_of, threads
from pipeline.errors import Interrupted, TeacherOutputError, UserError
from pipeline.lanes import Sent, lane_to, one_tensor
from pipeline.locks import locked
from pipeline.prefetch import MadeAhead, Samples, batches_ahead
from pipeline.progress import Bar
from pipeline.recipe import Precision
from pipeline.sorting import Indices
from pipeline.targets.known_rows import KnownRows, known_rows
from pipeline.targets.production import TeacherForward, produce, refuse_useless_donors, take_known, works_of
from pipeline.targets.shelf import Shelf
from pipeline.targets.writer import (
    SETTINGS_OF_STORE,
    UNFINISHED_FILE,
    CachePlan,
    CacheWriter,
    as_begun,
    remove_leftovers,
    settings_to_resume,
)


@dataclass(frozen=True)
class Pass:
    """What a pass gave: the sealed cache, rows the teacher ran on, rows an earlier run had left, seconds.

    `rows_taken` are those of other caches, by their keys, in all runs.
    """

    folder: Path
    rows_computed: int
    rows_resumed: int
    seconds: float
    rows_taken: dict[str, int]


def forward_of(
    teacher: nn.Module,
    dataset: Samples,
    preprocess: Preprocess,
    precision: Precision,
    device: torch.device,
    order: Indices | None = None,
) -> TeacherForward:
    """The teacher as a function of dataset indices (B,): its logits (B, *positions, C) on `device`, eval mode, no gradients.

    They are float32 on a CPU; on a GPU they have the precision that they were computed in, and need not be computed yet.
    `order` (n,) are the indices, ascending, that it will be asked for one after another: then samples are prepared ahead, and
    sent ahead to a GPU.

    Raises TeacherOutputError when the network returns no tensor.
    """
    network, lane = Laid(teacher.to(device).eval(), memory_format_of(teacher, device)), lane_to(device)

    def sent(indices: NDArray[np.int64]) -> Sent[Tensor]:
        return lane.send(preprocess.raw(dataset.samples(indices)), one_tensor)

    is_ahead = order is not None and max(batches_ahead(dataset), lane.batches_ahead) > 0
    sent_in_time = MadeAhead(sent, order) if order is not None and is_ahead else sent

    @torch.inference_mode()
    def forward(indices: NDArray[np.int64]) -> Tensor:
        inputs = preprocess.normalised(network.laid(sent_in_time(indices).arrived()[: len(indices)]))
        with autocast(device, precision):
            logits = network(inputs)
        if not isinstance(logits, Tensor):
            raise TeacherOutputError(f"the teacher returned {type(logits).__name__}; a tensor of logits is needed.")
        return logits.float() if device.type == "cpu" else logits

    return forward


def make_cache(
    shelf: Shelf,
    plan: CachePlan,
    teacher: Callable[[Indices], TeacherForward],
    bar: Bar,
    say: Callable[[str], None],
    provenance: dict[str, Any],
) -> Pass:
    """Make and seal the cache of `plan`, going on from what an interrupted run left.

    Rows that sealed caches of the shelf hold already are taken from these. A batch size of "auto" becomes a number by trying
    the teacher, once the rows that are new are known. A resumed run reuses the batch size, layout,
    thread count, certified temperatures and donors that the cache was begun with, so that it ends in the same bytes.
    `teacher` is called to build the teacher only when rows are new, with the dataset indices (n,) that it will be asked for,
    ascending, which is nearly their order.

    Raises LockedError when another run makes this cache, and Interrupted on Ctrl-C, saying what is kept.
    """
    folder = shelf.folder_of(plan.key)
    with locked(shelf.folder / ".locks" / plan.key, f"cache {short(plan.key)}"):
        if shelf.has(plan.key):
            shelf.check_place(plan.key)
            if (folder / UNFINISHED_FILE).exists():
                remove_leftovers(folder)  # killed after the seal, before it had tidied up
            return Pass(folder, 0, len(plan.rows), 0.0, {})
        started = time.monotonic()
        teacher = _opened_once(teacher)
        plan, writer, known = _begin(shelf, plan, teacher, bar, say)
        try:
            held = sum(len(writer.rows_of_block(block)) for block in range(writer.blocks) if writer.is_committed(block))
            computed = _fill(writer, known, teacher, bar)
            seconds = round(time.monotonic() - started, 3)
            writer.seal(
                {
                    **provenance,
                    "sealed": datetime.now(UTC).isoformat(timespec="seconds"),
                    "seconds": seconds,
                    "rows_computed": computed,
                    "rows_resumed": held,
                    "rows_taken": writer.taken(),
                    **plan.resumable,
                }
            )
        except torch.OutOfMemoryError:
            batch = plan.resumable["batch_size"]
            raise UserError(
                f"the GPU's memory is not enough for batches of {batch} samples; finished blocks are kept in {folder}. Free "
                "GPU memory and run the same command again, or delete that folder and begin anew with a smaller --batch-size."
            ) from None
        except KeyboardInterrupt:
            kept = writer.blocks - len(writer.missing_blocks())
            raise Interrupted(
                f"interrupted: {kept} of {writer.blocks} blocks are kept in {folder}. Run the same command again to go on; "
                "no finished row is computed twice."
            ) from None
        finally:
            writer.close()
    return Pass(folder, computed, held, seconds, writer.taken())


def _opened_once(open_teacher: Callable[[Indices], TeacherForward]) -> Callable[[Indices], TeacherForward]:
    opened: list[TeacherForward] = []

    def once(order: Indices) -> TeacherForward:
        if not opened:
            opened.append(open_teacher(order))
        return opened[0]

    return once


def _begin(
    shelf: Shelf,
    plan: CachePlan,
    teacher: Callable[[Indices], TeacherForward],
    bar: Bar,
    say: Callable[[str], None],
) -> tuple[CachePlan, CacheWriter, KnownRows]:
    """The plan as the cache was begun, its writer, and the rows that other caches hold."""
    folder = shelf.folder_of(plan.key)
    begun = settings_to_resume(folder, plan)
    if begun is None:
        known = known_rows(shelf, plan, bar=bar, say=say)
        refuse_useless_donors(plan, known)
        plan = with_batch_size(plan, teacher, lambda: known.new_rows(range(len(plan.rows))), say)
        return plan, CacheWriter(folder, plan, known), known
    plan = _as_begun(plan, begun, folder, say)
    writer = CacheWriter(folder, plan)
    missing = np.zeros(len(plan.rows), np.bool_)
    for block in writer.missing_blocks():
        missing[writer.rows_of_block(block).start : writer.rows_of_block(block).stop] = True
    try:
        return plan, writer, known_rows(shelf, plan, begun=writer.donors, wanted=missing, bar=bar, say=say)
    except BaseException:
        writer.close()
        raise


def _fill(writer: CacheWriter, known: KnownRows, teacher: Callable[[Indices], TeacherForward], bar: Bar) -> int:
    """Commit every missing block; returns the number of rows that the teacher ran on."""
    plan, works = writer.plan, works_of(writer, known)
    row_bytes = sum(spec.chunk_bytes / spec.rows_per_chunk for spec in writer.block_arrays)
    blocks = [block for block in writer.missing_blocks() if not len(known.new_rows(writer.rows_of_block(block)))]
    if blocks:
        rows = sum(len(writer.rows_of_block(block)) for block in blocks)
        with bar(f"taking known rows, {plan.split}", rows, "rows", row_bytes) as advance:
            take_known(writer, known, blocks, advance)
    if not works:
        return 0
    asked = np.zeros(len(plan.rows), np.bool_)
    for work in works:
        asked[work.rows] = True
    with (
        threads(plan.resumable["threads"]),
        bar(f"teacher-targets, {plan.split}", int(asked.sum()), "rows", row_bytes) as advance,
    ):
        return produce(
            writer,
            works,
            teacher(plan.rows.first_index if asked.all() else plan.rows.first_index[asked]),
            batch_size=plan.resumable["batch_size"],
            temperatures=plan.resumable["certify"],
            known=known,
            tick=advance,
        )


def _as_begun(plan: CachePlan, begun: dict[str, Any], folder: Path, say: Callable[[str], None]) -> CachePlan:
    if plan.wanted_at is not None and plan.wanted_at not in begun["certify"]:
        raise UserError(
            f"{folder} was begun without certifying temperature {plan.wanted_at:g}, which the recipe's student asks for; the "
            f"cache would be refused once it is whole. Delete the folder to begin anew, or let the student ask for one of "
            f"{', '.join(f'{known:g}' for known in begun['certify'])}."
        )
    wanted = {**{name: getattr(plan, name) for name in SETTINGS_OF_STORE}, **plan.resumable}
    differing = [f"{name} {begun[name]} (not {wanted[name]})" for name in wanted if begun[name] != wanted[name]]
    kept = f", with the settings it was begun with: {', '.join(differing)}" if differing else ""
    say(f"cache {short(plan.key)}: going on with the interrupted run{kept}")
    return as_begun(plan, begun)
