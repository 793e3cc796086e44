"""A tiny target cache: its samples, its teacher and its plan, small enough to be made hundreds of times."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.canonical import canonical_json, digest_of
from pipeline.dataset import Rows
from pipeline.progress import no_bar
from pipeline.targets.arrays import ONE_POSITION, Positions
from pipeline.targets.layouts import LAYOUTS, Extent, extents_of
from pipeline.targets.manifest import MANIFEST_FILE
from pipeline.targets.production import TeacherForward
from pipeline.targets.reader import TargetCache
from pipeline.targets.shelf import Shelf
from pipeline.targets.writer import CachePlan
from pipeline.teacher_pass import Pass, make_cache

LAYOUT_NAMES = ("zarr", "hdf5")
DTYPES = ("float16", "float32", "log-uint8", "log-uint16")  # of the dense encoding
FLOATS = DTYPES[:2]


@dataclass(frozen=True)
class Tiny:
    """What a tiny cache is made of; its logits (rows, *positions, classes) follow from `seed` and are `spread` wide.

    The encoding is dense, of `dtype`, or, where `k` is given, top-k with all certified temperatures listed. The cache holds
    `of_samples` alone, in their order, where they are given: caches of the same rows but other samples have one row_key.
    """

    layout: str = "zarr"
    dtype: str = "float16"
    rows: int = 23
    classes: int = 4
    rows_per_block: int = 5
    batch_size: int = 2
    temperature: float = 4.0
    certify: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    spread: float = 3.0
    seed: int = 0
    compression: str = "none"
    positions: Positions = ONE_POSITION
    k: int | None = None
    value_bits: int = 16
    of_samples: tuple[int, ...] | None = None

    def encoding(self) -> dict[str, Any]:
        """The parameters of the encoding."""
        if self.k is None:
            return {"name": "dense", "dtype": self.dtype}
        return {"name": "top-k", "k": self.k, "value_bits": self.value_bits, "temperatures": list(self.certify)}

    def digests(self) -> NDArray[np.uint8]:
        """Digests (rows, 16) of the samples."""
        return digests_of_samples(range(self.rows))

    def labels(self) -> NDArray[np.int64]:
        """Labels (rows,); every seventh sample has none."""
        indices = np.arange(self.rows)
        return np.where(indices % 7 == 6, -1, indices % self.classes)

    def views(self) -> NDArray[np.int32]:
        """Views (rows,); every seventh row is of another view, which no sample joins to."""
        return np.where(np.arange(self.rows) % 7 == 5, 2, 0).astype(np.int32)

    def logits(self) -> NDArray[np.float32]:
        """Logits (rows, *positions, classes) of the teacher."""
        generator = np.random.Generator(np.random.Philox(self.seed))
        drawn = generator.normal(scale=self.spread, size=(self.rows, *self.positions.sizes, self.classes))
        return drawn.astype(np.float32)

    def teacher(self) -> TeacherForward:
        logits = torch.from_numpy(self.logits())
        return lambda indices: logits[torch.from_numpy(indices)]

    def exact(self, temperature: float | None = None) -> NDArray[np.float64]:
        """The exact soft targets (rows, *positions, classes), in float64 and without torch."""
        scaled = self.logits().astype(np.float64) / (temperature or self.temperature)
        weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
        return np.asarray(weights / weights.sum(axis=-1, keepdims=True))

    def served(self, temperature: float | None = None) -> NDArray[np.float64]:
        """The same as a reader is promised it: of top-k, the tail spread evenly over the classes that are not kept."""
        exact = self.exact(temperature)
        if self.k is None:
            return exact
        is_kept = np.argsort(np.argsort(-exact, axis=-1, kind="stable"), axis=-1) < self.k
        tail = np.where(is_kept, 0.0, exact).sum(axis=-1, keepdims=True) / (self.classes - self.k)
        return np.where(is_kept, exact, tail)

    def plan(self) -> CachePlan:
        class_names = tuple(f"class {number}" for number in range(self.classes))
        chosen = np.arange(self.rows) if self.of_samples is None else np.array(self.of_samples)
        digest = hashlib.sha256(f"tiny teacher {self.seed}".encode()).hexdigest()
        row_made_from = {
            "teacher": {"digest": digest},
            "class_names": list(class_names),
            "encoding": self.encoding(),
            "temperature": self.temperature,
            "logits": hashlib.sha256(self.logits().tobytes()).hexdigest(),
        }
        return CachePlan(
            row_key=digest_of(row_made_from),
            row_made_from=row_made_from,
            rows=Rows(chosen, self.digests()[chosen], self.views()[chosen], self.labels()[chosen]),
            split="training",
            layout=self.layout,
            rows_per_block=self.rows_per_block,
            class_names=class_names,
            teacher={
                "key": digest_of("tiny teacher"),
                "recipe": "tiny",
                "made_from": {"seed": self.seed},
                "digest": digest,
                "sample_shape": [1],
                "class_names": list(class_names),
            },
            resumable={
                "batch_size": self.batch_size,
                "precision": "float32",
                "threads": 1,
                "certify": list(self.certify),
            },
            compression=self.compression,
            positions=self.positions,
        )

    def make(self, folder: Path, teacher: TeacherForward | None = None) -> Pass:
        """Make the cache in `folder`, which plays the workspace's caches/."""
        forward = teacher or self.teacher()
        return make_cache(
            Shelf(folder), self.plan(), lambda order: forward, no_bar, lambda text: None, {"recipe": "tiny"}
        )

    def open(self, folder: Path) -> TargetCache:
        """Make the cache, and open it."""
        return TargetCache(self.make(folder).folder)


def digests_of_samples(indices: range) -> NDArray[np.uint8]:
    """Digests (N, 16) of made-up samples."""
    content = b"".join(hashlib.blake2b(b"sample %d" % index, digest_size=16).digest() for index in indices)
    return np.frombuffer(content, dtype=np.uint8).reshape(-1, 16)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a cache's folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def made_content(folder: Path) -> dict[str, bytes]:
    """The content of a sealed cache that must not depend on how it was made: all but the manifest's provenance."""
    files = files_of(folder)
    fields: dict[str, Any] = json.loads(files[MANIFEST_FILE])
    del fields["provenance"], fields["self_sha256"]
    return {**files, MANIFEST_FILE: canonical_json(fields)}


def chunk_extents(cache: Path, tiny: Tiny) -> dict[str, Extent]:
    """Where each chunk lies, by name, sealed or not; without what a codec puts after it."""
    layout, arrays = LAYOUTS[tiny.layout], tiny.plan().arrays()
    return {extent.name: extent for extent in extents_of(layout, arrays, layout.offsets(cache, arrays))}


def overwrite(path: Path, offset: int, content: bytes) -> None:
    """Change bytes of a file in place."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)
