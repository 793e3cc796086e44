"""The recipe's teacher as the function that fills a cache, whatever its form."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from pipeline.batches import Preprocess
from pipeline.canonical import short
from pipeline.devices import described, device_of
from pipeline.fitting import load_fitted
from pipeline.models import build_model
from pipeline.prefetch import read_ahead
from pipeline.sorting import Indices
from pipeline.student_data import learning_set
from pipeline.teachers import identity
from pipeline.teachers.coverage import joined_outputs
from pipeline.teachers.estimator import forward_of_estimator, load_estimator
from pipeline.teachers.program import load_program
from pipeline.weights import load_into, load_weights, refuse_other_weights

if TYPE_CHECKING:
    from pipeline.dataset import Dataset
    from pipeline.experiment import Experiment
    from pipeline.targets.production import TeacherForward


def open_teacher(experiment: Experiment, split: str, order: Indices | None = None) -> TeacherForward:
    """The recipe's teacher over the samples of a split of the student's data, seen as the teacher sees them.

    `order` (n,) are the indices that it will be asked for one after another, where they are known: then samples may be
    prepared ahead.

    Raises WeightsError when its weights are missing or are not those that the cache's key names, and what the form of the
    teacher raises when it cannot be opened.
    """
    dataset = experiment.datasets("transfer")[split]
    preprocess = Preprocess(experiment.recipe.teacher_data.normalise, dataset.sample_shape)
    return OPENERS[experiment.recipe.teacher.form](experiment, split, dataset, preprocess, order)


def network_of(experiment: Experiment) -> nn.Module | None:
    """The teacher's network with its weights; None for a form that has none. Raises as `open_teacher` does."""
    load = NETWORKS.get(experiment.recipe.teacher.form)
    return None if load is None else load(experiment)


def device_line(experiment: Experiment) -> str:
    """Where the teacher runs, for people: a file of outputs runs nowhere."""
    recipe = experiment.recipe
    if recipe.teacher.form == "outputs":
        return identity.described(recipe.teacher)
    if recipe.teacher.form == "estimator":
        return f"{identity.described(recipe.teacher)} on the CPU"
    return described(device_of(recipe.device), recipe.targets.precision)


def _trained(experiment: Experiment) -> nn.Module:
    record = experiment.teacher_record()
    network = load_fitted(
        experiment.recipe.teacher,
        learning_set(experiment.datasets("teacher")["training"]),
        experiment.records.folder_of("teacher", record.key),
    )
    refuse_other_weights(network.state_dict(), record.values["digest"], f"the teacher in runs/ ({short(record.key)})")
    return network


def _weights(experiment: Experiment) -> nn.Module:
    teacher, record, path = experiment.recipe.teacher, experiment.teacher_record(), identity.file_of(experiment)
    shape, names = record.values["sample_shape"], record.values["class_names"]
    network = build_model(teacher.model, teacher.options, shape, len(names))
    state = load_weights(path)
    refuse_other_weights(
        state, record.values["digest"], str(path)
    )  # as stored: half precision is widened on the way in
    load_into(network, state, str(path))
    return network


def _program(experiment: Experiment) -> nn.Module:
    record = experiment.teacher_record()
    return load_program(
        identity.file_of(experiment), record.values["sample_shape"], device_of(experiment.recipe.device)
    )


def _open_network(
    experiment: Experiment, split: str, dataset: Dataset, preprocess: Preprocess, order: Indices | None
) -> TeacherForward:
    from pipeline.teacher_pass import forward_of

    recipe = experiment.recipe
    network = NETWORKS[recipe.teacher.form](experiment)
    return forward_of(network, dataset, preprocess, recipe.targets.precision, device_of(recipe.device), order)


def _open_estimator(
    experiment: Experiment, split: str, dataset: Dataset, preprocess: Preprocess, order: Indices | None
) -> TeacherForward:
    samples = dataset if order is None else read_ahead(dataset, order)
    name, names = str(experiment.recipe.teacher.estimator), experiment.teacher_record().values["class_names"]
    estimator = load_estimator(name, experiment.data_folder)
    return forward_of_estimator(estimator, samples, split, preprocess, names, name)


def _open_outputs(
    experiment: Experiment, split: str, dataset: Dataset, preprocess: Preprocess, order: Indices | None
) -> TeacherForward:
    return joined_outputs(experiment).forward(split)


NETWORKS: dict[str, Callable[[Experiment], nn.Module]] = {"trained": _trained, "weights": _weights, "program": _program}

OPENERS: dict[str, Callable[[Experiment, str, Dataset, Preprocess, Indices | None], TeacherForward]] = {
    "trained": _open_network,
    "weights": _open_network,
    "program": _open_network,
    "estimator": _open_estimator,
    "outputs": _open_outputs,
}
