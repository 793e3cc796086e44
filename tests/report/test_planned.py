"""Plan and actual in the report: every number is that of the plan's record, of a cache's manifest, or of a student's record."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.records import Record
from pipeline.report.planned import Planned, plan_and_actual

SPEED = {"startup_seconds": 10.0, "cache_seconds": 2.0, "row_seconds": 0.01, "timed_rows": 500}
STUDENT = {
    "samples": 6400,
    "steps": 100.0,
    "validate_every": 10,
    "cached_step_seconds": 0.1,
    "online_step_seconds": 0.4,
    "validation_seconds": 0.5,
}
DEVICE = "cpu with 2 threads, float32"


def plan_record(**values: Any) -> Record:
    own = {"encoding": "dense float16", "exact": True, "bytes": {"training": 1000, "validation": 200, "test": 300}}
    known = {
        "rows": {"training": 6000, "validation": 500, "test": 500},
        "encodings": [own],
        "teacher": "itself",
        "speed": SPEED,
        "student": STUDENT,
    }
    made = {"measured": "2026-01-31T12:00:00+00:00", "device": DEVICE, "batch_size": 256}
    return Record("plan", "", "0" * 64, "toy", {}, {}, {**known, **values}, made)


def cache(rows: int, stored: int | None, device: str = DEVICE, **provenance: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"rows": rows, "provenance": {"device": device, **provenance}}
    return found if stored is None else {**found, "store_bytes": stored}


def student(seconds: float, steps: int = 1000, stage: str = "student") -> Record:
    return Record(stage, "", "1" * 64, "toy", {}, {}, {"training_seconds": seconds, "steps": steps}, {})


CACHES = {
    "training": cache(6000, 1000, seconds=35.0, rows_computed=3000),
    "validation": cache(500, 220, seconds=7.0, rows_computed=500),
    "test": cache(500, None, seconds=0.5, rows_computed=0),
}


def cells(planned: Planned, number: int) -> list[list[str]]:
    return [[cell.text for cell in row] for row in planned.tables[number].rows]


def test_rows_and_bytes_stand_beside_those_of_the_caches() -> None:
    assert cells(plan_and_actual(plan_record(), CACHES, []), 0) == [
        ["training", "6,000", "6,000", "1,000", "1,000", "1.00"],
        ["validation", "500", "500", "200", "220", "1.10"],
        ["test", "500", "500", "300", "–", "–"],
    ]


def test_seconds_are_planned_for_the_rows_that_were_computed() -> None:
    table = plan_and_actual(plan_record(), CACHES, []).tables[1]
    assert [[cell.value if cell.value is not None else cell.text for cell in row] for row in table.rows] == [
        ["training", 3000, 40.0, 35.0, 0.875],
        ["validation", 500, 7.0, 7.0, 1.0],
        ["all", "", 47.0, 42.0, pytest.approx(42 / 47)],
    ]


def test_an_epoch_is_the_mean_of_the_students() -> None:
    ran = [student(140.0), student(160.0), student(900.0, stage="baseline")]
    [row] = plan_and_actual(plan_record(), CACHES, ran).tables[2].rows
    assert [cell.text for cell in row[:2]] == ["student", "2 seeds"]
    assert [cell.value for cell in row[2:]] == [pytest.approx(15.0), pytest.approx(15.0), pytest.approx(1.0)]


def test_what_was_not_timed_has_no_table() -> None:
    planned = plan_and_actual(plan_record(speed=None, student=None, teacher="noise"), CACHES, [student(140.0)])
    assert len(planned.tables) == 1
    assert "The teacher was absent" in " ".join(planned.sentences)
    assert plan_and_actual(plan_record(), {}, []).tables == []


def test_it_is_said_where_the_plan_was_measured_and_where_the_caches_were_made() -> None:
    [said] = plan_and_actual(plan_record(), CACHES, []).sentences
    assert said == f"The plan was measured 2026-01-31 12:00:00 UTC on {DEVICE}, batches of 256, on 500 rows."
    elsewhere = {"training": cache(6000, 1000, device="another")}
    assert "made on another device: another." in plan_and_actual(plan_record(), elsewhere, []).sentences[-1]


def test_bytes_of_compressed_stores_are_said_to_be_the_most() -> None:
    own = {"encoding": "dense float16", "exact": False, "bytes": {"training": 1000}}
    [table] = plan_and_actual(plan_record(encodings=[own], rows={"training": 6000}, speed=None), CACHES, []).tables
    assert "bytes planned, at most" in table.header
    assert [row[0].text for row in table.rows] == ["training"]
