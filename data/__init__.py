"""Datasets: one module for each kind, all behind the same protocol (`pipeline.dataset.Dataset`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from data.errors import DatasetError
from data.looks import Looks

if TYPE_CHECKING:
    from data.digests import array_digests, text_digests

__all__ = ["SOURCES", "DatasetError", "Looks", "Source", "array_digests", "shaped", "source_of", "text_digests"]


class Source(Protocol):
    """Where a dataset comes from. `version` and `files` say whether it must be loaded again at all."""

    version: int | None

    def files(self) -> Mapping[str, Path] | None:
        """Its files by their name in the dataset, which is content as well where it decides a class; None if unknown."""
        ...

    def load(self) -> Mapping[str, Any]:
        """The splits; `shaped` then makes them what a model sees."""
        ...


def _digits(settings: Any, folder: Path, **fractions: Any) -> Source:
    from data.digits import DigitsSource

    return DigitsSource(**fractions)


def _npz(settings: Any, folder: Path, **fractions: Any) -> Source:
    from data.npz import NpzSource

    return NpzSource(folder / settings.path, class_names=settings.class_names, **fractions)


def _function(settings: Any, folder: Path, **fractions: Any) -> Source:
    from data.function import FunctionSource

    return FunctionSource(settings.function, folder, **fractions)


def _idx(settings: Any, folder: Path, **fractions: Any) -> Source:
    from data.idx import IdxSource

    return IdxSource(
        folder / settings.path,
        class_names=settings.class_names,
        sha256=settings.sha256,
        source=settings.source,
        **fractions,
    )


def _folder(settings: Any, folder: Path, **fractions: Any) -> Source:
    from data.folder import FolderSource

    return FolderSource(folder / settings.path, workers=settings.workers, memory_mb=settings.memory_mb, **fractions)


def _huggingface(settings: Any, folder: Path, **fractions: Any) -> Source:
    from data.huggingface import HuggingFaceSource

    return HuggingFaceSource(folder / settings.path, **_columns(settings), **fractions)


def _parquet(settings: Any, folder: Path, **options: Any) -> Source:
    from data.parquet import ParquetSource

    return ParquetSource(folder / settings.path, **_columns(settings), **options)


def _webdataset(settings: Any, folder: Path, **options: Any) -> Source:
    from data.webdataset import WebDatasetSource

    return WebDatasetSource(
        folder / settings.path,
        input_ending=settings.input,
        label_field=settings.label,
        class_names=settings.class_names,
        workers=settings.workers,
        memory_mb=settings.memory_mb,
        **options,
    )


def _columns(settings: Any) -> dict[str, Any]:
    return {
        "input_column": settings.input,
        "label_column": settings.label,
        "class_names": settings.class_names,
        "workers": settings.workers,
        "memory_mb": settings.memory_mb,
    }


# numpy, Pillow and scikit-learn are imported when samples are, so that a run with nothing to do imports none of them.
SOURCES: dict[str, Callable[..., Source]] = {
    "digits": _digits,
    "npz": _npz,
    "function": _function,
    "idx": _idx,
    "folder": _folder,
    "huggingface": _huggingface,
    "parquet": _parquet,
    "webdataset": _webdataset,
}

# Kinds that look at each of many files once, and remember what they saw.
REMEMBERING = {"folder", "huggingface", "parquet", "webdataset"}


def source_of(settings: Any, data_folder: Path, looks: Looks | None = None) -> Source:
    """The source that a recipe's `[data]` table describes; relative paths start at `data_folder`.

    `looks` says where a source of many files remembers what it saw of them.
    """
    options = {"looks": looks} if settings.kind in REMEMBERING else {}
    return SOURCES[settings.kind](
        settings,
        data_folder,
        validation=settings.validation,
        test=settings.test,
        split_seed=settings.split_seed,
        **options,
    )


def shaped(datasets: Mapping[str, Any], settings: Any) -> Mapping[str, Any]:
    """Splits as a model sees them by a recipe's `[data]` table: in one mode, resized and cropped."""
    from data.shaping import shaped

    return shaped(datasets, settings)


def __getattr__(name: str) -> Any:
    if name in ("array_digests", "text_digests"):  # numpy is imported when it is needed
        from data import digests

        return getattr(digests, name)
    raise AttributeError(f"module 'data' has no attribute {name!r}")
