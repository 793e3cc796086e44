"""baseline: the same student on labels only, tuned on validation, with as many optimiser steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.experiment import Experiment
from pipeline.keys import stage_key
from pipeline.made_from import baseline_made_from, has_baseline
from pipeline.stage_runner import Need, Outcome, Stage, Unit
from stages import baseline_search

if TYPE_CHECKING:
    from pipeline.fitting import Fit
    from pipeline.training import History, Trained


def units(experiment: Experiment) -> Sequence[Unit]:
    """One baseline for each seed; none where the student may use no label."""
    if not has_baseline(experiment):
        return []
    made_from = baseline_made_from(experiment)
    seeded = [(seed, {**made_from, "seed": seed}) for seed in experiment.recipe.student.seeds]
    return [Unit(f"seed {seed}", stage_key("baseline", parts), parts, {"seed": seed}) for seed, parts in seeded]


def fit_of(experiment: Experiment, seed: int, rates: dict[str, float]) -> Fit:
    """How to fit one label-only student: as many optimiser steps as the distilled one, other rates."""
    from pipeline.fitting import Fit, steps_of
    from pipeline.student_data import learning_set

    recipe, student = experiment.recipe, experiment.recipe.student
    samples = len(learning_set(experiment.datasets("student")["training"], student.classes))
    training = student.training.model_copy(update=rates)
    return Fit(student, training, recipe.data.normalise, seed, recipe.device, steps_of(student.training, samples))


def train_baseline(
    experiment: Experiment,
    settings: Fit,
    folder: Path,
    validated: Callable[[History], None] = lambda history: None,
) -> Trained:
    """Train one label-only student; every batch is full of labelled samples."""
    from pipeline.fitting import fit
    from pipeline.student_data import learning_set

    student, splits = experiment.recipe.student, experiment.datasets("student")
    learn = learning_set(splits["training"], student.classes).within_budget(student.labelled, student.label_seed)
    validate = learning_set(splits["validation"], student.classes)
    return fit(settings, learn.labelled_only(), validate, folder, experiment.bar, validated=validated)


def run(experiment: Experiment, unit: Unit, folder: Path) -> Outcome:
    """Train with the learning rate and weight decay that the search chose."""
    from pipeline.fitting import WEIGHTS_FILE, fitted_line, fitted_provenance, fitted_values

    [search] = baseline_search.units(experiment)
    record = experiment.records.read("baseline-search", search.key)
    assert record is not None, "the runner runs baseline-search first"
    settings = fit_of(experiment, unit.parameters["seed"], record.values["chosen"])
    curve = experiment.curve_of("baseline", unit.label, unit.key)
    trained = train_baseline(experiment, settings, folder, curve)
    values = {**fitted_values(trained), **record.values["chosen"]}
    return Outcome([WEIGHTS_FILE], values, fitted_line(trained, settings, folder), fitted_provenance(settings))


STAGE = Stage(
    "baseline",
    units,
    run,
    needs=(Need("baseline-search"),),
    user_models=lambda experiment: [experiment.recipe.student.model],
)
