"""What identifies an imported teacher: a digest of what was brought, and the settings that give it a meaning.

Nothing here loads a teacher or imports torch; what a file's digest is, is remembered while the file stays the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.canonical import digest_of, short
from pipeline.errors import MismatchError, TeacherAbsentError
from pipeline.file_memory import sha256_of_file
from pipeline.keys import model_parts, sight_parts, stage_key
from pipeline.records import Record, difference
from pipeline.teachers.declaration import declared

if TYPE_CHECKING:
    from pipeline.experiment import Experiment
    from pipeline.recipe import Teacher


def imported_record(experiment: Experiment) -> Record:
    """The record of an imported teacher, as a training would have left one: its key and digest, without outputs.

    Where what was imported is gone, a recipe that pins `teacher.digest` finds the record in a cache that it made.
    Raises TeacherAbsentError without the pin, and MismatchError when the pin names another teacher.
    """
    teacher, stated = experiment.recipe.teacher, stated_parts(experiment)
    try:
        found = IDENTITIES[teacher.form](experiment)
    except TeacherAbsentError as absent:
        if teacher.digest is None:
            raise TeacherAbsentError(f"{absent} {_how_to_pin(experiment, stated)}") from None
        suits = lambda record: _made_as(experiment, record.made_from, stated)  # noqa: E731
        return _refuse_other_settings(experiment, experiment.known_teacher(teacher.digest, suits), stated)
    if teacher.digest not in (None, found["digest"]):
        raise MismatchError(
            f"teacher.digest pins {teacher.digest}, but {described(teacher)} has the digest {found['digest']}. Bring the teacher "
            "that is pinned, or remove the pin."
        )
    made_from = {"teacher": {**stated, **found}}
    shape, names = experiment.fingerprints("teacher")["training"]["sample_shape"], stated["class_names"]
    values = {"digest": found["digest"], "sample_shape": shape, "class_names": names}
    return Record("teacher", "", stage_key("teacher", made_from), experiment.recipe.name, made_from, {}, values, {})


def stated_parts(experiment: Experiment) -> dict[str, Any]:
    """What the recipe says of an imported teacher; the digest of what was brought comes to it."""
    teacher = experiment.recipe.teacher
    names = teacher.class_names or experiment.fingerprints("teacher")["training"]["class_names"]
    parts: dict[str, Any] = {"form": teacher.form, "class_names": list(names)}
    if teacher.form == "weights":
        parts |= model_parts(teacher)
    if teacher.estimator is not None:
        parts["estimator"] = teacher.estimator
    if teacher.outputs is not None:
        return {**parts, "values": teacher.outputs.values, "temperature": teacher.outputs.temperature}
    return {**parts, "data": sight_parts(experiment.recipe.teacher_data)}


def row_parts(experiment: Experiment, record: Record) -> dict[str, Any]:
    """What says, in a cache's row_key, which teacher it was. Weights count alike, trained here or imported."""
    teacher = experiment.recipe.teacher
    if teacher.form in ("trained", "weights"):
        return {"digest": record.values["digest"], **model_parts(teacher)}
    return {name: part for name, part in record.made_from["teacher"].items() if name not in ("class_names", "data")}


def described(teacher: Teacher) -> str:
    """An imported teacher, for people."""
    if teacher.outputs is not None:
        return f"imported outputs {Path(teacher.outputs.path).name}"
    if teacher.estimator is not None:
        return f"estimator {teacher.estimator}"
    return f"imported {'program' if teacher.form == 'program' else 'weights'} {Path(str(teacher.weights)).name}"


def file_of(experiment: Experiment) -> Path:
    """The file that a teacher is imported from. Raises TeacherAbsentError when it is not there."""
    teacher = experiment.recipe.teacher
    name = teacher.outputs.path if teacher.outputs is not None else teacher.weights
    assert name is not None
    path = experiment.data_folder / name
    if not path.is_file():
        raise TeacherAbsentError(f"{path}: no such file. A relative path starts at the data folder (--data-dir).")
    return path


def _of_weights(experiment: Experiment) -> dict[str, Any]:
    from pipeline.weights import digest_of_file

    return {"digest": experiment.memory.recall(file_of(experiment), digest_of_file)}


def _of_whole_file(experiment: Experiment) -> dict[str, Any]:
    return {"digest": experiment.memory.recall(file_of(experiment), sha256_of_file)}


def _of_estimator(experiment: Experiment) -> dict[str, Any]:
    name = str(experiment.recipe.teacher.estimator)
    version, paths = declared(name, experiment.data_folder)
    files = [experiment.memory.recall(path, sha256_of_file) for path in paths]
    return {"digest": digest_of({"estimator": name, "version": version, "files": files})}


def _of_outputs(experiment: Experiment) -> dict[str, Any]:
    """The same file is another teacher where its numbers, columns or places mean something else: all are in the digest."""
    from pipeline.teachers.coverage import coverage_of

    parts = {"file_sha256": experiment.memory.recall(file_of(experiment), sha256_of_file)}
    places = coverage_of(experiment)["places_sha256"]
    if places is not None:
        parts["places_sha256"] = places
    return {"digest": digest_of({**stated_parts(experiment), **parts}), **parts}


# What makes an imported teacher the one that it is, for each form.
IDENTITIES: dict[str, Callable[[Experiment], dict[str, Any]]] = {
    "weights": _of_weights,
    "program": _of_whole_file,
    "estimator": _of_estimator,
    "outputs": _of_outputs,
}


def _how_to_pin(experiment: Experiment, stated: dict[str, Any]) -> str:
    """Caches here that such a teacher may have made: the recipe may use them when it says which."""
    digests = {
        manifest.teacher["digest"]: None
        for _, manifest in experiment.shelf.sealed()
        if _made_as(experiment, manifest.teacher["made_from"], stated)
    }
    if not digests:
        return "Bring it, since no cache here was made by such a teacher."
    return f"Bring it, or use the caches that it made here with teacher.digest = one of: {', '.join(digests)}."


def _made_as(experiment: Experiment, made_from: dict[str, Any], stated: dict[str, Any]) -> bool:
    """Whether a teacher was imported by what this recipe says, and, where indices name samples, for the same places."""
    return _stated_in(made_from, stated) == stated and not _of_other_places(experiment, made_from)


def _of_other_places(experiment: Experiment, made_from: dict[str, Any]) -> bool:
    places = made_from.get("teacher", {}).get("places_sha256")
    return places is not None and places != _places_here(experiment)


def _places_here(experiment: Experiment) -> str:
    from pipeline.teachers.places import places_here

    return places_here(experiment)


def _refuse_other_settings(experiment: Experiment, pinned: Record, stated: dict[str, Any]) -> Record:
    made, digest = _stated_in(pinned.made_from, stated), pinned.values["digest"]
    if made != stated:
        raise MismatchError(
            f"teacher.digest pins {digest}, but this recipe differs from the one it was imported by: "
            f"{difference({'teacher': made}, {'teacher': stated})}. Set these as they were, or remove the pin."
        )
    if _of_other_places(experiment, pinned.made_from):
        raise MismatchError(
            f"teacher.digest pins {digest}, whose rows are known by their place in the source, but there [data] has other "
            f"samples: places {short(pinned.made_from['teacher']['places_sha256'])} then, {short(_places_here(experiment))} now. "
            "Set [data] as it was, or name the cache with targets.use: its rows then join these samples by their content."
        )
    return pinned


def _stated_in(made_from: dict[str, Any], stated: dict[str, Any]) -> dict[str, Any]:
    made = made_from.get("teacher", {})
    return {name: made[name] for name in stated if name in made}
