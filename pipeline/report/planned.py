"""Plan and actual: what `softcache plan` said of a recipe beside what then happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pipeline.planning.figures import STANDS, moment, speed_of, student_of
from pipeline.planning.price import PassSpeed
from pipeline.records import Record
from pipeline.report.numbers import MISSING, Cell, count, duration, fixed, plural
from pipeline.report.tables import Table


@dataclass(frozen=True)
class Planned:
    """Sentences on where a plan was measured, and its tables beside what happened."""

    sentences: Sequence[str]
    tables: Sequence[Table]


def plan_and_actual(plan: Record, caches: Mapping[str, Mapping[str, Any]], ran: Sequence[Record]) -> Planned:
    """What a plan said beside the caches of metrics.json and the records of the students among `ran`."""
    tables = [_sizes(plan, caches)]
    speed = speed_of(plan)
    if speed is not None and caches:
        tables.append(_seconds(speed, caches))
    epoch = _epoch(plan, [one for one in ran if one.stage == "student"])
    return Planned(_sentences(plan, caches), [table for table in [*tables, *([epoch] if epoch else [])] if table.rows])


def _sentences(plan: Record, caches: Mapping[str, Mapping[str, Any]]) -> list[str]:
    made, timed = plan.provenance, speed_of(plan)
    rows = f", on {plural(timed.timed_rows, 'row')}" if timed else ""
    said = [
        f"The plan was measured {moment(made['measured'])} on {made['device']}, batches of {made['batch_size']}{rows}."
    ]
    said += [STANDS[plan.values["teacher"]]] if STANDS[plan.values["teacher"]] else []
    elsewhere = {str(cache["provenance"].get("device")) for cache in caches.values()} - {str(made["device"])}
    if elsewhere:
        said.append(f"The caches were made on another device: {', '.join(sorted(elsewhere))}.")
    return said


def _sizes(plan: Record, caches: Mapping[str, Mapping[str, Any]]) -> Table:
    """Rows and bytes of each split's store."""
    own, rows = plan.values["encodings"][0], []
    for split, cache in caches.items():
        if split not in plan.values["rows"]:
            continue
        planned, actual = own["bytes"][split], cache.get("store_bytes")
        rows.append(
            [
                Cell(split),
                Cell(count(plan.values["rows"][split]), plan.values["rows"][split]),
                Cell(count(cache["rows"]), cache["rows"]),
                Cell(count(planned), planned),
                Cell(MISSING) if actual is None else Cell(count(actual), actual),
                _ratio(planned, actual),
            ]
        )
    bytes_planned = "bytes planned" if own["exact"] else "bytes planned, at most"
    header = ["split", "rows planned", "rows", bytes_planned, "bytes", "actual / planned"]
    return Table("Rows and bytes of the stores, without manifests and block tables", header, rows)


def _seconds(speed: PassSpeed, caches: Mapping[str, Mapping[str, Any]]) -> Table:
    """Seconds of the teacher's pass for each split; those of the plan for the rows that were then computed."""
    rows, planned_all, actual_all = [], 0.0, 0.0
    for place, (split, cache) in enumerate(caches.items()):
        computed, actual = cache["provenance"].get("rows_computed"), cache["provenance"].get("seconds")
        if not computed or actual is None:
            continue
        before = speed.startup_seconds if place == 0 else speed.cache_seconds
        planned = before + speed.row_seconds * computed
        planned_all, actual_all = planned_all + planned, actual_all + actual
        rows.append(_compared(split, Cell(count(computed), computed), planned, actual))
    if len(rows) > 1:
        rows.append(_compared("all", Cell(""), planned_all, actual_all))
    caption = "The teacher's pass: what the plan says for the rows that were computed, and how long that took"
    return Table(caption, ["split", "rows computed", "planned", "took", "actual / planned"], rows)


def _epoch(plan: Record, students: Sequence[Record]) -> Table | None:
    """A student's epoch, validations included; None where it was not timed or no record of a student is here."""
    student = student_of(plan)
    trained = [one.values for one in students if one.values.get("steps")]
    if student is None or not trained:
        return None
    took = fmean(one["training_seconds"] / one["steps"] for one in trained) * student.steps
    row = _compared("student", Cell(plural(len(trained), "seed")), student.cached_epoch_seconds, took)
    caption = "An epoch of the student from the cache, validations included"
    return Table(caption, ["", "mean of", "planned", "took", "actual / planned"], [row])


def _compared(name: str, what: Cell, planned: float, actual: float) -> list[Cell]:
    return [
        Cell(name),
        what,
        Cell(duration(planned), planned),
        Cell(duration(actual), actual),
        _ratio(planned, actual),
    ]


def _ratio(planned: float, actual: float | None) -> Cell:
    return Cell(MISSING) if actual is None or not planned else Cell(fixed(2)(actual / planned), actual / planned)
