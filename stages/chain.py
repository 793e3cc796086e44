"""The chain of stages, in order, and an experiment put together for the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from data import Looks, shaped, source_of
from pipeline.curves import Curves
from pipeline.experiment import Experiment, NotYet, Workspace
from pipeline.progress import stderr_bar
from pipeline.recipe_reader import find_recipe, read_recipe
from pipeline.stage_runner import Runner, Stage
from stages import baseline, baseline_search, evaluate, report, student, teacher, teacher_targets

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        teacher.STAGE,
        teacher_targets.STAGE,
        student.STAGE,
        baseline_search.STAGE,
        baseline.STAGE,
        evaluate.STAGE,
        report.STAGE,
    )
}


# The stages whose validations `--tensorboard` shows when one of these is asked for.
TRAININGS = {
    "teacher": ("teacher",),
    "student": ("teacher", "student"),
    "baseline": ("baseline",),
    "evaluate": ("teacher", "student", "baseline"),
}


def open_experiment(
    recipe: str,
    overrides: Sequence[str],
    workspace: Path,
    data_dir: Path | None,
    tensorboard: Path | None = None,
) -> Experiment:
    """The experiment of a recipe; a user's own functions are found in the current folder and beside the recipe.

    Raises RecipeError, and UserError when `tensorboard` names a folder but the package is not installed.
    """
    path = find_recipe(recipe)
    for folder in (str(path.resolve().parent), str(Path.cwd())):
        if folder not in sys.path:
            sys.path.append(folder)  # last: a file beside a recipe must not stand in for an installed library
    data_folder = data_dir or Path(os.environ.get("SOFTCACHE_DATA", "."))
    place = Workspace(workspace)
    looks = Looks(place.memories, stderr_bar)
    return Experiment(
        read_recipe(path, overrides),
        place,
        lambda settings: source_of(settings, data_folder, looks),
        shape=shaped,
        data_folder=data_folder,
        say=say,
        bar=stderr_bar,
        curves=Curves(tensorboard) if tensorboard is not None else None,
    )


def runner_of(experiment: Experiment, report: Callable[[str], None] = print) -> Runner:
    """A runner over all stages; `report` gets the line of each finished unit."""
    return Runner(STAGES, experiment, report)


def complete_curves(experiment: Experiment, runner: Runner, target: str) -> None:
    """Write the validations of models that were finished before, from their records."""
    for stage in TRAININGS[target] if experiment.curves is not None else ():
        with suppress(NotYet):  # where only a cache knows of the teacher, nothing is known of its training
            for record in runner.records(stage):
                history = record.values.get("history")
                if experiment.curves is not None and history:
                    experiment.curves.of(record.recipe, stage, record.label, record.key).complete(history)


def say(text: str) -> None:
    """One line of what happens, for people: stderr, so that stdout carries results alone."""
    print(text, file=sys.stderr, flush=True)
