"""Hugging Face datasets that were saved to disk: images, or numeric arrays, with labels. Nothing is ever downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import DatasetError
from data.looks import Looks
from data.shards.split_files import NAMES_OF_SPLITS

if TYPE_CHECKING:
    from data.image_files.images import ImageDataset
    from data.shards.stored import StoredPart
    from data.shards.stored_arrays import StoredArrays

VERSION = 1


class HuggingFaceSource:
    """A folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote, mapped into memory and read by block."""

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
        looks: Looks | None = None,
    ):
        """`class_names` names labels that are mere integers; see FolderSource for `workers`, `memory_mb` and `looks`."""
        self.version: int | None = VERSION
        self._folder, self._class_names = folder, class_names
        self._input, self._label = input_column, label_column
        self._workers, self._memory_mb, self._looks = workers, memory_mb, looks or Looks()
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

    def load(self) -> Mapping[str, ImageDataset | StoredArrays]:
        """The splits of a DatasetDict, or those that a single Dataset is split into by content."""
        tables = self._tables()

        from data.shards.arrow_columns import refuse_missing_column
        from data.shards.shard_looks import ShardLooks
        from data.shards.stored import datasets_of, splits_of
        from data.workers import Memory, Workers

        first = next(iter(tables.values()))
        if self._class_names is None:  # other splits may have no labels
            refuse_missing_column(first.column_names, self._input, str(self._folder))
            refuse_missing_column(first.column_names, self._label, str(self._folder))
        parts = {part: self._part(part, table) for part, table in tables.items()}
        found = datasets_of(
            parts,
            self._class_names,
            origin=str(self._folder),
            label=self._label,
            looks=ShardLooks(self._looks, self._folder, self._input),
            workers=Workers(self._workers),
            memory=Memory(self._memory_mb),
        )
        return splits_of(found, self._fractions)

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
            loaded = datasets.load_from_disk(str(self._folder.resolve()), keep_in_memory=False)
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

    def _part(self, part: str, table: Any) -> StoredPart:
        import numpy as np

        from data.shards.arrow_columns import ImageColumn, NumberColumn, holds_images, labels_in, refuse_missing_column
        from data.shards.shard_looks import shards_of
        from data.shards.stored import StoredPart
        from data.shards.stored_names import StoredNames

        origin = str(self._folder) if part == "all" else f"{self._folder} ({part})"
        refuse_missing_column(table.column_names, self._input, origin)
        if self._label not in table.column_names:
            labels = np.full(len(table), -1, dtype=np.int64)
        else:
            remedy = f"Call dataset.class_encode_column({self._label!r}) and save it again."
            labels = labels_in(table.data.column(self._label), self._label, origin, remedy)
        chunks, names = table.data.column(self._input).chunks, StoredNames(f"{origin}, ", [""], [len(table)], "row")
        images = holds_images(table.data.schema.field(self._input).type)
        samples = ImageColumn(chunks, names) if images else NumberColumn(chunks, self._input, names, origin)
        files = [Path(file["filename"]) for file in table.cache_files]
        class_names = getattr(table.features.get(self._label), "names", None)
        return StoredPart(samples, labels, origin, shards_of([files], [len(table)]), class_names)
