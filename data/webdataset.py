"""WebDataset's .tar files: images, or arrays of numbers (.npy), with labels; read in any order from where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import DatasetError
from data.looks import Looks
from data.shards.split_files import WHOLE, SplitFiles, split_files

if TYPE_CHECKING:
    from data.image_files.images import ImageDataset
    from data.shards.stored import StoredPart
    from data.shards.stored_arrays import StoredArrays
    from data.shards.tar_index import TarIndex

VERSION = 1
BYTES_WORTH_PROCESSES = 200 * 10**6  # less is indexed before another process has started
FEW_SAMPLES = 2000  # of which nothing is remembered: a pass over them takes no time
ENDINGS = (".tar",)
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class WebDatasetSource:
    """One .tar file or several; see `data.shards.split_files` for which and of which split, `tar_index` for what is in them."""

    def __init__(
        self,
        path: Path,
        *,
        validation: float,
        test: float,
        split_seed: int,
        input_ending: str = "image",
        label_field: str = "label",
        class_names: Sequence[str] | None = None,
        workers: int | None = None,
        memory_mb: int = 1024,
        looks: Looks | None = None,
    ):
        """`input_ending` is that of the samples ("image": that of any image), `label_field` the field of .json with the label.

        `class_names` names the labels; see FolderSource for `workers` and `memory_mb`.
        """
        self.version: int | None = VERSION
        self._path, self._class_names = path, class_names
        self._ending, self._label = input_ending.lower().removeprefix("."), label_field
        self._workers, self._memory_mb, self._looks = workers, memory_mb, looks or Looks()
        self._fractions = (validation, test, split_seed)

    def files(self) -> dict[str, Path]:
        """Every file by its name. Raises DatasetError when there is none, or their names do not say one way to split them."""
        return self._split_files().by_name()

    def load(self) -> Mapping[str, ImageDataset | StoredArrays]:
        """The splits that the names of the files say, or those that a set without splits is split into by content."""
        from data.shards.shard_looks import ShardLooks
        from data.shards.stored import datasets_of, splits_of
        from data.workers import Memory, Workers

        files = self._split_files()
        self._indices = self._indexed([path for part in files.parts for path in files.paths(part)])
        found = datasets_of(
            {part: self._part(files, part) for part in files.parts},
            self._class_names,
            origin=str(self._path),
            label=self._label,
            looks=ShardLooks(self._looks, self._path, self._ending),
            workers=Workers(self._workers),
            memory=Memory(self._memory_mb),
        )
        return splits_of(found, self._fractions)

    def _split_files(self) -> SplitFiles:
        return split_files(self._path, ENDINGS, _refuse_compressed)

    def _indexed(self, paths: Sequence[Path]) -> dict[Path, TarIndex]:
        """Where the samples of each file are; remembered, unless they are few."""
        from data.shards.kept_files import KeptFiles
        from data.shards.tar_index import TarIndex

        if self._looks.folder is None:
            return dict(zip(paths, self._read(paths), strict=True))
        kept = KeptFiles(self._looks.folder, "tar", self._path, self._ending, self._label)
        places = {path: kept.place([path]) for path in paths}
        found = {path: TarIndex.read(place) for path, place in places.items()}
        missing = [path for path, index in found.items() if index is None]
        indices = {path: index for path, index in found.items() if index is not None}
        indices |= zip(missing, self._read(missing), strict=True)
        if sum(len(index.labels) for index in indices.values()) >= FEW_SAMPLES:
            with suppress(OSError):  # a memory that cannot be written is no error
                for path in missing:
                    kept.write_arrays(places[path], indices[path].arrays())
                kept.remove_others(places.values())
        return indices

    def _read(self, paths: Sequence[Path]) -> Iterator[TarIndex]:
        """The index of each file, read by several processes where the files are large: one header after another is all Python."""
        from data.processes import Processes
        from data.shards.tar_index import index_of
        from data.workers import Workers

        if not paths:
            return
        arguments = [(path, self._ending, self._label) for path in paths]
        count = min(Workers(self._workers).count, len(paths))
        large = sum(path.stat().st_size for path in paths) >= BYTES_WORTH_PROCESSES
        with self._looks.bar("indexing", len(paths), "files") as advance, Processes(count) as processes:
            found = processes.map(index_of, arguments) if large and count > 1 else starmap(index_of, arguments)
            for index in found:
                advance(1)
                yield index

    def _part(self, files: SplitFiles, part: str) -> StoredPart:
        import numpy as np

        from data.shards.shard_looks import shards_of
        from data.shards.stored import StoredPart
        from data.shards.tar_samples import ArrayMembers, ImageMembers

        paths = files.paths(part)
        indices = [self._indices[path] for path in paths]
        origin = str(paths[0]) if len(paths) == 1 else str(self._path) if part == WHOLE else f"{self._path} ({part})"
        kind = ArrayMembers if self._ending.rpartition(".")[2] == "npy" else ImageMembers
        shards = shards_of([[path] for path in paths], [len(index.labels) for index in indices])
        labels = np.concatenate([np.frombuffer(index.labels, np.int64) for index in indices])
        return StoredPart(kind(files.folder, files.parts[part], indices), labels, origin, shards)


def _refuse_compressed(path: Path) -> None:
    if path.name.lower().endswith(COMPRESSED):
        raise DatasetError(
            f"{path}: this file is compressed, so that samples cannot be read by themselves. Decompress it; images are "
            "compressed already."
        )
