"""The dense encoding: every class, as probabilities or as quantised log-probabilities.

Shape legend: N positions, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.targets.arrays import EncodedArray

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = ("float16", "float32", "log-uint8", "log-uint16")


def dense_of(dtype: str) -> Dense | LogDense:
    """The dense encoding of a number format. Raises ValueError for one that there is not."""
    if dtype not in DTYPES:  # a manifest may say anything
        raise ValueError(f"the dense encoding holds {', '.join(DTYPES)}, not {dtype!r}")
    return LogDense(dtype) if dtype.startswith("log-") else Dense(dtype)


@dataclass(frozen=True)
class Dense:
    """`softmax(logits / T)` of every class, as `dtype` float16 or float32.

    float16 rows sum to 1 within 1e-3 (rounding); readers renormalise. float16 is for T of 2 and more: at T = 1 small
    probabilities vanish below 6e-8.
    """

    dtype: str

    def as_parameters(self) -> dict[str, Any]:
        return {"name": "dense", "dtype": self.dtype}

    def columns(self, class_count: int) -> tuple[EncodedArray, ...]:
        return (EncodedArray("soft_targets", self.dtype, (class_count,), ("class",)),)

    def serves(self, temperature: float) -> bool:
        return temperature > 0

    def encode(self, logits_NC: Tensor, temperature: float) -> tuple[Tensor, ...]:
        import torch

        return (torch.softmax(softened(logits_NC, temperature), dim=-1).to(getattr(torch, self.dtype)),)

    def is_finite(self, stored: tuple[Tensor, ...]) -> Tensor:
        import torch

        return torch.isfinite(stored[0][:, 0])  # a softmax is NaN in all classes or in none

    def first_wrong_position(self, stored: tuple[Tensor, ...], class_count: int) -> int | None:
        import torch

        (probabilities_NC,) = stored
        exact_NC = probabilities_NC.to(torch.float64)
        tolerance = 1e-3 if self.dtype == "float16" else 1e-6
        sums_to_one_N = (exact_NC.sum(dim=-1) - 1).abs() <= tolerance  # false for NaN
        return first_false(sums_to_one_N & (exact_NC >= 0).all(dim=-1))

    def retained(self, stored: tuple[Tensor, ...], decoded_NC: Tensor) -> Tensor:
        return decoded_NC > 0

    def decode(
        self, stored: tuple[Tensor, ...], class_count: int, stored_temperature: float, temperature: float
    ) -> Tensor:
        """softmax(z / T') is proportional to softmax(z / T) ** (T / T'), so any other temperature follows from the stored
        one; what float16 rounded away at T cannot come back at a higher T'.
        """
        import torch

        (probabilities_NC,) = stored
        decoded_NC = probabilities_NC.to(torch.float32)
        if temperature != stored_temperature:
            exponent = stored_temperature / temperature
            return torch.softmax(decoded_NC.log() * exponent, dim=-1)
        return decoded_NC / decoded_NC.sum(dim=-1, keepdim=True)


@dataclass(frozen=True)
class LogDense:
    """Log-probabilities of every class relative to the largest, quantised linearly in each position: `dtype` log-uint8 or -16.

    `log_codes` c and `log_step` s give log p = -s c + constant, and softmax takes any constant. Code 0 is the largest
    class, the last code is a probability of exactly 0. The error of a log-probability is at most s / 2 at the stored T,
    and (s / 2) T / T' at another T'.
    """

    dtype: str

    @property
    def code_dtype(self) -> str:
        return self.dtype.removeprefix("log-")

    @property
    def zero_code(self) -> int:
        """The code of a probability of exactly 0; all codes below are log-probabilities."""
        return 255 if self.dtype == "log-uint8" else 65535

    def as_parameters(self) -> dict[str, Any]:
        return {"name": "dense", "dtype": self.dtype}

    def columns(self, class_count: int) -> tuple[EncodedArray, ...]:
        return (
            EncodedArray("log_codes", self.code_dtype, (class_count,), ("class",)),
            EncodedArray("log_step", "float32", (1,), ("scale",)),
        )

    def serves(self, temperature: float) -> bool:
        return temperature > 0

    def encode(self, logits_NC: Tensor, temperature: float) -> tuple[Tensor, ...]:
        import torch

        scaled_NC = softened(logits_NC, temperature)
        below_NC = scaled_NC.amax(dim=-1, keepdim=True) - scaled_NC  # 0 for the largest, infinite for what is exactly 0
        range_N1 = torch.where(torch.isinf(below_NC), 0.0, below_NC).amax(dim=-1, keepdim=True)
        step_N1 = (range_N1 / (self.zero_code - 1)).clamp_min(torch.finfo(torch.float32).tiny)
        codes_NC = (below_NC / step_N1).round_().clamp_max_(self.zero_code - 1)
        codes_NC = torch.where(torch.isinf(below_NC), float(self.zero_code), codes_NC)
        return codes_NC.to(torch.int32).to(getattr(torch, self.code_dtype)), step_N1

    def is_finite(self, stored: tuple[Tensor, ...]) -> Tensor:
        import torch

        return torch.isfinite(stored[1]).squeeze(1)

    def first_wrong_position(self, stored: tuple[Tensor, ...], class_count: int) -> int | None:
        import torch

        codes_NC, step_N1 = stored
        has_largest_N = (codes_NC.to(torch.int32) == 0).any(dim=-1)
        return first_false(has_largest_N & (torch.isfinite(step_N1) & (step_N1 > 0)).all(dim=-1))

    def retained(self, stored: tuple[Tensor, ...], decoded_NC: Tensor) -> Tensor:
        return decoded_NC > 0

    def decode(
        self, stored: tuple[Tensor, ...], class_count: int, stored_temperature: float, temperature: float
    ) -> Tensor:
        import torch

        codes_NC, step_N1 = stored
        exponent = stored_temperature / temperature
        numbers_NC = codes_NC.to(torch.float32)
        log_NC = numbers_NC * (step_N1 * -exponent)
        # Rare, and comparing all codes takes longer than all else.
        if numbers_NC.numel() and float(numbers_NC.amax()) == self.zero_code:
            log_NC.masked_fill_(numbers_NC == self.zero_code, -torch.inf)
        return torch.softmax(log_NC, dim=-1)


def softened(logits_NC: Tensor, temperature: float) -> Tensor:
    """`logits / T` in float32, in one pass whatever their precision is; the logits themselves where that is the same."""
    import torch

    if logits_NC.dtype == torch.float32:
        return logits_NC if temperature == 1.0 else logits_NC / temperature
    return logits_NC / float32_of(temperature, logits_NC)


def float32_of(number: float, beside: Tensor) -> Tensor:
    """The number as a tensor (1,), beside which half precision is computed with in float32; a bare number does not do that."""
    import torch

    return beside.new_full((1,), number, dtype=torch.float32)


def first_false(right_N: Tensor) -> int | None:
    """The first position that is not right, or None."""
    import torch

    return None if bool(right_N.all()) else int(torch.argmin(right_N.int()))
