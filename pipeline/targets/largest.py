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
        return first_largest(logits_NC, k)
    return _largest_candidates(*_candidates(logits_NC, k, group), len(logits_NC), k)


def narrowed(logits_NC: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Few logits (N, M) of each position, among them the `count` largest, and their class ids (N, M), ascending.

    Of equal logits, those with the lower ids are meant. No shape depends on a value, so that a GPU need not be waited for: the
    `count` groups with the largest maxima hold the `count` largest logits, and the same is done within these. (A logit in
    another group would have `count` maxima before it; of groups with equal maxima the first are taken, and their ids are
    lower.) A position with NaN may get any ids. All logits are read once.
    """
    import torch

    classes, ids_NM = logits_NC.shape[1], None
    while logits_NC.shape[1] >= 16 * count:
        group = 2 ** math.ceil(math.log2(logits_NC.shape[1] / count) / 2)  # as many maxima as members of chosen groups
        missing = -logits_NC.shape[1] % group
        whole_NC = torch.nn.functional.pad(logits_NC, (0, missing), value=-math.inf) if missing else logits_NC
        groups_NGM = whole_NC.reshape(len(logits_NC), -1, group)
        chosen_NK = first_largest(groups_NGM.amax(dim=2), count)
        members = torch.arange(group, device=logits_NC.device)
        place_NM = (chosen_NK.unsqueeze(2) * group + members).flatten(1)
        # Padding comes after everything else, and is never among the largest.
        ids_NM = place_NM if ids_NM is None else ids_NM.gather(1, place_NM.clamp_max(ids_NM.shape[1] - 1))
        ids_NM = ids_NM.clamp_max(classes - 1)
        logits_NC = groups_NGM.gather(1, chosen_NK.unsqueeze(2).expand(-1, -1, group)).flatten(1)
    if ids_NM is None:
        ids_NM = torch.arange(classes, device=logits_NC.device).expand(len(logits_NC), -1)
    return logits_NC, ids_NM


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
    return ids_NW.gather(1, first_largest(logits_NW, k))


def first_largest(logits_NC: Tensor, k: int) -> Tensor:
    """As `largest_classes`, for few classes: the k largest of whole numbers that order by logit, then by lower id.

    No shape depends on a value.
    """
    import torch

    last = logits_NC.shape[1] - 1
    bits = (logits_NC.to(torch.float32) + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    ordered = bits ^ (bits >> 31 & 0x7FFFFFFF)  # the bits of negative floats ascend as these descend
    keys = (ordered.to(torch.int64) << 31) | torch.arange(last, -1, -1, device=bits.device)
    largest = keys.topk(k, dim=1, sorted=False).values
    return (last - (largest & 0x7FFFFFFF)).sort(dim=1).values
