"""What students and baselines follow from: the settings and fingerprints that their keys are hashes of."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from pipeline.errors import UserError
from pipeline.experiment import Experiment
from pipeline.keys import model_parts, sight_parts, training_parts


def student_made_from(experiment: Experiment) -> dict[str, Any]:
    """What every student of the recipe follows from, but for its seed."""
    student, distillation = experiment.recipe.student, experiment.recipe.student.distillation
    network = _network(experiment)  # first: a student that cannot be is refused before its teacher is trained
    row_made_from = experiment.row_made_from()
    parts: dict[str, Any] = {
        "data": _data(experiment),
        "targets": row_made_from,
        "student": {
            **network,
            "training": training_parts(student.training),
            "distillation": {
                "form": distillation.form,
                "coefficient": distillation.coefficient,
                "temperature": distillation.temperature or row_made_from["temperature"],
            },
        },
    }
    if student.order != "global":  # what is left out of a recipe is left out of the key
        parts["student"]["order"] = student.order
    if student.missing == "skip" and experiment.recipe.targets.use is not None:
        parts["skipping_rows_not_in"] = experiment.used_cache_key()  # then the cache decides what is learnt from
    return parts


def baseline_made_from(experiment: Experiment) -> dict[str, Any]:
    """What a baseline follows from: no coefficient, temperature or cache."""
    recipe = experiment.recipe
    training = training_parts(recipe.student.training)
    return {
        "data": _data(experiment),
        "student": {
            **_network(experiment),
            "training": {name: training[name] for name in training if name not in ("learning_rate", "weight_decay")},
        },
        "baseline": {**recipe.baseline.model_dump(mode="json"), "seeds": list(search_seeds(experiment))},
    }


def has_baseline(experiment: Experiment) -> bool:
    """Whether the student may use any label at all: without, there is nothing to train a baseline on."""
    labelled = experiment.recipe.student.labelled
    available = experiment.fingerprints("student")["training"]["labelled"]
    return bool(available if labelled is None else labelled)


def search_seeds(experiment: Experiment) -> Sequence[int]:
    """The first seeds of the students."""
    return experiment.recipe.student.seeds[: experiment.recipe.baseline.search_seeds]


def _data(experiment: Experiment) -> dict[str, Any]:
    """The part of a student's or baseline's key that says what it learns from."""
    data = experiment.fingerprints("student")
    return {
        **sight_parts(experiment.recipe.data),
        "training": data["training"],
        "validation": data["validation"],
    }


def _network(experiment: Experiment) -> dict[str, Any]:
    """The part of a student's or baseline's key that says which network it is, and which labels it may use.

    Raises UserError when the data have no such classes or too few labels: that is known before anything runs.
    """
    student, training = experiment.recipe.student, experiment.fingerprints("student")["training"]
    if student.labelled is not None and student.labelled > training["labelled"]:
        raise UserError(
            f"student.labelled = {student.labelled}, but the training split has {training['labelled']} labelled samples."
        )
    if not student.labelled and not training["labelled"] and student.distillation.coefficient == 0:
        raise UserError(
            "the training split has no labels and student.distillation.coefficient = 0: nothing to learn from."
        )
    module = student.model.partition(":")[0]
    if ":" in student.model and _is_missing(module):
        raise UserError(
            f"student.model = {student.model!r}: there is no module {module!r} here, beside the recipe or installed."
        )
    unknown = [name for name in student.classes or () if name not in training["class_names"]]
    if unknown:
        raise UserError(
            f"student.classes names {unknown[0]!r}; the classes of the data are {', '.join(training['class_names'])}."
        )
    return {
        **model_parts(student),
        "labelled": student.labelled,
        "label_seed": student.label_seed,
        "classes": student.classes and list(student.classes),
    }


def _is_missing(module: str) -> bool:
    try:
        return find_spec(module) is None
    except (ImportError, ValueError):
        return True
