"""The top-k encoding: the k largest classes of each position, at any of the temperatures it lists.

Three arrays hold a position:

- `class_ids`: the k classes with the largest logits, ascending, as an Elias-Fano code (`elias_fano`). Of equal logits, the
  lower ids are kept.
- `log_codes`: for each of these, its logit z_i below the largest one, that is, a difference of log-probabilities at T = 1:
  u_i = z_i - max z = -step * code_i, rounded to the nearest code. Code 0 is the largest class, the last code (all ones) a
  probability of exactly 0, and the code before it the smallest finite logit. Of 4 bits, two codes share a byte, the
  first in its low half; an odd k leaves the last high half 0.
- `scales`, float32: the step, then for each listed temperature the tail mass: the exact probability at that temperature
  of the other C - k classes together.

So at a listed temperature T the k classes have p_i = (1 - tail) * softmax(u / T)_i, and each other class tail / (C - k).
The tail mass is exact whatever the codes have rounded: of all factors for rounded u_i this has the least KL divergence (of
Zipf-like logits, the part that rounding adds is a twelfth at 4 bits and a hundredth at 8 of what an exact log-normaliser
gives), and the probabilities sum to 1 by construction.

Errors: |u_i - exact u_i| <= step / 2, so a decoded log p_i is off by at most step / T, and the k classes add at most
(step / T)^2 / 8 to the KL divergence (Hoeffding's lemma). The rest of the divergence is what the tail's uniformity costs.

Shape legend: N positions, C classes, K listed classes, J listed temperatures, S = 1 + J scales.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from pipeline.targets import elias_fano
from pipeline.targets.arrays import EncodedArray
from pipeline.targets.dense import first_false
from pipeline.targets.largest import first_largest, largest_classes, narrowed
from pipeline.targets.sparse import SparseTargets
from pipeline.targets.tail_mass import tail_masses

if TYPE_CHECKING:
    from torch import Tensor

# Logits that a CPU searches for the largest at once: 32 positions of 128,256 classes. Where all logits are equal, all are
# candidates, and take about 60 bytes each: 250 MB.
VALUES_PER_SEARCH = 2**22
# A class that is not impossible keeps at least this much, relative to the largest, as a tail does (`tail_mass.LEAST_TAIL`).
LEAST_LOG_RATIO = -80.0


@dataclass(frozen=True)
class TopK:
    """The k largest classes, with `value_bits` for each one's log-probability, to be decoded at `temperatures` (ascending)."""

    k: int
    temperatures: tuple[float, ...]
    value_bits: Literal[4, 8, 16] = 16

    def __post_init__(self) -> None:
        if type(self.k) is not int or self.k < 1:  # a manifest may say anything
            raise ValueError(f"top-k keeps a number of classes from 1, not {self.k!r}")
        if type(self.value_bits) is not int or self.value_bits not in (4, 8, 16):
            raise ValueError(f"top-k holds values of 4, 8 or 16 bits, not {self.value_bits!r}")
        object.__setattr__(self, "temperatures", _ascending(self.temperatures))

    @property
    def zero_code(self) -> int:
        """The code of a probability of exactly 0; all codes below are finite logits."""
        return int(2**self.value_bits - 1)

    def as_parameters(self) -> dict[str, Any]:
        return {
            "name": "top-k",
            "k": self.k,
            "value_bits": self.value_bits,
            "temperatures": list(self.temperatures),
        }

    def columns(self, class_count: int) -> tuple[EncodedArray, ...]:
        if self.k >= class_count:
            raise ValueError(f"top-k with k = {self.k} needs more classes than k, not {class_count}")
        id_bytes = elias_fano.packed_bytes(self.k, class_count)
        codes = {
            4: EncodedArray("log_codes", "uint8", ((self.k + 1) // 2,), ("byte",)),
            8: EncodedArray("log_codes", "uint8", (self.k,), ("listed_class",)),
            16: EncodedArray("log_codes", "uint16", (self.k,), ("listed_class",)),
        }
        scales = EncodedArray("scales", "float32", (1 + len(self.temperatures),), ("scale",))
        return EncodedArray("class_ids", "uint8", (id_bytes,), ("byte",)), codes[self.value_bits], scales

    def serves(self, temperature: float) -> bool:
        return self._place(temperature) is not None

    def encode(self, logits_NC: Tensor, temperature: float) -> tuple[Tensor, ...]:
        """Logits to class_ids (N, P), log_codes (N, K or K / 2) and scales (N, S); `temperature` must be listed.

        A logit of NaN or +inf, or no finite logit at all, gives scales of NaN.
        """
        import torch

        if not self.serves(temperature):
            raise ValueError(f"temperature {temperature:g} is none of {self.temperatures}")
        self.columns(logits_NC.shape[1])  # raises where k does not fit
        logits_NC = logits_NC.detach()
        ids_NK, others_possible_N1 = self._largest(logits_NC)
        codes_NK, step_N1 = self._quantised(logits_NC.gather(1, ids_NK))
        tail_NJ = tail_masses(logits_NC, ids_NK, self.temperatures, others_possible_N1)
        scales_NS = torch.cat([step_N1, tail_NJ], dim=1)
        return elias_fano.pack(ids_NK, logits_NC.shape[1]), self._stored_codes(codes_NK), scales_NS

    def is_finite(self, stored: tuple[Tensor, ...]) -> Tensor:
        import torch

        return torch.isfinite(stored[2]).all(dim=1)

    def _largest(self, logits_NC: Tensor) -> tuple[Tensor, Tensor | None]:
        """The ids (N, K) of the k largest, and whether any other class is possible, where that costs nothing.

        A CPU skips what cannot be among the largest, which depends on the values; a GPU must not wait for these.
        """
        import torch

        if logits_NC.device.type == "cpu" and not torch.compiler.is_compiling():
            pieces = torch.split(logits_NC, max(1, VALUES_PER_SEARCH // logits_NC.shape[1]))
            return torch.cat([largest_classes(piece, self.k) for piece in pieces]), None
        few_NM, ids_NM = narrowed(logits_NC, self.k + 1)
        ids_NK = ids_NM.gather(1, first_largest(few_NM, self.k))
        return ids_NK, (few_NM > -math.inf).sum(dim=1, keepdim=True) > self.k

    def _quantised(self, values_NK: Tensor) -> tuple[Tensor, Tensor]:
        """Logits to codes (N, K), int32, and the float32 step (N, 1) that they are multiples of."""
        import torch

        below_NK = values_NK.amax(dim=1, keepdim=True).to(torch.float64) - values_NK
        possible_NK = below_NK != math.inf
        step_N1 = (torch.where(possible_NK, below_NK, 0.0).amax(dim=1, keepdim=True) / (self.zero_code - 1)).float()
        # All equal: a step of 0, and any divisor gives codes of 0.
        codes_NK = (below_NK / torch.where(step_N1 > 0, step_N1, 1.0)).round_().clamp_max_(self.zero_code - 1)
        return torch.where(possible_NK, codes_NK, float(self.zero_code)).to(torch.int32), step_N1

    def _stored_codes(self, codes_NK: Tensor) -> Tensor:
        import torch

        if self.value_bits == 4:
            codes_NK = torch.nn.functional.pad(codes_NK, (0, self.k % 2))
            codes_NK = codes_NK[:, 0::2] | codes_NK[:, 1::2] << 4
        return codes_NK.to(torch.uint16 if self.value_bits == 16 else torch.uint8)

    def _codes(self, stored_codes: Tensor) -> Tensor:
        """Stored codes to int32 (N, K), or (N, K + 1) where half a byte is left."""
        import torch

        codes = stored_codes.to(torch.int32)
        return codes if self.value_bits != 4 else torch.stack([codes & 15, codes >> 4], dim=2).flatten(1)

    def first_wrong_position(self, stored: tuple[Tensor, ...], class_count: int) -> int | None:
        import torch

        packed_NP, stored_codes, scales_NS = stored
        ids_NK = elias_fano.unpack(packed_NP, self.k, class_count)
        codes_NK = self._codes(stored_codes)
        step_N1, tail_NJ = scales_NS[:, :1], scales_NS[:, 1:]
        right_N = (ids_NK.diff(dim=1) > 0).all(dim=1) & (ids_NK[:, -1] < class_count)
        right_N &= (codes_NK[:, : self.k] == 0).any(dim=1) & (codes_NK[:, self.k :] == 0).all(dim=1)
        right_N &= (torch.isfinite(step_N1) & (step_N1 >= 0)).all(dim=1)  # false for NaN, as below
        # The k largest have at least their share; where they include an impossible class, they have all.
        most_N1 = torch.where(
            (codes_NK == self.zero_code).any(dim=1, keepdim=True), 0.0, 1 - self.k / class_count + 1e-5
        )
        return first_false(right_N & ((tail_NJ >= 0) & (tail_NJ <= most_N1)).all(dim=1))

    def retained(self, stored: tuple[Tensor, ...], decoded_NC: Tensor) -> Tensor:
        import torch

        ids_NK = elias_fano.unpack(stored[0], self.k, decoded_NC.shape[1])
        return torch.zeros_like(decoded_NC, dtype=torch.bool).scatter_(1, ids_NK, True)

    def decode(
        self, stored: tuple[Tensor, ...], class_count: int, stored_temperature: float, temperature: float
    ) -> Tensor:
        """As `decode_sparse`, but of all classes. `stored_temperature` does not matter."""
        return self.decode_sparse(stored, class_count, temperature).dense()

    def decode_sparse(self, stored: tuple[Tensor, ...], class_count: int, temperature: float) -> SparseTargets:
        """Stored arrays of N positions to their distributions at a listed temperature.

        Raises ValueError for a temperature that is not listed, and for damaged ids that are no classes.
        """
        import torch

        packed_NP, stored_codes, scales_NS = stored
        place = self._place(temperature)
        if place is None:
            raise ValueError(f"temperature {temperature:g} is none of {self.temperatures}")
        ids_NK = elias_fano.unpack(packed_NP, self.k, class_count)
        if len(ids_NK) and int(ids_NK.amax()) >= class_count:
            raise ValueError(f"a class id of {int(ids_NK.amax())} is stored, of {class_count} classes")
        codes_NK = self._codes(stored_codes)[:, : self.k]
        ratios_NK = codes_NK.to(torch.float32) * scales_NS[:, :1] / -temperature
        ratios_NK = ratios_NK.clamp_min_(LEAST_LOG_RATIO).masked_fill_(codes_NK == self.zero_code, -math.inf)
        tail_N = scales_NS[:, 1 + place].clone()  # the stored arrays may be memory that is used again
        probabilities_NK = torch.softmax(ratios_NK, dim=1).mul_((1 - tail_N).unsqueeze(1))
        return SparseTargets(ids_NK, probabilities_NK, tail_N, class_count)

    def _place(self, temperature: float) -> int | None:
        """Where the temperature is listed, up to rounding, as the certificate looks it up."""
        places = (
            place for place, known in enumerate(self.temperatures) if math.isclose(known, temperature, rel_tol=1e-9)
        )
        return next(places, None)


def _ascending(temperatures: Any) -> tuple[float, ...]:
    if not isinstance(temperatures, list | tuple) or not temperatures:
        raise ValueError(f"top-k needs a list of temperatures, not {temperatures!r}")
    if not all(type(one) in (int, float) and 0 < one < math.inf for one in temperatures):
        raise ValueError(f"temperatures are positive numbers, not {list(temperatures)}")
    if any(later <= one for one, later in pairwise(temperatures)):
        raise ValueError(f"temperatures are listed once each, ascending, not as {list(temperatures)}")
    return tuple(float(one) for one in temperatures)
