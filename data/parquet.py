"""Parquet and Arrow files, as the Hugging Face Hub has them: images, or arrays of numbers, with labels; read by block."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import DatasetError
from data.looks import Looks
from data.shards.split_files import WHOLE, SplitFiles, split_files

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data.image_files.images import ImageDataset
    from data.shards.stored import StoredPart
    from data.shards.stored_arrays import StoredArrays
    from data.shards.table_files import TableFile

VERSION = 1
ENDINGS = (".parquet", ".arrow", ".feather")
SMALL_COLUMN = 32 * 10**6  # bytes that are decompressed into memory rather than into a file


class ParquetSource:
    """One file or several; see `data.shards.split_files` for which, and of which split.

    A row is a sample. Its column of images holds the bytes of image files; a column of numbers holds lists of equal shape.
    """

    def __init__(
        self,
        path: Path,
        *,
        validation: float,
        test: float,
        split_seed: int,
        input_column: str = "image",
        label_column: str = "label",
        class_names: Sequence[str] | None = None,
        workers: int | None = None,
        memory_mb: int = 1024,
        looks: Looks | None = None,
    ):
        """`class_names` names labels that are mere integers; see FolderSource for `workers` and `memory_mb`.

        `looks` says where copies of the samples' column are kept, which can be mapped into memory as Parquet cannot.
        """
        self.version: int | None = VERSION
        self._path, self._class_names = path, class_names
        self._input, self._label = input_column, label_column
        self._workers, self._memory_mb, self._looks = workers, memory_mb, looks or Looks()
        self._fractions = (validation, test, split_seed)

    def files(self) -> dict[str, Path]:
        """Every file by its name. Raises DatasetError when there is none, or their names do not say one way to split them."""
        return self._split_files().by_name()

    def load(self) -> Mapping[str, ImageDataset | StoredArrays]:
        """The splits that the names of the files say, or those that a set without splits is split into by content."""
        files = self._split_files()
        try:
            import pyarrow as pa
        except ImportError:
            raise DatasetError(
                f'{self._path}: pyarrow, which reads it, is not installed: pip install "softcache[parquet]"'
            ) from None
        del pa
        from data.shards.shard_looks import ShardLooks
        from data.shards.stored import datasets_of, splits_of
        from data.workers import Memory, Workers

        found = datasets_of(
            self._parts(files),
            self._class_names,
            origin=str(self._path),
            label=self._label,
            looks=ShardLooks(self._looks, self._path, self._input),
            workers=Workers(self._workers),
            memory=Memory(self._memory_mb),
        )
        return splits_of(found, self._fractions)

    def _split_files(self) -> SplitFiles:
        return split_files(self._path, ENDINGS)

    def _parts(self, files: SplitFiles) -> dict[str, StoredPart]:
        from data.shards.arrow_columns import refuse_missing_column
        from data.shards.table_files import table_file

        tables = {path: table_file(path) for part in files.parts for path in files.paths(part)}
        for path, table in tables.items():
            refuse_missing_column(table.schema().names, self._input, str(path))
        chunks = self._chunks(tables)
        parts: dict[str, StoredPart] = {}
        for part, names in files.parts.items():
            origin = str(files.folder / names[0]) if len(names) == 1 else _named(self._path, part)
            own = {path: tables[path] for path in files.paths(part)}
            labels, class_names = self._labels(own, may_lack=bool(parts) or self._class_names is not None)
            parts[part] = self._part(files, part, [chunks[path] for path in own], labels, class_names, origin)
        return parts

    def _chunks(self, tables: Mapping[Path, TableFile]) -> dict[Path, Sequence[Any]]:
        """The samples of each file as Arrow arrays: where they lie if they can be mapped there, or of a copy."""
        from data.shards.arrow_copies import in_memory, mapped_copies
        from data.shards.kept_files import KeptFiles

        mapped = {path: table.mapped(self._input) for path, table in tables.items()}
        missing = [(path, tables[path]) for path, arrays in mapped.items() if arrays is None]
        if sum(table.size_of(self._input) for _, table in missing) <= SMALL_COLUMN:
            copies = [in_memory(table, self._input) for _, table in missing]
        else:
            kept = KeptFiles(self._memories(), "arrow", self._path, self._input)
            copies = mapped_copies(missing, self._input, kept, self._looks.bar)
        copied = {path: arrays for (path, _), arrays in zip(missing, copies, strict=True)}
        return {path: copied[path] if arrays is None else arrays for path, arrays in mapped.items()}

    def _memories(self) -> Path:
        """Where copies are kept; without such a place, a folder that is gone with this source."""
        if self._looks.folder is not None:
            return self._looks.folder
        temporary = Path(tempfile.mkdtemp(prefix="softcache-"))
        weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)
        return temporary

    def _part(
        self,
        files: SplitFiles,
        part: str,
        chunks: Sequence[Sequence[Any]],
        labels: NDArray[np.int64],
        class_names: Sequence[str] | None,
        origin: str,
    ) -> StoredPart:
        from data.shards.arrow_columns import ImageColumn, NumberColumn, holds_images
        from data.shards.shard_looks import shards_of
        from data.shards.stored import StoredPart
        from data.shards.stored_names import StoredNames

        counts = [sum(map(len, arrays)) for arrays in chunks]
        names = StoredNames(f"{files.folder}/", files.parts[part], counts, "row")
        flat = [array for arrays in chunks for array in arrays]
        if not flat:
            raise DatasetError(f"{origin}: there are no samples in it.")
        samples = (
            ImageColumn(flat, names) if holds_images(flat[0].type) else NumberColumn(flat, self._input, names, origin)
        )
        shards = shards_of([[path] for path in files.paths(part)], counts)
        return StoredPart(samples, labels, origin, shards, class_names)

    def _labels(
        self, tables: Mapping[Path, TableFile], *, may_lack: bool
    ) -> tuple[NDArray[np.int64], list[str] | None]:
        """The labels of all rows of some files, and the names of their classes where the files give them.

        Where they `may_lack` labels, either all of the files do, or none.
        """
        import numpy as np

        from data.shards.arrow_columns import labels_in, refuse_missing_column
        from data.shards.table_files import class_names_in

        schemas = {path: table.schema() for path, table in tables.items()}
        having = [path for path, schema in schemas.items() if self._label in schema.names]
        if not having and may_lack:
            return np.full(sum(table.rows() for table in tables.values()), -1, np.int64), None
        for path, schema in schemas.items():
            refuse_missing_column(schema.names, self._label, str(path))
        labels = [
            labels_in(table.whole(self._label), self._label, str(path), "Store them as the numbers of classes.")
            for path, table in tables.items()
        ]
        class_names = {path: class_names_in(schema, self._label) for path, schema in schemas.items()}
        first = class_names[having[0]]
        for path, own in class_names.items():
            if own != first:
                raise DatasetError(f"{path}: the class names of column {self._label!r} are not those of {having[0]}.")
        return np.concatenate(labels), first


def _named(path: Path, part: str) -> str:
    return str(path) if part == WHOLE else f"{path} ({part})"
