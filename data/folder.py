"""Folders of images: one folder for each class, with or without folders of splits above."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from data.folder_layout import UNLABELLED, Layout, images_below, layout_of

if TYPE_CHECKING:
    from data.images import ImageDataset, ImageStore
    from data.workers import Memory, Workers

VERSION = 1


class FolderSource:
    """The images below a folder; see `data.folder_layout.layout_of` for how it must be laid out."""

    def __init__(
        self,
        root: Path,
        *,
        validation: float,
        test: float,
        split_seed: int,
        workers: int | None = None,
        memory_mb: int = 1024,
    ):
        """Images are decoded by so many `workers` (default: one a core) and kept in up to `memory_mb` MB."""
        self.version: int | None = VERSION
        self._root, self._workers, self._memory_mb = root, workers, memory_mb
        self._fractions = (validation, test, split_seed)

    def files(self) -> dict[str, Path]:
        """Every image by its path in the folder, which says its class. Raises DatasetError for what has no place there."""
        layout = layout_of(self._root)
        return {image: self._root / image for images in layout.images.values() for image in images}

    def load(self) -> dict[str, ImageDataset]:
        """The splits; samples of `unlabelled` are all of the training split, at its end.

        Raises DatasetError naming the first image that cannot be decoded.
        """
        import numpy as np

        from data.splits import among, filled_splits, split_by_content
        from data.workers import Memory, Workers

        layout, workers, memory = layout_of(self._root), Workers(self._workers), Memory(self._memory_mb)
        found = {part: self._dataset(layout, part, workers, memory) for part in layout.images}
        home = found["all" if "all" in found else "training"]
        unlabelled = np.array([name.startswith(f"{UNLABELLED}/") for name in home.names])
        validation, test, seed = self._fractions
        if "all" in found:
            return split_by_content(home, validation=validation, test=test, seed=seed, transfer_only=unlabelled)
        held_out = [found[split].sample_digests() for split in ("validation", "test") if split in found]
        if held_out:
            kept = ~(unlabelled & among(home.sample_digests(), np.concatenate(held_out)))
            unlabelled, found["training"] = unlabelled[kept], home.subset(np.flatnonzero(kept), "training")
        return filled_splits(found, validation=validation, test=test, seed=seed, transfer_only=unlabelled)

    def _dataset(self, layout: Layout, part: str, workers: Workers, memory: Memory) -> ImageDataset:
        import numpy as np

        from data.images import ImageDataset

        labels = np.array(layout.labels[part], dtype=np.int64)
        store = store_of(self._root, layout.images[part], workers, memory)
        everything = np.arange(len(store))
        return ImageDataset(store, everything, labels, layout.class_names, part, str(self._root), part)


def store_of(root: Path, names: list[str], workers: Workers, memory: Memory) -> ImageStore:
    """The image files of these names, relative to `root`."""
    from data.images import ImageStore

    return ImageStore(
        names, lambda number: (root / names[number]).open("rb"), lambda name: str(root / name), workers, memory
    )


def images_to_predict(path: Path, class_names: tuple[str, ...]) -> ImageDataset:
    """One image file, or all images of a folder and the folders within, without labels.

    Raises DatasetError naming the first file that is no image or cannot be decoded.
    """
    import numpy as np

    from data.images import ImageDataset
    from data.workers import Memory, Workers

    root = path if path.is_dir() else path.parent
    names = sorted(images_below(path, path)) if path.is_dir() else [path.name]
    store = store_of(root, names, Workers(), Memory(0))
    labels = np.full(len(names), -1, dtype=np.int64)
    return ImageDataset(store, np.arange(len(names)), labels, class_names, "new", str(path))
