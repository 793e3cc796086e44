"""The soft-target term of the loss for sparse targets, without a dense target of all classes.

Shape legend: K listed classes, C classes, P positions of a piece; what comes before (rows, tokens, pixels) may be any
number of axes in the public function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.targets.sparse import SparseTargets

# Logits that are worked on at once: the float32 copies of a piece stay in the cache of a CPU core, and on a GPU a piece
# is long enough to fill it, while peak memory is the logits and their gradient with little beside.
VALUES_PER_PIECE = {"cpu": 2**19, "cuda": 2**26}


def sparse_target_divergence(logits: Tensor, targets: SparseTargets, temperature: float) -> Tensor:
    """KL(teacher || student) in nats of each position (...), both at `temperature`, of logits (..., C).

    `targets` are the teacher's probabilities at `temperature`. The same number as `losses.soft_target_divergence` of
    `targets.dense()`: 0 log 0 counts as 0, and a tail mass of 0 contributes nothing. Computed in float32 for logits of
    lower precision. Differentiable once, with respect to the logits.

    Raises ValueError where logits and targets have other positions or classes.
    """
    expected = (*targets.tail_mass.shape, targets.class_count)
    if tuple(logits.shape) != expected:
        raise ValueError(f"logits of shape {tuple(logits.shape)} for soft targets of {expected}")
    divergence: Tensor = _Divergence.apply(  # type: ignore[no-untyped-call]
        logits, targets.class_ids, targets.probabilities, targets.tail_mass, temperature
    )
    return divergence


class _Divergence(torch.autograd.Function):
    """The divergence as one operation: its derivative is (softmax(z / T) - target) / T, and needs nothing but the logits."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, class_ids: Tensor, probabilities: Tensor, tail_mass: Tensor, temperature: float
    ) -> Tensor:
        ctx.save_for_backward(logits, class_ids, probabilities, tail_mass)
        ctx.temperature = temperature
        pieces = [
            _divergence(logits_PC, class_ids_PK, probabilities_PK, tail_P, temperature)
            for logits_PC, class_ids_PK, probabilities_PK, tail_P in _pieces(
                logits, class_ids, probabilities, tail_mass
            )
        ]
        return torch.cat(pieces).view(tail_mass.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        logits = ctx.saved_tensors[0]
        result = torch.empty_like(logits, memory_format=torch.contiguous_format)
        scale = gradient / ctx.temperature
        for logits_PC, class_ids_PK, probabilities_PK, tail_P, scale_P, result_PC in _pieces(
            *ctx.saved_tensors, scale, result
        ):
            derivative_PC = _derivative(logits_PC, class_ids_PK, probabilities_PK, tail_P, ctx.temperature)
            result_PC.copy_(derivative_PC.mul_(scale_P.unsqueeze(1)))
        return result, None, None, None, None


def _divergence(
    logits_PC: Tensor, class_ids_PK: Tensor, probabilities_PK: Tensor, tail_P: Tensor, temperature: float
) -> Tensor:
    log_student_PC = torch.log_softmax(_scaled(logits_PC, temperature), dim=1)
    others = log_student_PC.shape[1] - class_ids_PK.shape[1]
    log_listed_PK = log_student_PC.gather(1, class_ids_PK)
    mean_of_others_P = log_student_PC.scatter_(1, class_ids_PK, 0.0).sum(dim=1) / others
    probabilities_PK, tail_P = probabilities_PK.to(log_student_PC.dtype), tail_P.to(log_student_PC.dtype)
    listed_PK = probabilities_PK * (probabilities_PK.log() - log_listed_PK)
    others_P = tail_P * ((tail_P / others).log() - mean_of_others_P)
    # What has no mass is left out, and not multiplied by it: a student may have a logit of -inf there.
    return listed_PK.masked_fill(probabilities_PK == 0, 0.0).sum(dim=1) + others_P.masked_fill(tail_P == 0, 0.0)


def _derivative(
    logits_PC: Tensor, class_ids_PK: Tensor, probabilities_PK: Tensor, tail_P: Tensor, temperature: float
) -> Tensor:
    """softmax(z / T) - target, which sums to 0; a fresh tensor."""
    student_PC = torch.softmax(_scaled(logits_PC, temperature), dim=1)
    each_P1 = (tail_P.to(student_PC.dtype) / (student_PC.shape[1] - class_ids_PK.shape[1])).unsqueeze(1)
    student_PC -= each_P1
    return student_PC.scatter_add_(1, class_ids_PK, each_P1 - probabilities_PK.to(student_PC.dtype))


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.to(torch.float32)
    return wide if temperature == 1.0 else wide / temperature


def _pieces(logits: Tensor, *others: Tensor) -> zip[tuple[Tensor, ...]]:
    """Views of a few positions each, flattened, of the logits and of what belongs to them."""
    positions, classes = logits.shape[:-1].numel(), logits.shape[-1]
    per_piece = max(1, VALUES_PER_PIECE.get(logits.device.type, VALUES_PER_PIECE["cuda"]) // classes)
    axes = logits.ndim - 1
    flat = (array.reshape(positions, *array.shape[axes:]) for array in (logits, *others))
    return zip(*(torch.split(array, per_piece) for array in flat), strict=True)
