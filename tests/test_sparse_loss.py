"""The sparse loss against the dense one, which has its own formula, and against a live teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.losses import soft_target_divergence
from pipeline.sparse_loss import sparse_target_divergence
from pipeline.targets.sparse import SparseTargets
from pipeline.targets.top_k import TopK

TAILS = ["some", "none", "all but nothing"]

temperatures = st.floats(0.5, 20) | st.just(1.0)


@dataclass(frozen=True)
class Case:
    """Logits (N, C) of a student and the targets of N positions, of which some probabilities are 0."""

    logits: Tensor
    targets: SparseTargets


def case_of(positions: int, classes: int, listed: int, seed: int, tail: str = "some", scale: float = 3.0) -> Case:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.rand((positions, classes), generator=generator).topk(listed, dim=1).indices.sort(dim=1).values
    weights = torch.rand((positions, listed), generator=generator)
    weights *= torch.rand((positions, listed), generator=generator) < 0.8
    weights[:, 0] += 1e-3
    tail_mass = torch.rand(positions, generator=generator)
    tail_mass = {"some": tail_mass, "none": tail_mass * 0, "all but nothing": 1 - tail_mass * 1e-6}[tail]
    probabilities = weights / weights.sum(dim=1, keepdim=True) * (1 - tail_mass).unsqueeze(1)
    logits = scale * torch.randn((positions, classes), generator=generator)
    return Case(logits, SparseTargets(ids, probabilities, tail_mass, classes))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    classes = draw(st.integers(2, 200))
    listed, tail = draw(st.integers(1, classes - 1)), draw(st.sampled_from(TAILS))
    scale = draw(st.sampled_from([0.1, 3.0, 20.0]))
    return case_of(draw(st.integers(1, 9)), classes, listed, draw(st.integers(0, 2**32)), tail, scale)


def in_float64(targets: SparseTargets) -> SparseTargets:
    """The same targets in float64, where each position sums to 1 again."""
    probabilities, tail_mass = targets.probabilities.double(), targets.tail_mass.double()
    total = probabilities.sum(dim=-1) + tail_mass
    return SparseTargets(targets.class_ids, probabilities / total.unsqueeze(-1), tail_mass / total, targets.class_count)


def with_gradient(value: Tensor, logits: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    return value.detach(), torch.autograd.grad((value * weights).sum(), logits)[0]


@given(cases(), temperatures)
def test_the_divergence_and_its_gradient_are_those_of_the_dense_targets(case: Case, temperature: float) -> None:
    weights = torch.linspace(-1, 2, len(case.targets))
    logits, theirs = (case.logits.clone().requires_grad_() for _ in range(2))
    ours = with_gradient(sparse_target_divergence(logits, case.targets, temperature), logits, weights)
    expected = soft_target_divergence(theirs, case.targets.dense(), temperature)
    size = float(case.logits.abs().amax()) / temperature + math.log(case.targets.class_count)
    torch.testing.assert_close(ours[0], expected.detach(), rtol=1e-6, atol=1e-6 * size)
    torch.testing.assert_close(ours[1], with_gradient(expected, theirs, weights)[1], rtol=1e-5, atol=1e-6 / temperature)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 4.0])
@pytest.mark.parametrize(("classes", "listed"), [(7, 3), (5, 4), (2, 1)])
def test_the_gradient_is_the_derivative(tail: str, temperature: float, classes: int, listed: int) -> None:
    case = case_of(3, classes, listed, 5, tail)
    targets = in_float64(case.targets)
    logits = case.logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: sparse_target_divergence(z, targets, temperature), logits)


@given(cases(), temperatures)
def test_the_divergence_is_zero_for_the_student_s_own_distribution(case: Case, temperature: float) -> None:
    ids = case.targets.class_ids
    # A student whose unlisted logits are equal is a sparse target itself.
    logits = torch.zeros_like(case.logits).scatter_(1, ids, case.logits.gather(1, ids))
    own = (logits.double() / temperature).softmax(dim=1)
    listed = own.gather(1, ids).float()
    tail = own.scatter(1, ids, 0.0).sum(dim=1).float()
    divergence = sparse_target_divergence(
        logits, SparseTargets(ids, listed, tail, case.targets.class_count), temperature
    )
    torch.testing.assert_close(divergence, torch.zeros(len(ids)), atol=1e-5, rtol=0)


def test_positions_may_have_any_number_of_axes() -> None:
    case = case_of(24, 50, 5, 1)
    flat = sparse_target_divergence(case.logits, case.targets, 2.0)
    shaped = sparse_target_divergence(case.logits.view(2, 3, 4, 50), case.targets.view(2, 3, 4), 2.0)
    assert torch.equal(shaped, flat.view(2, 3, 4))
    one = SparseTargets(case.targets.class_ids[0], case.targets.probabilities[0], case.targets.tail_mass[0], 50)
    torch.testing.assert_close(sparse_target_divergence(case.logits[0], one, 2.0), flat[0])


def test_the_gradient_of_positions_with_axes_is_that_of_each_position() -> None:
    case = case_of(6, 50, 5, 1)
    logits, theirs = (case.logits.clone().requires_grad_() for _ in range(2))
    transposed = logits.view(2, 3, 50).transpose(0, 1)  # not contiguous
    targets = case.targets[torch.tensor([0, 3, 1, 4, 2, 5])].view(3, 2)
    ours = sparse_target_divergence(transposed, targets, 2.0)[1].sum()
    expected = sparse_target_divergence(theirs, case.targets, 2.0)[[1, 4]].sum()
    torch.testing.assert_close(torch.autograd.grad(ours, logits), torch.autograd.grad(expected, theirs))


def test_many_classes_that_are_worked_on_in_pieces_give_what_each_position_gives() -> None:
    case = case_of(7, 200_000, 20, 2)
    weights = torch.linspace(1, 2, 7)
    logits = case.logits.requires_grad_()
    value, gradient = with_gradient(sparse_target_divergence(logits, case.targets, 2.0), logits, weights)
    for place in range(7):
        row = slice(place, place + 1)
        single = sparse_target_divergence(logits[row], case.targets[row], 2.0)
        torch.testing.assert_close(single.detach(), value[row], rtol=1e-5, atol=0)  # threads may share a single row
        assert torch.equal(torch.autograd.grad(single * weights[row], logits)[0][row], gradient[row])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_low_precision_are_worked_on_in_float32(dtype: torch.dtype) -> None:
    case = case_of(5, 300, 10, 3)
    low = case.logits.to(dtype).requires_grad_()
    wide = low.detach().float().requires_grad_()
    weights = torch.ones(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, gradient = with_gradient(sparse_target_divergence(low, case.targets, 2.0), low, weights)
    expected, expected_gradient = with_gradient(sparse_target_divergence(wide, case.targets, 2.0), wide, weights)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    assert torch.equal(gradient, expected_gradient.to(dtype))


def test_no_mass_costs_nothing_even_where_the_student_finds_a_class_impossible() -> None:
    targets = SparseTargets(torch.tensor([[0, 2]]), torch.tensor([[1.0, 0.0]]), torch.tensor([0.0]), 5)
    logits = torch.tensor([[0.0, -math.inf, -math.inf, 0.0, -math.inf]], requires_grad=True)
    value, gradient = with_gradient(sparse_target_divergence(logits, targets, 1.0), logits, torch.ones(1))
    assert value.tolist() == pytest.approx([math.log(2)])
    assert gradient[0].tolist() == pytest.approx([-0.5, 0, 0, 0.5, 0])


def test_mass_where_the_student_finds_a_class_impossible_is_infinite() -> None:
    targets = SparseTargets(torch.tensor([[0, 2]]), torch.tensor([[0.5, 0.0]]), torch.tensor([0.5]), 4)
    logits = torch.tensor([[0.0, -math.inf, 0.0, 0.0]])
    assert sparse_target_divergence(logits, targets, 1.0).tolist() == [math.inf]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_loss_from_stored_targets_equals_loss_with_a_live_teacher_s_truncated_distribution(temperature: float) -> None:
    generator = torch.Generator().manual_seed(7)
    teacher, student = (4 * torch.randn((6, 1000), generator=generator) for _ in range(2))
    encoding = TopK(k=20, temperatures=(1.0, 2.0, 4.0))
    stored = encoding.encode(teacher, 1.0)
    exact = (teacher.double() / temperature).softmax(dim=1)
    ids = teacher.topk(20, dim=1).indices
    rest = (1 - exact.gather(1, ids).sum(dim=1, keepdim=True)) / 980
    truncated = rest.repeat(1, 1000).scatter(1, ids, exact.gather(1, ids))
    expected = soft_target_divergence(student.double(), truncated, temperature)
    found = sparse_target_divergence(student, encoding.decode_sparse(stored, 1000, temperature), temperature)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 9), (2, 10), (3, 1, 10), (10,)])
def test_logits_of_other_positions_or_classes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"logits of shape .* for soft targets of \(3, 10\)"):
        sparse_target_divergence(torch.zeros(shape), case_of(3, 10, 2, 0).targets, 1.0)


@given(cases())
def test_dense_targets_hold_the_listed_probabilities_and_equal_parts_of_the_tail(case: Case) -> None:
    targets = case.targets
    dense = targets.dense()
    assert torch.equal(dense.gather(1, targets.class_ids), targets.probabilities)
    others = torch.ones_like(dense, dtype=torch.bool).scatter_(1, targets.class_ids, False)
    each = targets.tail_mass / (targets.class_count - targets.class_ids.shape[1])
    assert torch.equal(dense[others], each.repeat_interleave(targets.class_count - targets.class_ids.shape[1]))
    torch.testing.assert_close(dense.sum(dim=1), torch.ones(len(targets)))


def test_targets_are_taken_by_rows_and_moved_whole() -> None:
    targets = case_of(6, 10, 2, 0).targets
    taken = targets[torch.tensor([4, 1])].to("cpu", non_blocking=True)
    assert len(taken) == 2
    assert torch.equal(taken.dense(), targets.dense()[[4, 1]])
    assert targets.view(2, 3).dense().shape == (2, 3, 10)
