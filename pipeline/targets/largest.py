"""The search for the k largest logits among very many classes, exact in the case of ties too.

Shape legend: N positions, C classes, K classes that are kept, G groups of classes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CLASSES_PER_GROUP = 64  # of the search for the largest: smaller groups leave more maxima, larger ones more candidates


def largest_classes(logits_NC: Tensor, k: int) -> Tensor:
    """The ids (N, K), ascending, of the k largest logits of each position; of equal logits, those with the lower ids.

    Exact, and for many classes several times faster than torch.topk: the k-th largest maximum of disjoint groups is at most
    the k-th largest logit, so only groups whose maximum reaches this bound, and in them only logits that do, can be among
    the k largest. These are few, unless many logits are equal.
    """
    group = min(CLASSES_PER_GROUP, logits_NC.shape[1] // (4 * k))
    if group < 8 or not len(logits_NC):
        return _first_largest(logits_NC, k)
    return _largest_candidates(*_candidates(logits_NC, k, group), len(logits_NC), k)


def _candidates(logits_NC: Tensor, k: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """All that may be among the k largest, flat, in ascending order: their positions, class ids and logits."""
    import torch

    missing = -logits_NC.shape[1] % group
    whole_NC = torch.nn.functional.pad(logits_NC, (0, missing), value=-math.inf) if missing else logits_NC
    groups_RM = whole_NC.reshape(-1, group)  # R groups of all positions, M members each
    maxima_NG = groups_RM.amax(dim=1).view(len(logits_NC), -1)
    bound_N1 = _bound_from_below(maxima_NG, k)
    reaching = (maxima_NG >= bound_N1).flatten().nonzero().squeeze(1)
    members = groups_RM.index_select(0, reaching)
    positions = reaching // maxima_NG.shape[1]
    which, place = (members >= bound_N1[positions]).nonzero().unbind(1)
    ids = (reaching % maxima_NG.shape[1])[which] * group + place
    return positions[which], ids, members[which, place]


def _bound_from_below(maxima_NG: Tensor, k: int) -> Tensor:
    """At most the k-th largest logit (N, 1): the k-th largest maximum of wider groups, of which there are 4 k or more."""
    folds = maxima_NG.shape[1] // (4 * k)
    width = maxima_NG.shape[1] // folds
    wider = maxima_NG[:, : folds * width].view(len(maxima_NG), folds, width).amax(dim=1)
    return wider.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)


def _largest_candidates(positions: Tensor, ids: Tensor, logits: Tensor, position_count: int, k: int) -> Tensor:
    """The ids (N, K) of the k largest of each position, of flat candidates in ascending order."""
    import torch

    first_N = torch.searchsorted(positions, torch.arange(position_count, device=positions.device))
    rank = torch.arange(len(positions), device=positions.device) - first_N[positions]
    width = max(k, int(rank.max()) + 1 if len(rank) else 0)  # a position whose logits are NaN has no candidates
    place = positions * width + rank
    logits_NW = logits.new_full((position_count * width,), -math.inf).scatter_(0, place, logits).view(-1, width)
    ids_NW = ids.new_zeros(position_count * width).scatter_(0, place, ids).view(-1, width)
    return ids_NW.gather(1, _first_largest(logits_NW, k))


def _first_largest(logits_NC: Tensor, k: int) -> Tensor:
    """As `largest_classes`, for few classes: the k largest of whole numbers that order by logit, then by lower id."""
    import torch

    last = logits_NC.shape[1] - 1
    bits = (logits_NC + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    ordered = bits ^ (bits >> 31 & 0x7FFFFFFF)  # the bits of negative floats ascend as these descend
    keys = (ordered.to(torch.int64) << 31) | torch.arange(last, -1, -1, device=bits.device)
    largest = keys.topk(k, dim=1, sorted=False).values
    return (last - (largest & 0x7FFFFFFF)).sort(dim=1).values
