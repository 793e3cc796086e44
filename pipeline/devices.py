"""The device and the precision that models run in; what was chosen is always printed, never assumed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.recipe import Precision


def device_of(wanted: str) -> torch.device:
    """The device for "auto", "cpu" or "cuda". Raises UserError when there is no GPU but one is asked for."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError('device = "cuda", but torch sees no GPU here. Use device = "auto" or "cpu".')
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Mixed precision for a forward pass; nothing at all for float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))


def memory_format_of(network: nn.Module, device: torch.device) -> torch.memory_format:
    """How images lie in memory: one channel after another, or pixel by pixel, as a GPU's fast convolutions read them."""
    has_convolutions = any(isinstance(module, nn.Conv2d) for module in network.modules())
    return torch.channels_last if device.type == "cuda" and has_convolutions else torch.contiguous_format


class Laid:
    """A network that is given images in one memory format, as long as it can take them so.

    A network that calls view() on images works with one channel after another alone; from the first time that it fails, it
    gets them so.
    """

    def __init__(self, network: nn.Module, memory_format: torch.memory_format):
        self._network = network
        self._lay(memory_format)

    def laid(self, images: Tensor) -> Tensor:
        """Inputs (B, ...) as the network takes them; only images (B, C, H, W) change their place in memory."""
        return images.contiguous(memory_format=self._format) if images.ndim == 4 else images

    def __call__(self, inputs: Tensor) -> Any:
        """What the network returns."""
        try:
            return self._network(self.laid(inputs))
        except RuntimeError as problem:
            if self._format is torch.contiguous_format or "view size is not compatible" not in str(problem):
                raise
        self._lay(torch.contiguous_format)
        return self._network(self.laid(inputs))

    def _lay(self, memory_format: torch.memory_format) -> None:
        self._format = memory_format
        for module in self._network.modules():  # other parameters may be viewed, or have five axes
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=memory_format)  # type: ignore[call-overload]  # torch's stub forgets it


def described(device: torch.device, precision: Precision) -> str:
    """The device, its precision and (on the CPU) its threads, for people."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {precision}"
    threads = torch.get_num_threads()
    return f"cpu with {threads} thread{'' if threads == 1 else 's'}, {precision}"


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch with this many CPU threads; the sums inside an operation, and so its last bits, depend on them."""
    with own_thread_count():
        torch.set_num_threads(count)
        yield


@contextmanager
def own_thread_count() -> Iterator[None]:
    """torch's thread count holds for each thread, but a new one starts with what was set last anywhere."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
