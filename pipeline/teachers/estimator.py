"""A fitted estimator with `predict_proba` as a teacher: the user's own function loads it.

Shape legend: B samples, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.batches import Preprocess
from pipeline.errors import RecipeError, TeacherOutputError
from pipeline.teachers.outputs_checks import TOLERANCE, first_few, logits_of
from pipeline.teachers.outputs_file import listed

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.prefetch import Samples
    from pipeline.targets.production import TeacherForward


def load_estimator(name: str, data_folder: Path) -> Any:
    """What "package.module:function" returns for the data folder. Raises RecipeError when it is no fitted classifier."""
    module, _, function = name.partition(":")
    try:
        load = getattr(import_module(module), function)
    except (ImportError, AttributeError) as problem:
        raise RecipeError(f"teacher.estimator = {name!r} cannot be imported: {problem}.") from None
    estimator = load(data_folder)
    lacking = [part for part in ("predict_proba", "classes_") if not hasattr(estimator, part)]
    if lacking:
        raise RecipeError(
            f"{name} returned a {type(estimator).__name__} without {' and '.join(lacking)}; a fitted classifier with "
            "predict_proba and classes_ is needed."
        )
    return estimator


def columns_of_classes(classes: Sequence[Any], class_names: Sequence[str], name: str) -> NDArray[np.int64]:
    """For each class name, its column among an estimator's `classes_`.

    Integers (and floats and booleans of whole value) are positions in the list of names, as labels are; texts are names.
    Raises RecipeError when the two are not the same set.
    """
    try:
        given = np.asarray(classes)
    except ValueError:  # lists of unequal length, as an estimator of several outputs has
        raise RecipeError(
            f"{name} has classes_ = {listed(classes)}, which is no flat list; an estimator of one output is needed, with one "
            f"class for each of {listed(class_names)}."
        ) from None
    if given.ndim == 1 and given.dtype.kind in "biuf":
        whole = np.array_equal(given, given.astype(np.int64))
        known = [class_names[int(label)] if whole and 0 <= label < len(class_names) else str(label) for label in given]
    else:
        known = [str(label) for label in given.ravel()]
    if sorted(known) != sorted(class_names):
        raise RecipeError(
            f"{name} knows the classes {listed(given.ravel())}, but the teacher's are {listed(class_names)} "
            "(numbers are positions in that list, counted from 0). Set teacher.class_names to what it was fitted on."
        )
    return np.array([known.index(wanted) for wanted in class_names], dtype=np.int64)


def forward_of_estimator(
    estimator: Any, samples: Samples, split: str, preprocess: Preprocess, class_names: Sequence[str], name: str
) -> TeacherForward:
    """The estimator as a function of dataset indices (B,): log-probabilities (B, C), -inf where a probability is 0.

    It is called with the normalised samples, flattened: float32 of shape (B, F). Raises TeacherOutputError when
    that fails, and naming the samples whose probabilities are none.
    """
    columns = columns_of_classes(estimator.classes_, class_names, name)

    def forward(indices: NDArray[np.int64]) -> torch.Tensor:
        features_BF = preprocess(samples.samples(indices)).reshape(len(indices), -1).numpy()
        try:
            given: Any = np.asarray(estimator.predict_proba(features_BF))
        except Exception as problem:  # the user's own, fitted on another number of features or broken in any way
            raise TeacherOutputError(
                f"{name}: predict_proba failed on the {split} split, for {features_BF.shape[1]} features a sample "
                f"({type(problem).__name__}: {problem}). Was it fitted on samples of another size?"
            ) from problem
        if given.shape != (len(indices), len(columns)):
            raise TeacherOutputError(
                f"{name}: predict_proba returned shape {given.shape} for {len(indices)} samples of {len(columns)} classes."
            )
        exact_BC = given.astype(np.float64)
        right_B = (exact_BC >= 0).all(axis=1) & (np.abs(exact_BC.sum(axis=1) - 1) <= TOLERANCE)  # false for NaN
        if not right_B.all():
            wrong = first_few(indices[~right_B].tolist(), "sample")
            raise TeacherOutputError(
                f"{name}: predict_proba gave probabilities that are NaN, negative or do not sum to 1 within {TOLERANCE:g} for "
                f"{wrong} of the {split} split; finished blocks are kept."
            )
        return torch.from_numpy(logits_of(exact_BC[:, columns], "probabilities", 1.0))

    return forward
