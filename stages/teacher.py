"""teacher: train the expensive model, once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.canonical import short
from pipeline.errors import UserError
from pipeline.experiment import Experiment
from pipeline.records import Record
from pipeline.stage_runner import Outcome, Stage, Unit
from pipeline.teachers.identity import described


def units(experiment: Experiment) -> Sequence[Unit]:
    """One teacher, where the recipe trains it; a pinned one has the key that it was trained under."""
    if experiment.recipe.teacher.form != "trained":
        return []
    if experiment.recipe.teacher.digest is not None:
        pinned = experiment.teacher_record()
        return [Unit("", pinned.key, pinned.made_from)]
    return [Unit("", experiment.teacher_key(), experiment.teacher_made_from())]


def run(experiment: Experiment, unit: Unit, folder: Path) -> Outcome:
    """Train the teacher on all labels of its training split; keep the best weights on its validation split."""
    from pipeline.fitting import WEIGHTS_FILE, Fit, fit, fitted_line, fitted_provenance, fitted_values, steps_of
    from pipeline.student_data import learning_set
    from pipeline.weights import weights_digest

    recipe, teacher = experiment.recipe, experiment.recipe.teacher
    assert teacher.training is not None, "an imported teacher has no unit"
    if teacher.digest is not None:
        raise UserError(
            f"teacher.digest pins {teacher.digest}, whose weights are not in {folder}. Put them there, or remove the pin."
        )
    splits = experiment.datasets("teacher")
    learn = learning_set(splits["training"]).labelled_only()
    settings = Fit(
        teacher,
        teacher.training,
        recipe.teacher_data.normalise,
        teacher.seed,
        recipe.device,
        steps_of(teacher.training, len(learn)),
    )
    trained = fit(
        settings,
        learn,
        learning_set(splits["validation"]),
        folder,
        experiment.bar,
        validated=experiment.curve_of("teacher", unit.label, unit.key),
    )
    values = {
        **fitted_values(trained),
        "digest": weights_digest(trained.state),
        "sample_shape": list(learn.dataset.sample_shape),
        "class_names": list(learn.class_names),
    }
    return Outcome([WEIGHTS_FILE], values, fitted_line(trained, settings, folder), fitted_provenance(settings))


def how_to_keep(earlier: Record, unit: Unit) -> str:
    """New data train a new teacher; often the old one should label them."""
    if earlier.made_from["teacher"].get("data") == unit.made_from["teacher"]["data"]:
        return ""
    return f" (to keep the earlier teacher for the new data: --set teacher.digest={earlier.values['digest']})"


def nothing_to_train(experiment: Experiment) -> str:
    """An imported teacher is there already. Raises TeacherAbsentError when it is not."""
    digest = experiment.teacher_record().values["digest"]
    return f"nothing to train: {described(experiment.recipe.teacher)} (digest {short(digest)})"


STAGE = Stage(
    "teacher",
    units,
    run,
    user_models=lambda experiment: [experiment.recipe.teacher.model],
    advice=how_to_keep,
    absent=nothing_to_train,
)
