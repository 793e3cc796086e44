"""Encodings: how soft targets are represented on disk, as pure functions between logits, stored arrays and probabilities.

Shape legend: N positions (the rows of a cache, times its tokens or pixels where it has any), C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.targets.arrays import EncodedArray
from pipeline.targets.dense import dense_of
from pipeline.targets.top_k import TopK

if TYPE_CHECKING:
    from torch import Tensor


class Encoding(Protocol):
    """What every encoding can do. It sees positions one by one, so that one encoding serves all shapes of output."""

    def as_parameters(self) -> dict[str, Any]:
        """What identifies the encoding in a key and in a manifest."""
        ...

    def columns(self, class_count: int) -> tuple[EncodedArray, ...]:
        """The stored arrays, for one position. Raises ValueError for a number of classes that it cannot hold."""
        ...

    def serves(self, temperature: float) -> bool:
        """Whether it can decode at this temperature at all; how well, a certificate says."""
        ...

    def encode(self, logits_NC: Tensor, temperature: float) -> tuple[Tensor, ...]:
        """Logits of at most float32 to the stored arrays (N, *column.shape). A logit of -inf is a probability of exactly 0."""
        ...

    def is_finite(self, stored: tuple[Tensor, ...]) -> Tensor:
        """Which positions (N,) were encoded from logits that have a softmax: none NaN or +inf, and not all of them -inf."""
        ...

    def first_wrong_position(self, stored: tuple[Tensor, ...], class_count: int) -> int | None:
        """The first stored position (of N) that is no distribution to the promised precision, or None."""
        ...

    def retained(self, stored: tuple[Tensor, ...], decoded_NC: Tensor) -> Tensor:
        """Which classes (N, C) are held one by one; what is exact mass of the others is lost or lumped together."""
        ...

    def decode(
        self, stored: tuple[Tensor, ...], class_count: int, stored_temperature: float, temperature: float
    ) -> Tensor:
        """Stored arrays to float32 probabilities (N, C) at `temperature`, each summing to 1; a tensor of its own."""
        ...


ENCODINGS: dict[str, Callable[..., Encoding]] = {"dense": dense_of, "top-k": TopK}


def encoding_of(parameters: dict[str, Any]) -> Encoding:
    """The encoding that `as_parameters` described. Raises KeyError, TypeError or ValueError for what is none."""
    arguments = dict(parameters)
    return ENCODINGS[arguments.pop("name")](**arguments)


def encoding_name(parameters: dict[str, Any]) -> str:
    """An encoding for people: "dense float16", "top-k k=64 temperatures=1,4 value_bits=16"."""
    if parameters["name"] == "dense":
        return f"dense {parameters['dtype']}"
    return " ".join(
        [parameters["name"], *(f"{name}={_text(parameters[name])}" for name in sorted(parameters) if name != "name")]
    )


def _text(value: Any) -> str:
    return ",".join(f"{one:g}" for one in value) if isinstance(value, list | tuple) else f"{value}"
