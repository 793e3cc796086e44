"""How a folder of images is laid out: which files are samples, of which split and class. No image is opened here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.errors import DatasetError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")
SPLIT_FOLDERS = {
    **{"train": "training", "training": "training"},
    **{"val": "validation", "validation": "validation", "test": "test"},
}
UNLABELLED = "unlabelled"
LEFT_BEHIND = ("thumbs.db", "desktop.ini")  # by Windows, beside every image


@dataclass(frozen=True)
class Layout:
    """The images of each split (of "all" in a folder without splits) as relative POSIX paths, in their order.

    `labels` has a position in `class_names` for each, and -1 for those of the folder `unlabelled`, which come last.
    """

    class_names: tuple[str, ...]
    images: dict[str, list[str]]
    labels: dict[str, list[int]]


def layout_of(root: Path) -> Layout:
    """How `root` is laid out: class folders, or folders of splits with class folders inside, and perhaps `unlabelled`.

    Raises DatasetError naming the file or folder that has no place in such a layout.
    """
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder. A relative path starts at the data folder (--data-dir).")
    folders = _folders_of(root)
    for name in folders:
        if name != UNLABELLED and name.lower().replace("-", "") in ("unlabelled", "unlabeled"):
            raise DatasetError(
                f"{root / name}: would be a class. If it holds images without labels, name it {UNLABELLED}."
            )
    with_splits = any(SPLIT_FOLDERS.get(name) == "training" for name in folders)
    parts = _split_folders(root, folders) if with_splits else {"all": root}
    training = parts["training" if with_splits else "all"]
    class_names = tuple(name for name in _folders_of(training) if name != UNLABELLED)
    _refuse_misplaced(root, training, class_names)
    images: dict[str, list[str]] = {}
    labels: dict[str, list[int]] = {}
    for part, folder in parts.items():
        images[part], labels[part] = _labelled(root, folder, class_names)
    if UNLABELLED in folders:
        more = sorted(images_below(root, root / UNLABELLED))
        last = "training" if with_splits else "all"
        images[last] += more
        labels[last] += [-1] * len(more)
    return Layout(class_names, images, labels)


def images_below(root: Path, folder: Path) -> list[str]:
    """The images in `folder` and the folders within, relative to `root`.

    Raises DatasetError naming the first file that is no image by its extension, or the folder when it holds none.
    """
    found = list(_images(root, folder, ()))
    if not found:
        raise DatasetError(f"{folder}: the folder holds no image. Put images in, or remove it.")
    return found


def is_image(path: Path) -> bool:
    """Whether a file is an image by its extension."""
    return path.suffix.lower() in EXTENSIONS


def _images(root: Path, folder: Path, above: tuple[Path, ...]) -> Iterator[str]:
    here = folder.resolve()
    if here in above:
        raise DatasetError(f"{folder}: this link leads back to a folder that it lies in.")
    for path in _entries(folder):
        if path.is_dir():
            yield from _images(root, path, (*above, here))
        elif is_image(path):
            yield path.relative_to(root).as_posix()
        else:
            known = " ".join(EXTENSIONS)
            raise DatasetError(f"{path}: no image, by its extension ({known} are). Take it out of this folder.")


def _folders_of(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted; other files are passed over, but an image there is an error."""
    names = []
    for path in _entries(folder):
        if path.is_dir():
            names.append(path.name)
        elif is_image(path):
            raise DatasetError(
                f"{path}: this image lies beside the class folders, so it has no class. Move it into one, or into "
                f"{UNLABELLED}/ at the top if it has no label."
            )
    return sorted(names)


def _split_folders(root: Path, folders: list[str]) -> dict[str, Path]:
    parts: dict[str, Path] = {}
    for name in folders:
        split = SPLIT_FOLDERS.get(name)
        if split is None and name != UNLABELLED:
            raise DatasetError(
                f"{root / name}: beside a folder of training samples there may be {', '.join(SPLIT_FOLDERS)} and {UNLABELLED}, "
                "nothing else. Move it into the split that it belongs to."
            )
        if split in parts:
            raise DatasetError(f"{parts[split]} and {root / name} are both of the {split} split; keep one of them.")
        if split is not None:
            parts[split] = root / name
    return parts


def _refuse_misplaced(root: Path, training: Path, class_names: tuple[str, ...]) -> None:
    """What would make classes of folders that were not meant as such."""
    if len(class_names) < 2:
        raise DatasetError(
            f"{training}: {len(class_names)} class folders are there; at least two are needed, each with the images of one "
            "class, or train, validation and test with such folders inside."
        )
    if training != root:
        if (training / UNLABELLED).is_dir():
            raise DatasetError(f"{training / UNLABELLED}: images without labels belong into {root / UNLABELLED}.")
        return
    for name in class_names:
        if name.lower() in SPLIT_FOLDERS and _has_folders(root / name):
            raise DatasetError(
                f"{root / name}: this looks like a split, since folders are in it, but there is no train or training folder "
                "beside it (in small letters). Add it, or rename this class."
            )


def _has_folders(folder: Path) -> bool:
    return any(path.is_dir() and not _skipped(path) for path in folder.iterdir())


def _labelled(root: Path, folder: Path, class_names: tuple[str, ...]) -> tuple[list[str], list[int]]:
    label_of = {name: label for label, name in enumerate(class_names)}
    pairs: list[tuple[str, int]] = []
    for name in _folders_of(folder):
        if name == UNLABELLED and folder == root:
            continue
        if name not in label_of:
            raise DatasetError(
                f"{folder / name}: there is no such class among those of training: {', '.join(class_names)}."
            )
        pairs += [(image, label_of[name]) for image in images_below(root, folder / name)]
    if not pairs:
        raise DatasetError(f"{folder}: there are no class folders in it.")
    pairs.sort()
    return [image for image, _ in pairs], [label for _, label in pairs]


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, sorted. Raises DatasetError for a name that is no UTF-8: it could be in no key and no message."""
    found = sorted(path for path in folder.iterdir() if not _skipped(path))
    for path in found:
        try:
            path.name.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(path).decode("utf-8", "backslashreplace")
            raise DatasetError(f"{shown}: this name is not UTF-8 (\\x.. are its other bytes). Rename it.") from None
    return found


def _skipped(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in LEFT_BEHIND
