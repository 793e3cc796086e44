"""Numbers and sentences of a report, word by word."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.comparison_table import gain_line
from pipeline.report.headline import headline, reading, saving_sentences
from pipeline.report.numbers import (
    Cell,
    count,
    duration,
    fixed,
    percent,
    plural,
    points,
    rough,
    scientific,
    shortened,
    size,
    spread,
)

NBSP = "\N{NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.7e-5, "27 µs"),
        (0.0031, "3.1 ms"),
        (0.55, "0.55 s"),
        (59.994, "59.99 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (1_400_000, "16 d 4 h"),
    ],
)
def test_a_duration_is_shown_in_a_unit_that_suits_it(value: float, text: str) -> None:
    assert duration(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(12, "12 B"), (59159, "59.2 kB"), (2_500_000, "2.5 MB"), (3.2e9, "3.2 GB")]
)
def test_a_size_is_shown_in_decimal_units(value: float, text: str) -> None:
    assert size(value) == text


def test_the_small_forms() -> None:
    assert (percent(0.95578), points(-0.404), points(11.206), count(56554.0)) == ("95.58", "−0.40", "+11.21", "56,554")
    assert (fixed(3)(1 / 3), scientific(1.2345e-10), scientific(None)) == ("0.333", "1.23e-10", "infinite")
    assert (shortened("ant"), shortened("a" * 30)) == ("ant", "a" * 11 + "…" + "a" * 10)
    assert [rough(value) for value in (0.347, 6.449, 99.6, 1234.0)] == ["0.35", "6.4", "100", "1,200"]
    assert [plural(count, "error") for count in (0, 1, 1200)] == ["0 errors", "1 error", "1,200 errors"]


def test_long_names_that_differ_at_their_ends_still_differ_when_they_are_cut() -> None:
    names = [f"a class with a long name, number {place}" for place in range(150)]
    assert len({shortened(name) for name in names}) == 150
    assert {len(shortened(name)) for name in names} == {22}


def test_a_metric_is_a_number_a_mean_with_its_deviation_or_nothing() -> None:
    assert spread(0.5, percent) == Cell("50.00", 0.5)
    assert spread({"mean": 0.5, "sd": 0.01, "values": []}, percent) == Cell(f"50.00 ±{NBSP}1.00", 0.5)
    assert spread({"mean": 0.5, "sd": None, "values": [0.5]}, percent) == Cell("50.00", 0.5)
    assert spread(None, percent) == spread({"mean": None, "sd": None}, percent) == Cell("–")


def metrics(**changed: Any) -> dict[str, Any]:
    return {
        "seeds": [0, 1],
        "teacher": {"accuracy": 0.99},
        "student": {"accuracy": {"mean": 0.95, "sd": 0.01}},
        "baseline": {"accuracy": {"mean": 0.85, "sd": 0.02}},
        "gain_points": {"mean": 10.0, "sd": 1.5, "n": 2},
        "labels": {
            "student": 50,
            "training": 1080,
            "training_samples": 1100,
            "teacher": 1080,
            "test": 380,
            "validation": 340,
        },
        **changed,
    }


def test_the_headline_says_what_each_model_reached_and_what_distillation_gained() -> None:
    assert headline(metrics()).replace(NBSP, " ") == (
        "The student gets 95.00 ± 1.00 % of the 380 labelled test samples right, its teacher 99.00 %, the label-only "
        "student 85.00 ± 2.00 %. Distillation gains 10.00 ± 1.50 points of accuracy (2 seeds, paired)."
    )


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        ({"mean": -2.0, "sd": 0.5, "n": 3}, "Distillation loses 2.00 ± 0.50 points of accuracy (3 seeds, paired)."),
        ({"mean": 0.3, "sd": 0.5, "n": 3}, "which is within one standard deviation of nothing."),
        ({"mean": 4.0, "sd": None, "n": 1}, "changes accuracy by +4.00 points (1 seed, so no spread is known)."),
    ],
)
def test_the_headline_claims_no_gain_that_the_seeds_do_not_show(gain: dict[str, Any], said: str) -> None:
    assert headline(metrics(gain_points=gain)).replace(NBSP, " ").endswith(said)
    assert gain_line(gain).endswith(said.replace("−", "-").replace("Distillation", "distillation"))


def test_the_headline_without_labels_or_baseline_says_what_is_missing() -> None:
    nothing = {"mean": None, "sd": None, "n": 0}
    assert "no label-only student" in headline(metrics(baseline={}, gain_points=nothing))
    assert headline(metrics(student={}, baseline={}, gain_points=nothing)).startswith("The test split has no labels")


def test_the_reading_tells_the_students_labels_from_the_teachers() -> None:
    assert reading(metrics())[0] == (
        "The student may use 50 of the 1,080 training labels; the other 1,050 training samples are an unlabelled transfer "
        "set. But the teacher was trained on 1,080 labels: the smaller number says what the student needs, not what the "
        "whole system used."
    )
    every = {"student": 1080, "training": 1080, "training_samples": 1080, "teacher": 1080, "test": 1, "validation": 0}
    assert reading(metrics(labels=every))[0] == (
        "The student may use all 1,080 training labels. The teacher was trained on 1,080 labels."
    )
    assert "not recorded" in reading(metrics(labels={**every, "teacher": None}))[0]
    assert reading(metrics(seeds=[3]))[1].startswith("One student seed")


@pytest.mark.parametrize(
    ("baseline", "validation", "said"),
    [
        (True, 340, "chosen on validation. Both keep their best weights on the 340 labelled validation samples."),
        (
            True,
            0,
            "both keep their last weights, and the label-only student takes the first learning rate and weight decay",
        ),
        (False, 1, "The student keeps its best weights on the 1 labelled validation sample."),
        (False, 0, "The student keeps its last weights: the validation split has no labels to choose by."),
    ],
)
def test_the_reading_claims_no_choice_that_was_not_made(baseline: bool, validation: int, said: str) -> None:
    changed = {"labels": {**metrics()["labels"], "validation": validation}}
    if not baseline:
        changed["baseline"] = {}
    sentence = reading(metrics(**changed))[2]
    assert said in sentence
    assert ("label-only" in sentence) is baseline


def test_the_saving_is_told_with_its_break_even_or_why_there_is_none() -> None:
    saving = {
        "timed_steps": 20,
        "rounds": 3,
        "cached_epoch_seconds": 0.5,
        "online_epoch_seconds": 2.0,
        "online_over_cached": 4.0,
        "cache_seconds": 3.0,
        "break_even_epochs": 2.0,
    }
    assert saving_sentences(saving)[0].endswith(
        "run for 20 steps in turn; the median of 3 rounds is scaled to an epoch."
    )
    assert saving_sentences(saving)[1].endswith("took 3.00 s; it has paid for itself after 2 epochs of one student.")
    assert "never pays" in saving_sentences({**saving, "break_even_epochs": None})[1]
    assert "several runs" in saving_sentences({**saving, "cache_seconds": None})[1]
    assert saving_sentences("not measured: teacher absent") == [
        "What the cache saves was not measured: teacher absent."
    ]
