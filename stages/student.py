"""student: train the small model from cached soft targets and labels, without ever meeting the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.experiment import Experiment
from pipeline.keys import model_parts, stage_key, training_parts
from pipeline.stage_runner import Need, Outcome, Stage, Unit

SOURCES = (
    "stages/student.py",
    "pipeline/student_data.py",
    "pipeline/batches.py",
    "pipeline/fitting.py",
    "pipeline/training.py",
    "pipeline/models.py",
    "pipeline/losses.py",
    "pipeline/targets/order.py",
)


def data_parts(experiment: Experiment) -> dict[str, Any]:
    """The part of a student's or baseline's key that says what it learns from."""
    data = experiment.fingerprints("student")
    return {
        "normalise": experiment.recipe.data.normalise.model_dump(mode="json"),
        "training": data["training"],
        "validation": data["validation"],
    }


def network_parts(experiment: Experiment) -> dict[str, Any]:
    """The part of a student's or baseline's key that says which network it is, and which labels it may use."""
    student = experiment.recipe.student
    return {
        **model_parts(student),
        "labelled": student.labelled,
        "label_seed": student.label_seed,
        "classes": student.classes and list(student.classes),
    }


def made_from(experiment: Experiment) -> dict[str, Any]:
    """What every student of the recipe follows from, but for its seed."""
    student, row_made_from = experiment.recipe.student, experiment.row_made_from()
    distillation = student.distillation
    parts: dict[str, Any] = {
        "data": data_parts(experiment),
        "targets": row_made_from,
        "student": {
            **network_parts(experiment),
            "training": training_parts(student.training),
            "distillation": {
                "form": distillation.form,
                "coefficient": distillation.coefficient,
                "temperature": distillation.temperature or row_made_from["temperature"],
            },
        },
    }
    if student.missing == "skip" and experiment.recipe.targets.use is not None:
        parts["skipping_rows_not_in"] = experiment.used_cache_key()  # then the cache decides what is learnt from
    return parts


def units(experiment: Experiment) -> Sequence[Unit]:
    """One student for each seed."""
    shared = made_from(experiment)
    seeded = [(seed, {**shared, "seed": seed}) for seed in experiment.recipe.student.seeds]
    return [Unit(f"seed {seed}", stage_key("student", parts), parts, {"seed": seed}) for seed, parts in seeded]


def run(experiment: Experiment, unit: Unit, folder: Path) -> Outcome:
    """Join the training samples to their cache, train one student, keep its best weights on validation."""
    from pipeline.fitting import WEIGHTS_FILE, Fit, build_for, fit, fitted_values, steps_of
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
        steps_of(student.training, len(targets.learn)),
    )
    trained = fit(
        settings,
        targets.learn,
        learning_set(splits["validation"], student.classes),
        folder,
        experiment.bar,
        distillation=student.distillation,
        temperature=targets.temperature,
        soft_targets=targets.soft_targets,
    )
    values = {
        **fitted_values(trained, build_for(student, learn)),
        "cache": targets.cache.key,
        "temperature": targets.temperature,
        "samples": len(targets.learn),
        "skipped": len(learn) - len(targets.learn),
    }
    score = f"{100 * trained.best['score']:.2f} % on validation" if trained.best else "not validated: no labels"
    line = f"{score}, {values['parameters']:,} parameters, {trained.seconds:.1f} s -> {folder / WEIGHTS_FILE}"
    return Outcome([WEIGHTS_FILE], values, line)


STAGE = Stage(
    "student",
    SOURCES,
    units,
    run,
    needs=(Need("teacher-targets", ("training",)),),
    user_models=lambda experiment: [experiment.recipe.student.model],
)
