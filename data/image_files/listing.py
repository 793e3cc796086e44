"""The image files in a folder and the folders within: their names and identities, held compactly. No image is opened here.

What is a million times in a folder is no Python object of its own here: a dictionary of paths would take 500 bytes a file.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter
from pathlib import Path

from data.errors import DatasetError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")
LEFT_BEHIND = ("thumbs.db", "desktop.ini")  # by Windows, beside every image

IDENTITY = ("size", "mtime_ns", "ctime_ns", "inode")
_IDENTITY_OF = attrgetter("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino")
_ENDINGS = frozenset(EXTENSIONS) | frozenset(
    map(str.upper, EXTENSIONS)
)  # most names need no other look: 4 or 5 letters


@dataclass
class Listing:
    """Files in the order of their paths.

    `names` holds the relative POSIX path of each in UTF-8, ended by a zero byte; `identities` what IDENTITY names, four
    numbers each.
    """

    count: int = 0
    names: bytearray = field(default_factory=bytearray)
    identities: array[int] = field(default_factory=lambda: array("q"))

    def __len__(self) -> int:
        return self.count

    def add(self, other: Listing) -> None:
        """Append the files of another listing."""
        self.count += other.count
        self.names += other.names
        self.identities += other.identities

    def forget_identities(self) -> None:
        """Let go of what nobody will ask for any more."""
        self.identities = array("q")


def listed(root: Path, folder: Path) -> Listing:
    """The images in `folder` and the folders within, by their paths relative to `root`.

    Raises DatasetError naming the first file that is no image by its extension, or the folder when it holds none.
    """
    found = _listed(folder, _prefix(folder.relative_to(root).as_posix()), ())
    if not len(found):
        raise DatasetError(f"{folder}: the folder holds no image. Put images in, or remove it.")
    return found


def is_image(path: Path) -> bool:
    """Whether a file is an image by its extension."""
    return path.suffix.lower() in EXTENSIONS


def entries_of(folder: Path) -> tuple[list[str], list[str]]:
    """The names of folders and of other files in a folder, each sorted; hidden ones and LEFT_BEHIND are passed over.

    Raises DatasetError for a name that is no UTF-8: it could be in no key and no message.
    """
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name[0] != ".":
                (folders if entry.is_dir() else files).append(name)
    folders, files = _kept(folders), _kept(files)
    try:
        "".join(chain(folders, files)).encode()
    except UnicodeEncodeError:
        raise _not_utf8(folder, sorted((*folders, *files))) from None
    return folders, files


def path_key(folder_name: str) -> str:
    """What sorts a folder among its neighbours as the paths of the files within are sorted."""
    return f"{folder_name}/"


def _uncommon(names: list[str]) -> list[str]:
    """Names without one of the usual endings; asked a million times, so it is one test of each."""
    return [name for name in names if name[-4:] not in _ENDINGS and name[-5:] not in _ENDINGS]


def _kept(names: list[str]) -> list[str]:
    odd = {name for name in _uncommon(names) if name.lower() in LEFT_BEHIND}
    return sorted(name for name in names if name not in odd) if odd else sorted(names)


def _not_utf8(folder: Path, names: Iterable[str]) -> DatasetError:
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(folder / name).decode("utf-8", "backslashreplace")
            return DatasetError(f"{shown}: this name is not UTF-8 (\\x.. are its other bytes). Rename it.")
    raise AssertionError("all names are UTF-8")


def _prefix(folder: str) -> str:
    return "" if folder == "." else f"{folder}/"


def _listed(folder: Path, prefix: str, above: tuple[str, ...]) -> Listing:
    here = os.path.realpath(folder)
    if here in above:
        raise DatasetError(f"{folder}: this link leads back to a folder that it lies in.")
    folders, files = entries_of(folder)
    no_image = next((name for name in _uncommon(files) if not is_image(Path(name))), None)
    within: dict[str, Listing] = {}
    for name in folders:  # as if all entries were visited by name: the first that has no place here is told
        if no_image is None or name < no_image:
            within[name] = _listed(folder / name, f"{prefix}{name}/", (*above, here))
    if no_image is not None:
        known = " ".join(EXTENSIONS)
        raise DatasetError(
            f"{folder / no_image}: no image, by its extension ({known} are). Take it out of this folder."
        )
    if not within:
        return _of_files(folder, prefix, files)
    found, done = Listing(), 0
    for name in sorted(within, key=path_key):
        before = bisect_left(files, path_key(name))
        found.add(_of_files(folder, prefix, files[done:before]))
        found.add(within[name])
        done = before
    found.add(_of_files(folder, prefix, files[done:]))
    return found


def _of_files(folder: Path, prefix: str, names: Sequence[str]) -> Listing:
    if not names:
        return Listing()
    paths = map(f"{folder}/".__add__, names)
    try:
        identities = array("q", chain.from_iterable(map(_IDENTITY_OF, map(os.stat, paths))))
    except OverflowError:  # an inode of 64 bits
        numbers = chain.from_iterable(_IDENTITY_OF((folder / name).stat()) for name in names)
        identities = array("q", map(_signed, numbers))
    except OSError as problem:
        raise DatasetError(
            f"{problem.filename}: this file cannot be read ({problem.strerror}). Is it a link that leads nowhere? Take it out "
            "of the folder."
        ) from None
    return Listing(len(names), bytearray((prefix + f"\0{prefix}".join(names) + "\0").encode()), identities)


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number
