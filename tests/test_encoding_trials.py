"""Trials of encodings: which are tried, on which sample, and which one is taken."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.encoding_trials import (
    MEASURED_AT_ONCE,
    Trial,
    Trials,
    candidates,
    drawn,
    logits_of_sample,
    table_of,
    trial_of,
)
from pipeline.errors import TeacherOutputError, UserError
from pipeline.targets.dense import DTYPES
from pipeline.targets.encodings import encoding_of

NOW = {"name": "dense", "dtype": "float16"}


def trial(name: str, bytes_per_row: int, kl: float | None, sound: bool = True) -> Trial:
    error = {"kl_mean": kl, "kl_max": kl, "infinite_rows": int(kl is None), "rows": 9}
    return Trial({"name": "dense", "dtype": name}, bytes_per_row, {"temperatures": {"4.0": error}}, sound)


def trials(*some: Trial, max_kl: float = 1e-3, wanted_at: float = 4.0) -> Trials:
    return Trials(some, (4.0,), wanted_at, max_kl, NOW, 9, 9, 3)


@pytest.mark.parametrize(
    ("classes", "ks"), [(3, []), (8, []), (9, [8]), (64, [8, 16, 32]), (257, [8, 16, 32, 64, 128, 256])]
)
def test_every_encoding_that_the_classes_allow_is_tried_once(classes: int, ks: list[int]) -> None:
    found = candidates(classes, [2.0, 4.0], NOW)
    assert found[:4] == [{"name": "dense", "dtype": dtype} for dtype in DTYPES]
    assert [(one["k"], one["value_bits"]) for one in found[4:]] == [(k, bits) for k in ks for bits in (4, 8, 16)]
    assert all(one["temperatures"] == [2.0, 4.0] for one in found[4:])
    for parameters in found:
        encoding_of(parameters).columns(classes)


def test_the_recipes_own_encoding_is_tried_where_the_classes_allow_it() -> None:
    now = {"name": "top-k", "k": 20, "value_bits": 8, "temperatures": [4.0]}
    assert candidates(21, [4.0], now)[-1] == now
    assert now not in candidates(20, [4.0], now)
    assert candidates(300, [4.0], {**now, "k": 64}) == candidates(300, [4.0], NOW)


def test_the_choice_is_the_first_that_is_sound_and_near_enough() -> None:
    found = trials(trial("a", 1, None), trial("b", 2, 2e-3), trial("c", 3, 1e-4, sound=False), trial("d", 4, 1e-3))
    assert found.choice is found.chosen() is found.trials[3]
    assert replace(found, max_kl=1e-2).choice is found.trials[1]


def test_where_none_is_near_enough_the_best_is_named() -> None:
    with pytest.raises(UserError, match=r"at most 1e-05 at temperature 4, .* the best, dense b, has 0\.002"):
        trials(trial("a", 1, None), trial("b", 2, 2e-3), trial("c", 3, 3e-3), max_kl=1e-5).chosen()


def test_a_temperature_that_is_not_served_is_infinitely_far() -> None:
    assert trial("a", 1, 0.0).kl_at(2.0) == trial("a", 1, None).kl_at(4.0) == math.inf
    assert trials(trial("a", 1, 0.0), wanted_at=2.0).choice is None


def test_rows_that_are_no_distributions_are_said_to_be() -> None:
    shown = table_of(trials(trial("float16", 6, 1e-5, sound=False), trial("float32", 12, 1e-9)))
    assert "dense float16          6   1.0e-05  <- the recipe's, rows do not sum to 1" in shown
    assert "dense float32         12   1.0e-09  <- chosen" in shown


def test_float16_of_very_many_equal_classes_is_unsound() -> None:
    """1 / 41,891 is 400.5 of float16's smallest steps, half of which rounding loses: the row sums to 0.9988."""
    logits = torch.zeros(2, 41_891)
    assert not trial_of(NOW, logits, 1.0, [1.0]).sound
    assert trial_of({"name": "dense", "dtype": "log-uint8"}, logits, 1.0, [1.0]).sound


