"""Sparse soft targets: the probabilities of a few classes of each position, and what is left for all others together.

Shape legend: K listed classes, C classes; what comes before (rows, tokens, pixels) may be any number of axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class SparseTargets:
    """Distributions over C classes: K of them are listed, the others share `tail_mass` in equal parts.

    In each position the probabilities and the tail mass sum to 1, the ids are distinct, and K < C. A tail mass of exactly 0
    says that no other class is possible.
    """

    class_ids: Tensor  # (..., K) int64
    probabilities: Tensor  # (..., K) float32
    tail_mass: Tensor  # (...) float32, of the C - K other classes together
    class_count: int  # C

    def __len__(self) -> int:
        return len(self.tail_mass)

    def __getitem__(self, rows: Tensor | slice) -> SparseTargets:
        """The targets of some rows: indices along axis 0."""
        return SparseTargets(self.class_ids[rows], self.probabilities[rows], self.tail_mass[rows], self.class_count)

    def view(self, *leading: int) -> SparseTargets:
        """The same targets with the axes before the classes arranged anew: `view(rows, tokens)`."""
        listed = self.class_ids.shape[-1]
        return SparseTargets(
            self.class_ids.view(*leading, listed),
            self.probabilities.view(*leading, listed),
            self.tail_mass.view(*leading),
            self.class_count,
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SparseTargets:
        """The same targets on another device."""
        return self.each(lambda array: array.to(device, non_blocking=non_blocking))

    def each(self, change: Callable[[Tensor], Tensor]) -> SparseTargets:
        """The targets with every tensor changed."""
        return SparseTargets(
            change(self.class_ids), change(self.probabilities), change(self.tail_mass), self.class_count
        )

    def dense(self) -> Tensor:
        """Probabilities (..., C) of all classes, each position summing to 1."""
        others = self.class_count - self.class_ids.shape[-1]
        each = (self.tail_mass / others).unsqueeze(-1)
        return each.repeat(*[1] * self.tail_mass.ndim, self.class_count).scatter_(
            -1, self.class_ids, self.probabilities
        )
