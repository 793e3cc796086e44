"""Datasets: one module for each kind, all behind the same protocol (`pipeline.dataset.Dataset`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from data.errors import DatasetError

if TYPE_CHECKING:
    from data.arrays import ArrayDataset
    from data.digests import array_digests, text_digests

__all__ = ["SOURCES", "DatasetError", "Source", "array_digests", "source_of", "text_digests"]


class Source(Protocol):
    """Where a dataset comes from. `version` and `files` say whether it must be loaded again at all."""

    version: int | None

    def files(self) -> list[Path] | None: ...

    def load(self) -> dict[str, ArrayDataset]: ...


def _digits(settings: Any, folder: Path, **fractions: Any) -> Source:
    from data.digits import DigitsSource

    return DigitsSource(**fractions)


def _npz(settings: Any, folder: Path, **fractions: Any) -> Source:
    from data.npz import NpzSource

    return NpzSource(folder / settings.path, **fractions)


def _function(settings: Any, folder: Path, **fractions: Any) -> Source:
    from data.function import FunctionSource

    return FunctionSource(settings.function, folder, **fractions)


# numpy and scikit-learn are imported by the module of a kind, so that a run with nothing to do imports neither.
SOURCES: dict[str, Callable[..., Source]] = {"digits": _digits, "npz": _npz, "function": _function}


def source_of(settings: Any, data_folder: Path) -> Source:
    """The source that a recipe's `[data]` table describes; relative paths start at `data_folder`."""
    return SOURCES[settings.kind](
        settings,
        data_folder,
        validation=settings.validation,
        test=settings.test,
        split_seed=settings.split_seed,
    )


def __getattr__(name: str) -> Any:
    if name in ("array_digests", "text_digests"):  # numpy is imported when it is needed
        from data import digests

        return getattr(digests, name)
    raise AttributeError(f"module 'data' has no attribute {name!r}")
