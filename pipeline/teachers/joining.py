"""Joining the rows of a file of outputs to the samples of a dataset: by digest, by place in the source, or by order.

Shape legend: R rows of a file, N samples of a split, B samples of a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import OutputsError
from pipeline.teachers.outputs_checks import ROWS_AT_ONCE, columns_in, first_few, logits_of, refuse_wrong_values
from pipeline.teachers.outputs_file import OutputsFile, Rows
from pipeline.teachers.places import part_lengths, places_of, places_sha256

if TYPE_CHECKING:
    from pipeline.dataset import Dataset
    from pipeline.targets.production import TeacherForward


AUDIT_TOLERANCE = 2e-3  # of a probability: devices, batch sizes and half precision differ by less


class JoinedOutputs:
    """A file of outputs whose values were checked, and the row of each sample of each split, -1 for none."""

    def __init__(
        self,
        file: OutputsFile,
        splits: Mapping[str, Dataset],
        class_names: Sequence[str],
        kind: str,
        temperature: float,
    ):
        """Check and join. Raises OutputsError naming rows, indices or samples."""
        if file.temperature is not None and file.temperature != temperature:
            raise OutputsError(
                f"{file.path} says of itself that it was softened with temperature {file.temperature:g}, but the recipe says "
                f"{temperature:g}. Set teacher.outputs.temperature (with caches import: --temperature {file.temperature:g})."
            )
        self._columns = columns_in(file.path, file.class_names, list(class_names))
        refuse_wrong_values(file, kind, len(class_names))
        self._path, self._kind, self._temperature = file.path, kind, temperature
        self._arrays, starts = _numbered(file)
        self._starts = np.array([0, *np.cumsum([len(values) for values in self._arrays])])
        by_digest = [rows.digests is not None for rows in file.rows]
        if any(by_digest) and not all(by_digest):
            raise OutputsError(f"{file.path}: some rows have digests and others have not; give all of them one.")
        both = next((rows.name for rows in file.rows if rows.digests is not None and rows.index is not None), None)
        if both is not None:  # where they contradict each other one of them is wrong, and nobody knows which
            raise OutputsError(
                f"{file.path}: {both} have an index and a digest; leave out the one that does not count."
            )
        join = _by_digest if all(by_digest) else _by_place
        self.rows: dict[str, NDArray[np.int64]]
        self.rows, self.unmatched = join(file, splits, starts)
        self.places_sha256 = None if all(by_digest) else places_sha256(splits)

    def forward(self, split: str) -> TeacherForward:
        """The outputs as a teacher over the samples of a split: indices (B,) to float32 logits (B, C)."""

        def forward(indices: NDArray[np.int64]) -> torch.Tensor:
            return torch.from_numpy(logits_of(self._values(self.rows[split][indices]), self._kind, self._temperature))

        return forward

    def missing(self, split: str) -> NDArray[np.int64]:
        """The samples of a split that no row is of."""
        return np.flatnonzero(self.rows[split] < 0)

    def contradicting(self, split: str, dataset: Dataset) -> tuple[NDArray[np.int64], float]:
        """Samples (K,) of a split whose row differs from that of the first sample that equals them, which serves them all.

        Also by how much at most, in the probabilities of the source; up to AUDIT_TOLERANCE they count as the same.
        """
        digests = np.ascontiguousarray(dataset.sample_digests()).view("V16").ravel()
        _, first, group = np.unique(digests, return_index=True, return_inverse=True)
        rows, rows_of_first = self.rows[split], self.rows[split][first[group]]
        later = np.flatnonzero((rows != rows_of_first) & (rows >= 0) & (rows_of_first >= 0))
        apart = np.zeros(len(later))
        for start in range(0, len(later), ROWS_AT_ONCE):
            some = later[start : start + ROWS_AT_ONCE]
            difference = self._probabilities(rows[some]) - self._probabilities(rows_of_first[some])
            apart[start : start + len(some)] = difference.abs().amax(dim=1).numpy()
        return later[apart > AUDIT_TOLERANCE], float(apart.max(initial=0.0))

    def _probabilities(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """What the source gave (B, C), as probabilities at its own temperature."""
        return torch.softmax(torch.from_numpy(logits_of(self._values(rows), self._kind, 1.0)), dim=1)

    def _values(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        if (rows < 0).any():
            raise OutputsError(
                f"{self._path} has no row for {int((rows < 0).sum())} of the samples that are asked for."
            )
        found: NDArray[Any] = np.empty((len(rows), self._arrays[0].shape[1]), dtype=np.float64)
        of_array = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(of_array):
            chosen = of_array == number
            found[chosen] = self._arrays[number][rows[chosen] - self._starts[number]]
        return found if self._columns is None else found[:, self._columns]


def _numbered(file: OutputsFile) -> tuple[list[NDArray[Any]], list[int]]:
    """The arrays of a file, each once, and for each of its `rows` the number of its array's first row among all."""
    arrays: list[NDArray[Any]] = []
    starts = []
    for rows in file.rows:
        if not any(rows.values is values for values in arrays):
            arrays.append(rows.values)
        number = next(number for number, values in enumerate(arrays) if values is rows.values)
        starts.append(sum(len(values) for values in arrays[:number]))
    return arrays, starts


