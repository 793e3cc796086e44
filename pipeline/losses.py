"""Distillation losses, as pure functions.

Shape legend: B samples of a batch, C classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.dataset import NO_LABEL
from pipeline.sparse_loss import sparse_target_divergence
from pipeline.targets.sparse import SparseTargets


def soft_target_divergence(logits_BC: Tensor, soft_targets_BC: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) in nats for each sample (B,), both at `temperature`; 0 log 0 counts as 0."""
    log_student_BC = functional.log_softmax(logits_BC / temperature, dim=1)
    with (
        torch.no_grad()
    ):  # functional.kl_div takes 1.6 to 2.5 times as long at 1000 classes: its xlogy is not vectorised
        log_teacher_BC = soft_targets_BC.clamp_min(torch.finfo(soft_targets_BC.dtype).tiny).log()
    return (soft_targets_BC * (log_teacher_BC - log_student_BC)).sum(dim=1)


def distillation_loss(
    logits_BC: Tensor,
    labels_B: Tensor,
    soft_targets: Tensor | SparseTargets | None,
    *,
    coefficient: float,
    temperature: float,
    form: Literal["convex", "additive"],
) -> Tensor:
    """`(1 - λ) CE + λ T² KL` (convex; Hinton et al. 2015, section 2) or `CE + λ T² KL` (additive).

    Each term is summed over the samples that have it (CE: those whose label is not -1) and divided by B. A term whose
    coefficient is 0 is not computed, so λ = 0 equals plain cross-entropy bit for bit and convex λ = 1 needs no labels.
    """
    label_coefficient = 1.0 - coefficient if form == "convex" else 1.0
    terms = []
    if label_coefficient != 0.0:
        # With reduction "sum" a batch without any label gives 0, where "mean" would give NaN.
        cross_entropy = functional.cross_entropy(logits_BC, labels_B, ignore_index=NO_LABEL, reduction="sum")
        cross_entropy = cross_entropy / len(logits_BC)
        terms.append(cross_entropy if label_coefficient == 1.0 else label_coefficient * cross_entropy)
    if coefficient != 0.0:
        assert soft_targets is not None
        if isinstance(soft_targets, SparseTargets):
            divergence_B = sparse_target_divergence(logits_BC, soft_targets, temperature)
        else:
            divergence_B = soft_target_divergence(logits_BC, soft_targets, temperature)
        divergence = divergence_B.sum() / len(logits_BC)
        terms.append(coefficient * temperature**2 * divergence)
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]
