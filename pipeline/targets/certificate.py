"""The certificate: how far decoded soft targets are from the teacher's exact ones, measured while they are written.

Shape legend: B rows, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.targets.encodings import Encoding

if TYPE_CHECKING:
    from torch import Tensor

# The sums of one block at one temperature; `certificate_of` folds them in block order, so that the result does not
# depend on which run measured which block.
Sums = dict[str, float]


def measure(
    logits_BC: Tensor,
    stored: tuple[Tensor, ...],
    encoding: Encoding,
    stored_temperature: float,
    temperatures: Sequence[float],
) -> dict[str, Sums]:
    """Errors of one block's rows, by temperature: KL(exact || decoded) in nats, in float64, against float32 logits."""
    import torch

    sums: dict[str, Sums] = {}
    logits_BC = logits_BC.to(torch.float64)
    for temperature in temperatures:
        log_exact_BC = torch.log_softmax(logits_BC / temperature, dim=-1)
        exact_BC = log_exact_BC.exp()
        decoded_BC = encoding.decode(stored, stored_temperature, temperature).to(torch.float64)
        # A float32 row sums to 1 within 1e-7, which would hide a KL below that and could make it negative.
        log_decoded_BC = (decoded_BC / decoded_BC.sum(dim=-1, keepdim=True)).log()
        # A class that the exact teacher gives no float64 mass contributes nothing; one that decoding lost is infinite.
        terms_BC = torch.where(exact_BC > 0, exact_BC * (log_exact_BC - log_decoded_BC), 0.0)
        kl_B = terms_BC.sum(dim=-1).clamp_min(0.0)
        finite_B = torch.isfinite(kl_B)
        sums[str(temperature)] = {
            "kl_sum": float(kl_B[finite_B].sum()),
            "kl_max": float(kl_B[finite_B].max()) if bool(finite_B.any()) else 0.0,
            "infinite_rows": float((~finite_B).sum()),
            "absolute_error_max": float((exact_BC - decoded_BC).abs().max()),
            "retained_mass_sum": float(torch.where(decoded_BC > 0, exact_BC, 0.0).sum()),
            "rows": float(len(logits_BC)),
        }
    return sums


def certificate_of(blocks: Iterable[dict[str, Sums]]) -> dict[str, Any]:
    """The manifest's certificate from the sums of all blocks, in block order.

    By temperature: mean and max KL (null where a row's is infinite), rows where it is, max absolute error of a
    probability, and the mean exact mass of the classes that decoding retained.
    """
    folded: dict[str, Sums] = {}
    for block in blocks:
        for temperature, sums in block.items():
            total = folded.setdefault(temperature, dict.fromkeys(sums, 0.0))
            for name, value in sums.items():
                total[name] = max(total[name], value) if name.endswith("_max") else total[name] + value
    return {"measured_on": "all rows", "temperatures": {key: _summary(total) for key, total in folded.items()}}


def _summary(total: Sums) -> dict[str, Any]:
    infinite = int(total["infinite_rows"])
    return {
        "kl_mean": None if infinite else total["kl_sum"] / total["rows"],
        "kl_max": None if infinite else total["kl_max"],
        "infinite_rows": infinite,
        "absolute_error_max": total["absolute_error_max"],
        "retained_mass_mean": total["retained_mass_sum"] / total["rows"],
        "rows": int(total["rows"]),
    }


def error_at(certificate: dict[str, Any], temperature: float) -> dict[str, Any] | None:
    """The certificate's measurement at a temperature, or None where it has none."""
    for key, measured in certificate["temperatures"].items():
        if math.isclose(float(key), temperature, rel_tol=1e-9):
            return dict(measured)
    return None
