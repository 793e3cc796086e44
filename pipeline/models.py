"""Models: a small CNN and MLP, and a user's own function, built from a recipe's `model` and `options`.

Shape legend: B samples, C classes; images are (B, channels, height, width).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from pipeline.errors import RecipeError
from pipeline.recipe import CnnOptions, MlpOptions, option_error


def cnn(sample_shape: Sequence[int], class_count: int, **options: Any) -> nn.Module:
    """Convolutions with batch normalisation and ReLU, max-pooling between, dropout and a linear head (see CnnOptions)."""
    chosen = CnnOptions(**options)
    if len(sample_shape) != 3:
        raise RecipeError(f"model cnn needs samples of shape (channels, height, width), not {tuple(sample_shape)}")
    count = len(chosen.channels)
    kernels, strides = (sizes * count if len(sizes) == 1 else sizes for sizes in (chosen.kernels, chosen.strides))
    halved_after = range(1, count) if chosen.halved_after is None else chosen.halved_after
    layers: list[nn.Module] = []
    width, *sides = sample_shape
    for place, (channels, kernel, stride) in enumerate(zip(chosen.channels, kernels, strides, strict=True), 1):
        layers += [
            nn.Conv2d(width, channels, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
        sides = [-(-side // stride) for side in sides]
        if place in halved_after and min(sides) > 1:
            layers.append(nn.MaxPool2d(2))
            sides = [side // 2 for side in sides]
        width = channels
    if chosen.head == "mean":
        layers.append(nn.AdaptiveAvgPool2d(1))
    features = width if chosen.head == "mean" else width * math.prod(sides)
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(chosen.dropout), nn.Linear(features, class_count))


def mlp(sample_shape: Sequence[int], class_count: int, **options: Any) -> nn.Module:
    """Fully connected layers with ReLU and dropout on the flattened sample."""
    chosen = MlpOptions(**options)
    layers: list[nn.Module] = [nn.Flatten()]
    width = math.prod(sample_shape)
    for hidden in chosen.hidden:
        layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(chosen.dropout)]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, class_count))


Builder = Callable[..., nn.Module]

MODELS: dict[str, Builder] = {"cnn": cnn, "mlp": mlp}


def build_model(
    name: str, options: dict[str, Any], sample_shape: Sequence[int], class_count: int, *, seed: int = 0
) -> nn.Module:
    """Build a model whose logits are (B, class_count), with initial weights that follow from `seed` alone.

    `name` is "cnn", "mlp" or a user's "package.module:function", called with (sample_shape, class_count, **options).
    torch's global random state is left as it was. Raises RecipeError when there is no such model or an option is wrong.
    """
    builder = MODELS.get(name) or _imported(name)
    try:
        inspect.signature(builder).bind(tuple(sample_shape), class_count, **options)
    except TypeError as problem:
        raise RecipeError(f"model {name!r} refused options {options}: {problem}") from None
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        torch.manual_seed(seed)
        try:
            model = builder(tuple(sample_shape), class_count, **options)
        except ValidationError as problem:
            raise RecipeError(f"model {name!r}: {option_error(problem)}") from None
    if not isinstance(model, nn.Module):
        raise RecipeError(f"model {name!r} returned {type(model).__name__}; a torch.nn.Module is needed")
    return model


def parameter_count(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _imported(name: str) -> Builder:
    module_name, colon, function_name = name.partition(":")
    if not colon:
        raise RecipeError(f"no model {name!r}; there are {', '.join(MODELS)}, or your own 'package.module:function'")
    try:
        builder: Builder = getattr(import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError, TypeError) as problem:
        raise RecipeError(f"model {name!r} cannot be imported: {problem}") from None
    return builder
