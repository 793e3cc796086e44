"""CSV files of outputs."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import OutputsError
from pipeline.teachers.outputs_file import OutputsFile, refuse_views
from pipeline.teachers.outputs_tables import Spill, columns_of

BATCH_ROWS = 4096


def read_csv(path: Path, kind: str, class_names: Sequence[str]) -> OutputsFile:
    """A CSV file with a header: one column for each class, and index, digest and part where there are such."""
    with path.open(newline="", encoding="utf-8-sig") as file, tempfile.TemporaryFile() as beside:
        spill, lines = Spill(beside), csv.reader(file)
        try:
            header = next(lines, [])
            columns = columns_of(path, header, [], kind, class_names)
            place = {name: header.index(name) for name in header}
            for first, batch in _batches_of_lines(lines, len(header), path):
                spill.add(_numbers(batch, [place[name] for name in columns.values], header, first, path))
                if columns.index is not None:
                    spill.index.append(_integers([line[place[columns.index]] for line in batch], "index", first, path))
                if columns.digest is not None:
                    spill.digests.append(np.array([line[place[columns.digest]] for line in batch], dtype="U"))
                if columns.part is not None:
                    spill.parts += [line[place[columns.part]] for line in batch]
                if columns.view is not None:
                    views = _integers([line[place[columns.view]] for line in batch], "view", first, path)
                    refuse_views(views, str(path), first)
        except (UnicodeDecodeError, csv.Error) as problem:
            raise OutputsError(f"{path} is not a CSV file in UTF-8 ({problem}).") from None
        return OutputsFile(path, spill.rows_of(path))


def _batches_of_lines(lines: Iterator[list[str]], fields: int, path: Path) -> Iterator[tuple[int, list[list[str]]]]:
    batch: list[list[str]] = []
    first = 0
    for line in lines:
        if not line:
            continue  # an empty line at the end
        if len(line) != fields:
            raise OutputsError(f"{path}: row {first + len(batch)} has {len(line)} fields, the header {fields}.")
        batch.append(line)
        if len(batch) == BATCH_ROWS:
            yield first, batch
            first += len(batch)
            batch = []
    if batch:
        yield first, batch


def _numbers(
    batch: list[list[str]], places: Sequence[int], header: Sequence[str], first: int, path: Path
) -> NDArray[np.float64]:
    values = np.empty((len(batch), len(places)))
    for row, line in enumerate(batch):
        for column, place in enumerate(places):
            try:
                values[row, column] = float(line[place])
            except ValueError:
                raise OutputsError(
                    f"{path}: row {first + row} has {line[place]!r} in column {header[place]!r}; a number is needed."
                ) from None
    return values


def _integers(texts: Sequence[str], what: str, first: int, path: Path) -> NDArray[np.int64]:
    found = []
    for row, text in enumerate(texts):
        try:
            found.append(int(text))
        except ValueError:
            raise OutputsError(f"{path}: row {first + row} has {what} {text!r}; an integer is needed.") from None
    try:
        return np.array(found, dtype=np.int64)
    except OverflowError:
        raise OutputsError(
            f"{path}: {what} of one of the rows {first} to {first + len(texts) - 1} is beyond 64 bits."
        ) from None
