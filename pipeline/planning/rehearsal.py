"""A rehearsal: the teacher's pass and a student's steps, really run on a few rows of a recipe, and thrown away.

Real caches are made, so that preparing samples, the forward pass, encoding, certificate, checksums and the disk are all in
the times. Weights do not change a time: before the teacher is trained, its network is run as it is built.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.batches import Preprocess, SoftTargets
from pipeline.canonical import digest_of
from pipeline.dataset import rows_of
from pipeline.devices import device_of
from pipeline.durable import make_folder
from pipeline.errors import Interrupted, TeacherAbsentError
from pipeline.experiment import Experiment, NotYet
from pipeline.fitting import WEIGHTS_FILE
from pipeline.models import build_model
from pipeline.planning.pass_timing import timed_pass
from pipeline.planning.price import PassSpeed, StudentSpeed
from pipeline.progress import Bar
from pipeline.sorting import Indices
from pipeline.step_timing import step_seconds, steps_of_epoch, targets_in_loop, validation_seconds
from pipeline.student_data import CachedSoftTargets, LearningSet, learning_set
from pipeline.targets.production import TeacherForward
from pipeline.targets.reader import TargetCache
from pipeline.targets.writer import CachePlan
from pipeline.teacher_pass import forward_of
from pipeline.teachers.identity import IDENTITIES
from pipeline.teachers.opening import open_teacher

ROUNDS = 5  # of steps from the cache and with the teacher in the loop, in turn
ROUND_SECONDS = 0.4  # of each, once the rate is roughly known
MOST_STEPS = 200  # of a round
STEPS_BEFORE = 2  # to warm up, and again for the rough rate
STUDENT_SECONDS = 8.0  # after which no further round begins
MOST_VALIDATED = 4096


@dataclass(frozen=True)
class Stand:
    """Who stands for the teacher: "itself", its network "untrained", imported "outputs", or "noise" where it is absent."""

    name: str
    open: Callable[[Indices | None], TeacherForward]


@dataclass(frozen=True)
class Rehearsal:
    """What was measured: `teacher` is a Stand's name; without a teacher there is no `speed`.

    `student` is None where none of the timed rows is of its classes. `stored_share` is how much of the timed blocks' bytes
    was stored, below 1 where compression helps.
    """

    teacher: str
    speed: PassSpeed | None
    batch_size: int
    student: StudentSpeed | None
    stored_share: float


def rehearse(experiment: Experiment, class_names: tuple[str, ...], folder: Path, bar: Bar) -> Rehearsal:
    """Run rows of the training split through the recipe's teacher, whose classes these are, and steps of its student.

    Takes some seconds, however large the dataset. What is made goes to `folder`, which is removed afterwards. Raises
    what a pass raises, and Interrupted on Ctrl-C.
    """
    stand = _stand(experiment, class_names)
    with _scratch(folder), bar("plan, rehearsing", 2, "parts") as advance:
        timed = timed_pass(_rehearsed_plan(experiment, class_names), stand.open, folder)
        advance(1)
        cache = TargetCache(timed.folder)
        student = _timed_student(experiment, cache, class_names, stand)
        advance(1)
        speed = timed.speed if stand.name != "noise" else None
        return Rehearsal(stand.name, speed, timed.batch_size, student, _stored_share(cache))


@contextmanager
def _scratch(folder: Path) -> Iterator[None]:
    """A folder for the time being; what a killed run left there goes first."""
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted("interrupted: nothing is kept of what the plan timed. Run the same command again.") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _stand(experiment: Experiment, class_names: tuple[str, ...]) -> Stand:
    teacher = experiment.recipe.teacher
    if _is_here(experiment):
        name = "outputs" if teacher.form == "outputs" else "itself"
        return Stand(name, lambda order: open_teacher(experiment, "training", order))
    if teacher.form in ("trained", "weights"):
        return Stand("untrained", lambda order: _untrained(experiment, len(class_names), order))
    generator = torch.Generator().manual_seed(0)
    return Stand(
        "noise", lambda order: lambda indices: torch.randn(len(indices), len(class_names), generator=generator)
    )


def _is_here(experiment: Experiment) -> bool:
    """Whether the recipe's own teacher can be opened."""
    form = experiment.recipe.teacher.form
    try:
        record = experiment.teacher_record()
        if form == "trained":
            return (experiment.records.folder_of("teacher", record.key) / WEIGHTS_FILE).is_file()
        IDENTITIES[form](experiment)
    except (NotYet, TeacherAbsentError):
        return False
    return True


