"""student: train the small model from cached soft targets and labels, without ever meeting the teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from pipeline.experiment import Experiment
from pipeline.keys import stage_key
from pipeline.made_from import student_made_from
from pipeline.recipe import LARGEST_KL
from pipeline.records import Record
from pipeline.stage_runner import Need, Outcome, Stage, Unit


def units(experiment: Experiment) -> Sequence[Unit]:
    """One student for each seed."""
    shared = student_made_from(experiment)
    seeded = [(seed, {**shared, "seed": seed}) for seed in experiment.recipe.student.seeds]
    return [Unit(f"seed {seed}", stage_key("student", parts), parts, {"seed": seed}) for seed, parts in seeded]


def run(experiment: Experiment, unit: Unit, folder: Path) -> Outcome:
    """Join the training samples to their cache, train one student, keep its best weights on validation."""
    from pipeline.fitting import WEIGHTS_FILE, Fit, fit, fitted_line, fitted_provenance, fitted_values, steps_of
    from pipeline.student_data import learning_set
    from pipeline.student_targets import open_for_student

    recipe, student = experiment.recipe, experiment.recipe.student
    splits = experiment.datasets("student")
    learn = learning_set(splits["training"], student.classes).within_budget(student.labelled, student.label_seed)
    targets = open_for_student(experiment, learn)
    settings = Fit(
        student,
        student.training,
        recipe.data.normalise,
        unit.parameters["seed"],
        recipe.device,
        steps_of(student.training, len(learn)),
    )
    trained = fit(
        settings,
        targets.learn,
        learning_set(splits["validation"], student.classes),
        folder,
        experiment.bar,
        distillation=student.distillation,
        temperature=targets.temperature,
        soft_targets=targets.soft_targets.for_loss,
        order=student.order,
        validated=experiment.curve_of("student", unit.label, unit.key),
    )
    values = {
        **fitted_values(trained),
        "cache": targets.cache.key,
        "temperature": targets.temperature,
        "cache_kl": targets.mean_kl,
        "samples": len(targets.learn),
        "skipped": len(learn) - len(targets.learn),
    }
    return Outcome([WEIGHTS_FILE], values, fitted_line(trained, settings, folder), fitted_provenance(settings))


def stale(experiment: Experiment, record: Record) -> str | None:
    """`max_kl` is in no key, since it changes no result; a stricter one is asked of the result again."""
    distillation, mean_kl = experiment.recipe.student.distillation, record.values["cache_kl"]
    allowed = distillation.max_kl or LARGEST_KL[experiment.row_made_from()["encoding"]["name"]]
    if distillation.coefficient == 0 or allowed == math.inf or (mean_kl is not None and mean_kl <= allowed):
        return None
    return f"its cache has mean KL {mean_kl}, above max_kl = {allowed:g}"


STAGE = Stage(
    "student",
    units,
    run,
    needs=(Need("teacher-targets", ("training",)),),
    stale=stale,
    user_models=lambda experiment: [experiment.recipe.student.model],
)
