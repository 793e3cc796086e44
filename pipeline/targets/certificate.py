"""The certificate: how far decoded soft targets are from the teacher's exact ones, measured while they are written.

Shape legend: N positions (rows, times the tokens or pixels of each), C classes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.targets.encodings import Encoding

if TYPE_CHECKING:
    from torch import Tensor

# The sums of one block at one temperature; `certificate_of` folds them in block order, so that the result does not
# depend on which run measured which block.
Sums = dict[str, float]

# In float64 at four temperatures, this many probabilities take about 10 ms, and all of 4096 x 1000 about 300 ms: as long
# as everything else that is done to a block. Up to 32 classes every row of a block of 4096 is measured.
MEASURED_PER_BLOCK = 2**17


def measured_positions(key: str, block: int, held: int, held_by_full: int, classes: int) -> NDArray[np.int64]:
    """Which of a block's `held` positions (ascending) are measured: all where that is cheap, else a random sample.

    The sample is a function of the cache's key and the block alone, so that a resumed run measures the same ones. Every
    block gives the same share of its positions (a full block has `held_by_full`), and at least one.
    """
    share = min(1.0, MEASURED_PER_BLOCK / (held_by_full * classes))
    count = max(1, math.ceil(share * held))
    if count >= held:
        return np.arange(held)
    seed = hashlib.blake2b(f"softcache certificate {key} {block}".encode(), digest_size=16).digest()
    words = np.random.Philox(key=np.frombuffer(seed, dtype="<u8").astype(np.uint64)).random_raw(held)
    return np.sort(np.argsort(words, kind="stable")[:count])


def measure(
    logits_NC: Tensor,
    stored: tuple[Tensor, ...],
    encoding: Encoding,
    stored_temperature: float,
    temperatures: Sequence[float],
) -> dict[str, Sums]:
    """Errors of some positions, by temperature: KL(exact || decoded) in nats, in float64, against float32 logits.

    `logits_NC` are the exact logits of these positions, `stored` what is stored of them. Temperatures at which the encoding
    cannot be decoded are left out.
    """
    import torch

    sums: dict[str, Sums] = {}
    logits_NC = logits_NC.to(torch.float64)
    for temperature in filter(encoding.serves, temperatures):
        log_exact_NC = torch.log_softmax(logits_NC / temperature, dim=-1)
        exact_NC = log_exact_NC.exp()
        decoded_NC = encoding.decode(stored, logits_NC.shape[-1], stored_temperature, temperature).to(torch.float64)
        # A float32 row sums to 1 within 1e-7, which would hide a KL below that and could make it negative.
        log_decoded_NC = (decoded_NC / decoded_NC.sum(dim=-1, keepdim=True)).log()
        # A class that the exact teacher gives no float64 mass contributes nothing; one that decoding lost is infinite.
        terms_NC = torch.where(exact_NC > 0, exact_NC * (log_exact_NC - log_decoded_NC), 0.0)
        kl_N = terms_NC.sum(dim=-1).clamp_min(0.0)
        finite_N = torch.isfinite(kl_N)
        sums[str(temperature)] = {
            "kl_sum": float(kl_N[finite_N].sum()),
            "kl_max": float(kl_N[finite_N].max()) if bool(finite_N.any()) else 0.0,
            "infinite_rows": float((~finite_N).sum()),
            "absolute_error_max": float((exact_NC - decoded_NC).abs().max()),
            "retained_mass_sum": float(torch.where(encoding.retained(stored, decoded_NC), exact_NC, 0.0).sum()),
            "rows": float(len(logits_NC)),
        }
    return sums


@dataclass(frozen=True)
class Inherited:
    """Rows that were taken from another cache: how many of its `rows`, and its certificate, which stands for them."""

    key: str
    taken: int
    rows: int
    certificate: dict[str, Any]


@dataclass(frozen=True)
class _Part:
    """Positions that one measurement stands for: how many, the error that was measured, and how many of them it counts."""

    stands_for: int
    error: dict[str, Any]
    measured: int

    @property
    def infinite(self) -> int:
        """Any position may be one of those of infinite KL, so where there were some, there is one here."""
        return min(int(self.error["infinite_rows"]), self.measured)


def certificate_of(
    blocks: Iterable[dict[str, Sums]], rows: int, positions_of_row: int = 1, inherited: Sequence[Inherited] = ()
) -> dict[str, Any]:
    """The manifest's certificate from the sums of all blocks, in block order, of a cache of so many rows.

    By temperature, over the measured rows (positions, where a row has several): mean and max KL (null where one is
    infinite), how many are, max absolute error of a probability, and the mean exact mass of the classes that decoding
    retained. Rows that were `inherited` count as their own cache measured them, which is marked: its means weigh as many rows
    as were taken. Temperatures that not all of these certify are left out.
    """
    own_rows = rows - sum(one.taken for one in inherited)
    own = {temperature: _summary(total) for temperature, total in _folded(blocks).items()}
    certified = [one.certificate["temperatures"] for one in inherited] + ([own] if own_rows else [])
    temperatures = [one for one in certified[0] if all(one in errors for errors in certified)]
    unit = "rows" if positions_of_row == 1 else "positions"
    held, found, parts = rows * positions_of_row, {}, list[_Part]()
    for temperature in temperatures:
        parts = [_taken(one, temperature, positions_of_row) for one in inherited]
        if own_rows:
            error, own_held = own[temperature], own_rows * positions_of_row
            parts.insert(0, _Part(own_held, error, error["rows"]))
        found[temperature] = parts[0].error if not inherited else _together(parts)
    measured = min((error["rows"] for error in found.values()), default=held)
    if all(part.measured >= part.stands_for for part in parts):
        measured_on = f"all {unit}"
    else:
        as_theirs = ", and of inherited ones as their caches measured them" if inherited else ""
        measured_on = f"{measured:,} of {held:,} {unit}, drawn at random from every block{as_theirs}"
    marks = {"inherited": {one.key: one.taken for one in inherited}} if inherited else {}
    return {"measured_on": measured_on, "temperatures": found, **marks}


def _folded(blocks: Iterable[dict[str, Sums]]) -> dict[str, Sums]:
    folded: dict[str, Sums] = {}
    for block in blocks:
        for temperature, sums in block.items():
            total = folded.setdefault(temperature, dict.fromkeys(sums, 0.0))
            for name, value in sums.items():
                total[name] = max(total[name], value) if name.endswith("_max") else total[name] + value
    return folded


def _taken(one: Inherited, temperature: str, positions_of_row: int) -> _Part:
    """What another cache measured stands for the rows that were taken from it, and for at least one that was measured."""
    error, stands_for = one.certificate["temperatures"][temperature], one.taken * positions_of_row
    measured = min(stands_for, max(1, round(error["rows"] * one.taken / one.rows)))
    return _Part(stands_for, error, measured)


def _together(parts: Sequence[_Part]) -> dict[str, Any]:
    """The error of all parts: means by how many positions each stands for, the largest maximum."""
    held, infinite = sum(part.stands_for for part in parts), sum(part.infinite for part in parts)

    def mean(name: str) -> float:
        return sum(part.stands_for * float(part.error[name]) for part in parts) / held

    return {
        "kl_mean": None if infinite else mean("kl_mean"),
        "kl_max": None if infinite else max(part.error["kl_max"] for part in parts),
        "infinite_rows": infinite,
        "absolute_error_max": max(part.error["absolute_error_max"] for part in parts),
        "retained_mass_mean": mean("retained_mass_mean"),
        "rows": sum(part.measured for part in parts),
    }


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
