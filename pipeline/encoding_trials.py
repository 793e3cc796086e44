"""Trials of encodings: what each would cost and lose on a sample of the teacher's logits, and which of them to take.

Shape legend: N sampled rows, B rows of a batch, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.progress import Bar, no_bar
from pipeline.recipe import LARGEST_KL, Recipe
from pipeline.sorting import Indices
from pipeline.targets.certificate import certificate_of, error_at, measure
from pipeline.targets.dense import DTYPES
from pipeline.targets.encodings import encoding_name, encoding_of

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.targets.production import TeacherForward

MOST_SAMPLES = 4096
MOST_LOGITS = 2**23  # of the sample, unless more samples are asked for: 32 MB, and 6 s for all encodings on 2 cores
MEASURED_AT_ONCE = 2**18  # logits; 2**16 and 2**20 take 1.4 and 2 times as long
SEED = 20_250_117  # of the sample; any other is as good

KEPT_CLASSES = (8, 16, 32, 64, 128, 256)  # k of top-k
VALUE_BITS = (4, 8, 16)


@dataclass(frozen=True)
class Trial:
    """One encoding on the sample: what it holds for a row, uncompressed, and its certificate by temperature.

    `sound` is false where its rows are no distributions to the precision that a cache promises.
    """

    parameters: dict[str, Any]
    bytes_per_row: int
    certificate: dict[str, Any]
    sound: bool = True

    @property
    def name(self) -> str:
        """The encoding for people; the temperatures that all top-k encodings list are said once for all."""
        return encoding_name({name: value for name, value in self.parameters.items() if name != "temperatures"})

    def kl_at(self, temperature: float) -> float:
        """Mean KL(exact || decoded) in nats; infinity where a row's is, or where the encoding does not serve it."""
        error = error_at(self.certificate, temperature)
        return math.inf if error is None or error["kl_mean"] is None else float(error["kl_mean"])


@dataclass(frozen=True)
class Trials:
    """All trials, by bytes, then KL: `samples` of the training split's `distinct` ones, at ascending `temperatures`.

    `wanted_at` is the student's temperature, at which the choice is to have a mean KL of at most `max_kl`; `now` is the
    encoding of the recipe.
    """

    trials: tuple[Trial, ...]
    temperatures: tuple[float, ...]
    wanted_at: float
    max_kl: float
    now: dict[str, Any]
    samples: int
    distinct: int
    classes: int

    @property
    def choice(self) -> Trial | None:
        """The first that qualifies: of the fewest bytes, that of the smallest KL."""
        return next(
            (trial for trial in self.trials if trial.sound and trial.kl_at(self.wanted_at) <= self.max_kl), None
        )

    def chosen(self) -> Trial:
        """The choice. Raises UserError with the best number there is when none qualifies."""
        if self.choice is not None:
            return self.choice
        best = min(self.trials, key=lambda trial: (not trial.sound, trial.kl_at(self.wanted_at)))
        raise UserError(
            f"no encoding has a mean KL(exact || decoded) of at most {self.max_kl:g} at temperature {self.wanted_at:g}, the "
            f"student's; the best, {best.name}, has {best.kl_at(self.wanted_at):.2g}. Set a larger --max-kl."
        )


def candidates(classes: int, temperatures: Sequence[float], now: dict[str, Any]) -> list[dict[str, Any]]:
    """The parameters of every encoding that is tried; top-k ones list `temperatures`. `now` is, where it fits the classes."""
    dense: list[dict[str, Any]] = [{"name": "dense", "dtype": dtype} for dtype in DTYPES]
    top_k: list[dict[str, Any]] = [
        {"name": "top-k", "k": k, "value_bits": bits, "temperatures": list(temperatures)}
        for k in KEPT_CLASSES
        for bits in VALUE_BITS
    ]
    found = [*dense, *top_k]
    found += [now] if now not in found else []
    return [parameters for parameters in found if parameters.get("k", 0) < classes]


