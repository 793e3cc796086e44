"""How a folder of images is laid out: which files are samples, of which split and class. No image is opened here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from data.errors import DatasetError
from data.image_files.listing import Listing, entries_of, is_image, listed, path_key

SPLIT_FOLDERS = {
    **{"train": "training", "training": "training"},
    **{"val": "validation", "validation": "validation", "test": "test"},
}
UNLABELLED = "unlabelled"
NO_LABEL = -1


class Job(NamedTuple):
    """A folder whose images are all of one part and one label."""

    part: str
    folder: Path
    label: int


@dataclass
class Part:
    """The images from number `start` to `stop`, and their labels as runs of (label, number of images)."""

    start: int
    stop: int
    runs: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Layout:
    """All images, and the parts that they are of: of each split, or of "all" in a folder without splits.

    A label is a position in `class_names`, and -1 for images of the folder `unlabelled`, which are the last of their part.
    """

    class_names: tuple[str, ...]
    files: Listing
    parts: dict[str, Part]


# Lists some folders of images, in their order.
Lister = Callable[[Path, Sequence[Path]], Iterable[Listing]]


def one_by_one(root: Path, folders: Sequence[Path]) -> Iterator[Listing]:
    """The plainest Lister."""
    return (listed(root, folder) for folder in folders)


def layout_of(root: Path, lister: Lister = one_by_one) -> Layout:
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
    part_folders = _split_folders(root, folders) if with_splits else {"all": root}
    training = part_folders["training" if with_splits else "all"]
    class_names = tuple(name for name in _folders_of(training) if name != UNLABELLED)
    _refuse_misplaced(root, training, class_names)
    jobs: list[Job] = []
    problem: DatasetError | None = None
    try:
        for part, folder in part_folders.items():
            jobs.extend(_jobs(root, part, folder, class_names))
        if UNLABELLED in folders:
            jobs.append(Job("training" if with_splits else "all", root / UNLABELLED, NO_LABEL))
    except DatasetError as found:
        problem = found
    files, parts = _gathered(jobs, list(part_folders), lister(root, [job.folder for job in jobs]))
    if problem is not None:  # but what is wrong with an earlier folder is told first
        raise problem
    return Layout(class_names, files, parts)


def _gathered(
    jobs: Sequence[Job], parts: Sequence[str], listings: Iterable[Listing]
) -> tuple[Listing, dict[str, Part]]:
    """Part after part the images in the order of their paths; a listing is let go of as soon as it is copied."""
    order = sorted(
        range(len(jobs)),
        key=lambda k: (parts.index(jobs[k].part), jobs[k].label == NO_LABEL, path_key(str(jobs[k].folder))),
    )
    files, found, waiting, added = Listing(), dict[str, Part](), dict[int, Listing](), 0
    for number, listing in enumerate(listings):
        waiting[number] = listing
        while added < len(order) and order[added] in waiting:
            job, ready = jobs[order[added]], waiting.pop(order[added])
            part = found.setdefault(job.part, Part(len(files), len(files)))
            part.runs.append((job.label, len(ready)))
            files.add(ready)
            part.stop = len(files)
            added += 1
    return files, found


def _folders_of(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted; other files are passed over, but an image there is an error."""
    folders, files = entries_of(folder)
    for name in files:
        if is_image(Path(name)):
            raise DatasetError(
                f"{folder / name}: this image lies beside the class folders, so it has no class. Move it into one, or into "
                f"{UNLABELLED}/ at the top if it has no label."
            )
    return folders


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
        if name.lower() in SPLIT_FOLDERS and entries_of(root / name)[0]:
            raise DatasetError(
                f"{root / name}: this looks like a split, since folders are in it, but there is no train or training folder "
                "beside it (in small letters). Add it, or rename this class."
            )


def _jobs(root: Path, part: str, folder: Path, class_names: tuple[str, ...]) -> Iterator[Job]:
    label_of = {name: label for label, name in enumerate(class_names)}
    found = 0
    for name in _folders_of(folder):
        if name == UNLABELLED and folder == root:
            continue
        if name not in label_of:
            raise DatasetError(
                f"{folder / name}: there is no such class among those of training: {', '.join(class_names)}."
            )
        yield Job(part, folder / name, label_of[name])
        found += 1
    if not found:
        raise DatasetError(f"{folder}: there are no class folders in it.")
