"""Which splits a file of outputs covers, and what its indices mean: asked once, then remembered with the file's digest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.canonical import digest_of
from pipeline.errors import OutputsError, TeacherAbsentError
from pipeline.file_memory import sha256_of_file
from pipeline.teachers.identity import file_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.dataset import Dataset
    from pipeline.experiment import Experiment
    from pipeline.teachers.joining import JoinedOutputs

MOST_NAMED = 5
MEMORY_VERSION = 2  # raised when a file would be joined otherwise


def coverage_of(experiment: Experiment) -> dict[str, Any]:
    """`covered` (the splits with a row for every sample), `notes` (what is not, or is doubtful, for people) and `places_sha256`.

    The last is what the file's indices mean for this dataset; None where rows are joined by digest, which needs no dataset.
    Raises OutputsError when the file is wrong, or does not cover the training split; TeacherAbsentError when it is gone.
    """
    memory = _memory(experiment)
    known = _recalled(memory)
    if known is None:
        known = _found(experiment)
        if memory is not None:
            experiment.remember(memory, known)
    return known


def covered_splits(experiment: Experiment) -> list[str]:
    """The splits that get a cache: all, or those that a file of outputs covers.

    Where the file is gone, those of which a cache is here.
    """
    splits = list(experiment.fingerprints("student"))
    if experiment.recipe.teacher.form != "outputs" or experiment.recipe.targets.use is not None:
        return splits
    try:
        return [split for split in splits if split in coverage_of(experiment)["covered"]]
    except TeacherAbsentError:
        return [split for split in splits if split == "training" or experiment.cache_folder(split) is not None]


def notes_of(experiment: Experiment) -> list[str]:
    """What a file of outputs does not cover, and which of its rows have no use; nothing for another teacher."""
    return list(coverage_of(experiment)["notes"]) if experiment.recipe.teacher.form == "outputs" else []


def joined_outputs(experiment: Experiment) -> JoinedOutputs:
    """The file of outputs, checked and joined to the student's data; once in a process."""
    from pipeline.teachers.identity import stated_parts
    from pipeline.teachers.joining import JoinedOutputs
    from pipeline.teachers.outputs_file import read_outputs

    path, outputs = file_of(experiment), experiment.recipe.teacher.outputs
    assert outputs is not None
    sha256 = experiment.memory.recall(path, sha256_of_file)
    if experiment.joined is None or experiment.joined[0] != sha256:
        names = stated_parts(experiment)["class_names"]
        file = read_outputs(path, outputs.values, names)
        splits = experiment.datasets("student")
        experiment.joined = (sha256, JoinedOutputs(file, splits, names, outputs.values, outputs.temperature))
    return experiment.joined[1]


def _found(experiment: Experiment) -> dict[str, Any]:

    joined, path = joined_outputs(experiment), file_of(experiment)
    covered, notes = [], []
    for split, rows in joined.rows.items():
        missing = joined.missing(split)
        if len(missing) == 0:
            covered.append(split)
            continue
        lack = (
            f"{len(missing)} of {len(rows)} samples of the {split} split have no row in {path.name} "
            f"({_named(experiment.datasets('student')[split], missing, by_digest=joined.places_sha256 is None)})"
        )
        if split == "training":
            raise OutputsError(f"{lack}; a student needs all of them. Nothing was imported.")
        notes.append(f"{lack}; no cache is made of it")
    notes += [note for split in covered for note in _contradictions(experiment, joined, split, path.name)]
    if joined.unmatched:
        notes.append(f"{joined.unmatched} rows of {path.name} are of no sample of the dataset; they were left out")
    return {"covered": covered, "notes": notes, "places_sha256": joined.places_sha256}


def _named(dataset: Dataset, samples: NDArray[np.int64], *, by_digest: bool) -> str:
    """The first samples as the file should have named them: their digests, or their places in the source."""
    from pipeline.teachers.places import places_of

    more = ", ..." if len(samples) > MOST_NAMED else ""
    some = samples[:MOST_NAMED]
    if by_digest:
        return f"digests {', '.join(digest.tobytes().hex() for digest in dataset.sample_digests()[some])}{more}"
    part, positions = places_of(dataset)
    return f"index {', '.join(map(str, positions[some].tolist()))}{more} of part {part!r}"


def _contradictions(experiment: Experiment, joined: JoinedOutputs, split: str, name: str) -> list[str]:
    from pipeline.teachers.outputs_checks import first_few

    samples, most = joined.contradicting(split, experiment.datasets("student")[split])
    if len(samples) == 0:
        return []
    return [
        f"{len(samples)} samples of the {split} split ({first_few(samples.tolist(), 'sample')}) equal an earlier one, but their "
        f"rows in {name} give other probabilities, by up to {most:.2g}; the row of the first serves all. Unless the teacher is "
        "random, rows are of other samples than their places say"
    ]


def _memory(experiment: Experiment) -> Path | None:
    """Where this file with this dataset is remembered; None for a dataset that must be loaded each time to see."""
    outputs, data = experiment.recipe.teacher.outputs, experiment.data_memory("student")
    assert outputs is not None
    sha256 = experiment.memory.recall(file_of(experiment), sha256_of_file)
    if data is None:
        return None
    identity = {
        "version": MEMORY_VERSION,
        "file": sha256,
        "suffix": file_of(experiment).suffix,
        "settings": outputs.model_dump(mode="json", exclude={"path"}),
        "class_names": experiment.recipe.teacher.class_names and list(experiment.recipe.teacher.class_names),
        "data": data.name,
    }
    return data.with_name(f"outputs-{digest_of(identity)}.json")


def _recalled(memory: Path | None) -> dict[str, Any] | None:
    try:
        known = {} if memory is None else json.loads(memory.read_bytes())
        return {name: known[name] for name in ("covered", "notes", "places_sha256")}
    except (OSError, ValueError, KeyError, TypeError):
        return None
