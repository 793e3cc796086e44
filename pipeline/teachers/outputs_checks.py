"""What a file's numbers must be, and the logits that follow from them.

Shape legend: R rows of a file, B rows at once, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import OutputsError
from pipeline.teachers.outputs_file import OutputsFile, listed

ROWS_AT_ONCE = 4096
TOLERANCE = 1e-3  # of a row's sum: float16 rounds each probability by at most 2^-11 of itself
TOLERANCE_OF_FLOAT16_LOGARITHMS = 1e-2  # float16 rounds -log p between 8 and 16 by up to 2^-8


def logits_of(values_BC: NDArray[Any], kind: str, temperature: float) -> NDArray[np.float32]:
    """Float32 logits (B, C), up to a constant of each row: `softmax(logits / temperature)` is what the source gave.

    A probability of 0 becomes -inf, which every softmax maps to 0 again.
    """
    exact = values_BC.astype(np.float64)
    if kind == "probabilities":
        with np.errstate(divide="ignore"):
            exact = np.log(exact)
    with np.errstate(over="ignore"):
        return (exact if kind == "logits" else temperature * exact).astype(np.float32)


def refuse_wrong_values(file: OutputsFile, kind: str, class_count: int) -> None:
    """Raises OutputsError unless all rows of a file are what its `kind` can be, naming the first rows that are not."""
    checked: list[NDArray[np.generic]] = []
    for rows in file.rows:
        if any(rows.values is values for values in checked):
            continue  # the parts of a table share one array
        checked.append(rows.values)
        origin = str(file.path) if len(file.rows) == 1 else f"{file.path} ({rows.name})"
        refuse_other_shape(rows.values.shape, rows.values.dtype, class_count, origin)
        _refuse_wrong_rows(rows.values, kind, origin)


def refuse_other_shape(shape: tuple[int, ...], dtype: np.dtype[Any], class_count: int, origin: str) -> None:
    """Raises OutputsError unless values of this shape and dtype can be those of so many classes."""
    if dtype.kind not in "fiu" or dtype.itemsize > 8:
        raise OutputsError(f"{origin}: the values are {dtype}; floats of at most 64 bits, or integers, are needed.")
    if len(shape) != 2 or shape[1] != class_count:
        raise OutputsError(
            f"{origin}: the values have shape {shape}, but the teacher has {class_count} classes: (rows, {class_count}) "
            "is needed. Name the classes of the file in teacher.class_names if they are others than the dataset's."
        )


def _refuse_wrong_rows(values: NDArray[np.generic], kind: str, origin: str) -> None:
    tolerance = TOLERANCE
    if kind == "log-probabilities" and values.dtype == np.float16:
        tolerance = TOLERANCE_OF_FLOAT16_LOGARITHMS
    looks_like_probabilities = kind == "logits" and len(values) > 1
    wrong: dict[str, list[int]] = {what: [] for what in _WRONG}
    for first in range(0, len(values), ROWS_AT_ONCE):
        batch_BC = np.asarray(values[first : first + ROWS_AT_ONCE], dtype=np.float64)
        for what, (kinds, is_wrong) in _WRONG.items():
            if kind in kinds:
                wrong[what] += (first + np.flatnonzero(is_wrong(batch_BC, tolerance))).tolist()
        if any(wrong.values()):
            looks_like_probabilities = False
        elif looks_like_probabilities:
            sums_to_one_B = np.abs(batch_BC.sum(axis=1) - 1) <= tolerance
            looks_like_probabilities = bool(sums_to_one_B.all() and (batch_BC >= 0).all())
    for what, rows in wrong.items():
        if rows:
            raise OutputsError(
                f"{origin}: {what.format(tolerance=tolerance)} in {len(rows)} of {len(values)} rows ({first_few(rows, 'row')}); "
                "rows are counted from 0. Nothing was imported."
            )
    if looks_like_probabilities:
        raise OutputsError(
            f"{origin}: every row is non-negative and sums to 1, so these are probabilities, but the recipe says values = "
            "'logits'. Say values = 'probabilities' and the temperature they were softened with."
        )


def first_few(numbers: list[int], what: str) -> str:
    """The first of many numbers, for people: "rows 3, 17, ..."."""
    shown = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
    return f"{what}{'s' if len(numbers) > 1 else ''} {shown}"


def _not_finite(batch_BC: NDArray[np.float64], tolerance: float) -> NDArray[np.bool_]:
    with np.errstate(over="ignore"):
        return np.asarray(~np.isfinite(batch_BC.astype(np.float32)).all(axis=1))


def _no_logarithm(batch_BC: NDArray[np.float64], tolerance: float) -> NDArray[np.bool_]:
    return np.asarray((np.isnan(batch_BC) | (batch_BC == np.inf)).any(axis=1))


def _negative(batch_BC: NDArray[np.float64], tolerance: float) -> NDArray[np.bool_]:
    return np.asarray((batch_BC < 0).any(axis=1))


def _other_sum(batch_BC: NDArray[np.float64], tolerance: float) -> NDArray[np.bool_]:
    return np.asarray(np.abs(batch_BC.sum(axis=1) - 1) > tolerance)


def _other_sum_of_exponentials(batch_BC: NDArray[np.float64], tolerance: float) -> NDArray[np.bool_]:
    with np.errstate(over="ignore"):
        return np.asarray(np.abs(np.exp(batch_BC).sum(axis=1) - 1) > tolerance)


# In this order: a NaN has no sum.
_WRONG: dict[str, tuple[set[str], Callable[[NDArray[np.float64], float], NDArray[np.bool_]]]] = {
    "NaN or infinity": ({"logits", "probabilities"}, _not_finite),
    "NaN or +infinity": ({"log-probabilities"}, _no_logarithm),
    "a negative probability": ({"probabilities"}, _negative),
    "probabilities that do not sum to 1 within {tolerance:g}": ({"probabilities"}, _other_sum),
    "log-probabilities whose exponentials do not sum to 1 within {tolerance:g}": (
        {"log-probabilities"},
        _other_sum_of_exponentials,
    ),
}


def columns_in(path: Path, given: tuple[str, ...] | None, wanted: list[str]) -> NDArray[np.int64] | None:
    """Where each wanted class is among those that a file names; None when it names none, or the same in order.

    Raises OutputsError when the names are not the same set.
    """
    if given is None or list(given) == wanted:
        return None
    if sorted(given) != sorted(wanted):
        raise OutputsError(
            f"{path} has the classes {listed(given)}, but the teacher's are {listed(wanted)}. Set teacher.class_names to "
            "those of the file; student.classes maps them to a student's."
        )
    return np.array([given.index(name) for name in wanted], dtype=np.int64)
