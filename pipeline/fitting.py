"""Fitting one model: build it, train it on a learning set, write its weights. Teacher, student and baseline alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.batches import Batch, Preprocess, SoftTargets, TrainingBatches, inputs_in_order
from pipeline.devices import described, device_of
from pipeline.errors import RecipeError
from pipeline.evaluation import accuracy, cross_entropy, logits_of
from pipeline.lanes import lane_to
from pipeline.losses import distillation_loss
from pipeline.models import build_model
from pipeline.prefetch import batches_ahead, sent_ahead
from pipeline.progress import Bar
from pipeline.recipe import Distillation, Model, Normalise, Training
from pipeline.student_data import LearningSet
from pipeline.targets.order import BatchOrder
from pipeline.training import History, Loss, Trained, train
from pipeline.weights import load_into, load_weights, save_weights

WEIGHTS_FILE = "model.safetensors"
CHECKPOINT_FILE = "checkpoint.safetensors"
VALIDATION_BATCH = 1024  # samples in each forward pass of a validation; no result depends on it


@dataclass(frozen=True)
class Fit:
    """How to fit: network, optimisation, normalisation, seed, device."""

    model: Model
    training: Training
    normalise: Normalise
    seed: int
    device: str
    steps: int


def steps_of(training: Training, samples: int) -> int:
    """The number of optimiser steps that a recipe asks for with this many training samples."""
    if training.steps is not None:
        return training.steps
    assert training.epochs is not None
    return BatchOrder(samples, training.batch_size, seed=0).steps_for(training.epochs)


def fit(
    settings: Fit,
    learn: LearningSet,
    validate: LearningSet,
    folder: Path,
    bar: Bar,
    *,
    distillation: Distillation | None = None,
    temperature: float = 1.0,
    soft_targets: SoftTargets | None = None,
    order: str = "global",
    validated: Callable[[History], None] = lambda history: None,
) -> Trained:
    """Train a model on `learn`, keep its best weights on the labels of `validate`, and write them to `folder`.

    `validated` gets the records of all validations so far, at the start and after each.
    Without `distillation` it learns from labels alone. A checkpoint in `folder` of a run that was killed is gone on
    from, to the same result.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = device_of(settings.device)
    model = build_for(settings.model, learn, seed=settings.seed)
    preprocess = Preprocess(settings.normalise, learn.dataset.sample_shape)
    sends_raw = device.type != "cpu"  # bytes are copied sooner than floats, and normalised there
    needs_targets = distillation is not None and distillation.coefficient != 0.0
    batches = TrainingBatches(
        learn.dataset,
        learn.indices,
        learn.labels,
        preprocess.raw if sends_raw else preprocess,
        batch_size=settings.training.batch_size,
        seed=settings.seed,
        soft_targets=soft_targets if needs_targets else None,
        order=order,
    )

    def validation(model: nn.Module) -> dict[str, float]:
        return validation_score(model, validate, preprocess, device)

    with (
        bar(f"training, {described(device, settings.training.precision)}", settings.steps, "steps") as advance,
        sent_ahead(batches, Batch.each, lane_to(device), batches_ahead(learn.dataset), settings.steps) as batch_of_step,
    ):

        def seen(step: int) -> Batch:
            batch = batch_of_step(step)
            return replace(batch, inputs=preprocess.normalised(batch.inputs)) if sends_raw else batch

        def tick(steps: int, loss: torch.Tensor | None = None) -> None:
            if loss is None:
                advance(steps, earlier=True)
            else:
                advance(steps, lambda: f"loss {float(loss):.4g}")

        trained = train(
            model,
            seen,
            settings.steps,
            _loss_of(settings.model, len(learn.class_names), distillation, temperature),
            settings.training,
            seed=settings.seed,
            validate=validation,
            device=device,
            checkpoint=folder / CHECKPOINT_FILE,
            tick=tick,
            validated=validated,
        )
    save_weights(folder / WEIGHTS_FILE, trained.state)
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    return trained


def _loss_of(model: Model, class_count: int, distillation: Distillation | None, temperature: float) -> Loss:
    """The loss of a batch, from labels alone without `distillation`; it refuses logits of another shape."""
    chosen = distillation or Distillation(form="additive", coefficient=0.0)

    def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        if logits.shape != (len(batch.labels), class_count):
            raise RecipeError(
                f"model {model.model!r} returned shape {tuple(logits.shape)} for {len(batch.labels)} samples of "
                f"{class_count} classes"
            )
        form, coefficient = chosen.form, chosen.coefficient
        return distillation_loss(
            logits, batch.labels, batch.soft_targets, coefficient=coefficient, temperature=temperature, form=form
        )

    return loss


def build_for(model: Model, samples: LearningSet, seed: int = 0) -> nn.Module:
    """The network of a recipe for these samples' shape and classes."""
    return build_model(model.model, model.options, samples.dataset.sample_shape, len(samples.class_names), seed=seed)


def load_fitted(model: Model, samples: LearningSet, folder: Path) -> nn.Module:
    """A fitted network with its weights. Raises WeightsError when they do not fit."""
    network = build_for(model, samples)
    load_into(network, load_weights(folder / WEIGHTS_FILE), str(folder / WEIGHTS_FILE))
    return network


def validation_score(
    model: nn.Module, samples: LearningSet, preprocess: Preprocess, device: torch.device
) -> dict[str, float]:
    """Accuracy ("score") and cross-entropy on the labelled samples; nothing when there are none."""
    if not (samples.labels >= 0).any():
        return {}
    labels = torch.from_numpy(samples.labels)
    logits = logits_of(model, inputs_in_order(samples.dataset, samples.indices, preprocess, VALIDATION_BATCH), device)
    return {"score": accuracy(logits.argmax(dim=1), labels), "cross_entropy": cross_entropy(logits, labels)}


def fitted_values(trained: Trained) -> dict[str, Any]:
    """What a record keeps of a fit."""
    return {
        "parameters": trained.parameters,
        "steps": trained.steps,
        "best_step": trained.best_step,
        "validation": trained.best,
        "history": trained.history,
        "training_seconds": round(trained.seconds, 3),
    }


def fitted_provenance(settings: Fit) -> dict[str, Any]:
    """What a record keeps of where a fit ran."""
    return {"device": described(device_of(settings.device), settings.training.precision)}


def fitted_line(trained: Trained, settings: Fit, folder: Path) -> str:
    """One line for people on a fit."""
    score = f"{100 * trained.best['score']:.2f} % on validation" if trained.best else "not validated: no labels"
    device = described(device_of(settings.device), settings.training.precision)
    return f"{score}, {trained.parameters:,} parameters, {device}, {trained.seconds:.1f} s -> {folder / WEIGHTS_FILE}"
