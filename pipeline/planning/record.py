"""The kept measurement of a plan: what it holds for, and where it is."""

from __future__ import annotations

from typing import Any

from pipeline.canonical import digest_of
from pipeline.experiment import Experiment, NotYet
from pipeline.keys import KEY_SCHEMA, model_parts, sight_parts, training_parts
from pipeline.records import Record

STAGE = "plan"  # the folder in runs/
PLAN_VERSION = 1  # raised when the same recipe would be measured otherwise


def plan_made_from(experiment: Experiment) -> dict[str, Any]:
    """What a plan's figures hold for: the rows, networks and settings that decide bytes and seconds, but no weights.

    So a plan that was made before the teacher was trained is still that of its recipe afterwards. Unlike in other keys,
    what changes the time alone is here: batch size, layout, rows of a block.
    """
    recipe, data = experiment.recipe, experiment.fingerprints("student")
    teacher, targets, student = recipe.teacher, recipe.targets, recipe.student
    brought = {name: getattr(teacher, name) for name in ("weights", "estimator") if getattr(teacher, name) is not None}
    if teacher.outputs is not None:
        brought["outputs"] = teacher.outputs.model_dump(mode="json")
    return {
        "device": recipe.device,
        "data": {split: {name: parts[name] for name in ("samples", "rows_sha256")} for split, parts in data.items()},
        "student": {
            **sight_parts(recipe.data),
            **model_parts(student),
            "training": training_parts(student.training),
            "coefficient": student.distillation.coefficient,
            "temperature": recipe.student_temperature,
            "classes": student.classes and list(student.classes),
        },
        "teacher": {
            "form": teacher.form,
            **brought,
            **model_parts(teacher),
            **sight_parts(recipe.teacher_data),
            "class_names": list(taught_classes(experiment)),
        },
        "targets": targets.model_dump(mode="json", exclude={"use"}),
    }


def taught_classes(experiment: Experiment) -> tuple[str, ...]:
    """The classes of the teacher's outputs, in order, also before it is trained."""
    try:
        return tuple(experiment.teacher_record().values["class_names"])
    except NotYet:
        return tuple(experiment.fingerprints("teacher")["training"]["class_names"])


def plan_key(experiment: Experiment) -> str:
    """The key of the recipe's plan."""
    made_from = plan_made_from(experiment)
    return digest_of({"key_schema": KEY_SCHEMA, "stage": STAGE, "version": PLAN_VERSION, "made_from": made_from})


def kept_plan(experiment: Experiment) -> Record | None:
    """What was measured for this recipe earlier, or None."""
    return experiment.records.read(STAGE, plan_key(experiment))
