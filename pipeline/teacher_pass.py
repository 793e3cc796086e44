"""The teacher's one pass over a split: resume settings, locks, the pass itself and the seal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.batches import Preprocess
from pipeline.canonical import short
from pipeline.devices import autocast, threads
from pipeline.errors import Interrupted, TeacherOutputError, UserError
from pipeline.locks import locked
from pipeline.prefetch import Samples
from pipeline.progress import Bar
from pipeline.recipe import Precision
from pipeline.targets.production import TeacherForward, produce
from pipeline.targets.shelf import Shelf
from pipeline.targets.writer import (
    SETTINGS_OF_STORE,
    UNFINISHED_FILE,
    CachePlan,
    CacheWriter,
    remove_leftovers,
    settings_to_resume,
)


@dataclass(frozen=True)
class Pass:
    """What a pass gave: the sealed cache, rows the teacher ran on, rows an earlier run had left, seconds."""

    folder: Path
    rows_computed: int
    rows_resumed: int
    seconds: float


def forward_of(
    teacher: nn.Module, dataset: Samples, preprocess: Preprocess, precision: Precision, device: torch.device
) -> TeacherForward:
    """The teacher as a function of dataset indices (B,): float32 logits (B, C) on the CPU, eval mode, no gradients."""
    teacher.to(device).eval()

    @torch.inference_mode()
    def forward(indices: NDArray[np.int64]) -> Tensor:
        inputs = preprocess(dataset.samples(indices)).to(device)
        with autocast(device, precision):
            logits = teacher(inputs)
        if not isinstance(logits, Tensor):
            raise TeacherOutputError(f"the teacher returned {type(logits).__name__}; a tensor of logits is needed.")
        return logits.float().cpu()

    return forward


def make_cache(
    shelf: Shelf,
    plan: CachePlan,
    teacher: Callable[[], TeacherForward],
    bar: Bar,
    say: Callable[[str], None],
    provenance: dict[str, Any],
) -> Pass:
    """Make and seal the cache of `plan`, going on from what an interrupted run left.

    A resumed run reuses the batch size, layout, thread count and certified temperatures that the cache was begun with,
    so that it ends in the same bytes. `teacher` is called to build the teacher only when a block is missing.

    Raises LockedError when another run makes this cache, and Interrupted on Ctrl-C, saying what is kept.
    """
    folder = shelf.folder_of(plan.key)
    with locked(shelf.folder / ".locks" / plan.key, f"cache {short(plan.key)}"):
        if shelf.has(plan.key):
            shelf.check_place(plan.key)
            if (folder / UNFINISHED_FILE).exists():
                remove_leftovers(folder)  # killed after the seal, before it had tidied up
            return Pass(folder, 0, len(plan.rows), 0.0)
        started = time.monotonic()
        plan = _as_begun(plan, folder, say)
        writer = CacheWriter(folder, plan)
        try:
            missing = sum(len(writer.rows_of_block(block)) for block in writer.missing_blocks())
            computed = _produce(writer, plan, teacher, bar, missing) if missing else 0
            seconds = round(time.monotonic() - started, 3)
            writer.seal(
                {
                    **provenance,
                    "sealed": datetime.now(UTC).isoformat(timespec="seconds"),
                    "seconds": seconds,
                    "rows_computed": computed,
                    "rows_resumed": len(plan.rows) - computed,
                    **plan.resumable,
                }
            )
        except KeyboardInterrupt:
            kept = writer.blocks - len(writer.missing_blocks())
            raise Interrupted(
                f"interrupted: {kept} of {writer.blocks} blocks are kept in {folder}. Run the same command again to go on; "
                "no finished row is computed twice."
            ) from None
        finally:
            writer.close()
    return Pass(folder, computed, len(plan.rows) - computed, seconds)


def _produce(
    writer: CacheWriter, plan: CachePlan, teacher: Callable[[], TeacherForward], bar: Bar, missing_rows: int
) -> int:
    row_bytes = sum(spec.chunk_bytes / spec.rows_per_chunk for spec in writer.block_arrays)
    with (
        threads(plan.resumable["threads"]),
        bar(f"teacher-targets, {plan.split}", missing_rows, "rows", row_bytes) as advance,
    ):
        return produce(
            writer,
            teacher(),
            batch_size=plan.resumable["batch_size"],
            temperatures=plan.resumable["certify"],
            tick=advance,
        )


def _as_begun(plan: CachePlan, folder: Path, say: Callable[[str], None]) -> CachePlan:
    begun = settings_to_resume(folder, plan)
    if begun is None:
        return plan
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
    kept_settings: dict[str, Any] = {name: begun[name] for name in SETTINGS_OF_STORE}
    return replace(plan, **kept_settings, resumable={name: begun[name] for name in plan.resumable})