def _untrained(experiment: Experiment, classes: int, order: Indices | None) -> TeacherForward:
    """The network of the recipe's teacher with its initial weights, over the training samples as it sees them."""
    recipe, dataset = experiment.recipe, experiment.datasets("transfer")["training"]
    network = build_model(recipe.teacher.model, recipe.teacher.options, dataset.sample_shape, classes)
    preprocess = Preprocess(recipe.teacher_data.normalise, dataset.sample_shape)
    return forward_of(network, dataset, preprocess, recipe.targets.precision, device_of(recipe.device), order)


def _rehearsed_plan(experiment: Experiment, class_names: tuple[str, ...]) -> CachePlan:
    """The cache of the training split under a key of its own, whether or not the real one is known yet."""
    recipe, targets = experiment.recipe, experiment.recipe.targets
    wanted_at = recipe.student_temperature or targets.temperature
    dataset, nobody = experiment.datasets("student")["training"], digest_of("rehearsal")
    row_made_from = {
        "teacher": {"digest": nobody},
        "class_names": list(class_names),
        "encoding": targets.encoding_parameters(),
        "temperature": targets.temperature,
    }
    return CachePlan(
        row_key=digest_of(row_made_from),
        row_made_from=row_made_from,
        rows=rows_of(dataset, class_names),
        split="training",
        layout=targets.layout,
        compression=targets.compression,
        rows_per_block=targets.rows_per_block,
        class_names=class_names,
        teacher={
            "key": nobody,
            "recipe": recipe.name,
            "made_from": {},
            "digest": nobody,
            "sample_shape": list(dataset.sample_shape),
            "class_names": list(class_names),
        },
        resumable={
            "batch_size": targets.batch_size,
            "precision": targets.precision,
            "threads": torch.get_num_threads(),
            "certify": sorted({*targets.certify, targets.temperature, wanted_at}),
        },
    )


def _timed_student(
    experiment: Experiment, cache: TargetCache, class_names: tuple[str, ...], stand: Stand
) -> StudentSpeed | None:
    """Steps of the student from `cache` and with the teacher in the loop, in turn.

    Samples are drawn from the whole training split, as memory is slower where there are more of them; those that the cache
    does not hold learn from rows of others.
    """
    student, splits = experiment.recipe.student, experiment.datasets("student")
    everything = learning_set(splits["training"], student.classes)
    held = np.flatnonzero(cache.find(everything.sample_digests()) >= 0)
    if len(held) == 0:
        return None
    temperature = student.distillation.temperature or cache.temperature
    cached = CachedSoftTargets(cache, everything.at(held), temperature, student.classes)
    ways: dict[str, SoftTargets] = {"cached": lambda positions: cached.for_loss(positions % len(held))}
    if stand.name in ("itself", "untrained"):
        ways["online"] = targets_in_loop(stand.open(None), everything, class_names, temperature)
    seconds = _median_steps(experiment, everything, ways, temperature)
    validated = learning_set(splits["validation"], student.classes)
    return StudentSpeed(
        samples=len(everything),
        steps=steps_of_epoch(experiment, len(everything)),
        validate_every=student.training.validate_every,
        cached_step_seconds=seconds["cached"],
        online_step_seconds=seconds.get("online"),
        validation_seconds=validation_seconds(experiment, validated, MOST_VALIDATED),
    )


def _median_steps(
    experiment: Experiment, learn: LearningSet, ways: dict[str, SoftTargets], temperature: float
) -> dict[str, float]:
    """The median seconds of a step in each of the ways, over some rounds in which they take turns."""

    def timed(name: str, steps: int) -> float:
        return step_seconds(experiment, learn, ways[name], temperature, steps)

    rough = {name: [timed(name, STEPS_BEFORE) for _ in range(2)][-1] for name in ways}
    steps = {name: min(MOST_STEPS, max(1, int(ROUND_SECONDS / seconds))) for name, seconds in rough.items()}
    measured: dict[str, list[float]] = {name: [] for name in ways}
    started = time.monotonic()
    for _ in range(ROUNDS):
        for name, found in measured.items():
            found.append(timed(name, steps[name]))
        if time.monotonic() - started > STUDENT_SECONDS:
            break
    return {name: statistics.median(found) for name, found in measured.items()}


def _stored_share(cache: TargetCache) -> float:
    """Of the bytes of a cache's blocks, how much is stored."""
    specs = cache.manifest.encoding_arrays()
    if all(spec.compression == "none" for spec in specs):
        return 1.0
    layout = cache.manifest.store_layout()
    stored = sum(
        (cache.folder / layout.file_of(spec.chunk_name(chunk))).stat().st_size - layout.trailer_bytes
        for spec in specs
        for chunk in range(spec.chunks)
    )
    return stored / sum(spec.chunks * spec.chunk_bytes for spec in specs)
