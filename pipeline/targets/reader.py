"""Reading a sealed target cache: open it, join a dataset to it by content, gather soft targets of any rows.

Shape legend: R rows of the cache, N samples of a dataset, B rows of a batch, C classes.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.canonical import short
from pipeline.errors import JoinError, MismatchError
from pipeline.sorting import Digests, Indices, first_not_less, index_dtype, order_of_digests, pieces
from pipeline.targets.arrays import ArraySpec
from pipeline.targets.certificate import error_at
from pipeline.targets.manifest import Manifest, read_manifest
from pipeline.targets.store import CheckedStore

if TYPE_CHECKING:
    from torch import Tensor


class TargetCache:
    """One sealed cache, opened read-only. Nothing is decoded before it was checked.

    Opening checks the manifest, the block table, the store's metadata, and that every object is there with its size.
    A block's crc32c is checked before its first use. Blocks are memory-mapped: a process that forks or pickles should
    open the cache anew in each worker.
    """

    def __init__(self, folder: str | Path):
        """Open the cache in `folder`. Raises VerificationError, naming the object at fault."""
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(self.folder)
        self.store = CheckedStore(self.folder, self.manifest)
        self._encoding = self.manifest.store_encoding()
        self._vouched: set[tuple[float, float | None]] = set()
        self._order: Indices | None = None

    @classmethod
    def open(cls, folder: str | Path) -> TargetCache:
        """Open the cache in `folder` (see the class)."""
        return cls(folder)

    def __len__(self) -> int:
        return self.manifest.rows

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

    def soft_targets(self, rows: Indices, temperature: float | None = None, max_kl: float | None = 1e-3) -> Tensor:
        """Float32 probabilities (B, C) of the given rows (B,), each summing to 1, at `temperature` (default: the cache's).

        Raises CorruptCacheError when a block that is needed fails its checksum, MismatchError for a temperature at which
        the certificate does not vouch for a mean KL of at most `max_kl` (None: whatever it is), IndexError for a row
        that the cache does not have.
        """
        outside = (rows < 0) | (rows >= len(self))
        if outside.any():  # the padding of the last block would be read as soft targets
            raise IndexError(f"row {int(rows[outside][0])} of a cache of {len(self)} rows")
        wanted = self.temperature if temperature is None else temperature
        if (wanted, max_kl) not in self._vouched:
            self.check_temperature(wanted, max_kl)
            self._vouched.add((wanted, max_kl))
        stored = tuple(self._gather(spec, rows) for spec in self.manifest.encoding_arrays())
        return self._encoding.decode(stored, self.temperature, wanted)

    def check_temperature(self, temperature: float, max_kl: float | None = None) -> None:
        """Raises MismatchError unless the certificate covers `temperature` with a mean KL of at most `max_kl`."""
        measured = error_at(self.manifest.certificate, temperature)
        if measured is None:
            known = ", ".join(self.manifest.certificate["temperatures"])
            raise MismatchError(
                f"temperature {temperature} is not certified by cache {short(self.key)}, which is for {known}. Use one of "
                f"these, or add it to targets.certify, delete {self.folder} and run teacher-targets again."
            )
        if max_kl is None:
            return
        mean = measured["kl_mean"]
        if mean is None or mean > max_kl:
            error = f"infinite in {measured['infinite_rows']} rows" if mean is None else f"{mean:.3g}"
            larger = "" if mean is None else ", or a larger student.distillation.max_kl"
            raise MismatchError(
                f"cache {short(self.key)} has mean KL(exact || decoded) {error} at temperature {temperature}; the recipe "
                f'allows max_kl = {max_kl:g}. Use a cache with targets.dtype = "float32", or one of a temperature nearer to '
                f"{temperature}{larger}."
            )

    def _found(self, digests: Digests) -> Indices:
        """The row (N,) of view 0 of each digest (N, 16), or -1, with a few bytes for each row beside the answer."""
        known, views = self.sample_digests(), self.views()
        found = np.empty(len(digests), dtype=index_dtype(len(self)))
        for piece in pieces(len(digests)):
            wanted = digests[piece]
            # A dataset in the order of the cache, or the beginning of one, needs no index.
            if np.array_equal(known[piece], wanted) and not views[piece].any():
                found[piece] = np.arange(piece.start, piece.stop)
                continue
            if self._order is None:
                order = order_of_digests(known)
                self._order = order[views[order] == 0] if views.any() else order
            found[piece] = _rows_in(known, self._order, wanted)
        if len(digests) >= len(self):
            self._order = None  # a whole dataset was joined: no other will follow soon
        return found

    def _gather(self, spec: ArraySpec, rows: Indices) -> Tensor:
        """The stored rows (B, ...) of one array, in few calls: those of one block are taken together."""
        import torch

        blocks, inside = np.divmod(rows, spec.rows_per_chunk)
        order = np.argsort(blocks, kind="stable")
        cuts = [0, *(np.flatnonzero(np.diff(blocks[order])) + 1).tolist(), len(rows)]
        by_block = np.empty((len(rows), *spec.shape[1:]), dtype=spec.numpy_dtype)
        inside = inside[order]
        for first, last in pairwise(cuts if len(rows) else []):
            chunk = self.store.chunk(spec, int(blocks[order[first]]))
            np.take(chunk, inside[first:last], axis=0, out=by_block[first:last], mode="clip")  # checked by the caller
        gathered = torch.from_numpy(by_block)
        if len(cuts) <= 2:
            return gathered  # one block: they are in the order that was asked for
        place = torch.empty(len(rows), dtype=torch.int64)
        place[torch.from_numpy(order)] = torch.arange(len(rows))
        return torch.index_select(gathered, 0, place)


def _rows_in(known: Digests, order: Indices, wanted: Digests) -> Indices:
    """The row (n,) of each wanted digest (n, 16) among the `known` ones, which `order` sorts; -1 where there is none."""
    if len(order) == 0:
        return np.full(len(wanted), -1, dtype=order.dtype)
    place = first_not_less(lambda places: known[order[places]], len(order), wanted)
    candidate = order[np.minimum(place, len(order) - 1)]
    return np.where((known[candidate] == wanted).all(axis=1), candidate, -1).astype(order.dtype)
