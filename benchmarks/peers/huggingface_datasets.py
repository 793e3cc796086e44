"""Hugging Face datasets: Arrow files in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.orders import Parts, Rows, gathered, shuffled_loader, windowed
from benchmarks.peers.peer import Epochs, Layout, Peer, Targets

COLUMN = "soft_targets"


def _features(layout: Layout) -> Any:
    from datasets import Features, List, Value

    return Features({COLUMN: List(Value("float16"), length=layout.classes)})


def examples(file: str) -> Iterator[dict[str, Targets]]:
    """One example a row."""
    rows: Targets = np.load(file, mmap_mode="r")
    for row in rows:
        yield {COLUMN: row}


def _write_generated(source: Targets, place: Path, layout: Layout) -> None:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    file = str(getattr(source, "filename"))  # noqa: B009 - of np.memmap, which NDArray does not know
    Dataset.from_generator(examples, features=_features(layout), gen_kwargs={"file": file}, cache_dir=str(place))


def _write_table(source: Targets, place: Path, layout: Layout) -> None:
    import pyarrow
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    values = pyarrow.array(np.asarray(source).reshape(-1))  # no copy
    column = pyarrow.FixedSizeListArray.from_arrays(values, layout.classes)
    dataset: Any = Dataset(pyarrow.table({COLUMN: column}))
    dataset.save_to_disk(str(place))


def _opened(place: Path) -> Any:
    from datasets import Dataset, concatenate_datasets

    return concatenate_datasets([Dataset.from_file(str(path)) for path in sorted(place.rglob("*.arrow"))])


@contextmanager
def _loader(place: Path, layout: Layout) -> Iterator[Epochs]:
    dataset = _opened(place).with_format("torch", dtype=torch.float16)

    def epochs(seed: int, epoch: int, batch_size: int) -> Iterator[Tensor]:
        return (batch[COLUMN] for batch in shuffled_loader(dataset, seed, epoch, batch_size))

    yield epochs


@contextmanager
def _batches(place: Path, layout: Layout) -> Iterator[Epochs]:
    dataset = _opened(place).with_format("torch", dtype=torch.float16)

    def take(which: Rows) -> Tensor:
        batch: Tensor = dataset[which.tolist()][COLUMN]
        return batch

    yield gathered(layout.rows, take)


@contextmanager
def _window(place: Path, layout: Layout) -> Iterator[Epochs]:
    dataset = _opened(place).with_format("arrow")

    def read(parts: Parts) -> None:
        for rows, memory in parts:
            filled = 0
            for chunk in dataset[rows][COLUMN].chunks:
                memory[filled : filled + len(chunk)] = chunk.flatten().to_numpy().reshape(-1, layout.classes)
                filled += len(chunk)

    yield windowed(layout, read)


PEERS = [
    Peer(
        "huggingface",
        'Dataset.from_generator; with_format("torch") in a shuffling DataLoader',
        "global",
        _write_generated,
        _loader,
        needs=("datasets", "pyarrow"),
        usual=True,
    ),
    Peer(
        "huggingface-batches",
        'Dataset.from_generator; with_format("torch"), a list of random rows at a time',
        "global",
        _write_generated,
        _batches,
        needs=("datasets", "pyarrow"),
        usual=True,
    ),
    Peer(
        "huggingface-window",
        'one Arrow table, save_to_disk; with_format("arrow"), slices into the pool of a window',
        "window",
        _write_table,
        _window,
        needs=("datasets", "pyarrow"),
    ),
]
