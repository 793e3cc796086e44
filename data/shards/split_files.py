"""The files of a dataset that lies in several: which there are, and of which split each is by its name.

A path is one file, a folder, or a pattern with `*`, `?`, `[...]` and braces: `{0000..0009}`, `{train,test}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os.path import commonpath
from pathlib import Path

from data.errors import DatasetError

NAMES_OF_SPLITS = {"training": ("train", "training"), "validation": ("validation", "val", "dev"), "test": ("test",)}
WHOLE = "all"  # the part that a set without splits is

_SPLIT_OF = {name: split for split, names in NAMES_OF_SPLITS.items() for name in names}
_FIRST_WORD = re.compile(r"[a-z]+(?=$|[^a-z])")
_ONE_OF_SEVERAL = re.compile(r"(.*)-(\d+)-of-(\d+)$")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)$")
MOST_NAMES = 1_000_000  # of one pattern


@dataclass(frozen=True)
class SplitFiles:
    """The files of each part ("all", or those of NAMES_OF_SPLITS), by names relative to `folder`, sorted."""

    folder: Path
    parts: dict[str, list[str]]

    def paths(self, part: str) -> list[Path]:
        """The files of a part."""
        return [self.folder / name for name in self.parts[part]]

    def by_name(self) -> dict[str, Path]:
        """Every file by its name; that of an only file does not matter."""
        names = [name for part in self.parts.values() for name in part]
        return {name: self.folder / name for name in names} if len(names) > 1 else {"file": self.folder / names[0]}


def split_files(path: Path, endings: Sequence[str], refused: Callable[[Path], None] = lambda path: None) -> SplitFiles:
    """The files that `path` means, those with one of the `endings` where it means a folder or a pattern.

    `refused` is called with each other file, to raise an error where that must not be passed over. Raises DatasetError when there
    is no file, one of a numbered series is missing, or it cannot be told which are of which split.
    """
    if path.is_file():
        return SplitFiles(path.parent, {WHOLE: [path.name]})
    files = sorted(set(_files_of(path, endings, refused)))
    folder = path if path.is_dir() else Path(commonpath([file.parent for file in files]))
    names = [file.relative_to(folder).as_posix() for file in files]
    _refuse_gaps(folder, names)
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(_split_of(folder, name) or WHOLE, []).append(name)
    _refuse_unclear(folder, parts)
    return SplitFiles(folder, {part: parts[part] for part in (*NAMES_OF_SPLITS, WHOLE) if part in parts})


def expanded(pattern: str) -> Iterator[str]:
    """All texts that a pattern with braces means, as a shell's: {a,b}, and {08..11}, which keeps its leading zeros."""
    found = _BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    between = _RANGE.match(found[1])
    if between is None:
        choices: Iterator[str] = iter(found[1].split(","))
    else:
        width = len(between[1]) if between[1].startswith("0") else 0
        choices = (f"{number:0{width}}" for number in range(int(between[1]), int(between[2]) + 1))
    for choice in choices:
        yield from expanded(pattern[: found.start()] + choice + pattern[found.end() :])


def _files_of(path: Path, endings: Sequence[str], refused: Callable[[Path], None]) -> Iterator[Path]:
    if path.is_dir():
        found = _suited((file for file in path.rglob("*") if file.is_file()), path, endings, refused)
        if not found:
            raise DatasetError(f"{path}: no {_listed(endings)} file is in this folder.")
        yield from found
        return
    if not any(letter in str(path) for letter in "*?[{"):
        raise DatasetError(f"{path}: no such file or folder. A relative path starts at the data folder (--data-dir).")
    for number, text in enumerate(expanded(str(path))):
        if number == MOST_NAMES:
            raise DatasetError(f"{path}: the braces mean more than {MOST_NAMES:,} names.")
        if any(letter in text for letter in "*?["):
            base = next(above for above in Path(text).parents if not any(letter in str(above) for letter in "*?["))
            candidates = (file for file in base.glob(str(Path(text).relative_to(base))) if file.is_file())
            matching = _suited(candidates, base, endings, refused)
            if not matching:
                raise DatasetError(f"{text}: no {_listed(endings)} file has a name of this pattern.")
            yield from matching
        elif not Path(text).is_file():
            raise DatasetError(f"{text}: no such file, but data.path = {str(path)!r} means it.")
        else:
            yield Path(text)


def _suited(files: Iterator[Path], below: Path, endings: Sequence[str], refused: Callable[[Path], None]) -> list[Path]:
    """Those with the right endings that are not hidden."""
    found = []
    for file in files:
        if any(part.startswith(".") for part in file.relative_to(below).parts):
            continue
        if file.name.lower().endswith(tuple(endings)):
            found.append(file)
        else:
            refused(file)
    return found


def _listed(endings: Sequence[str]) -> str:
    return " or ".join(endings)


def _refuse_gaps(folder: Path, names: Sequence[str]) -> None:
    """A download that stopped halfway leaves some of a series such as train-00000-of-00010."""
    series: dict[tuple[str, str], set[int]] = {}
    for name in names:
        found = _ONE_OF_SEVERAL.match(_stem(name))
        if found is not None:
            series.setdefault((found[1], found[3]), set()).add(int(found[2]))
    for (begin, count), numbers in series.items():
        missing = next((number for number in range(int(count)) if number not in numbers), None)
        if missing is not None:
            raise DatasetError(
                f"{folder / begin}-{missing:0{len(count)}}-of-{count}: this file is missing; the others' names say that there "
                f"are {int(count)}. Bring it, or rename the others if it is not meant to be there."
            )


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _split_of(folder: Path, name: str) -> str | None:
    """The split that the first word of a file's name says, or else a folder that it lies in."""
    *folders, own = name.lower().split("/")
    word = _FIRST_WORD.match(own)
    said = [_SPLIT_OF[word[0]]] if word is not None and word[0] in _SPLIT_OF else []
    said += [_SPLIT_OF[part] for part in folders if part in _SPLIT_OF]
    if len(set(said)) > 1:
        raise DatasetError(
            f"{folder / name}: the path names the {' and the '.join(said)} split; it can be of one only."
        )
    return said[0] if said else None


def _refuse_unclear(folder: Path, parts: dict[str, list[str]]) -> None:
    if WHOLE in parts and len(parts) > 1:
        other = next(part for part in parts if part != WHOLE)
        raise DatasetError(
            f"{folder}: {parts[WHOLE][0]} names no split, but {parts[other][0]} is of the {other} split. Begin all names, or "
            "those of their folders, with train, validation or test, or none."
        )
    if WHOLE not in parts and "training" not in parts:
        [first, *_] = parts.values()
        raise DatasetError(f"{folder}: no file of the training split (train...) is here; there is {first[0]}.")
