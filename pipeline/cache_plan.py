"""The cache of one split as a recipe plans it, and the recipe's teacher as the function that fills it."""

from __future__ import annotations

import torch

from pipeline.batches import Preprocess
from pipeline.canonical import digest_of, short
from pipeline.dataset import rows_of
from pipeline.devices import device_of
from pipeline.experiment import Experiment
from pipeline.fitting import load_fitted
from pipeline.prefetch import read_ahead
from pipeline.student_data import learning_set
from pipeline.targets.production import TeacherForward
from pipeline.targets.writer import CachePlan
from pipeline.teacher_pass import forward_of
from pipeline.weights import refuse_other_weights


def plan_of(experiment: Experiment, split: str) -> CachePlan:
    """Everything that is known of a split's cache before the teacher runs."""
    targets, teacher = experiment.recipe.targets, experiment.teacher_record()
    row_made_from = experiment.row_made_from()
    class_names = tuple(row_made_from["class_names"])
    distillation = experiment.recipe.student.distillation
    wanted_at = distillation.temperature or targets.temperature
    return CachePlan(
        row_key=digest_of(row_made_from),
        row_made_from=row_made_from,
        rows=rows_of(experiment.datasets("student")[split], class_names),
        split=split,
        layout=targets.layout,
        rows_per_block=targets.rows_per_block,
        class_names=class_names,
        teacher={
            "key": teacher.key,
            "recipe": teacher.recipe,
            "made_from": teacher.made_from,
            **{name: teacher.values[name] for name in ("digest", "sample_shape", "class_names")},
        },
        resumable={
            "batch_size": targets.batch_size,
            "precision": targets.precision,
            "threads": torch.get_num_threads(),
            "certify": sorted({*targets.certify, targets.temperature, wanted_at}),
        },
        wanted_at=wanted_at if split == "training" and distillation.coefficient else None,
    )


def open_teacher(experiment: Experiment, split: str) -> TeacherForward:
    """The recipe's teacher over the samples of a split.

    Raises WeightsError when its weights are missing or are not those that the cache's key names.
    """
    recipe, record = experiment.recipe, experiment.teacher_record()
    network = load_fitted(
        recipe.teacher,
        learning_set(experiment.datasets("teacher")["training"]),
        experiment.records.folder_of("teacher", record.key),
    )
    refuse_other_weights(network.state_dict(), record.values["digest"], f"the teacher in runs/ ({short(record.key)})")
    dataset = experiment.datasets("transfer")[split]
    preprocess = Preprocess(recipe.teacher_data.normalise, dataset.sample_shape)
    in_order = read_ahead(dataset, rows_of(dataset).first_index)
    return forward_of(network, in_order, preprocess, recipe.targets.precision, device_of(recipe.device))
