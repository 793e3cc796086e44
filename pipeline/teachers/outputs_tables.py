"""What tables of outputs, Parquet and CSV, share: the meaning of columns, and a temporary file that batches go to.

Shape legend: R rows, B rows of a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import OutputsError
from pipeline.teachers.outputs_file import (
    DIGEST_NAMES,
    KINDS,
    PART_NAMES,
    UNREAD,
    Rows,
    checked_digests,
    checked_index,
    refuse_other_kind,
    refuse_unknown,
)

BATCH_ROWS = 4096


@dataclass(frozen=True)
class Columns:
    """Which column is what: `values` in the order of the classes, or one that holds a list."""

    values: tuple[str, ...]
    is_list: bool
    index: str | None
    digest: str | None
    part: str | None
    view: str | None


def columns_of(
    path: Path, names: Sequence[str], lists: Sequence[str], kind: str, class_names: Sequence[str]
) -> Columns:
    """The columns of a table by their names; `lists` are those that hold a list of numbers.

    Raises OutputsError for one that is unknown or missing, is there twice, or has two meanings.
    """
    repeated = [name for place, name in enumerate(names) if name in names[:place]]
    if repeated:
        raise OutputsError(f"{path}: column {repeated[0]!r} is there twice.")
    list_columns = [name for name in names if name in KINDS and name in lists]
    meaningful = ("index", *DIGEST_NAMES, *PART_NAMES, "view", *UNREAD)
    rest = [name for name in names if name not in meaningful and name not in list_columns]
    if list_columns:
        refuse_other_kind(path, f"the column {list_columns[0]}", list_columns[0], kind)
        if rest:
            refuse_unknown(path, rest[0], [list_columns[0], *meaningful], "column here")
    else:
        clashing = [name for name in class_names if name in meaningful]
        if clashing:
            raise OutputsError(
                f"{path}: class {clashing[0]!r} has the name of a column with a meaning of its own. Bring a list column "
                f"({', '.join(KINDS)}; Parquet) or a .npz instead."
            )
        for name in rest:
            if name not in class_names:
                refuse_unknown(path, name, [*class_names, *meaningful], "class of the teacher and no other column")
        missing = [name for name in class_names if name not in rest]
        if missing:
            raise OutputsError(
                f"{path}: {len(missing)} of {len(class_names)} classes have no column; the first is {missing[0]!r}. One column "
                "for each class, by name, is needed."
            )

    def one(candidates: Sequence[str]) -> str | None:
        return next((name for name in candidates if name in names), None)

    values = tuple(list_columns[:1]) if list_columns else tuple(class_names)
    return Columns(values, bool(list_columns), one(["index"]), one(DIGEST_NAMES), one(PART_NAMES), one(["view"]))


@dataclass
class Spill:
    """Batches of a table on their way to a temporary file, which has no name and vanishes with its last use."""

    file: IO[bytes]
    rows: int = 0
    classes: int = 0
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float64))
    index: list[NDArray[np.generic]] = field(default_factory=list)
    digests: list[NDArray[np.generic]] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)

    def add(self, values_BC: NDArray[Any]) -> None:
        """Append the values of a batch."""
        self.dtype, self.classes = values_BC.dtype, values_BC.shape[1]
        self.rows += len(values_BC)
        self.file.write(np.ascontiguousarray(values_BC).data.cast("B"))

    def rows_of(self, path: Path) -> tuple[Rows, ...]:
        """Everything that was added, memory-mapped; the rows of each part by themselves."""
        if self.rows == 0:
            raise OutputsError(f"{path} has no rows.")
        self.file.flush()
        values = np.memmap(self.file, dtype=self.dtype, mode="r", shape=(self.rows, self.classes))
        index = checked_index(np.concatenate(self.index), str(path)) if self.index else None
        digests = checked_digests(np.concatenate(self.digests), str(path)) if self.digests else None
        parts = np.array(self.parts) if self.parts else None

        def chosen(part: str | None) -> Rows:
            rows = np.arange(self.rows) if parts is None else np.flatnonzero(parts == part)
            return Rows(
                "its rows" if part is None else f"the rows of part {part!r}",
                values,
                rows,
                part,
                None if index is None else index[rows],
                None if digests is None else digests[rows],
            )

        return (chosen(None),) if parts is None else tuple(chosen(part) for part in dict.fromkeys(self.parts))
