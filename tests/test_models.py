"""Models: the built-in networks, a user's own function, and what a wrong option or shape is told."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.errors import RecipeError
from pipeline.models import build_model, parameter_count
from pipeline.weights import weights_digest

numbers = itertools.count()

Module = Callable[[str], str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """Writes a module of the user's, on the import path under a new name, and returns the name."""

    def write(source: str) -> str:
        name = f"users_own_model_{next(numbers)}"
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        return name

    monkeypatch.syspath_prepend(str(tmp_path))
    return write


@pytest.mark.parametrize(
    ("name", "options", "shape", "classes", "parameters"),
    [
        ("mlp", {"hidden": (16,)}, (1, 8, 8), 10, 64 * 16 + 16 + 16 * 10 + 10),
        ("mlp", {"hidden": ()}, (5,), 3, 5 * 3 + 3),
        ("mlp", {"hidden": (4, 6), "dropout": 0.5}, (5,), 2, 5 * 4 + 4 + 4 * 6 + 6 + 6 * 2 + 2),
        ("cnn", {"channels": (4,)}, (3, 5, 7), 2, 3 * 4 * 9 + 2 * 4 + 4 * 2 + 2),
        ("cnn", {"channels": (4, 8), "dropout": 0.3}, (1, 8, 8), 10, 4 * 9 + 8 + 4 * 8 * 9 + 16 + 8 * 10 + 10),
        (
            "cnn",
            {"channels": (4,), "kernels": (5,), "strides": (2,), "head": "flatten"},
            (1, 7, 9),
            2,
            4 * 25 + 8 + 4 * 20 * 2 + 2,
        ),
        (
            "cnn",
            {"channels": (4, 4), "halved_after": (2,), "head": "flatten"},
            (1, 8, 8),
            2,
            36 + 8 + 144 + 8 + 64 * 2 + 2,
        ),
    ],
)
def test_a_built_in_model_has_the_documented_parameters_and_logits_for_each_class(
    name: str, options: dict[str, Any], shape: tuple[int, ...], classes: int, parameters: int
) -> None:
    model = build_model(name, options, shape, classes)
    assert parameter_count(model) == parameters
    assert model(torch.zeros(6, *shape)).shape == (6, classes)


def test_a_cnn_deeper_than_its_image_is_small_still_gives_logits() -> None:
    model = build_model("cnn", {"channels": (2,) * 6}, (1, 8, 8), 3)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


def test_frozen_parameters_are_not_counted() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    assert parameter_count(model) == 6


@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_initial_weights_follow_from_the_seed_alone(name: str) -> None:
    def digest(seed: int) -> str:
        torch.manual_seed(seed + 17)
        return weights_digest(build_model(name, {}, (1, 8, 8), 10, seed=seed).state_dict())

    torch_state = torch.get_rng_state()
    first = digest(0)
    torch.rand(3)
    assert digest(0) == first
    assert digest(1) != first
    torch.set_rng_state(torch_state)


def test_building_leaves_torch_s_global_random_state_as_it_was() -> None:
    before = torch.get_rng_state()
    build_model("cnn", {}, (1, 8, 8), 10, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mlp", {"hiden": (3,)}, r"options\.hiden = \(3,\): unknown option; options are hidden, dropout"),
        ("cnn", {"hidden": (3,)}, r"options\.hidden = \(3,\): unknown option; options are channels, kernels, strides"),
        ("mlp", {"hidden": 3}, r"options\.hidden = 3: input should be a valid tuple; options are"),
        ("mlp", {"hidden": (8, 0)}, r"options\.hidden\.1 = 0: input should be greater than or equal to 1"),
        ("cnn", {"channels": ()}, r"options\.channels = \(\): tuple should have at least 1 item"),
        ("cnn", {"kernels": (4,)}, r"options\.kernels\.0 = 4: an odd number is needed"),
        ("cnn", {"channels": (4,), "strides": (2, 2)}, r"options: strides has 2 numbers; 1 or 1 are needed"),
        (
            "cnn",
            {"channels": (4,), "halved_after": (2,)},
            r"options: halved_after = \(2,\), but there are 1 convolutions",
        ),
        ("cnn", {"dropout": 1.0}, r"options\.dropout = 1\.0: input should be less than 1"),
        ("cnn", {"dropout": "high"}, r"options\.dropout = 'high': input should be a valid number"),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_what_is_allowed(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=f"^model '{name}': {message}"):
        build_model(name, options, (1, 8, 8), 10)


@pytest.mark.parametrize("shape", [(64,), (8, 8), (1, 2, 8, 8)])
def test_a_cnn_refuses_samples_that_are_no_images_with_their_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        RecipeError, match=r"^model cnn needs samples of shape \(channels, height, width\), not"
    ) as refused:
        build_model("cnn", {}, shape, 10)
    assert str(refused.value).endswith(f"not {shape}")


OWN = """
from torch import nn

def build(sample_shape, class_count, *, width=4):
    assert sample_shape == (1, 2, 3)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, width), nn.Linear(width, class_count))

def not_a_module(sample_shape, class_count):
    return "linear"

def built_on_ours(sample_shape, class_count, **options):
    from pipeline.models import mlp
    return mlp(sample_shape, class_count, **options)
"""


def test_a_user_s_own_function_is_called_with_shape_classes_and_options(module: Module) -> None:
    name = f"{module(OWN)}:build"
    model = build_model(name, {"width": 5}, [1, 2, 3], 7, seed=1)
    assert model(torch.zeros(2, 1, 2, 3)).shape == (2, 7)
    assert parameter_count(model) == 6 * 5 + 5 + 5 * 7 + 7
    again = build_model(name, {"width": 5}, [1, 2, 3], 7, seed=1)
    assert weights_digest(again.state_dict()) == weights_digest(model.state_dict())


def test_an_option_that_a_user_s_function_does_not_take_is_named(module: Module) -> None:
    name = f"{module(OWN)}:build"
    with pytest.raises(RecipeError, match=f"^model '{name}' refused options {{'depth': 3}}: .*'depth'"):
        build_model(name, {"depth": 3}, (1, 2, 3), 7)


def test_a_wrong_option_of_ours_inside_a_user_s_function_is_named(module: Module) -> None:
    name = f"{module(OWN)}:built_on_ours"
    with pytest.raises(
        RecipeError, match=rf"^model '{name}': options\.hiden = 3: unknown option; options are hidden, dropout$"
    ):
        build_model(name, {"hiden": 3}, (1, 2, 3), 7)


def test_a_user_s_function_that_returns_no_module_is_refused_by_the_type(module: Module) -> None:
    name = f"{module(OWN)}:not_a_module"
    with pytest.raises(RecipeError, match=rf"^model '{name}' returned str; a torch\.nn\.Module is needed"):
        build_model(name, {}, (1, 2, 3), 7)


def test_an_unknown_model_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        RecipeError, match=r"^no model 'resnet'; there are cnn, mlp, or your own 'package\.module:function'"
    ):
        build_model("resnet", {}, (1, 8, 8), 10)


@pytest.mark.parametrize("name", ["no_such_module:build", "math:build", "math:", ":build", ".models:build"])
def test_a_model_that_cannot_be_imported_is_named(name: str) -> None:
    with pytest.raises(RecipeError, match=f"^model '{name}' cannot be imported: "):
        build_model(name, {}, (1, 8, 8), 10)
