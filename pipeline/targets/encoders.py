"""How the teacher's logits become stored arrays: at once, on the device that computed them, or later, on another thread.

Both give the same `Encoded`, and bytes that differ between devices by no more than their arithmetic does.

Shape legend: B samples of a batch, N positions (samples, times the tokens or pixels of each), C classes, M positions that
are measured.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import TeacherOutputError
from pipeline.lanes import Lane, Mark, Reached, lane_to, one_tensor
from pipeline.targets.encodings import Encoding
from pipeline.targets.writer import CachePlan

# Logits encoded at once. On a CPU their temporaries then stay in the processor's cache and in memory that the process has
# already: in one piece, 4096 x 1000 logits take 15 times as long, nearly all of it for fresh pages. On a GPU they are as many
# as fill it, and a float32 temporary of them takes 512 MB.
ENCODED_AT_ONCE = {"cpu": 2**16, "cuda": 2**27}
# Positions, however many classes: one at a time, calls of top-k would take several times as long as what they do.
FEWEST_ENCODED_AT_ONCE = 64

MOST_LOGITS_WAITING_BYTES = 256_000_000  # on a CPU, to be encoded; the teacher waits rather than fill the memory
BUFFERS = 2  # works whose arrays are held: one is being committed while the next is computed
BATCHES_IN_FLIGHT = 2  # that a GPU was asked for: it is never idle, and no more logits than theirs take its memory


@dataclass(frozen=True)
class Encoded:
    """The stored arrays (N, ...) of a work on the host, and the exact logits (M, C) of the positions that are measured."""

    stored: tuple[Tensor, ...]
    measured_logits: Tensor


class Filling(Protocol):
    """One work that is being computed, a batch at a time."""

    def add(self, logits: Tensor, indices: NDArray[np.int64]) -> None:
        """Take the logits (B, *positions, C) of the samples at `indices` (B,). Raises TeacherOutputError for another shape."""
        ...

    def encoded(self) -> Encoded:
        """What all batches gave; called by another thread once they are all there.

        Raises TeacherOutputError naming the first sample whose logits are NaN or infinite, if `add` has not.
        """
        ...

    def close(self) -> None:
        """What `encoded` gave is not used any more."""
        ...


class Encoder(Protocol):
    """A way to encode."""

    def begin(self, measured: NDArray[np.int64], background: Executor) -> Filling:
        """Begin a work, of whose positions `measured` (M,), ascending, are measured; `background` is the thread that commits."""
        ...


class Later:
    """Logits on the host are encoded by the thread that commits them, batch by batch, while the teacher goes on."""

    def __init__(self, plan: CachePlan):
        self._plan = plan

    def begin(self, measured: NDArray[np.int64], background: Executor) -> Filling:
        """Batches are encoded by the one thread of `background`, in their order."""
        return _Kept(self._plan, measured, background)


class _Kept:
    def __init__(self, plan: CachePlan, measured: NDArray[np.int64], background: Executor):
        self._plan, self._measured, self._background = plan, measured, background
        self._batches: list[Future[_EncodedBatch]] = []
        self._waiting: deque[tuple[Future[_EncodedBatch], int]] = deque()  # with the bytes of their logits
        self._positions = 0

    def add(self, logits: Tensor, indices: NDArray[np.int64]) -> None:
        checked = checked_logits(logits, indices, _shape(self._plan), self._plan.split, FINISHED_ARE_KEPT)
        logits_NC, first = checked.flatten(0, -2), self._positions
        self._positions += len(logits_NC)
        inside = self._measured[(self._measured >= first) & (self._measured < self._positions)] - first
        encoded = self._background.submit(_encoded_batch, self._plan, logits_NC, inside)
        self._batches.append(encoded)
        self._waiting.append((encoded, logits_NC.nbytes))
        while len(self._waiting) > 1 and sum(size for _, size in self._waiting) > MOST_LOGITS_WAITING_BYTES:
            self._waiting.popleft()[0].result()

    def encoded(self) -> Encoded:
        batches = [batch.result() for batch in self._batches]
        stored = tuple(torch.cat(parts) for parts in zip(*(piece for one, _ in batches for piece in one), strict=True))
        return Encoded(stored, torch.cat([logits for _, logits in batches]))

    def close(self) -> None:
        self._batches = []


_EncodedBatch = tuple[list[tuple[Tensor, ...]], Tensor]


def _encoded_batch(plan: CachePlan, logits_NC: Tensor, measured: NDArray[np.int64]) -> _EncodedBatch:
    """The stored arrays of a batch, in pieces, and the logits (M, C) of those of its positions that are measured."""
    return encoded_pieces(plan.encoding, logits_NC, plan.temperature), logits_NC[torch.from_numpy(measured)]


class AtOnce:
    """Logits are encoded where they are, and only what is stored of them goes to the host, beside what is computed next.

    Nothing waits for the device but `encoded`: logits that are NaN or infinite are found there. The few logits that are
    measured (half a megabyte of a block) go to the host as well, where float64 is fast and they are measured as any others.
    """

    def __init__(self, plan: CachePlan, rows_per_work: int, lane: Lane, *, compiled: bool = False):
        """Hold arrays of works of up to `rows_per_work` rows. `compiled`: encode by what torch.compile makes of the encoding.

        That needs a C compiler and takes some time at first. Whether it pays, `make bench-gpu` says.
        """
        self.plan, self.lane = plan, lane
        encode: Callable[[Tensor, float], tuple[Tensor, ...]] = plan.encoding.encode
        self.encode = torch.compile(encode, dynamic=False) if compiled else encode
        self.running: deque[Mark] = deque()
        self._free: SimpleQueue[_Buffers] = SimpleQueue()
        for _ in range(BUFFERS):
            self._free.put(_Buffers(plan, rows_per_work, lane))

    def begin(self, measured: NDArray[np.int64], background: Executor) -> Filling:
        """Buffers that an earlier work has given back; waits for its commit."""
        buffers = self._free.get()
        return _Filled(self, buffers, measured, lambda: self._free.put(buffers))

    def limit_batches_in_flight(self) -> None:
        """Note that a batch was asked for, and wait until all but the last few are computed."""
        self.running.append(self.lane.computed())
        while len(self.running) > BATCHES_IN_FLIGHT:
            self.running.popleft().wait()


class _Buffers:
    """Memory of the host for the arrays of one work, used again and again."""

    def __init__(self, plan: CachePlan, rows: int, lane: Lane):
        self._lane, self._classes = lane, len(plan.class_names)
        positions = rows * plan.positions.count
        columns = plan.encoding.columns(self._classes)
        self.stored = tuple(lane.buffer((positions, *one.shape), getattr(torch, one.dtype)) for one in columns)
        self.is_finite = lane.buffer((rows,), torch.bool)
        self._logits = lane.buffer((0, self._classes), torch.float32)

    def logits(self, count: int, dtype: torch.dtype) -> Tensor:
        """Memory for so many logits (M, C)."""
        if len(self._logits) < count or self._logits.dtype != dtype:
            self._logits = self._lane.buffer((count, self._classes), dtype)
        return self._logits[:count]


class _Filled:
    def __init__(self, encoder: AtOnce, buffers: _Buffers, measured: NDArray[np.int64], close: Callable[[], None]):
        self._encoder, self._buffers, self._measured, self._close = encoder, buffers, measured, close
        self._positions, self._places = 0, 0  # how many are filled, and how many of these are measured
        self._indices: list[NDArray[np.int64]] = []
        self._logits = torch.empty(0)
        self._fetched: Mark = Reached()

    @torch.inference_mode()
    def add(self, logits: Tensor, indices: NDArray[np.int64]) -> None:
        plan, lane = self._encoder.plan, self._encoder.lane
        _refuse_another_shape(logits, indices, _shape(plan), plan.split)
        logits_NC, first = logits.flatten(0, -2), self._positions
        self._fetch_measured(logits_NC)
        right = []
        for stored in encoded_pieces(plan.encoding, logits_NC, plan.temperature, self._encoder.encode):
            at = slice(self._positions, self._positions + len(stored[0]))
            for array, buffer in zip(stored, self._buffers.stored, strict=True):
                lane.fetch(array, buffer[at])
            right.append(plan.encoding.is_finite(stored))
            self._positions = at.stop
        right_B = torch.cat(right).view(len(indices), -1).all(dim=1)
        row = first // plan.positions.count
        lane.fetch(right_B, self._buffers.is_finite[row : row + len(indices)])
        self._fetched = lane.fetched()
        self._indices.append(indices)
        self._encoder.limit_batches_in_flight()

    def _fetch_measured(self, logits_NC: Tensor) -> None:
        """The logits that are measured, of those that come next."""
        lane, end = self._encoder.lane, int(np.searchsorted(self._measured, self._positions + len(logits_NC)))
        if not self._places:
            self._logits = self._buffers.logits(len(self._measured), logits_NC.dtype)
        inside = self._measured[self._places : end] - self._positions
        if len(inside):
            chosen = lane.send(torch.from_numpy(inside), one_tensor).arrived()
            lane.fetch(logits_NC.index_select(0, chosen), self._logits[self._places : end])
        self._places = end

    def encoded(self) -> Encoded:
        self._fetched.wait()
        indices = np.concatenate(self._indices)
        _refuse_not_finite(
            self._buffers.is_finite[: len(indices)], indices, self._encoder.plan.split, FINISHED_ARE_KEPT
        )
        return Encoded(tuple(array[: self._positions] for array in self._buffers.stored), self._logits)

    def close(self) -> None:
        self._close()


def encoder_for(device: torch.device, plan: CachePlan, rows_per_work: int) -> Encoder:
    """How logits on a device are encoded: a CPU is best kept busy by a second thread, a GPU by nothing that waits for it."""
    return Later(plan) if device.type == "cpu" else AtOnce(plan, rows_per_work, lane_to(device))


def encoded_pieces(
    encoding: Encoding,
    logits_NC: Tensor,
    temperature: float,
    encode: Callable[[Tensor, float], tuple[Tensor, ...]] | None = None,
) -> list[tuple[Tensor, ...]]:
    """The stored arrays of positions, a few at a time, by `encode` where it is not simply the encoding's own."""
    values = ENCODED_AT_ONCE.get(logits_NC.device.type, ENCODED_AT_ONCE["cuda"])
    at_once = max(FEWEST_ENCODED_AT_ONCE, values // logits_NC.shape[1])
    pieces = -(-len(logits_NC) // at_once)  # of equal size: a compiled encoding is compiled anew for each size
    even = -(-len(logits_NC) // pieces)
    return [(encode or encoding.encode)(piece, temperature) for piece in torch.split(logits_NC, even)]


FINISHED_ARE_KEPT = "; finished blocks are kept"


def checked_logits(
    logits: Tensor, indices: NDArray[np.int64], shape: tuple[int, ...], split: str, kept: str = ""
) -> Tensor:
    """The teacher's logits (B, *positions, C) of samples at `indices` (B,), if they are that; `shape` is of one sample.

    Raises TeacherOutputError naming the first sample whose logits are NaN or infinite (-inf is a probability of 0).
    """
    _refuse_another_shape(logits, indices, shape, split)
    highest = logits.amax(dim=-1)  # NaN where a logit is; -inf below a finite one is a probability of 0
    _refuse_not_finite(torch.isfinite(highest).reshape(len(indices), -1).all(dim=1), indices, split, kept)
    return logits


def _shape(plan: CachePlan) -> tuple[int, ...]:
    return (*plan.positions.sizes, len(plan.class_names))


def _refuse_another_shape(logits: Tensor, indices: NDArray[np.int64], shape: tuple[int, ...], split: str) -> None:
    if logits.shape != (len(indices), *shape):
        raise TeacherOutputError(
            f"the teacher returned shape {tuple(logits.shape)} for {len(indices)} samples of {_described(shape)}, "
            f"first at sample {int(indices[0])} of the {split} split."
        )


def _refuse_not_finite(right_B: Tensor, indices: NDArray[np.int64], split: str, kept: str) -> None:
    if not bool(right_B.all()):
        first = int(indices[int(torch.argmin(right_B.int()))])
        raise TeacherOutputError(f"the teacher returned NaN or infinity for sample {first} of the {split} split{kept}.")


def _described(shape: tuple[int, ...]) -> str:
    classes = f"{shape[-1]} classes"
    return classes if len(shape) == 1 else f"{' x '.join(map(str, shape[:-1]))} positions of {classes}"
