"""The live teacher of a toy workspace: what its cached soft targets are compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.batches import Preprocess
from pipeline.fitting import load_fitted
from pipeline.student_data import LearningSet, learning_set
from tests.stages.toy import Toy


def live_teacher(toy: Toy, *settings: str) -> nn.Module:
    """The trained teacher, in eval mode."""
    experiment = toy.experiment(*settings)
    folder = experiment.records.folder_of("teacher", experiment.teacher_record().key)
    return load_fitted(
        experiment.recipe.teacher, learning_set(experiment.datasets("teacher")["training"]), folder
    ).eval()


@torch.inference_mode()
def live_soft_targets(toy: Toy, samples: LearningSet, temperature: float, *settings: str) -> Tensor:
    """softmax(logits / T) (N, K) of the samples, one at a time, in the teacher's classes."""
    recipe = toy.experiment(*settings).recipe
    teacher = live_teacher(toy, *settings)
    preprocess = Preprocess(recipe.teacher_data.normalise, samples.dataset.sample_shape)
    inputs = preprocess(samples.dataset.samples(samples.indices))
    return torch.cat([torch.softmax(teacher(one[None]) / temperature, dim=1) for one in inputs])
