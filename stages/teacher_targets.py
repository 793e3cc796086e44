"""teacher-targets: run the teacher once over the training, validation and test samples; seal a cache of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.canonical import digest_of, short
from pipeline.experiment import Experiment
from pipeline.stage_runner import Need, Outcome, Stage, Unit, software

SOURCES = (
    "stages/teacher_targets.py",
    "pipeline/teacher_pass.py",
    "pipeline/targets/production.py",
    "pipeline/targets/encodings.py",
)


def units(experiment: Experiment) -> Sequence[Unit]:
    """One cache for each split, under the cache's own key."""
    row_made_from, keys = experiment.row_made_from(), experiment.cache_keys()
    teacher = experiment.teacher_record().made_from if experiment.recipe.targets.use is None else {}
    return [
        Unit(
            split,
            keys[split],
            {"targets": row_made_from, "teacher": teacher, "rows_sha256": parts["rows_sha256"]},
        )
        for split, parts in experiment.fingerprints("student").items()
    ]


def available(experiment: Experiment, unit: Unit) -> str | None:
    """The sealed cache that already serves a split, found by content; a recipe that names its cache makes none."""
    folder = experiment.cache_folder(unit.label)
    if folder is None:
        return "none: the recipe names its cache" if experiment.recipe.targets.use is not None else None
    return f"cache {short(folder.name)}"


def run(experiment: Experiment, unit: Unit, folder: Path) -> Outcome:
    """Make the cache of one split."""
    import torch

    from pipeline.batches import Preprocess
    from pipeline.dataset import rows_of
    from pipeline.devices import described, device_of
    from pipeline.fitting import load_fitted
    from pipeline.student_data import learning_set
    from pipeline.targets.certificate import error_at
    from pipeline.targets.production import TeacherForward
    from pipeline.targets.reader import TargetCache
    from pipeline.targets.writer import CachePlan
    from pipeline.teacher_pass import forward_of, make_cache
    from pipeline.weights import refuse_other_weights

    recipe, targets = experiment.recipe, experiment.recipe.targets
    teacher = experiment.teacher_record()
    device = device_of(recipe.device)
    dataset = experiment.datasets("student")[unit.label]
    row_made_from = experiment.row_made_from()
    class_names = tuple(row_made_from["class_names"])
    certify = sorted({*targets.certify, targets.temperature, recipe.student_temperature or targets.temperature})
    plan = CachePlan(
        row_key=digest_of(row_made_from),
        row_made_from=row_made_from,
        rows=rows_of(dataset, class_names),
        split=unit.label,
        layout=targets.layout,
        rows_per_block=targets.rows_per_block,
        class_names=class_names,
        teacher={
            "key": teacher.key,
            "recipe": teacher.recipe,
            "made_from": teacher.made_from,
            **_described(teacher.values),
        },
        resumable={
            "batch_size": targets.batch_size,
            "precision": targets.precision,
            "threads": torch.get_num_threads(),
            "certify": certify,
        },
    )

    def open_teacher() -> TeacherForward:
        samples = learning_set(experiment.datasets("teacher")["training"])
        network = load_fitted(recipe.teacher, samples, experiment.records.folder_of("teacher", teacher.key))
        refuse_other_weights(
            network.state_dict(), teacher.values["digest"], f"the teacher in runs/ ({short(teacher.key)})"
        )
        preprocess = Preprocess(recipe.teacher_data.normalise, dataset.sample_shape)
        return forward_of(network, dataset, preprocess, targets.precision, device)

    provenance = {"recipe": recipe.name, "device": described(device, targets.precision), **software()}
    made = make_cache(experiment.shelf, plan, open_teacher, experiment.bar, experiment.say, provenance)
    cache = TargetCache(made.folder)
    error = error_at(cache.manifest.certificate, cache.temperature)
    mean_kl = "infinite" if error is None or error["kl_mean"] is None else f"{error['kl_mean']:.1e}"
    line = (
        f"{len(cache):,} rows ({made.rows_computed:,} by the teacher), {described(device, targets.precision)}, mean KL "
        f"{mean_kl} at T = {cache.temperature:g}, {made.seconds:.1f} s -> {made.folder}"
    )
    return Outcome([], {"cache": cache.key, "rows": len(cache), "rows_computed": made.rows_computed}, line)


def _described(values: dict[str, object]) -> dict[str, object]:
    return {name: values[name] for name in ("digest", "sample_shape", "class_names")}


STAGE = Stage("teacher-targets", SOURCES, units, run, needs=(Need("teacher"),), available=available)
