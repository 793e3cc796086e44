"""The tail masses of top-k: what all classes that are not listed have together, at each of its temperatures.

Shape legend: N positions, C classes, K listed classes, J temperatures.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.targets.dense import float32_of

if TYPE_CHECKING:
    from torch import Tensor

# Logits that are summed at once: 4 positions of 128,256 classes on a CPU. Two float32 buffers of this size are used again for
# every piece, because fresh memory costs more time than the sums.
VALUES_PER_SUM = {"cpu": 2**19, "cuda": 2**27}

# A tail that has any class with mass keeps at least this much, far above where float32 loses digits and far below what any
# divergence notices: decoding must not call a class impossible that the teacher does not.
LEAST_TAIL = 2.0**-100


def tail_masses(
    logits_NC: Tensor, ids_NK: Tensor, temperatures: tuple[float, ...], others_possible_N1: Tensor | None = None
) -> Tensor:
    """The probability (N, J) at each temperature of all classes but the listed ones.

    Both parts are summed apart, because 1 - (the listed) has no digit of a small tail left. `others_possible_N1` says where
    any of the others has a logit above -inf; without it that is looked up, which waits for the device.
    """
    import torch

    sums = _others_in_one_pass if torch.compiler.is_compiling() else _others_by_softmax
    others_JN = sums(logits_NC, ids_NK, temperatures)
    listed_NK = logits_NC.gather(1, ids_NK).to(torch.float32)
    below_NK = listed_NK - listed_NK.amax(dim=1, keepdim=True)
    listed_JN = torch.stack([(below_NK / temperature).exp().sum(dim=1) for temperature in temperatures])
    tail_NJ = (others_JN / (listed_JN + others_JN)).T
    small_NJ = tail_NJ < LEAST_TAIL
    if others_possible_N1 is None:
        if not bool(small_NJ.any()):
            return tail_NJ
        others_possible_N1 = (logits_NC > -math.inf).sum(dim=1, keepdim=True) > ids_NK.shape[1]
    return torch.where(small_NJ, torch.where(others_possible_N1, LEAST_TAIL, 0.0), tail_NJ)


def _others_by_softmax(logits_NC: Tensor, ids_NK: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    """Masses (J, N) of the classes that are not listed, each relative to the largest class of its position.

    Relative to the largest class, masses at half a temperature are the squares, which cost a fraction of another softmax.
    """
    import torch

    values = VALUES_PER_SUM.get(logits_NC.device.type, VALUES_PER_SUM["cuda"])
    at_once = max(1, values // logits_NC.shape[1])
    scaled_NC = torch.empty_like(logits_NC[:at_once], dtype=torch.float32)
    softened_NC = torch.empty_like(scaled_NC)
    others_JN = softened_NC.new_empty((len(temperatures), len(logits_NC)))
    is_wide = logits_NC.dtype == torch.float32
    for first in range(0, len(logits_NC), at_once):
        piece = slice(first, first + at_once)
        piece_NC, piece_NK = logits_NC[piece], ids_NK[piece]
        scaled, softened = scaled_NC[: len(piece_NC)], softened_NC[: len(piece_NC)]
        softened_at = math.inf
        for place, temperature in reversed(list(enumerate(temperatures))):
            if softened_at == 2 * temperature:
                softened.square_()
            else:
                as_it_is = temperature == 1.0 and is_wide
                if not as_it_is:
                    torch.div(piece_NC, temperature if is_wide else float32_of(temperature, piece_NC), out=scaled)
                torch.softmax(piece_NC if as_it_is else scaled, dim=1, out=softened)
                largest = softened.gather(1, piece_NK).amax(dim=1)
                softened.scatter_(1, piece_NK, 0.0)
                if 0.5 * temperature in temperatures:
                    softened.div_(largest.unsqueeze(1))
                    largest.fill_(1.0)
            softened_at = temperature
            torch.sum(softened, dim=1, out=others_JN[place, piece])
            others_JN[place, piece] /= largest
    return others_JN


def _others_in_one_pass(logits_NC: Tensor, ids_NK: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    """The same, written so that torch.compile makes of it one kernel that reads all logits once for all temperatures.

    What is listed is told by its logit: all above the least listed one, and of those that equal it the lower ids.
    """
    import torch

    listed_NK = logits_NC.gather(1, ids_NK)
    largest_N1, least_N1 = listed_NK.amax(dim=1, keepdim=True), listed_NK.amin(dim=1, keepdim=True)
    last_N1 = torch.where(listed_NK == least_N1, ids_NK, -1).amax(dim=1, keepdim=True)
    ids_C = torch.arange(logits_NC.shape[1], device=logits_NC.device)
    is_listed_NC = (logits_NC > least_N1) | ((logits_NC == least_N1) & (ids_C <= last_N1))
    below_NC = logits_NC.to(torch.float32) - largest_N1.to(torch.float32)
    masses = (torch.where(is_listed_NC, 0.0, (below_NC / temperature).exp()) for temperature in temperatures)
    return torch.stack([mass_NC.sum(dim=1) for mass_NC in masses])
