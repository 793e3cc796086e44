"""Tables of a report: what they leave out, and how they show what is not there."""

from __future__ import annotations

from pipeline.records import Record, difference
from pipeline.report.numbers import Cell
from pipeline.report.tables import (
    LONGEST_SETTING,
    certificates,
    differing_settings,
    pairs_of_classes,
    results,
    settings,
    units,
)


def test_settings_are_listed_without_digests_and_long_ones_are_cut() -> None:
    names = [f"class {place}" for place in range(1000)]
    made_from = {"data": {"samples": 5, "labels_sha256": "0" * 64, "class_names": names}, "seeds": [0, 1], "use": None}
    listed = dict(settings(made_from))
    assert list(listed) == ["data.samples", "data.class_names", "seeds", "use"]
    assert (listed["data.samples"], listed["seeds"], listed["use"]) == ("5", "0, 1", "none")
    assert len(listed["data.class_names"]) == LONGEST_SETTING


def test_only_differing_settings_are_listed_and_digests_by_their_start() -> None:
    runs = [{"a": 1, "b": {"c": 2, "d": "0" * 64}}, {"a": 1, "b": {"c": 3, "d": "1" * 64}, "e": None}]
    table = differing_settings(["one", "two"], runs)
    assert table.header == ["setting", "one", "two"]
    assert [[cell.text for cell in row] for row in table.rows] == [["b.c", "2", "3"], ["b.d", "0" * 12, "1" * 12]]


def test_a_setting_that_only_the_key_names_is_shown_by_the_one_that_it_follows_from() -> None:
    table = differing_settings(["one", "two"], [{"baseline": {"seeds": [0]}}, {"baseline": {"seeds": [1]}}])
    assert table.rows[0][0].text == "baseline.search_seeds (their seeds)"
    assert difference({"baseline": {"seeds": [0]}}, {"baseline": {"seeds": [1]}}) == (
        "baseline.search_seeds (their seeds) [0] -> [1]"
    )


def test_one_error_is_no_plural() -> None:
    confusion = {"errors": 1, "samples": 1, "pairs": [[0, 1, 1]]}
    assert pairs_of_classes(confusion, ["a", "b"], "teacher").caption == "teacher: 1 error in 1 answer"


def test_certificates_say_which_rows_they_were_measured_on() -> None:
    caches = {split: {"certificate": {"measured_on": "all rows", "temperatures": {}}} for split in ("training", "test")}
    assert certificates(caches).caption.endswith("measured on all rows")
    caches["test"]["certificate"]["measured_on"] = "5 of 9 rows"
    assert certificates(caches).caption.endswith("measured on training: all rows; test: 5 of 9 rows")


def test_a_metric_that_no_column_has_is_left_out_and_one_that_some_lack_is_a_dash() -> None:
    table = results({"teacher": {"accuracy": 0.5}, "student": {"accuracy": None, "kl": 0.25}}, "a caption")
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["accuracy, %", "50.00", "–"],
        ["KL from the teacher, nats", "–", "0.2500"],
    ]


def test_a_unit_of_an_older_softcache_has_no_recorded_reason_or_device() -> None:
    record = Record("student", "seed 0", "f" * 64, "toy", {}, {}, {}, {"started": "2026-01-02T03:04:05+00:00"})
    [row] = units([record]).rows
    assert [cell.text for cell in row] == [
        "student seed 0",
        "not recorded",
        "2026-01-02 03:04:05 UTC",
        "–",
        "–",
        "f" * 12,
    ]
    assert row[3] == Cell("–")
