"""Reading a sealed target cache: open it, join a dataset to it by content, gather soft targets of any rows.

Shape legend: R rows of the cache, N samples of a dataset (or positions of a batch), B rows of a batch, C classes.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.canonical import short
from pipeline.errors import JoinError, MismatchError
from pipeline.recipe import LARGEST_KL
from pipeline.sorting import Digests, Indices
from pipeline.targets.certificate import error_at
from pipeline.targets.encodings import encoding_name
from pipeline.targets.join import Join
from pipeline.targets.manifest import Manifest, read_manifest
from pipeline.targets.mapped_rows import word_of
from pipeline.targets.store import POOL_BYTES, CheckedStore
from pipeline.targets.top_k import TopK

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.targets.sparse import SparseTargets


class TargetCache:
    """One sealed cache, opened read-only. Nothing is decoded before it was checked.

    Opening checks the manifest, the block table, the store's metadata, and that every object is there with its size.
    A block's crc32c is checked before its first use. Uncompressed blocks are memory-mapped; of compressed ones, up to
    `pool_bytes` are kept decoded. Threads may share a cache, and so may processes: forked ones (in which torch needs
    `torch.set_num_threads(1)`, as DataLoader's workers have it), or others that get it pickled, which opens it anew.
    """

    def __init__(self, folder: str | Path, pool_bytes: int = POOL_BYTES, *, incomplete: bool = False):
        """Open the cache in `folder`. Raises VerificationError, naming the object at fault.

        Of an `incomplete` one, blocks may be missing: `store.check_block` says of each whether it is whole.
        """
        self.folder = Path(folder)
        self._pool_bytes = pool_bytes
        self.manifest: Manifest = read_manifest(self.folder)
        self.store = CheckedStore(self.folder, self.manifest, pool_bytes, incomplete=incomplete)
        self._encoding = self.manifest.store_encoding()
        self._arrays = self.manifest.encoding_arrays()
        self._positions = self.manifest.positions()
        self._vouched: set[tuple[float, float | None]] = set()
        self._buffers = threading.local()
        self._join = Join()

    @classmethod
    def open(cls, folder: str | Path) -> TargetCache:
        """Open the cache in `folder` (see the class)."""
        return cls(folder)

    def __len__(self) -> int:
        return self.manifest.rows

    def __reduce__(self) -> tuple[type[TargetCache], tuple[Path, int]]:
        return TargetCache, (self.folder.absolute(), self._pool_bytes)

    @property
    def key(self) -> str:
        return self.manifest.key

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.manifest.class_names

    @property
    def temperature(self) -> float:
        """T of the stored soft targets."""
        return self.manifest.temperature

    def sample_digests(self) -> NDArray[np.uint8]:
        """Digests (R, 16) of the rows' samples."""
        return self.store.whole("sample_digest").astype(np.uint8, copy=False)

    def views(self) -> NDArray[np.int32]:
        """Views (R,) of the rows; 0 is the sample itself."""
        return self.store.whole("view").astype(np.int32, copy=False)

    def labels(self) -> NDArray[np.int64]:
        """Labels (R,), -1 where there is none or equal samples disagree. Students take labels from their dataset."""
        return self.store.whole("label").astype(np.int64, copy=False)

    def find(self, digests: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The row (N,) of view 0 of each sample digest (N, 16), -1 where the cache has none. Equal samples share a row."""
        return self._found(digests).astype(np.int64, copy=False)

    def join(self, digests: NDArray[np.uint8]) -> Indices:
        """The row (N,) of each sample digest (N, 16), as int32 where that is enough.

        Raises JoinError with the count and the first indices when samples have no row.
        """
        rows = self._found(digests)
        unknown = np.flatnonzero(rows < 0)
        if len(unknown):
            shown = ", ".join(str(index) for index in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            raise JoinError(
                f"{len(unknown)} of {len(rows)} samples have no row in cache {short(self.key)} (samples {shown}): it was "
                'made for another dataset. Run teacher-targets for this one, or set student.missing = "skip".'
            )
        return rows

    def soft_targets(self, rows: Indices, temperature: float | None = None, max_kl: float | None = None) -> Tensor:
        """Float32 probabilities (B, *positions, C) of the given rows (B,), each summing to 1, at `temperature`.

        The temperature is the cache's by default; `check_temperature` says what the certificate must vouch for at it.
        Raises CorruptCacheError when a block that is needed fails its checksum, MismatchError for a temperature or an error
        that is not vouched for, IndexError for a row that the cache does not have.
        """
        wanted = self._vouched_for(temperature, max_kl)
        classes = len(self.class_names)
        decoded_NC = self._encoding.decode(self._positions_of(self._gathered(rows)), classes, self.temperature, wanted)
        return decoded_NC.view(len(rows), *self._positions.sizes, classes)

    def served(
        self, rows: Indices, temperature: float | None = None, max_kl: float | None = None
    ) -> Tensor | SparseTargets:
        """What a loss takes: of a top-k cache, its k classes and one tail mass for each position; else `soft_targets`."""
        wanted = self._vouched_for(temperature, max_kl)
        return self.decoded(self._gathered(rows), wanted)

    def stored(self, rows: Indices, out: Sequence[Tensor] | None = None) -> tuple[Tensor, ...]:
        """The stored rows (B, ...) of each array of the encoding, as they are; `stored_buffers` makes `out`.

        Raises CorruptCacheError and IndexError as `soft_targets` does.
        """
        import torch

        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):  # padding would be read as soft targets
            outside = rows[(rows < 0) | (rows >= len(self))]
            raise IndexError(f"row {int(outside[0])} of a cache of {len(self)} rows")
        buffers = self.stored_buffers(len(rows)) if out is None else out
        stored = []
        for spec, words in zip(self._arrays, buffers, strict=True):
            gathered = words[: len(rows)]
            self.store.gather(spec, rows, gathered)
            stored.append(gathered.view(getattr(torch, spec.dtype)).view(len(rows), *spec.shape[1:]))
        return tuple(stored)

    def stored_buffers(self, rows: int, pinned: bool = False) -> tuple[Tensor, ...]:
        """Memory that `stored` can gather up to so many rows into, again and again; pinned for copies to a GPU."""
        import torch

        sizes = [(spec.row_bytes, word_of(spec)) for spec in self._arrays]
        return tuple(
            torch.empty((rows, row_bytes // word.itemsize), dtype=word, pin_memory=pinned) for row_bytes, word in sizes
        )

    def decoded(self, stored: Sequence[Tensor], temperature: float) -> Tensor | SparseTargets:
        """What `served` gives of what `stored` gave, on any device; `check_temperature` comes first."""
        rows, sizes, classes = len(stored[0]), self._positions.sizes, len(self.class_names)
        flat = self._positions_of(stored)
        if isinstance(self._encoding, TopK):
            return self._encoding.decode_sparse(flat, classes, temperature).view(rows, *sizes)
        return self._encoding.decode(flat, classes, self.temperature, temperature).view(rows, *sizes, classes)

    def check_temperature(self, temperature: float, max_kl: float | None = None) -> None:
        """Raises MismatchError unless the certificate covers `temperature` with a mean KL of at most `max_kl`.

        By default LARGEST_KL of its encoding; infinity accepts any error.
        """
        encoding = encoding_name(self.manifest.encoding)
        if isinstance(self._encoding, TopK) and not self._encoding.serves(temperature):
            listed = ", ".join(f"{known:g}" for known in self._encoding.temperatures)
            raise MismatchError(
                f"temperature {temperature:g} is not listed by cache {short(self.key)}, which is {encoding}: its tail mass is "
                f"known at {listed} alone. Use one of these, or add {temperature:g} to targets.temperatures and run "
                'teacher-targets again; a cache of targets.encoding = "dense" serves any.'
            )
        measured = error_at(self.manifest.certificate, temperature)
        if measured is None:
            known = ", ".join(self.manifest.certificate["temperatures"])
            raise MismatchError(
                f"temperature {temperature} is not certified by cache {short(self.key)}, which is for {known}. Use one of "
                f"these, or add it to targets.certify, delete {self.folder} and run teacher-targets again."
            )
        mean = measured["kl_mean"]
        allowed = LARGEST_KL[self.manifest.encoding["name"]] if max_kl is None else max_kl
        if allowed < math.inf and (mean is None or mean > allowed):
            error = f"infinite in {measured['infinite_rows']} rows" if mean is None else f"{mean:.3g}"
            larger = "" if mean is None else ", or a larger student.distillation.max_kl"
            raise MismatchError(
                f"cache {short(self.key)} has mean KL(exact || decoded) {error} at temperature {temperature}; the recipe "
                f"allows max_kl = {allowed:g}. {self._remedy(temperature)}{larger}."
            )

    def _remedy(self, temperature: float) -> str:
        if isinstance(self._encoding, TopK):
            return "Use a cache with a larger targets.k, or a dense one"
        better = "float32" if self.manifest.encoding["dtype"] == "log-uint16" else "log-uint16"
        return f'Use a cache with targets.dtype = "{better}", or one of a temperature nearer to {temperature}'

    def _vouched_for(self, temperature: float | None, max_kl: float | None) -> float:
        wanted = self.temperature if temperature is None else temperature
        if (wanted, max_kl) not in self._vouched:
            self.check_temperature(wanted, max_kl)
            self._vouched.add((wanted, max_kl))
        return wanted

    def _gathered(self, rows: Indices) -> tuple[Tensor, ...]:
        """Stored rows in memory of this thread that the next call uses again: pages that are there already are faster."""
        buffers = getattr(self._buffers, "held", None)
        if buffers is None or len(buffers[0]) < len(rows):
            buffers = self._buffers.held = self.stored_buffers(len(rows))
        return self.stored(rows, buffers)

    def _positions_of(self, stored: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Stored rows (B, *positions, ...) as positions (N, ...)."""
        axes = len(self._positions.sizes)
        return tuple(array.flatten(0, axes) for array in stored)

    def _found(self, digests: Digests) -> Indices:
        return self._join.rows(self.sample_digests(), self.views(), digests)
