"""plan: what a teacher's pass will cost before it is run, from its rows and a rehearsal that is kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.canonical import digest_of, short
from pipeline.errors import UserError
from pipeline.experiment import SPLITS, Experiment, NotYet
from pipeline.locks import locked
from pipeline.planning.figures import Plan, SplitRows
from pipeline.planning.price import plain
from pipeline.planning.record import STAGE, kept_plan, plan_key, plan_made_from, taught_classes
from pipeline.records import Record
from pipeline.stage_runner import software
from stages.chain import open_experiment, say


def make_plan(
    recipe: str,
    overrides: Sequence[str],
    workspace: Path,
    data_dir: Path | None,
    per_hour: float | None = None,
    *,
    again: bool = False,
) -> Plan:
    """The plan of a recipe: measured now if nothing is kept for it, or `again`; which rows are known is always looked up."""
    experiment = open_experiment(recipe, overrides, workspace, data_dir)
    row_key = _row_key(experiment)
    kept = None if again else kept_plan(experiment)
    record = kept or _measured(experiment, row_key)
    splits = {split: _rows_of(experiment, split, record, row_key) for split in SPLITS if split in record.values["rows"]}
    experiment.save_memory()
    return Plan(record, splits, row_key, per_hour, kept is not None)


def _row_key(experiment: Experiment) -> str | None:
    """The row_key of the recipe's caches, or None before its teacher is. Raises UserError where there is nothing to plan."""
    targets = experiment.recipe.targets
    if targets.use is not None:
        raise UserError(
            f"targets.use = {targets.use!r} names a cache, which is sealed: no teacher will run. Remove it from the recipe, or "
            "add --set targets.use=none, to plan a new one."
        )
    try:
        return digest_of(experiment.row_made_from())
    except NotYet:
        classes = len(taught_classes(experiment))
        if targets.encoding == "top-k" and targets.k >= classes:
            raise UserError(
                f"targets.k = {targets.k}, but the teacher will have {classes} classes; top-k keeps fewer than all. Set a "
                'smaller targets.k, or targets.encoding = "dense".'
            ) from None
        return None


def _rows_of(experiment: Experiment, split: str, record: Record, row_key: str | None) -> SplitRows:
    """The rows of a split that is known of; no dataset is loaded unless other caches of its row_key may hold some."""
    rows, samples = record.values["rows"][split], experiment.fingerprints("student")[split]["samples"]
    if row_key is None:
        return SplitRows(samples, rows, {})
    key, shelf, known = experiment.cache_keys()[split], experiment.shelf, dict[str, int]()
    if shelf.has(key):
        known = {key: rows}
    elif shelf.folder_of(key).exists() or any(manifest.row_key == row_key for _, manifest in shelf.sealed()):
        from pipeline.planning.forecast import forecast_of

        forecast = forecast_of(experiment, split)
        known = {**forecast.known, **({key: forecast.kept} if forecast.kept else {})}
    return SplitRows(samples, rows, known)


def _measured(experiment: Experiment, row_key: str | None) -> Record:
    """Rehearse, work out the bytes, and keep both."""
    from pipeline.allocator import keep_freed_memory
    from pipeline.dataset import rows_of
    from pipeline.planning.rehearsal import rehearse
    from pipeline.planning.store_size import bytes_of_encodings
    from pipeline.teachers.opening import device_line

    keep_freed_memory()
    key, class_names = plan_key(experiment), taught_classes(experiment)
    datasets, device = experiment.datasets("student"), device_line(experiment)
    rows = {split: len(rows_of(datasets[split])) for split in experiment.covered_splits()}
    with locked(experiment.workspace.runs / ".locks" / f"{STAGE}-{key}", f"the plan ({short(key)})"):
        say(f"plan: rehearsing, {device}")
        started, clock = datetime.now(UTC), time.monotonic()
        scratch = experiment.workspace.caches / f".plan-{short(key)}"  # on the disk that the caches will be written to
        found = rehearse(experiment, class_names, scratch, experiment.bar)
        share = found.stored_share if found.teacher in ("itself", "outputs") else None
        values: dict[str, Any] = {
            "rows": rows,
            "encodings": bytes_of_encodings(experiment.recipe, rows, class_names, share),
            "teacher": found.teacher,
            "speed": plain(found.speed),
            "student": plain(found.student),
            "stored_share": found.stored_share,
        }
        targets = experiment.recipe.targets
        provenance = {
            "measured": started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - clock, 3),
            "device": device,
            "precision": targets.precision,
            "batch_size": found.batch_size,
            "row_key": row_key,
            **software(),
        }
        record = Record(STAGE, "", key, experiment.recipe.name, plan_made_from(experiment), {}, values, provenance)
        experiment.records.folder_of(STAGE, key).mkdir(parents=True, exist_ok=True)
        experiment.records.write(record)
    return record
