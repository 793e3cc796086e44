"""Folders of images: one folder for each class, with or without folders of splits above."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING

from data.image_files.folder_layout import NO_LABEL, Layout, Part, layout_of
from data.image_files.image_memory import (
    Seen,
    content_of,
    joined,
    memory_of,
    recalled,
    remember,
    remembered_content,
    state_of,
    unseen,
)
from data.image_files.listing import Listing, listed
from data.looks import Looks
from data.workers import Memory, Workers

if TYPE_CHECKING:
    from data.image_files.images import ImageDataset, ImageStore
    from data.names import Names

VERSION = 1
FILES_WORTH_PROCESSES = 20_000  # fewer are listed before another process has started
FEW_IMAGES = 2000  # of which the pixels of the first look are kept, and nothing is written before a run is


class FolderSource:
    """The images below a folder; see `data.image_files.folder_layout.layout_of` for how it must be laid out.

    What is in the folder is listed once: a source is of one moment.
    """

    def __init__(
        self,
        root: Path,
        *,
        validation: float,
        test: float,
        split_seed: int,
        workers: int | None = None,
        memory_mb: int = 1024,
        looks: Looks | None = None,
    ):
        """Images are decoded by so many `workers` (default: one a core) and kept in up to `memory_mb` MB."""
        self.version: int | None = VERSION
        self._root, self._workers, self._memory = root, Workers(workers), Memory(memory_mb)
        self._fractions = (validation, test, split_seed)
        self._looks = looks or Looks()
        self._to_remember: Seen | None = None

    def files(self) -> dict[str, Path]:
        """Every image by its path in the folder, which says its class. Raises DatasetError for what has no place there."""
        from data.names import Names

        return {name: self._root / name for name in Names(self._layout.files.names)}

    def content(self) -> str:
        """Hash of the images with their paths. Raises DatasetError as `files` and `load` do.

        Where all was seen before, and no file changed since, none is opened.
        """
        return self._remembered_content or content_of(self._layout.files, self._looked.seen)

    def remember(self) -> None:
        """Write what was seen so far, if there is more than was remembered; what cannot be written is no error."""
        seen, path = self._to_remember, self._memory_path
        if seen is None or path is None:
            return
        with suppress(OSError):
            remember(path, self._state, self._layout.files, seen)
        if not len(seen.missing):
            self._to_remember = None

    def load(self) -> dict[str, ImageDataset]:
        """The splits; samples of `unlabelled` are all of the training split, at its end.

        Raises DatasetError naming the first image that cannot be decoded.
        """
        import numpy as np

        from data.splits import among, filled_splits, split_by_content

        found = {name: self._dataset(name, part) for name, part in self._layout.parts.items()}
        home = found["all" if "all" in found else "training"]
        unlabelled = home.labels() == NO_LABEL
        validation, test, seed = self._fractions
        if "all" in found:
            return split_by_content(home, validation=validation, test=test, seed=seed, transfer_only=unlabelled)
        held_out = [found[split].sample_digests() for split in ("validation", "test") if split in found]
        if held_out and unlabelled.any():
            kept = ~(unlabelled & among(home.sample_digests(), np.concatenate(held_out)))
            unlabelled, found["training"] = unlabelled[kept], home.subset(np.flatnonzero(kept), "training")
        return filled_splits(found, validation=validation, test=test, seed=seed, transfer_only=unlabelled)

    @cached_property
    def _layout(self) -> Layout:
        from data.processes import Processes

        with Processes(self._workers.count) as processes:

            def lister(root: Path, folders: Sequence[Path]) -> Iterator[Listing]:
                files = 0
                for number, folder in enumerate(folders):
                    if files >= FILES_WORTH_PROCESSES and processes.count > 1:
                        yield from processes.map(listed, ((root, rest) for rest in folders[number:]))
                        return
                    listing = listed(root, folder)
                    files += len(listing)
                    yield listing

            return layout_of(self._root, lister)

    @property
    def _memory_path(self) -> Path | None:
        return memory_of(self._looks.folder, self._root) if self._looks.folder is not None else None

    @cached_property
    def _state(self) -> str:
        return state_of(self._layout.files)

    @cached_property
    def _remembered_content(self) -> str | None:
        return remembered_content(self._memory_path, self._state) if self._memory_path is not None else None

    @cached_property
    def _looked(self) -> _Looked:
        """All images, looked at or remembered."""
        from data.image_files.first_look import let_settle, look_at_missing
        from data.names import Names

        files, path = self._layout.files, self._memory_path
        names = Names(files.names)
        seen = recalled(path, self._state, files) if path is not None else unseen(len(files))
        missing = seen.missing
        if self._remembered_content is None or len(missing):
            self._to_remember = seen
        if len(missing) == len(files) < FEW_IMAGES:
            let_settle(files, missing)
            stores = self._stores(names, None)
            with self._looks.bar("looking at images", len(files), "images") as advance:
                parts = [store.look(advance) for store in stores.values()]
            self._to_remember = joined(parts)
            return _Looked(self._to_remember, stores)
        look_at_missing(self._root, files, names, seen, self._workers, self._looks, self.remember)
        if self._to_remember is None:
            files.forget_identities()
        return _Looked(seen, self._stores(names, seen))

    def _stores(self, names: Names, seen: Seen | None) -> dict[str, ImageStore]:
        stores = {}
        for name, part in self._layout.parts.items():
            known = seen and Seen(seen.digests[part.start : part.stop], seen.shapes[part.start : part.stop])
            stores[name] = store_of(self._root, names.part(part.start, part.stop), self._workers, self._memory, known)
        return stores

    def _dataset(self, name: str, part: Part) -> ImageDataset:
        import numpy as np

        from data.image_files.images import ImageDataset

        store = self._looked.stores[name]
        labels = np.repeat(*np.array(part.runs, dtype=np.int64).T)
        everything = np.arange(len(store))
        return ImageDataset(store, everything, labels, self._layout.class_names, name, str(self._root), name)


@dataclass(frozen=True)
class _Looked:
    """What was seen of all images, and the images of each part."""

    seen: Seen
    stores: dict[str, ImageStore]


def store_of(
    root: Path, names: Sequence[str], workers: Workers, memory: Memory, seen: Seen | None = None
) -> ImageStore:
    """The image files of these names, relative to `root`."""
    from data.image_files.images import ImageStore

    def opened(number: int) -> IO[bytes]:
        return (root / names[number]).open("rb")

    return ImageStore(names, opened, lambda name: str(root / name), workers, memory, seen)


def images_to_predict(path: Path, class_names: tuple[str, ...]) -> ImageDataset:
    """One image file, or all images of a folder and the folders within, without labels.

    Raises DatasetError naming the first file that is no image or cannot be decoded.
    """
    import numpy as np

    from data.image_files.images import ImageDataset
    from data.names import Names

    root = path if path.is_dir() else path.parent
    names: Sequence[str] = Names(listed(path, path).names) if path.is_dir() else [path.name]
    store = store_of(root, names, Workers(), Memory(0))
    labels = np.full(len(names), NO_LABEL, dtype=np.int64)
    return ImageDataset(store, np.arange(len(names)), labels, class_names, "new", str(path))
