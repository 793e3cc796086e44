"""baseline: the same student on labels only, tuned on validation, with as many optimiser steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.experiment import Experiment
from pipeline.keys import stage_key
from pipeline.made_from import baseline_made_from
from pipeline.stage_runner import Need, Outcome, Stage, Unit
from stages import baseline_search

if TYPE_CHECKING:
    from pipeline.training import Trained


def units(experiment: Experiment) -> Sequence[Unit]:
    """One baseline for each seed."""
    made_from = baseline_made_from(experiment)
    seeded = [(seed, {**made_from, "seed": seed}) for seed in experiment.recipe.student.seeds]
    return [Unit(f"seed {seed}", stage_key("baseline", parts), parts, {"seed": seed}) for seed, parts in seeded]


def train_baseline(experiment: Experiment, seed: int, rates: dict[str, float], folder: Path) -> Trained:
    """Train one label-only student: every batch full of labelled samples, as many steps as the distilled student."""
    from pipeline.fitting import Fit, fit, steps_of
    from pipeline.student_data import learning_set

    recipe, student = experiment.recipe, experiment.recipe.student
    splits = experiment.datasets("student")
    learn = learning_set(splits["training"], student.classes)
    settings = Fit(
        student,
        student.training.model_copy(update=rates),
        recipe.data.normalise,
        seed,
        recipe.device,
        steps_of(student.training, len(learn)),
    )
    labelled = learn.within_budget(student.labelled, student.label_seed).labelled_only()
    return fit(settings, labelled, learning_set(splits["validation"], student.classes), folder, experiment.bar)


def run(experiment: Experiment, unit: Unit, folder: Path) -> Outcome:
    """Train with the learning rate and weight decay that the search chose."""
    from pipeline.fitting import WEIGHTS_FILE

    [search] = baseline_search.units(experiment)
    record = experiment.records.read("baseline-search", search.key)
    assert record is not None, "the runner runs baseline-search first"
    trained = train_baseline(experiment, unit.parameters["seed"], record.values["chosen"], folder)
    values = {
        "steps": trained.steps,
        "best_step": trained.best_step,
        "validation": trained.best,
        "history": trained.history,
        "training_seconds": round(trained.seconds, 3),
        **record.values["chosen"],
    }
    score = f"{100 * trained.best['score']:.2f} % on validation" if trained.best else "not validated: no labels"
    return Outcome([WEIGHTS_FILE], values, f"{score}, {trained.seconds:.1f} s -> {folder / WEIGHTS_FILE}")


STAGE = Stage(
    "baseline",
    baseline_search.SOURCES,
    units,
    run,
    needs=(Need("baseline-search"),),
    user_models=lambda experiment: [experiment.recipe.student.model],
)
