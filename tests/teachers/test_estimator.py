"""Estimators as teachers: what they declare, which column is which class, and what is no distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.batches import Preprocess
from pipeline.errors import RecipeError, TeacherAbsentError, TeacherOutputError, UserError
from pipeline.recipe import Normalise
from pipeline.teachers.declaration import declared
from pipeline.teachers.estimator import columns_of_classes, forward_of_estimator
from tests.teachers.source import CLASSES, softmax, whole


@dataclass
class Linear:
    """softmax(X w), with columns in the order of `classes_`; remembers what it was given."""

    classes_: NDArray[Any]
    weights: NDArray[np.float64]
    given: NDArray[Any] | None = None

    def predict_proba(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        self.given = features
        return softmax(features.astype(np.float64) @ self.weights)


def linear(classes: Sequence[Any]) -> Linear:
    return Linear(np.array(classes), np.random.default_rng(0).normal(size=(6, 3)))


PREPROCESS = Preprocess(Normalise(mean=(1.0,), std=(2.0,)), (6,))


def test_an_estimator_sees_normalised_flat_float32_samples_and_its_columns_are_turned() -> None:
    estimator, samples = linear(["cat", "ant", "bee"]), whole()
    indices = np.array([5, 0, 7])
    found = forward_of_estimator(estimator, samples, "training", PREPROCESS, CLASSES, "users:load")(indices)
    assert estimator.given is not None
    assert estimator.given.dtype == np.dtype(np.float32)
    assert estimator.given.shape == (3, 6)
    np.testing.assert_array_equal(estimator.given, (samples.values[indices] - 1) / 2)
    exact = softmax(estimator.given.astype(np.float64) @ estimator.weights)[:, [1, 2, 0]]
    np.testing.assert_allclose(torch.softmax(found, dim=1), exact, atol=1e-6)


@pytest.mark.parametrize(
    ("classes", "columns"),
    [
        ([0, 1, 2], [0, 1, 2]),
        ([2, 0, 1], [1, 2, 0]),
        ([2.0, 0.0, 1.0], [1, 2, 0]),
        (["cat", "ant", "bee"], [1, 2, 0]),
        (np.array(["cat", "ant", "bee"], dtype=object), [1, 2, 0]),
    ],
)
def test_numbers_are_places_in_the_class_list_and_texts_are_names(classes: Any, columns: list[int]) -> None:
    assert columns_of_classes(classes, CLASSES, "users:load").tolist() == columns


@pytest.mark.parametrize(
    "classes", [[0, 1], [0, 1, 3], [1, 2, 3], [0.5, 1, 2], ["ant", "bee", "dog"], ["ant", "ant", "bee"]]
)
def test_other_classes_are_refused_with_both_lists(classes: Any) -> None:
    with pytest.raises(RecipeError, match=r"users:load knows the classes .*, but the teacher's are ant, bee, cat"):
        columns_of_classes(classes, CLASSES, "users:load")


@pytest.mark.parametrize("row", [[0.5, 0.5, 0.5], [-0.1, 0.6, 0.5], [np.nan, 0.5, 0.5]])
def test_rows_that_are_no_distribution_are_refused_with_the_samples_numbers(row: list[float]) -> None:
    class Broken(Linear):
        def predict_proba(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
            probabilities = super().predict_proba(features)
            probabilities[1:] = row
            return probabilities

    estimator = Broken(np.arange(3), linear([0, 1, 2]).weights)
    forward = forward_of_estimator(estimator, whole(), "training", PREPROCESS, CLASSES, "users:load")
    with pytest.raises(TeacherOutputError, match=r"within 0\.001 for samples 9, 4 of the training split"):
        forward(np.array([2, 9, 4]))


def test_a_probability_of_0_is_minus_infinity() -> None:
    class Certain(Linear):
        def predict_proba(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
            return np.eye(3)[np.zeros(len(features), dtype=int)]

    forward = forward_of_estimator(
        Certain(np.arange(3), np.zeros((6, 3))), whole(), "training", PREPROCESS, CLASSES, "users:load"
    )
    assert forward(np.array([1])).tolist() == [[0.0, -torch.inf, -torch.inf]]


def test_another_number_of_columns_is_refused() -> None:
    estimator = Linear(np.arange(3), np.zeros((6, 2)))
    with pytest.raises(TeacherOutputError, match=r"shape \(2, 2\) for 2 samples of 3 classes"):
        forward_of_estimator(estimator, whole(), "training", PREPROCESS, CLASSES, "users:load")(np.array([0, 1]))


def test_an_estimator_that_was_fitted_on_other_features_is_told_with_their_number() -> None:
    estimator = Linear(np.arange(3), np.zeros((5, 3)))
    forward = forward_of_estimator(estimator, whole(), "test", PREPROCESS, CLASSES, "users:load")
    with pytest.raises(TeacherOutputError, match=r"users:load: predict_proba failed on the test split, for 6 features"):
        forward(np.array([0, 1]))


def test_classes_of_several_outputs_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"users:load has classes_ = \[0, 1\], \[0, 1, 2\], which is no flat list"):
        columns_of_classes([[0, 1], [0, 1, 2]], CLASSES, "users:load")


DECLARED = "def load(folder):\n    return 1\n\n\nload.version = 3\nload.files = ['a.bin', 'b.bin']\n"


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a.bin").write_bytes(b"a")
    (tmp_path / "b.bin").write_bytes(b"b")
    return tmp_path / "users_estimator.py"


def test_version_and_files_are_read_without_importing_the_module(users: Path) -> None:
    users.write_text("raise RuntimeError('imported')\n\n\n" + DECLARED)
    assert declared("users_estimator:load", users.parent) == (3, [users.parent / "a.bin", users.parent / "b.bin"])


@pytest.mark.parametrize(
    "source",
    [
        "def load(folder):\n    return 1\n",
        DECLARED.replace("load.version = 3", ""),
        DECLARED.replace("load.version = 3", "load.version = True"),
        DECLARED.replace("load.version = 3", "load.version = VERSION"),
        DECLARED.replace("['a.bin', 'b.bin']", "'a.bin'"),
        DECLARED.replace("['a.bin', 'b.bin']", "[3]"),
        DECLARED.replace("load.", "other."),
    ],
)
def test_a_function_without_a_written_out_declaration_is_refused_with_what_to_write(users: Path, source: str) -> None:
    users.write_text(source)
    with pytest.raises(
        UserError, match=r"an integer and a list of texts, written out.*load\.version = 1 .*load\.files = "
    ):
        declared("users_estimator:load", users.parent)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\ndef load(folder:\n", r"users_estimator\.py, line 2 is no valid Python"),
        ("\0", r"users_estimator\.py.* is no valid Python \(.*null bytes"),
        ("# coding: none-such\n", r"users_estimator\.py.* is no valid Python \(.*none-such"),
    ],
)
def test_a_module_that_is_no_python_is_named(users: Path, source: str, message: str) -> None:
    users.write_text(source)
    with pytest.raises(UserError, match=message):
        declared("users_estimator:load", users.parent)


def test_a_missing_module_or_file_is_named(users: Path) -> None:
    with pytest.raises(TeacherAbsentError, match="there is no module 'users_none'"):
        declared("users_none:load", users.parent)
    users.write_text(DECLARED)
    (users.parent / "b.bin").unlink()
    with pytest.raises(TeacherAbsentError, match=r"b\.bin: no such file, but users_estimator:load declares it"):
        declared("users_estimator:load", users.parent)