def test_measuring_in_pieces_gives_the_certificate_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = 3 * torch.randn(57, 12, generator=torch.Generator().manual_seed(0))
    assert logits.numel() < MEASURED_AT_ONCE
    for parameters in candidates(12, [1.0, 4.0], NOW):
        whole = trial_of(parameters, logits, 4.0, [1.0, 2.0, 4.0])
        with monkeypatch.context() as small:
            small.setattr("pipeline.encoding_trials.MEASURED_AT_ONCE", 100)
            pieces = trial_of(parameters, logits, 4.0, [1.0, 2.0, 4.0])
        assert (
            pieces.bytes_per_row
            == whole.bytes_per_row
            == sum(array[0].numel() * array.element_size() for array in encoding_of(parameters).encode(logits, 4.0))
        )
        for temperature, error in whole.certificate["temperatures"].items():
            assert pieces.certificate["temperatures"][temperature] == pytest.approx(error, rel=1e-12, abs=1e-18)


def test_all_rows_are_taken_where_the_sample_would_hold_them() -> None:
    assert drawn(100, 10, None).tolist() == drawn(100, 10, 100).tolist() == list(range(100))


@pytest.mark.parametrize(
    ("classes", "samples", "count"),
    [(10, None, 4096), (2**11, None, 4096), (2**20, None, 8), (2**24, None, 1), (10, 7, 7)],
)
def test_the_sample_is_as_large_as_its_logits_allow(classes: int, samples: int | None, count: int) -> None:
    found = drawn(10_000, classes, samples)
    assert len(np.unique(found)) == len(found) == count
    assert found.tolist() == sorted(found.tolist()) == drawn(10_000, classes, samples).tolist()
    assert 0 <= found[0] <= found[-1] < 10_000


def test_the_sample_is_spread_over_all_rows() -> None:
    counts = np.histogram(drawn(1_000_000, 10, None), bins=8, range=(0, 1_000_000))[0]
    assert counts.min() > 400  # 512 expected, standard deviation 21


def teacher_of(change: Callable[[Tensor], Any]) -> Callable[[NDArray[np.int64]], Tensor]:
    """A teacher whose logits of sample i are i and -i, changed."""

    def forward(indices: NDArray[np.int64]) -> Tensor:
        column = torch.from_numpy(indices).float()
        logits: Tensor = change(torch.stack([column, -column], dim=1))
        return logits

    return forward


def test_the_teacher_is_asked_in_batches_for_the_drawn_samples() -> None:
    seen: list[int] = []
    logits = logits_of_sample(teacher_of(lambda logits: logits), np.array([2, 3, 5, 7, 11]), 2, 2, seen.append)
    assert logits.tolist() == [[2, -2], [3, -3], [5, -5], [7, -7], [11, -11]]
    assert seen == [2, 2, 1]


@pytest.mark.parametrize(
    ("change", "mentions"),
    [
        (
            lambda logits: torch.where(logits == 5, math.nan, logits),
            "NaN or infinity for sample 5 of the training split",
        ),
        (lambda logits: torch.where(logits == 5, math.inf, logits), "for sample 5 "),
        (lambda logits: torch.where(logits.abs() == 5, -math.inf, logits), "for sample 5 "),
        (lambda logits: logits[:, :1], r"shape \(2, 1\) for 2 samples of 2 classes, first at sample 2 "),
    ],
    ids=["NaN", "infinity", "no class possible", "another number of classes"],
)
def test_logits_that_are_none_are_refused(change: Callable[[Tensor], Any], mentions: str) -> None:
    with pytest.raises(TeacherOutputError, match=mentions):
        logits_of_sample(teacher_of(change), np.array([2, 3, 5]), 2, 2)


def test_a_class_may_be_impossible() -> None:
    change = lambda logits: torch.where(logits == -5, -math.inf, logits)  # noqa: E731
    assert logits_of_sample(teacher_of(change), np.array([5]), 2, 2).tolist() == [[5, -math.inf]]
