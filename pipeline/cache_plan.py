"""The cache of one split as a recipe plans it."""

from __future__ import annotations

import torch

from pipeline.canonical import digest_of
from pipeline.dataset import rows_of
from pipeline.experiment import Experiment
from pipeline.planning.forecast import wanted_temperature
from pipeline.targets.writer import CachePlan


def plan_of(experiment: Experiment, split: str) -> CachePlan:
    """Everything that is known of a split's cache before the teacher runs."""
    targets, teacher = experiment.recipe.targets, experiment.teacher_record()
    row_made_from = experiment.row_made_from()
    class_names = tuple(row_made_from["class_names"])
    asked_at = experiment.recipe.student_temperature or targets.temperature
    return CachePlan(
        row_key=digest_of(row_made_from),
        row_made_from=row_made_from,
        rows=rows_of(experiment.datasets("student")[split], class_names),
        split=split,
        layout=targets.layout,
        compression=targets.compression,
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
            "certify": sorted({*targets.certify, targets.temperature, asked_at}),
        },
        wanted_at=wanted_temperature(experiment, split),
    )