Joined = tuple[dict[str, NDArray[np.int64]], int]  # rows (N,) of each split, and how many rows no sample has


def _by_digest(file: OutputsFile, splits: Mapping[str, Dataset], starts: list[int]) -> Joined:
    digests = [np.ascontiguousarray(rows.digests).view("V16").ravel() for rows in file.rows]
    known = np.concatenate(digests)
    numbers = np.concatenate([rows.rows + start for rows, start in zip(file.rows, starts, strict=True)])
    order = np.argsort(known, kind="stable")
    known, numbers = known[order], numbers[order]
    _refuse_twice(file, known, numbers, starts, "digest", lambda value: value.tobytes().hex())
    joined, used = {}, np.zeros(len(known), dtype=bool)
    for split, dataset in splits.items():
        wanted = np.ascontiguousarray(dataset.sample_digests()).view("V16").ravel()
        place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        found = known[place] == wanted
        used[place[found]] = True
        joined[split] = np.where(found, numbers[place], -1)
    return joined, int((~used).sum())


def _by_place(file: OutputsFile, splits: Mapping[str, Dataset], starts: list[int]) -> Joined:
    places = {split: places_of(dataset) for split, dataset in splits.items()}
    lengths = part_lengths(splits)
    row_at = {part: np.full(length, -1, dtype=np.int64) for part, length in lengths.items()}
    for rows, start in zip(file.rows, starts, strict=True):
        part = _part_of(file, rows, lengths)
        index = _index_in(file, rows, part, lengths[part])
        order = np.argsort(index, kind="stable")
        _refuse_twice(file, index[order], rows.rows[order] + start, starts, f"index of part {part!r}", str)
        _refuse_overlap(file, rows, part, index, row_at[part][index], starts)
        row_at[part][index] = rows.rows + start
    return {split: row_at[part][positions] for split, (part, positions) in places.items()}, 0


def _part_of(file: OutputsFile, rows: Rows, lengths: Mapping[str, int]) -> str:
    parts = ", ".join(repr(part) for part in lengths)
    if rows.part is None and len(lengths) > 1:
        raise OutputsError(
            f"{file.path}: the source has {len(lengths)} parts ({parts}), and {rows.name} do not say of which they are. Give "
            "digests, or arrays by part (logits_training, index_training, ...; .npz), or a column part (Parquet, CSV)."
        )
    part = next(iter(lengths)) if rows.part is None else rows.part
    if part not in lengths:
        raise OutputsError(f"{file.path}: {rows.name} are of part {part!r}, but the source has {parts}.")
    return part


def _index_in(file: OutputsFile, rows: Rows, part: str, length: int) -> NDArray[np.int64]:
    if rows.index is None:
        if len(rows.rows) != length:
            raise OutputsError(
                f"{file.path}: {len(rows.rows)} rows, but part {part!r} of the source has {length} samples. Rows without index "
                "or digest are taken in the source's order, so there must be as many; else give each its index or digest."
            )
        return np.arange(length)
    outside = np.flatnonzero((rows.index < 0) | (rows.index >= length))
    if len(outside):
        raise OutputsError(
            f"{file.path}: index {rows.index[outside[0]]} of {first_few(rows.rows[outside].tolist(), 'row')} is not in part "
            f"{part!r} of the source, which has the places 0 to {length - 1}."
        )
    return rows.index


def _refuse_twice(
    file: OutputsFile, ordered: NDArray[Any], numbers: NDArray[np.int64], starts: list[int], what: str, shown: Any
) -> None:
    """Raises OutputsError when a value is there more than once, `ordered` (R,) being sorted; `numbers` (R,) are its rows."""
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(twice):
        rows = [int(number) for number in numbers[twice[0] : twice[0] + 2]]
        within = [number - max(start for start in starts if start <= number) for number in rows]
        raise OutputsError(
            f"{file.path}: {len(twice)} rows repeat the {what} of another; the first is {shown(ordered[twice[0]])}, in rows "
            f"{within[0]} and {within[1]} (counted from 0). Keep one row of each."
        )


def _refuse_overlap(
    file: OutputsFile, rows: Rows, part: str, index: NDArray[np.int64], before: NDArray[np.int64], starts: list[int]
) -> None:
    """Raises OutputsError when rows are of places that have one already: `before` (R,) are its numbers, -1 for none."""
    twice = np.flatnonzero(before >= 0)
    if len(twice):
        first = int(twice[np.argmin(index[twice])])
        number = int(before[first])
        start = max(start for start in starts if start <= number)
        other = file.rows[starts.index(start)].name
        raise OutputsError(
            f"{file.path}: {other} and {rows.name} both have rows of part {part!r}, for {len(twice)} places of it; the first is "
            f"place {index[first]}: row {number - start} of {other} and row {rows.rows[first]} of {rows.name}. Keep one of each."
        )
