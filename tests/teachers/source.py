"""A small dataset and the outputs of a teacher that ran elsewhere, written in every form that can be imported."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import torch
from numpy.typing import NDArray
from pyarrow import parquet
from torch import nn

from data.arrays import ArrayDataset, checked_dataset
from data.npz import splits_of_arrays
from data.splits import split_by_content
from pipeline.teachers.joining import JoinedOutputs
from pipeline.teachers.outputs_file import read_outputs

CLASSES = ("ant", "bee", "cat")
ROWS = 40
COLUMN_OF = {"logits": "logits", "probabilities": "probabilities", "log-probabilities": "log_probabilities"}


def whole() -> ArrayDataset:
    """Forty samples of six numbers."""
    values = np.random.default_rng(3).normal(size=(ROWS, 6)).astype(np.float32)
    return checked_dataset(values, np.arange(ROWS) % 3, CLASSES, split="all", origin="the test")


def one_part() -> Mapping[str, ArrayDataset]:
    """All samples, split by content: every split has places in part "all"."""
    return split_by_content(whole(), validation=0.2, test=0.2, seed=0)


def two_parts() -> Mapping[str, ArrayDataset]:
    """A source with a test split of its own: parts "training" (30 samples) and "test" (10)."""
    samples = whole()
    arrays = {
        "x_training": samples.values[:30],
        "y_training": samples.given_labels[:30],
        "x_test": samples.values[30:],
        "y_test": samples.given_labels[30:],
        "class_names": np.array(CLASSES),
    }
    return splits_of_arrays(arrays, "the test", validation=0.2, test=0.2, seed=0)


@dataclass(frozen=True)
class Written:
    """Outputs of the forty samples, and how to write rows of them."""

    kind: str = "logits"
    temperature: float = 1.0
    dtype: str = "float32"
    seed: int = 0

    def logits(self) -> NDArray[np.float64]:
        """Exact logits (40, 3) of the source."""
        return np.random.default_rng(self.seed).normal(scale=3.0, size=(ROWS, len(CLASSES)))

    def values(self) -> NDArray[Any]:
        """What the source gave (40, 3), in its own dtype."""
        softened = softmax(self.logits() / self.temperature)
        given = {"logits": self.logits(), "probabilities": softened, "log-probabilities": np.log(softened)}
        return given[self.kind].astype(self.dtype)

    def soft_targets(self, temperature: float) -> NDArray[np.float64]:
        """softmax(z / T) (40, 3), exact."""
        return softmax(self.logits() / temperature)

    def joined(self, path: Path, splits: Mapping[str, ArrayDataset], **changed: Any) -> JoinedOutputs:
        """The file read and joined as the pipeline does."""
        settings = {"kind": self.kind, "temperature": self.temperature, "class_names": CLASSES, **changed}
        file = read_outputs(path, settings["kind"], settings["class_names"])
        return JoinedOutputs(file, splits, settings["class_names"], settings["kind"], settings["temperature"])


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def write_torchscript(path: Path, network: nn.Module, inputs: torch.Tensor) -> Path:
    """A traced network; torch warns that it has given TorchScript up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(network, inputs), path)  # type: ignore[no-untyped-call]
    return path


def write_npz(path: Path, **arrays: NDArray[Any]) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub mistakes the names for its own argument
    return path


def write_parquet(path: Path, **columns: Any) -> Path:
    parquet.write_table(arrow.table(columns), path)
    return path


def write_csv(path: Path, **columns: Any) -> Path:
    lines = [",".join(columns)]
    lines += [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def by_class(values: NDArray[Any]) -> dict[str, Any]:
    """One column for each class."""
    return {name: values[:, column] for column, name in enumerate(CLASSES)}


def as_lists(values: NDArray[Any], kind: str = "logits") -> dict[str, Any]:
    """One column of lists."""
    return {COLUMN_OF[kind]: list(values)}
