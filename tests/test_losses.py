"""Losses against an independent formula, and the promises at the ends of λ and without labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.losses import distillation_loss, soft_target_divergence

Form = Literal["convex", "additive"]
Doubles = NDArray[np.float64]

FORMS: tuple[Form, ...] = ("convex", "additive")


@dataclass(frozen=True)
class Case:
    """One random batch: `logits` (B, C), `labels` (B,) of which some are -1, `targets` (B, C) of which some are 0."""

    logits: Tensor
    labels: Tensor
    targets: Tensor


@st.composite
def cases(draw: st.DrawFn, all_labelled: bool = False) -> Case:
    batch, classes = draw(st.integers(1, 70)), draw(st.integers(2, 12))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = generator.normal(scale=draw(st.sampled_from([0.1, 1.0, 5.0])), size=(batch, classes)).astype(np.float32)
    labels = generator.integers(0 if all_labelled else -1, classes, size=batch)
    masses = generator.random((batch, classes)) * (generator.random((batch, classes)) < 0.7)
    masses[:, 0] += 1e-3
    targets = (masses / masses.sum(axis=1, keepdims=True)).astype(np.float32)
    return Case(torch.from_numpy(logits), torch.from_numpy(labels), torch.from_numpy(targets))


coefficients = st.floats(0, 1) | st.sampled_from([0.0, 1.0])
temperatures = st.floats(0.5, 20)


def log_softmax_of(logits: Doubles) -> Doubles:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def expected_loss(case: Case, coefficient: float, temperature: float, form: Form) -> float:
    """The formula of DESIGN.md section 5 in float64, sample by sample."""
    logits, targets = case.logits.double().numpy(), case.targets.double().numpy()
    log_student, log_softened = log_softmax_of(logits), log_softmax_of(logits / temperature)
    from_labels = from_targets = 0.0
    for sample, label in enumerate(case.labels.tolist()):
        if label >= 0:
            from_labels -= float(log_student[sample, label])
        for mass, log_mass in zip(targets[sample], log_softened[sample], strict=True):
            if mass > 0:
                from_targets += float(mass * (np.log(mass) - log_mass))
    weight = 1 - coefficient if form == "convex" else 1.0
    return (weight * from_labels + coefficient * temperature**2 * from_targets) / len(logits)


def loss_of(case: Case, coefficient: float, temperature: float, form: Form) -> Tensor:
    return distillation_loss(
        case.logits, case.labels, case.targets, coefficient=coefficient, temperature=temperature, form=form
    )


def with_gradient(logits: Tensor, value_of: str, case: Case, form: Form = "convex") -> tuple[Tensor, Tensor]:
    """A loss and its gradient with respect to the logits."""
    leaf = logits.clone().requires_grad_()
    if value_of == "plain":
        value = functional.cross_entropy(leaf, case.labels)
    else:
        value = distillation_loss(leaf, case.labels, None, coefficient=0.0, temperature=4.0, form=form)
    value.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@pytest.mark.parametrize("form", FORMS)
@given(case=cases(), coefficient=coefficients, temperature=temperatures)
def test_the_loss_equals_the_formula_in_float64(case: Case, coefficient: float, temperature: float, form: Form) -> None:
    expected = expected_loss(case, coefficient, temperature, form)
    scale = max(1.0, expected, coefficient * temperature**2)
    assert float(loss_of(case, coefficient, temperature, form)) == pytest.approx(expected, abs=2e-6 * scale)


@pytest.mark.parametrize("form", FORMS)
@given(case=cases(all_labelled=True))
def test_a_coefficient_of_zero_is_plain_cross_entropy_bit_for_bit_with_its_gradient(case: Case, form: Form) -> None:
    plain, plain_gradient = with_gradient(case.logits, "plain", case)
    value, gradient = with_gradient(case.logits, "distillation", case, form)
    assert value.numpy().tobytes() == plain.numpy().tobytes()
    assert gradient.numpy().tobytes() == plain_gradient.numpy().tobytes()


@given(case=cases(all_labelled=True))
def test_the_label_loss_is_plain_cross_entropy(case: Case) -> None:
    loss = distillation_loss(case.logits, case.labels, None, coefficient=0.0, temperature=1.0, form="additive")
    assert torch.equal(loss, functional.cross_entropy(case.logits, case.labels))


@given(case=cases(), temperature=temperatures)
def test_a_convex_coefficient_of_one_needs_no_labels(case: Case, temperature: float) -> None:
    unlabelled = Case(case.logits, torch.full_like(case.labels, -1), case.targets)
    assert torch.equal(loss_of(case, 1.0, temperature, "convex"), loss_of(unlabelled, 1.0, temperature, "convex"))


def test_a_coefficient_of_zero_needs_no_soft_targets() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, -1, 0])
    value = distillation_loss(logits, labels, None, coefficient=0.0, temperature=4.0, form="convex")
    assert float(value) == pytest.approx(
        float(functional.cross_entropy(logits[[0, 1, 2, 4]], labels[[0, 1, 2, 4]]) * 4 / 5)
    )


@pytest.mark.parametrize("form", FORMS)
def test_an_all_unlabelled_batch_gives_zero_and_a_zero_gradient_without_distillation(form: Form) -> None:
    case = Case(torch.randn(6, 4), torch.full((6,), -1), torch.full((6, 4), 0.25))
    value, gradient = with_gradient(case.logits, "distillation", case, form)
    assert float(value) == 0.0
    assert torch.equal(gradient, torch.zeros(6, 4))


@pytest.mark.parametrize("form", FORMS)
def test_an_all_unlabelled_batch_gives_a_finite_loss_of_the_soft_term_alone(form: Form) -> None:
    logits = torch.randn(6, 4, requires_grad=True)
    targets = torch.rand(6, 4).softmax(dim=1)
    value = distillation_loss(logits, torch.full((6,), -1), targets, coefficient=0.9, temperature=2.0, form=form)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == pytest.approx(0.9 * 4 * soft_target_divergence(logits, targets, 2.0).mean().item())
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@given(case=cases(), coefficient=st.floats(0.1, 0.9))
def test_an_unlabelled_sample_contributes_only_its_soft_term(case: Case, coefficient: float) -> None:
    unlabelled = Case(case.logits, case.labels.clone(), case.targets)
    unlabelled.labels[0] = -1
    difference = float(loss_of(case, coefficient, 3.0, "convex")) - float(
        loss_of(unlabelled, coefficient, 3.0, "convex")
    )
    label = int(case.labels[0])
    term = 0.0 if label < 0 else -float(case.logits[0].double().log_softmax(dim=0)[label])
    assert difference == pytest.approx((1 - coefficient) * term / len(case.logits), abs=1e-4)


@pytest.mark.parametrize("form", FORMS)
@given(case=cases(), coefficient=coefficients)
def test_each_term_is_divided_by_the_size_of_the_batch(case: Case, coefficient: float, form: Form) -> None:
    twice = Case(
        torch.cat([case.logits] * 2),
        torch.cat([case.labels, torch.full_like(case.labels, -1)]),
        torch.cat([case.targets] * 2),
    )
    expected = expected_loss(case, coefficient, 2.0, form)
    from_labels_alone = expected_loss(case, 0.0, 2.0, "additive") * (1 - coefficient if form == "convex" else 1.0)
    found = float(loss_of(twice, coefficient, 2.0, form))
    assert found == pytest.approx(expected - from_labels_alone / 2, abs=2e-6 * max(1.0, expected))


def test_zero_probabilities_count_as_zero_and_leave_the_gradient_finite() -> None:
    logits = torch.tensor([[50.0, -50.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    targets = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])
    divergence = soft_target_divergence(logits, targets, 1.0)
    divergence.sum().backward()  # type: ignore[no-untyped-call]
    assert divergence.tolist() == pytest.approx([100.0, float(np.log(3) - np.log(2))])
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@given(case=cases(), temperature=temperatures)
def test_the_divergence_is_zero_exactly_for_the_student_s_own_distribution(case: Case, temperature: float) -> None:
    own = (case.logits / temperature).softmax(dim=1)
    torch.testing.assert_close(
        soft_target_divergence(case.logits, own, temperature), torch.zeros(len(own)), atol=1e-5, rtol=0
    )
    assert (soft_target_divergence(case.logits, case.targets, temperature) > -1e-5).all()


@given(cases(), temperatures)
def test_the_divergence_and_its_gradient_are_those_of_torchs_kl_div(case: Case, temperature: float) -> None:
    logits, theirs = (case.logits.clone().requires_grad_() for _ in range(2))
    ours = soft_target_divergence(logits, case.targets, temperature)
    expected = functional.kl_div(functional.log_softmax(theirs / temperature, 1), case.targets, reduction="none").sum(1)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(value.sum(), one)[0] for value, one in ((ours, logits), (expected, theirs))]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
