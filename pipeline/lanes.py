"""Copies between the host's memory and a device's that computation never waits for.

A GPU copies in both directions while it computes, if the host's memory is pinned and each direction has a stream of its
own. All that is CUDA's about this is here; on the CPU the same calls copy nothing, or at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

Change = Callable[[Tensor], Tensor]
Each = Callable[[T, Change], T]  # a value with every tensor that it holds changed


class Mark(Protocol):
    """A moment of what a device does."""

    def wait(self) -> None:
        """Let this thread wait until the device has come so far."""
        ...


@dataclass(frozen=True)
class Reached:
    """A moment that has passed: a CPU does what it is told at once."""

    def wait(self) -> None:
        """Nothing to wait for."""


@dataclass(frozen=True)
class Event:
    """A moment of a CUDA stream."""

    event: torch.cuda.Event

    def wait(self) -> None:
        """Sleep until the stream has come so far; other threads run meanwhile."""
        self.event.synchronize()


@dataclass(frozen=True)
class Sent(Generic[T]):
    """A value that is under way to a device, or is there."""

    value: T
    each: Each[T]
    event: torch.cuda.Event | None = None

    def arrived(self) -> T:
        """The value on the device, for what this thread computes next: the device waits for the copy, this thread does not."""
        if self.event is None:
            return self.value
        stream = torch.cuda.current_stream()
        stream.wait_event(self.event)

        def in_use(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)  # its memory was allocated for the stream of the copies
            return tensor

        return self.each(self.value, in_use)


class Lane(Protocol):
    """The way between the host's memory and that of one device."""

    batches_ahead: int  # how many batches are worth sending before they are needed

    def buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory of the host, not initialised, that the device copies to without a detour."""
        ...

    def send(self, value: T, each: Each[T]) -> Sent[T]:
        """Begin to copy all tensors of a value to the device, from any thread."""
        ...

    def fetch(self, computed: Tensor, into: Tensor) -> None:
        """Begin to copy what this thread's computation gives to memory of the host of the same shape and type."""
        ...

    def fetched(self) -> Mark:
        """The moment at which all fetches so far are complete."""
        ...

    def computed(self) -> Mark:
        """The moment at which all that this thread has asked the device to compute is done."""
        ...


class HostLane:
    """The lane of a CPU, which has only the host's memory."""

    batches_ahead = 0

    def buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Plain memory."""
        return torch.empty(tuple(shape), dtype=dtype)

    def send(self, value: T, each: Each[T]) -> Sent[T]:
        """The value itself."""
        return Sent(value, each)

    def fetch(self, computed: Tensor, into: Tensor) -> None:
        """Copied when this returns."""
        into.copy_(computed)

    def fetched(self) -> Mark:
        """Now."""
        return Reached()

    def computed(self) -> Mark:
        """Now."""
        return Reached()


class CudaLane:
    """The lane of a GPU: one stream for copies to it and one for copies from it, which would otherwise wait for each other."""

    batches_ahead = 1

    def __init__(self, device: torch.device):
        self._device = device
        self._there = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._back = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Pinned memory."""
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def send(self, value: T, each: Each[T]) -> Sent[T]:
        """Through pinned memory, which torch's allocator uses again once the copy is done: two buffers are enough for a stream of
        batches.
        """

        def copied(host: Tensor) -> Tensor:
            if host.device.type == "cuda":
                return host
            pinned = host if host.is_pinned() else host.pin_memory()
            return pinned.to(self._device, non_blocking=True)

        with torch.cuda.stream(self._there):
            sent = each(value, copied)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._there)
        return Sent(sent, each, event)

    def fetch(self, computed: Tensor, into: Tensor) -> None:
        """Behind the computation, and beside what follows it."""
        contiguous = computed.contiguous()  # what is not would be copied by way of fresh memory that is not pinned
        self._back.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._back):
            into.copy_(contiguous, non_blocking=True)
        contiguous.record_stream(self._back)

    def fetched(self) -> Mark:
        """An event after the copies; waiting for it does not keep a core busy."""
        return self._event(self._back)

    def computed(self) -> Mark:
        """An event of the stream that computes."""
        return self._event(torch.cuda.current_stream(self._device))

    def _event(self, stream: torch.cuda.Stream) -> Event:
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        return Event(event)


LANES: dict[str, Callable[[torch.device], Lane]] = {"cpu": lambda device: HostLane(), "cuda": CudaLane}


def lane_to(device: torch.device) -> Lane:
    """The lane between the host and a device."""
    return LANES[device.type](device)


def one_tensor(tensor: Tensor, change: Change) -> Tensor:
    """`Each` of a value that is one tensor."""
    return change(tensor)
