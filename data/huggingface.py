"""Hugging Face datasets that were saved to disk: images, or numeric arrays, with labels. Nothing is ever downloaded."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from data.errors import DatasetError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data.arrays import ArrayDataset
    from data.images import ImageDataset, ImageStore
    from data.workers import Memory, Workers

VERSION = 1
ROWS_AT_ONCE = 1000  # a number is a Python object for a moment, which takes much more memory
NAMES_OF_SPLITS = {"training": ("train", "training"), "validation": ("validation", "val", "dev"), "test": ("test",)}


class HuggingFaceSource:
    """A folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""

    def __init__(
        self,
        folder: Path,
        *,
        validation: float,
        test: float,
        split_seed: int,
        input_column: str = "image",
        label_column: str = "label",
        class_names: Sequence[str] | None = None,
        workers: int | None = None,
        memory_mb: int = 1024,
    ):
        """`class_names` names labels that are mere integers; see FolderSource for `workers` and `memory_mb`."""
        self.version: int | None = VERSION
        self._folder, self._class_names = folder, class_names
        self._input, self._label = input_column, label_column
        self._workers, self._memory_mb = workers, memory_mb
        self._fractions = (validation, test, split_seed)

    def files(self) -> dict[str, Path]:
        """Every file of the saved dataset by its path in the folder. Raises DatasetError when there is none."""
        if not self._folder.is_dir():
            raise DatasetError(
                f"{self._folder}: no such folder. A relative path starts at the data folder (--data-dir)."
            )
        found = sorted(path for path in self._folder.rglob("*") if path.is_file())
        if not any(path.name in ("state.json", "dataset_dict.json") for path in found):
            raise DatasetError(
                f"{self._folder}: no dataset that save_to_disk wrote (neither state.json nor dataset_dict.json is there). Load "
                "it once with the datasets library, then dataset.save_to_disk(folder)."
            )
        return {path.relative_to(self._folder).as_posix(): path for path in found}

    def load(self) -> Mapping[str, ArrayDataset | ImageDataset]:
        """The splits of a DatasetDict, or those that a single Dataset is split into by content."""
        from data.splits import filled_splits, split_by_content

        validation, test, seed = self._fractions
        found = self._datasets(self._tables())
        if "all" in found:
            return split_by_content(found["all"], validation=validation, test=test, seed=seed)
        return filled_splits(found, validation=validation, test=test, seed=seed)

    def _tables(self) -> dict[str, Any]:
        """The saved tables by split, or one as "all"."""
        self.files()
        try:
            import datasets
        except ImportError:
            raise DatasetError(
                f"{self._folder}: the datasets library, which reads it, is not installed: "
                'pip install "softcache[huggingface]"'
            ) from None
        try:
            loaded = datasets.load_from_disk(str(self._folder.resolve()))
        except Exception as problem:  # damaged files fail anywhere in its JSON, arrow's reader or the feature types
            raise DatasetError(
                f"{self._folder}: the saved dataset cannot be read ({problem}). Save it again."
            ) from None
        if isinstance(loaded, datasets.Dataset):
            return {"all": loaded}
        found: dict[str, Any] = {}
        for split, names in NAMES_OF_SPLITS.items():
            present = [name for name in names if name in loaded]
            if len(present) > 1:
                raise DatasetError(f"{self._folder}: {' and '.join(present)} are both of the {split} split; keep one.")
            if present:
                found[split] = loaded[present[0]]
        if "training" not in found:
            raise DatasetError(f"{self._folder}: there is no train split; there are {', '.join(loaded)}.")
        return found

    def _datasets(self, tables: Mapping[str, Any]) -> dict[str, Any]:
        import datasets
        import numpy as np

        from data.arrays import checked_dataset, checked_labels
        from data.images import ImageDataset
        from data.workers import Memory, Workers

        origins = {part: str(self._folder) if part == "all" else f"{self._folder} ({part})" for part in tables}
        labels = {part: self._labels(table, origins[part]) for part, table in tables.items()}
        names = self._names_of_classes(tables, np.concatenate(list(labels.values())))
        workers, memory = Workers(self._workers), Memory(self._memory_mb)
        found: dict[str, Any] = {}
        for part, table in tables.items():
            origin = origins[part]
            if isinstance(table.features[self._input], datasets.Image):
                checked, classes = checked_labels(labels[part], len(table), names, origin)
                store = image_store(table.select_columns([self._input]), origin, workers, memory)
                found[part] = ImageDataset(store, np.arange(len(table)), checked, classes, part, origin, part)
            else:
                values = array_column(table, self._input, origin)
                found[part] = checked_dataset(values, labels[part], names, split=part, origin=origin)
        return found

    def _labels(self, table: Any, origin: str) -> NDArray[np.int64]:
        """Labels (N,), -1 where the column is missing or a row has none."""
        import numpy as np

        self._refuse_missing_column(table, self._input, origin)
        if self._label not in table.column_names:
            return np.full(len(table), -1, dtype=np.int64)
        kind = getattr(table.features[self._label], "dtype", "nested")
        if not kind.startswith(("int", "uint", "bool")):
            raise DatasetError(
                f"{origin}: the labels of column {self._label!r} are of type {kind}; integers are needed. Call "
                f"dataset.class_encode_column({self._label!r}) and save it again."
            )
        given = table.select_columns([self._label]).with_format("arrow")[:].column(0).to_pylist()
        return np.array([-1 if label is None else int(label) for label in given], dtype=np.int64)

    def _names_of_classes(self, tables: Mapping[str, Any], labels: NDArray[np.int64]) -> tuple[str, ...]:
        """ClassLabel's names, or those of the recipe, or numbers up to the largest label of any split."""
        from data.arrays import numbered_classes

        first = next(iter(tables.values()))
        if self._label not in first.column_names and self._class_names is None:
            self._refuse_missing_column(first, self._label, str(self._folder))
        given = [getattr(table.features.get(self._label), "names", None) for table in tables.values()]
        named = [names for names in given if names is not None]
        if any(names != named[0] for names in named):
            raise DatasetError(f"{self._folder}: the splits differ in the class names of column {self._label!r}.")
        if named and self._class_names is not None:
            raise DatasetError(
                f"{self._folder}: column {self._label!r} has class names of its own; remove data.class_names of the recipe."
            )
        if named:
            return tuple(named[0])
        return tuple(self._class_names) if self._class_names else numbered_classes(labels, str(self._folder))

    def _refuse_missing_column(self, table: Any, name: str, origin: str) -> None:
        if name not in table.column_names:
            raise DatasetError(
                f"{origin}: no column {name!r}; there are {', '.join(table.column_names)}. Name the columns of samples and "
                "labels with data.input and data.label."
            )