def drawn(distinct: int, classes: int, samples: int | None) -> Indices:
    """Which of so many rows (ascending) make up the sample: `samples` of them, by default as many as are measured soon."""
    count = min(MOST_SAMPLES, max(1, MOST_LOGITS // classes)) if samples is None else samples
    if count >= distinct:
        return np.arange(distinct)
    generator = np.random.Generator(np.random.Philox(SEED))
    return np.sort(generator.choice(distinct, count, replace=False, shuffle=False))


def logits_of_sample(
    teacher: TeacherForward,
    indices: NDArray[np.int64],
    classes: int,
    batch_size: int,
    tick: Callable[[int], None] = lambda rows: None,
) -> Tensor:
    """The teacher's float32 logits (N, C) of the training samples at `indices` (N,).

    Raises TeacherOutputError naming the first sample whose logits are NaN or infinite (-inf is a probability of 0), or of
    the wrong number of classes.
    """
    import torch

    from pipeline.targets.encoders import checked_logits

    logits_NC = torch.empty((len(indices), classes))
    for start in range(0, len(indices), batch_size):
        batch = indices[start : start + batch_size]
        logits_NC[start : start + len(batch)] = checked_logits(teacher(batch), batch, (classes,), "training")
        tick(len(batch))
    return logits_NC


def trial_of(parameters: dict[str, Any], logits_NC: Tensor, temperature: float, temperatures: Sequence[float]) -> Trial:
    """Encode logits as a cache of `temperature` would, and measure what comes back at each of `temperatures`."""
    import torch

    encoding, classes = encoding_of(parameters), logits_NC.shape[1]
    sums, sound = [], True
    for piece_NC in torch.split(logits_NC, max(1, MEASURED_AT_ONCE // classes)):
        stored = encoding.encode(piece_NC, temperature)
        sound = sound and encoding.first_wrong_position(stored, classes) is None
        sums.append(measure(piece_NC, stored, encoding, temperature, temperatures))
    bytes_per_row = sum(column.nbytes for column in encoding.columns(classes))
    return Trial(parameters, bytes_per_row, certificate_of(sums, len(logits_NC)), sound)


def trials_of(
    logits_NC: Tensor, distinct: int, recipe: Recipe, max_kl: float | None = None, bar: Bar = no_bar
) -> Trials:
    """Every encoding on the logits of a sample of so many distinct ones, at the temperatures that a recipe speaks of.

    `max_kl` is by default the recipe's, else that of dense encodings.
    """
    targets, classes = recipe.targets, logits_NC.shape[1]
    wanted_at, now = recipe.student_temperature or targets.temperature, targets.encoding_parameters()
    listed = sorted({targets.temperature, *targets.temperatures, wanted_at})
    temperatures = tuple(sorted({*targets.certify, *listed}))
    tried, wanted = [], candidates(classes, listed, now)
    with bar("encoding, the trials", len(wanted), "encodings") as advance:
        for parameters in wanted:
            tried.append(trial_of(parameters, logits_NC, targets.temperature, temperatures))
            advance(1)
    tried.sort(key=lambda trial: (trial.bytes_per_row, trial.kl_at(wanted_at), trial.name))
    limit = max_kl or recipe.student.distillation.max_kl or LARGEST_KL["dense"]
    return Trials(tuple(tried), temperatures, wanted_at, limit, now, len(logits_NC), distinct, classes)


def table_of(found: Trials) -> str:
    """The trials for a terminal: one line for each, the choice marked, and what it and the recipe's encoding cost."""
    wide = max(len(trial.name) for trial in found.trials)
    lines = [
        f"mean KL(exact || decoded) in nats, on {found.samples:,} of {found.distinct:,} distinct training samples of "
        f"{found.classes:,} classes",
        f"{'encoding':{wide}} {'bytes/row':>10}" + "".join(f"{f'T = {one:g}':>10}" for one in found.temperatures),
    ]
    for trial in found.trials:
        cells = "".join(f"{_cell(trial, temperature):>10}" for temperature in found.temperatures)
        lines.append(f"{trial.name:{wide}} {trial.bytes_per_row:>10,}{cells}{_mark(trial, found)}")
    lists = [trial.parameters["temperatures"] for trial in found.trials if "temperatures" in trial.parameters]
    if lists:
        lines.append(f"top-k lists the temperatures {', '.join(f'{one:g}' for one in lists[0])}")
    if found.choice is not None:
        lines.append(
            f"chosen, for the fewest bytes with a mean KL of at most {found.max_kl:g} at T = {found.wanted_at:g}: "
            f"{_described(found.choice, found.wanted_at)}"
        )
    now = next((trial for trial in found.trials if trial.parameters == found.now), None)
    if now is None:
        lines.append(f"the recipe has {encoding_name(found.now)}, which needs more than {found.classes} classes")
    else:
        again = ", too" if now is found.choice else ""
        lines.append(f"the recipe has {_described(now, found.wanted_at)}{again}")
    return "\n".join(lines)


def as_json(found: Trials) -> dict[str, Any]:
    """The table as plain values; a mean KL is null where it is infinite, and left out where it is not served."""
    return {
        "samples": found.samples,
        "distinct_samples": found.distinct,
        "classes": found.classes,
        "temperature": found.wanted_at,
        "max_kl": found.max_kl,
        "recipe_has": found.now,
        "choice": found.choice.parameters if found.choice is not None else None,
        "encodings": [
            {
                "encoding": encoding_name(trial.parameters),
                "parameters": trial.parameters,
                "bytes_per_row": trial.bytes_per_row,
                "sound": trial.sound,
                **{
                    name: {temperature: error[name] for temperature, error in trial.certificate["temperatures"].items()}
                    for name in ("kl_mean", "infinite_rows")
                },
            }
            for trial in found.trials
        ],
    }


def _cell(trial: Trial, temperature: float) -> str:
    error = error_at(trial.certificate, temperature)
    if error is None:
        return "-"
    return "infinite" if error["kl_mean"] is None else f"{error['kl_mean']:.1e}"


def _mark(trial: Trial, found: Trials) -> str:
    notes = ["chosen"] if trial is found.choice else []
    notes += ["the recipe's"] if trial.parameters == found.now else []
    notes += [] if trial.sound else ["rows do not sum to 1"]
    return f"  <- {', '.join(notes)}" if notes else ""


def _described(trial: Trial, temperature: float) -> str:
    return f"{trial.name}, {trial.bytes_per_row:,} bytes a row, mean KL {_cell(trial, temperature)}"
