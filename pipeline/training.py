"""The one training loop: teacher, student and baseline all go through it.

AdamW, linear warm-up and cosine decay, gradient clipping, the best weights on validation kept, and checkpoints from
which a killed run goes on to the very same result.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.batches import Batch
from pipeline.devices import autocast
from pipeline.errors import UserError, WeightsError
from pipeline.models import parameter_count
from pipeline.recipe import Training
from pipeline.weights import State, load_weights, save_weights

Validation = Callable[[nn.Module], dict[str, float]]
Loss = Callable[[Tensor, Batch], Tensor]
History = Sequence[dict[str, float]]


class Tick(Protocol):
    """What is told of progress: steps just finished, and the last one's loss; without it, steps of an earlier run."""

    def __call__(self, steps: int, loss: Tensor | None = None) -> None: ...


def no_tick(steps: int, loss: Tensor | None = None) -> None:
    """Nobody is told."""


@dataclass
class Progress:
    """Where a training run is: everything but the tensors that a checkpoint holds."""

    step: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    scale: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """The weights kept, and how they came about; `history` has one record for each validation."""

    state: State
    parameters: int
    steps: int
    best_step: int
    best: dict[str, float]
    history: list[dict[str, float]]
    seconds: float


def learning_rate_at(step: int, steps: int, settings: Training) -> float:
    """Linear warm-up to `learning_rate` over the first `warmup` of `steps`, then half a cosine down to 0."""
    warmup = round(settings.warmup * steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    through = (step - warmup) / max(1, steps - warmup)
    return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * through))


def dropout_seed_at(step: int, seed: int) -> int:
    """The seed of torch's generator in one step: no two steps of one run share it, and no state must be saved."""
    return seed * 1_000_003 + step


def train(
    model: nn.Module,
    batches: Callable[[int], Batch],
    steps: int,
    loss: Loss,
    settings: Training,
    *,
    seed: int,
    validate: Validation,
    device: torch.device,
    checkpoint: Path,
    tick: Tick = no_tick,
    validated: Callable[[History], None] = lambda history: None,
) -> Trained:
    """Train `model` for `steps` optimiser steps and return its best weights on validation.

    `batches(step)` and dropout are functions of the step, so that a run resumed from `checkpoint` ends in the same
    weights as an uninterrupted one; batches that are not on `device` already are copied there. `validate` returns
    measurements, of which "score" is better when it is larger (of equals, the later is kept); when it returns none (nothing
    to validate on), the last weights are kept. `tick` is told of each finished step, and first of those that the checkpoint
    holds. `validated` gets the records of all validations so far, at the start and after each. The caller removes the
    checkpoint once it has kept the result.

    Raises UserError when the loss is not finite at a validation.
    """
    model.to(device)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "float16")
    progress, best_state = _resumed(checkpoint, model, optimiser, scaler) or (Progress(), _copied(model))
    tick(progress.step)
    validated(progress.history)
    last_saved = started = time.monotonic()
    seconds_before = progress.seconds
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        while progress.step < steps:
            step = progress.step
            for group in optimiser.param_groups:
                group["lr"] = learning_rate_at(step, steps, settings)
            value = _one_step(
                model, batches(step), loss, settings, optimiser, scaler, device, dropout_seed_at(step, seed)
            )
            progress.step = step + 1
            if progress.step % settings.validate_every == 0 or progress.step == steps:
                if not torch.isfinite(value):
                    raise UserError(
                        f"training diverged: the loss is {float(value)} at step {progress.step}. Use a lower learning rate or "
                        "a smaller gradient_clip; or the model itself returns NaN."
                    )
                measured = validate(model)
                rate = learning_rate_at(step, steps, settings)
                progress.history.append(
                    {"step": progress.step, "loss": float(value), "learning_rate": rate, **measured}
                )
                validated(progress.history)
                if not measured or not progress.best or measured["score"] >= progress.best["score"]:
                    progress.best, progress.best_step = measured, progress.step
                    best_state = _copied(model)
            progress.seconds = seconds_before + time.monotonic() - started
            tick(1, value)
            if time.monotonic() - last_saved >= settings.checkpoint_seconds and progress.step < steps:
                _save(checkpoint, model, optimiser, scaler, progress, best_state)
                last_saved = time.monotonic()
    return Trained(
        best_state, parameter_count(model), steps, progress.best_step, progress.best, progress.history, progress.seconds
    )


def _one_step(
    model: nn.Module,
    batch: Batch,
    loss: Loss,
    settings: Training,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    device: torch.device,
    dropout_seed: int,
) -> Tensor:
    model.train()
    _seed_dropout(dropout_seed, device)
    if device.type != "cpu":
        batch = batch.each(lambda tensor: tensor.to(device))  # nothing is copied of a batch that was sent ahead
    with autocast(device, settings.precision):
        logits = model(batch.inputs)
    value = loss(logits.float(), batch)
    optimiser.zero_grad(set_to_none=True)
    scaler.scale(value).backward()  # type: ignore[no-untyped-call]
    scaler.unscale_(optimiser)
    nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
    scaler.step(optimiser)
    scaler.update()
    return value.detach()


def _seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the generators that dropout draws from.

    `torch.manual_seed` does the same, but then formats the stack three times for devices that are not used, which can take
    longer than a step of a small model.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _copied(model: nn.Module) -> State:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}


def _save(
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    progress: Progress,
    best_state: State,
) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best_state.items()}
    for number, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{name}": tensor for name, tensor in moments.items()}
    progress.scale = scaler.state_dict()
    save_weights(path, tensors, {"progress": json.dumps(vars(progress))})


def _resumed(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> tuple[Progress, State] | None:
    """What an interrupted run left, loaded into model, optimiser and scaler; None when it left nothing."""
    if not path.exists():
        return None
    try:
        return _loaded(path, model, optimiser, scaler)
    except (WeightsError, RuntimeError, LookupError, ValueError, TypeError) as problem:
        reason = str(problem).splitlines()[0]
        raise WeightsError(
            f"checkpoint {path} of an interrupted run cannot be gone on from ({reason}). Delete it and run again; "
            "the result is the same."
        ) from None


def _loaded(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> tuple[Progress, State]:
    from safetensors import safe_open

    tensors = load_weights(path)
    with safe_open(path, framework="pt") as file:
        progress = Progress(**json.loads(file.metadata()["progress"]))

    def under(prefix: str) -> State:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    model.load_state_dict(under("model."))
    state = optimiser.state_dict()
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in under("optimiser.").items():
        number, _, moment = name.partition(".")
        moments.setdefault(int(number), {})[moment] = tensor
    optimiser.load_state_dict({**state, "state": moments})
    scaler.load_state_dict(progress.scale)
    return progress, under("best.")
