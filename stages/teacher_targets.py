"""teacher-targets: run the teacher once over the training, validation and test samples; seal a cache of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.canonical import short
from pipeline.experiment import Experiment
from pipeline.stage_runner import Need, Outcome, Stage, Unit, software

if TYPE_CHECKING:
    from pipeline.planning.forecast import Forecast


def units(experiment: Experiment) -> Sequence[Unit]:
    """One cache for each split that the teacher can speak of, under the cache's own key."""
    row_made_from, keys, covered = experiment.row_made_from(), experiment.cache_keys(), experiment.covered_splits()
    teacher = experiment.teacher_record().made_from if experiment.recipe.targets.use is None else {}
    return [
        Unit(
            split,
            keys[split],
            {"targets": row_made_from, "teacher": teacher, "rows_sha256": parts["rows_sha256"]},
        )
        for split, parts in experiment.fingerprints("student").items()
        if split in covered
    ]


def users_teacher(experiment: Experiment) -> Sequence[str]:
    """The user's own functions that an imported teacher is made by; a trained one's belong to its training."""
    teacher = experiment.recipe.teacher
    return [] if teacher.form == "trained" else [teacher.model, teacher.estimator or ""]


def available(experiment: Experiment, unit: Unit) -> str | None:
    """The sealed cache that already serves a split, found by content; a recipe that names its cache makes none."""
    folder = experiment.cache_folder(unit.label)
    if folder is None:
        return "none: the recipe names its cache" if experiment.recipe.targets.use is not None else None
    return f"cache {short(folder.name)}"


def forecast(experiment: Experiment, unit: Unit) -> Forecast:
    """Which rows other caches hold already, which are new, and about how long these take."""
    from pipeline.planning.forecast import forecast_of

    return forecast_of(experiment, unit.label)


def run(experiment: Experiment, unit: Unit, folder: Path) -> Outcome:
    """Make and seal the cache of one split."""
    from pipeline.cache_plan import plan_of
    from pipeline.targets.certificate import error_at
    from pipeline.targets.reader import TargetCache
    from pipeline.teacher_pass import make_cache
    from pipeline.teachers.coverage import notes_of
    from pipeline.teachers.opening import device_line, open_teacher

    split, recipe = unit.label, experiment.recipe
    device = device_line(experiment)
    for note in notes_of(experiment) if split == "training" else ():
        experiment.say(f"teacher-targets: {note}")
    made = make_cache(
        experiment.shelf,
        plan_of(experiment, split),
        lambda order: open_teacher(experiment, split, order),
        experiment.bar,
        experiment.say,
        {"recipe": recipe.name, "teacher_form": recipe.teacher.form, "device": device, **software()},
    )
    cache = TargetCache(made.folder)
    error = error_at(cache.manifest.certificate, cache.temperature)
    mean_kl = "infinite" if error is None or error["kl_mean"] is None else f"{error['kl_mean']:.1e}"
    by = "imported" if recipe.teacher.form == "outputs" else "by the teacher"
    taken = max(0, len(cache) - made.rows_computed - made.rows_resumed)
    others = f", {taken:,} from other caches" if taken else ""
    kept = f", {made.rows_resumed:,} kept of an interrupted run" if made.rows_resumed and made.rows_computed else ""
    line = (
        f"{len(cache):,} rows ({made.rows_computed:,} {by} now{others}{kept}), {device}, mean KL {mean_kl} at "
        f"T = {cache.temperature:g}, {made.seconds:.1f} s -> {made.folder}"
    )
    values = {
        "cache": cache.key,
        "rows": len(cache),
        "rows_computed": made.rows_computed,
        "rows_taken": made.rows_taken,
    }
    return Outcome([], values, line, {"device": device})


STAGE = Stage(
    "teacher-targets",
    units,
    run,
    needs=(Need("teacher"),),
    available=available,
    user_models=users_teacher,
    forecast=forecast,
)
