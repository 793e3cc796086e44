"""Tables of a report: what they leave out, and how they show what is not there."""

from __future__ import annotations

from pipeline.records import Record
from pipeline.report.numbers import Cell
from pipeline.report.tables import LONGEST_SETTING, differing_settings, results, settings, units


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
