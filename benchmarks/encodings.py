"""Bytes per row against the mean KL(exact || decoded) of each encoding; and what encoding a large vocabulary costs.

python -m benchmarks.encodings [--quick] [--json FILE]

Shape legend: N positions, C classes, K listed classes.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.rounds import (
    QUICK_ROUNDS,
    ROUNDS,
    Findings,
    Row,
    alternately,
    at_most,
    median_ratio,
    reported,
    run,
    seconds_of,
)
from pipeline.devices import threads
from pipeline.targets.certificate import certificate_of, error_at
from pipeline.targets.certificate import measure as errors_of
from pipeline.targets.dense import DTYPES, dense_of
from pipeline.targets.encodings import Encoding
from pipeline.targets.largest import largest_classes
from pipeline.targets.sparse import SparseTargets
from pipeline.targets.top_k import TopK
from pipeline.teachers.opening import open_teacher
from stages.chain import open_experiment, runner_of

PEAKED, FLAT = 3.27, 1.0  # standard deviations of made-up logits
STORED_AT = (1.0, 4.0, 8.0)
SERVED_AT = (1.0, 2.0, 4.0, 8.0)
MOST_KL: dict[str, dict[tuple[float, ...], float]] = {
    "log-uint8": {(1.0,): 3e-4, (2.0, 4.0, 8.0): 1e-4},
    "log-uint16": {SERVED_AT: 1e-6},
}
MOST_OF_FLOAT16 = 0.51  # of its bytes, for log-uint8

VOCABULARY = 128_256
MOST_BYTES_A_TOKEN = 300
MOST_SOFTMAXES, MOST_SOFTMAXES_MORE = 1.5, 1.0
LISTS = ((1.0,), (1.0, 2.0), (1.0, 2.0, 4.0), (1.0, 2.0, 4.0, 8.0))

# Of made-up logits of a language model: how steeply they fall with the logarithm of the rank, how far each is from that,
# and by how much one position is sharper than another. Its top 1 then has about half of the mass, its top 50 95 %.
SLOPE, SCATTER, SHARPNESS = 1.9, 1.0, 0.2

KS = (8, 16, 32, 64, 128, 256, 512)
VALUE_BITS: tuple[Literal[4, 8, 16], ...] = (4, 8, 16)
PLOTTED_AT, PLOTTED_STORED_AT = (1.0, 4.0), 4.0
VALUES_AT_ONCE = 2**22  # in float64, 32 MB for each of a handful of temporaries

DENSE, NAMED = "dense", "top-k, 16 bits"  # lines of the plot whose points have names
LOOKS: dict[str, dict[str, Any]] = {
    DENSE: {"color": "#222222", "marker": "D", "linestyle": "none"},
    "top-k, 4 bits": {"color": "#cc3311", "marker": "v"},
    "top-k, 8 bits": {"color": "#ee9933", "marker": "s"},
    NAMED: {"color": "#4477aa", "marker": "o"},
}

MeanKl = dict[float, dict[float, float]]  # by the temperature stored at, then by that served at


@dataclass(frozen=True)
class Teacher:
    """Logits (N, C) of a teacher, and what it is."""

    name: str
    logits: Tensor  # (N, C)


@dataclass(frozen=True)
class PlainTopK(TopK):
    """What a store keeps that has no encoding: int32 ids and bfloat16 log-probabilities; beside them the exact tail mass.

    It is decoded as TopK is: the listed classes renormalised to all mass but the tail's, which is spread evenly.
    """

    def encode(self, logits_NC: Tensor, temperature: float) -> tuple[Tensor, ...]:
        ids_NK = largest_classes(logits_NC, self.k)
        log_NC = torch.log_softmax(logits_NC.to(torch.float64) / temperature, dim=1)
        listed_NK = log_NC.gather(1, ids_NK)
        tail_N1 = log_NC.scatter(1, ids_NK, -math.inf).exp().sum(dim=1, keepdim=True)
        return ids_NK.to(torch.int32), listed_NK.to(torch.bfloat16), tail_N1.to(torch.float32)

    def decode_sparse(self, stored: tuple[Tensor, ...], class_count: int, temperature: float) -> SparseTargets:
        ids_NK, listed_NK, tail_N1 = stored
        probabilities_NK = torch.softmax(listed_NK.to(torch.float32), dim=1) * (1 - tail_N1)
        return SparseTargets(ids_NK.to(torch.int64), probabilities_NK, tail_N1.squeeze(1), class_count)

    def retained(self, stored: tuple[Tensor, ...], decoded_NC: Tensor) -> Tensor:
        return torch.zeros_like(decoded_NC, dtype=torch.bool).scatter_(1, stored[0].to(torch.int64), True)


def gaussian_teacher(name: str, spread: float, positions: int, classes: int = 1000) -> Teacher:
    """Independent normal logits of standard deviation `spread`."""
    generator = torch.Generator().manual_seed(0)
    return Teacher(name, spread * torch.randn(positions, classes, generator=generator))


def digits_teacher(quick: bool) -> Teacher:
    """The CNN of the default recipe, trained by the real stage, on the training split; a quick one is hardly trained."""
    settings = ["teacher.training.steps=60", "teacher.training.validate_every=30"] if quick else []
    with tempfile.TemporaryDirectory() as workspace:
        experiment = open_experiment("digits", settings, Path(workspace), None)
        with threads(1):  # two would wait for each other in every small operation while others use the machine
            runner_of(experiment, report=lambda line: None).run("teacher")
        samples = len(experiment.datasets("transfer")["training"])
        forward = open_teacher(experiment, "training")
        return Teacher("digits CNN", forward(np.arange(samples)).float().cpu())


def language_logits(positions: int) -> Tensor:
    """Heavy-tailed logits (N, C) of a large vocabulary, made up."""
    generator = torch.Generator().manual_seed(0)
    log_rank_C = torch.arange(1, VOCABULARY + 1).log()
    logits_NC = torch.randn(positions, VOCABULARY, generator=generator).mul_(SCATTER).sub_(SLOPE * log_rank_C)
    logits_NC *= torch.exp(SHARPNESS * torch.randn(positions, 1, generator=generator))
    return logits_NC[:, torch.randperm(VOCABULARY, generator=generator)]


def bytes_per_row(encoding: Encoding, logits_NC: Tensor, stored_at: float = 1.0) -> int:
    """Bytes of what is stored of one position."""
    return sum(array.nbytes for array in encoding.encode(logits_NC[:1], stored_at))


def mean_kl(
    encoding: Encoding, logits_NC: Tensor, stored_at: float, served_at: Sequence[float] = SERVED_AT
) -> dict[float, float]:
    """By temperature, as a cache's certificate has it; infinite where decoding calls impossible what is not."""
    pieces = torch.split(logits_NC, max(1, VALUES_AT_ONCE // logits_NC.shape[1]))
    stored = (encoding.encode(piece, stored_at) for piece in pieces)
    sums = [
        errors_of(piece, arrays, encoding, stored_at, served_at) for piece, arrays in zip(pieces, stored, strict=True)
    ]
    certificate = certificate_of(sums, len(logits_NC))
    found = {temperature: error_at(certificate, temperature) for temperature in served_at}
    return {
        at: math.inf if error is None or error["kl_mean"] is None else error["kl_mean"] for at, error in found.items()
    }


def dense_rows(teacher: Teacher) -> list[Row]:
    """Every dense encoding, stored and served at temperatures apart."""
    rows = []
    for dtype in DTYPES:
        encoding = dense_of(dtype)
        found = {stored_at: mean_kl(encoding, teacher.logits, stored_at) for stored_at in STORED_AT}
        classes, nbytes = teacher.logits.shape[1], bytes_per_row(encoding, teacher.logits)
        of = f"{dtype}, {teacher.name} ({classes} classes, {nbytes:,} bytes a row)"
        if dtype not in MOST_KL:
            rows.append(reported(f"{of}: mean KL at T = {_listed(SERVED_AT)}", _words(found, SERVED_AT), nbytes))
        for served_at, limit in MOST_KL.get(dtype, {}).items():
            worst = max(found[stored_at][at] for stored_at in STORED_AT for at in served_at)
            what = f"{of}: worst mean KL at T = {_listed(served_at)}"
            rows.append(at_most(what, _words(found, served_at), worst, limit))
    return rows


def _words(found: MeanKl, served_at: Sequence[float]) -> str:
    """All of what was found at these temperatures."""
    return "; ".join(
        f"stored at T = {stored_at:g}: {', '.join(_kl(errors[at]) for at in served_at)}"
        for stored_at, errors in found.items()
    )


def _kl(value: float) -> str:
    return f"{value:.1e}" if math.isfinite(value) else "infinite"


def _listed(temperatures: Iterable[float]) -> str:
    return ", ".join(f"{temperature:g}" for temperature in temperatures)


def half_of_float16(teacher: Teacher) -> Row:
    """Bytes of log-uint8 over those of float16."""
    half, whole = (bytes_per_row(dense_of(dtype), teacher.logits) for dtype in ("log-uint8", "float16"))
    what = f"bytes a row of {teacher.logits.shape[1]} classes, log-uint8 / float16"
    return at_most(what, f"{half:,} / {whole:,}", half / whole, MOST_OF_FLOAT16)


def vocabulary_rows(logits_NC: Tensor) -> list[Row]:
    """Bytes and error of a token at T = 1."""

    def found(encoding: Encoding) -> tuple[int, str]:
        nbytes, errors = bytes_per_row(encoding, logits_NC), mean_kl(encoding, logits_NC, 1.0, (1.0,))
        return nbytes, f"{nbytes} bytes, mean KL at T = 1 {errors[1.0]:.3f}"

    of = f"{VOCABULARY:,} classes: bytes a token"
    nbytes, words = found(TopK(64, (1.0,), 16))
    few, few_words = found(TopK(50, (1.0,), 4))
    plain, plain_words = found(PlainTopK(32, (1.0,)))
    return [
        at_most(f"top-64 of 16 bits, {of}", f"{words}, of {described(logits_NC)}", nbytes, MOST_BYTES_A_TOKEN),
        reported(f"top-50 of 4 bits, {of}", few_words, few),
        reported(f"top-32 as int32 ids, bfloat16 values and a float32 tail mass, {of}", plain_words, plain),
    ]


def described(logits_NC: Tensor) -> str:
    """What the made-up logits are like."""
    largest = [torch.softmax(piece, dim=1).topk(50).values for piece in torch.split(logits_NC, 32)]
    largest_NK = torch.cat(largest).to(torch.float64)
    top_1, top_50 = float(largest_NK[:, 0].mean()), float(largest_NK.sum(dim=1).mean())
    return f"made-up logits with a top-1 mass of {top_1:.2f} and a top-50 mass of {top_50:.2f} on average"


def speed_rows(logits_NC: Tensor, rounds: int) -> list[Row]:
    """Seconds of encoding top-64 over those of one softmax, on one thread."""
    lists = {f"T = {_listed(listed)}": listed for listed in (*LISTS, (4.0,))}

    def encode(listed: tuple[float, ...]) -> Callable[[], float]:
        return lambda: seconds_of(lambda: TopK(64, listed).encode(logits_NC, listed[0]))

    works = {name: encode(listed) for name, listed in lists.items()}
    with threads(1):
        softmax = {"softmax": lambda: seconds_of(lambda: torch.softmax(logits_NC, dim=1))}
        measured = alternately(rounds, **softmax, **works)
    of = f"top-64 of {len(logits_NC)} positions, {VOCABULARY:,} classes, 1 thread"
    rows = [_one_temperature(measured, of, name) for name in ("T = 1", "T = 4")]
    return [*rows, _further_temperatures(measured, of, [name for name in lists if name != "T = 4"])]


def _one_temperature(measured: Mapping[str, list[float]], of: str, name: str) -> Row:
    ratio, words = median_ratio(measured, name, "softmax")
    return at_most(f"encoding {of}, at {name} / torch.softmax", words, ratio, MOST_SOFTMAXES)


def _further_temperatures(measured: Mapping[str, list[float]], of: str, names: list[str]) -> Row:
    """The largest of what each further temperature adds, in medians over rounds of softmaxes."""
    more = [
        statistics.median(
            (longer - shorter) / softmax
            for longer, shorter, softmax in zip(measured[after], measured[before], measured["softmax"], strict=True)
        )
        for before, after in pairwise(names)
    ]
    words = f"{', '.join(f'{one:.2f}' for one in more)} softmaxes for the second, third and fourth of {names[-1]}"
    return at_most(f"encoding {of}, each further temperature", words, max(more), MOST_SOFTMAXES_MORE)


@dataclass(frozen=True)
class Point:
    """One encoding of the plot; `line` connects those that differ in k alone. `kl` are its mean KLs at PLOTTED_AT."""

    line: str
    name: str
    nbytes: int
    kl: list[float]


def points_of(teacher: Teacher) -> list[Point]:
    """All encodings of one teacher, bytes per row against mean KL."""
    encodings: list[tuple[str, str, Encoding]] = [(DENSE, dtype, dense_of(dtype)) for dtype in DTYPES]
    encodings += [(f"top-k, {bits} bits", f"k = {k}", TopK(k, PLOTTED_AT, bits)) for bits in VALUE_BITS for k in KS]
    return [
        Point(
            line,
            name,
            bytes_per_row(encoding, teacher.logits, PLOTTED_STORED_AT),
            list(mean_kl(encoding, teacher.logits, PLOTTED_STORED_AT, PLOTTED_AT).values()),
        )
        for line, name, encoding in encodings
    ]


def draw_encodings(series: Mapping[str, Any], path: Path) -> None:
    """Bytes per row against mean KL, a panel for each temperature, as SVG; what is infinite is left out."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    with mpl.rc_context({"svg.hashsalt": "softcache", "font.size": 9}):
        figure, panels = pyplot.subplots(1, 2, figsize=(9, 4), layout="constrained", sharex=True, sharey=True)
        figure.suptitle(series["teacher"])
        for place, (panel, temperature) in enumerate(zip(panels, series["temperatures"], strict=True)):
            for line in LOOKS:
                drawn = [point for point in series["points"] if point["line"] == line]
                _draw(panel, line, [(point["nbytes"], point["kl"][place], point["name"]) for point in drawn])
            panel.set(xscale="log", yscale="log", xlabel="bytes a row", title=f"at T = {temperature:g}")
        panels[0].set_xlim(18, 15_000)  # room for the names on the right
        panels[0].set_ylim(1e-17, 20)
        panels[0].set_ylabel("mean KL(exact || decoded), nats")
        panels[0].legend(loc="lower left", frameon=False)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def _draw(panel: Any, line: str, points: Sequence[tuple[int, float, str]]) -> None:
    """One line of points (bytes, KL, name)."""
    finite = [point for point in points if 0 < point[1] < math.inf]
    panel.plot([x for x, _, _ in finite], [y for _, y, _ in finite], label=line, **LOOKS[line])
    for x, y, name in finite:
        if line == DENSE:
            panel.annotate(name, (x, y), xytext=(6, -7), textcoords="offset points")
        elif line == NAMED:
            text = name if name == f"k = {KS[-1]}" else name.removeprefix("k = ")  # in full where there is room
            panel.annotate(text, (x, y), xytext=(3, 4), textcoords="offset points")


def measure(quick: bool) -> Findings:
    """Errors of three teachers, bytes and seconds of a vocabulary, and what the plot shows."""
    rounds, positions, tokens = (QUICK_ROUNDS, 64, 4) if quick else (ROUNDS, 1000, 256)
    peaked, flat = (gaussian_teacher(name, spread, positions) for name, spread in (("peaked", PEAKED), ("flat", FLAT)))
    rows = [row for teacher in (peaked, flat, digits_teacher(quick)) for row in dense_rows(teacher)]
    logits_NC = language_logits(tokens)
    rows += [half_of_float16(peaked), *vocabulary_rows(logits_NC), *speed_rows(logits_NC, rounds)]
    series = {
        "teacher": f"1000 classes, logits of standard deviation {PEAKED:g}, stored at T = {PLOTTED_STORED_AT:g}",
        "temperatures": list(PLOTTED_AT),
        "points": [asdict(point) for point in points_of(peaked)],
    }
    return Findings("Encodings: bytes and seconds against KL", rows, series)


if __name__ == "__main__":
    run(measure)