def image_store(table: Any, origin: str, workers: Workers, memory: Memory) -> ImageStore:
    """The images of a table's one column, undecoded until they are needed."""
    import datasets

    from data.images import ImageStore

    [name] = table.column_names
    encoded = table.cast_column(name, datasets.Image(decode=False))

    def opened(number: int) -> IO[bytes]:
        image = encoded[number][name]
        if image is None or image["bytes"] is None:
            what = "no image" if image is None else f"only the path of an image, {image['path']}, not the image"
            raise DatasetError(
                f"{origin}, row {number}: the row holds {what}. Leave it out, or save the dataset with it."
            )
        return io.BytesIO(image["bytes"])

    rows = [f"row {number}" for number in range(len(table))]
    return ImageStore(rows, opened, lambda row: f"{origin}, {row}", workers, memory)


def array_column(table: Any, name: str, origin: str) -> NDArray[np.generic]:
    """A numeric column as one array (N, ...) of its own dtype.

    Raises DatasetError when it holds something else than numbers, or naming the first row whose shape differs.
    """
    import numpy as np

    feature = table.features[name]
    while not isinstance(getattr(feature, "dtype", None), str) or feature.dtype == "list":
        feature = getattr(feature, "feature", None)
        if feature is None:
            raise DatasetError(f"{origin}: column {name!r} holds neither images nor numbers.")
    try:
        dtype = np.dtype(feature.dtype)
    except TypeError:
        raise DatasetError(
            f"{origin}: column {name!r} is of type {feature.dtype}; images or numbers are needed."
        ) from None
    column = table.select_columns([name]).with_format("arrow")
    parts: list[NDArray[np.generic]] = []
    for start in range(0, len(table), ROWS_AT_ONCE):
        rows = column[start : start + ROWS_AT_ONCE].column(0).to_pylist()
        shape = parts[0].shape[1:] if parts else _shape(rows[0])
        for number, row in enumerate(rows, start):
            if shape is None or _shape(row) != shape:
                raise DatasetError(
                    f"{origin}, row {number}: shape {_shape(row)}, but row 0 has {shape}; all must be of one shape."
                )
        try:
            parts.append(np.array(rows, dtype=dtype))
        except (TypeError, ValueError) as problem:  # a gap within a row
            raise DatasetError(f"{origin}, rows from {start}: column {name!r} is no array ({problem}).") from None
    return np.concatenate(parts) if parts else np.empty((0,), dtype)


def _shape(row: Any) -> tuple[int, ...] | None:
    """The shape of nested lists; None where there are none, or where they are of unequal lengths."""
    import numpy as np

    try:
        return None if row is None else np.shape(row)
    except ValueError:
        return None
