"""What looking at many images needs from outside: where to remember what was seen, and what shows how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Bar(Protocol):
    """Shows the progress of `what`: `total` of a `unit` (see `pipeline.progress`)."""

    def __call__(self, what: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]: ...


@contextmanager
def no_bar(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """No progress at all."""
    yield lambda amount: None


@dataclass(frozen=True)
class Looks:
    """`folder` is where memories are kept (runs/.memory), None for nowhere; `bar` shows a long first look."""

    folder: Path | None = None
    bar: Bar = no_bar
    seconds_between_saves: float = 20.0
