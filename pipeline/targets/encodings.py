"""Encodings: how soft targets are represented on disk, as pure functions between logits, stored arrays and probabilities.

Shape legend: B rows, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.targets.arrays import ArraySpec, rows_per_chunk

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Dense:
    """`softmax(logits / T)` of every class, as float16 or float32.

    float16 rows sum to 1 within 1e-3 (rounding); readers renormalise. float16 is for T of 2 and more: at T = 1 small
    probabilities vanish below 6e-8.
    """

    dtype: Literal["float16", "float32"]

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "float32"):  # a manifest may say anything
            raise ValueError(f"the dense encoding holds float16 or float32, not {self.dtype!r}")

    def as_parameters(self) -> dict[str, Any]:
        """What identifies the encoding in a key and in a manifest."""
        return {"name": "dense", "dtype": self.dtype}

    def arrays(self, rows: int, class_count: int, rows_per_block: int) -> tuple[ArraySpec, ...]:
        """The stored arrays for this many rows and classes."""
        bytes_per_row = class_count * np.dtype(self.dtype).itemsize
        chunk = rows_per_chunk(rows, bytes_per_row, at_most=rows_per_block)
        return (ArraySpec("soft_targets", self.dtype, (rows, class_count), chunk, ("row", "class")),)

    def encode(self, logits_BC: Tensor, temperature: float) -> tuple[Tensor, ...]:
        """Float32 logits to the stored arrays (B, C)."""
        import torch

        return (torch.softmax(logits_BC / temperature, dim=-1).to(getattr(torch, self.dtype)),)

    def first_wrong_row(self, stored: tuple[Tensor, ...]) -> int | None:
        """The first stored row (of B) that is no distribution to the promised precision, or None."""
        import torch

        (probabilities_BC,) = stored
        exact_BC = probabilities_BC.to(torch.float64)
        tolerance = 1e-3 if self.dtype == "float16" else 1e-6
        sums_to_one_B = (exact_BC.sum(dim=-1) - 1).abs() <= tolerance  # false for NaN
        right_B = sums_to_one_B & (exact_BC >= 0).all(dim=-1)
        return None if bool(right_B.all()) else int(torch.argmin(right_B.int()))

    def decode(self, stored: tuple[Tensor, ...], stored_temperature: float, temperature: float) -> Tensor:
        """Stored arrays to float32 probabilities (B, C) at `temperature`, renormalised.

        softmax(z / T') is proportional to softmax(z / T) ** (T / T'), so any other temperature follows from the stored
        one; what float16 rounded away at T cannot come back at a higher T'.
        """
        import torch

        (probabilities_BC,) = stored
        decoded_BC = probabilities_BC.to(torch.float32)
        if temperature != stored_temperature:
            exponent = stored_temperature / temperature
            return torch.softmax(decoded_BC.log() * exponent, dim=-1)
        return decoded_BC / decoded_BC.sum(dim=-1, keepdim=True)


Encoding = Dense  # the union of all encodings, as they come

ENCODINGS = {"dense": Dense}


def encoding_of(parameters: dict[str, Any]) -> Encoding:
    """The encoding that `as_parameters` described. Raises KeyError or TypeError for what is none."""
    arguments = dict(parameters)
    return ENCODINGS[arguments.pop("name")](**arguments)


def encoding_name(parameters: dict[str, Any]) -> str:
    """An encoding for people: "dense float16"."""
    return " ".join(
        str(value) for value in (parameters["name"], *(parameters[name] for name in parameters if name != "name"))
    )
