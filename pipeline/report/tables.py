"""The tables of a report: results, units that ran, certificates, caches, confusions. Each is a header and rows of cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.canonical import short
from pipeline.records import Record, flat_settings, shown_name
from pipeline.report.numbers import (
    MISSING,
    Cell,
    Form,
    count,
    duration,
    fixed,
    percent,
    plural,
    scientific,
    shortened,
    size,
    spread,
)

COLUMNS = {"teacher": "teacher", "student": "student, distilled", "baseline": "student, label-only"}
DIVERGENCE = "KL from the teacher, nats"
MOST_PAIRS = 15
LONGEST_SETTING = 300  # letters; a thousand class names are no help
NO_SETTINGS = ("baseline.seeds",)
NAMES_OF_DIGESTS = ("sha256", "digest", "_key", "key_schema", "versions", "stage_version")


@dataclass(frozen=True)
class Table:
    """A caption, a header, and rows; the first cell of a row is its header."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


METRICS: tuple[tuple[str, str, Form], ...] = (
    ("accuracy, %", "accuracy", percent),
    ("agreement with the teacher, %", "agreement", percent),
    (DIVERGENCE, "kl", fixed(4)),
    ("cross-entropy, nats", "cross_entropy", fixed(4)),
    ("calibration error", "calibration_error", fixed(4)),
    ("… after temperature scaling", "calibration_error_scaled", fixed(4)),
    ("cross-entropy after scaling, nats", "cross_entropy_scaled", fixed(4)),
    ("temperature fitted on validation", "fitted_temperature", fixed(3)),
    ("parameters", "parameters", count),
    ("bytes of weights", "bytes", size),
    ("latency of one sample", "latency_seconds", duration),
)


def results(columns: Mapping[str, Mapping[str, Any]], caption: str) -> Table:
    """Every metric for each column (a model of metrics.json, or a run); those that nobody has are left out."""
    rows = []
    for title, field, form in METRICS:
        cells = [spread(column.get(field), form) for column in columns.values()]
        if any(cell.value is not None for cell in cells):
            rows.append([Cell(title), *cells])
    return Table(caption, ["", *columns], rows)


def units(records: Sequence[Record]) -> Table:
    """What ran: stage and unit, why, when, for how long, on what, under which key."""
    rows = [
        [
            Cell(f"{record.stage} {record.label}".strip()),
            Cell(str(record.provenance.get("why", "not recorded"))),
            Cell(_moment(record.provenance.get("started"))),
            _seconds(record.provenance.get("seconds")),
            Cell(str(record.provenance.get("device", MISSING))),
            Cell(short(record.key)),
        ]
        for record in records
    ]
    return Table("Each unit that ran", ["unit", "why it ran", "started", "took", "device", "key"], rows)


def seconds_of_stages(seconds: Mapping[str, float]) -> Table:
    """Seconds of each stage, all its units together, and of all stages."""
    rows = [[Cell(stage), _seconds(value)] for stage, value in seconds.items()]
    caption = (
        "Time of each stage, the loading of libraries, data and models included: longer than what a training or a cache says "
        "of itself"
    )
    return Table(caption, ["stage", "all units together"], [*rows, [Cell("all"), _seconds(sum(seconds.values()))]])


def certificates(caches: Mapping[str, Mapping[str, Any]]) -> Table:
    """The measured error of every cache at every certified temperature."""
    rows = []
    for split, cache in caches.items():
        for temperature, error in cache["certificate"]["temperatures"].items():
            stored = " (stored)" if float(temperature) == cache["temperature"] else ""
            rows.append(
                [
                    Cell(split),
                    Cell(f"{float(temperature):g}{stored}", float(temperature)),
                    Cell(scientific(error["kl_mean"]), error["kl_mean"]),
                    Cell(scientific(error["kl_max"]), error["kl_max"]),
                    Cell(count(error["infinite_rows"]), error["infinite_rows"]),
                    Cell(scientific(error["absolute_error_max"]), error["absolute_error_max"]),
                    Cell(f"{error['retained_mass_mean']:.6f}", error["retained_mass_mean"]),
                    Cell(count(error["rows"]), error["rows"]),
                ]
            )
    header = ["split", "T", "mean KL, nats", "largest KL", "infinite rows", "largest error", "mass kept", "rows"]
    caption = "Error of the stored soft targets, KL(exact ‖ decoded), measured on"
    return Table(f"{caption} {_measured_on(caches)}", header, rows)


def sizes(caches: Mapping[str, Mapping[str, Any]]) -> Table:
    """Bytes of the caches on disk, when the comparison was made, and how they are stored."""
    rows = [
        [
            Cell(split),
            Cell(count(cache["rows"]), cache["rows"]),
            Cell(size(cache["bytes"]), cache["bytes"]),
            Cell(f"{cache['bytes_per_row']:.1f}", cache["bytes_per_row"]),
            Cell(" ".join(str(value) for _, value in sorted(cache["encoding"].items(), reverse=True))),
            Cell(cache["layout"]),
            Cell(f"{cache['temperature']:g}", cache["temperature"]),
            _seconds(cache["provenance"].get("seconds")),
        ]
        for split, cache in caches.items()
    ]
    header = ["split", "rows", "on disk", "bytes per row", "encoding", "layout", "T", "made in"]
    caption = (
        "The caches; “made in” counts the teacher's pass and the writing, not the loading of libraries and data before"
    )
    return Table(caption, header, rows)


def caches_made(caches: Mapping[str, Mapping[str, Any]]) -> Table:
    """How the caches were made, as each says of itself: also where that was elsewhere."""
    rows = [
        [
            Cell(split),
            Cell(_moment(cache["provenance"].get("sealed"))),
            Cell(str(cache["provenance"].get("device", MISSING))),
            Cell(str(cache["provenance"].get("commit") or MISSING)),
            Cell(str(cache["provenance"].get("teacher_form", MISSING))),
            Cell(str(cache["teacher_recipe"])),
        ]
        for split, cache in caches.items()
    ]
    header = ["split", "sealed", "device", "commit", "teacher", "recipe of the teacher"]
    return Table("How the caches were made", header, rows)


def settings(made_from: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(dotted name, value) of every setting that a comparison was made from.

    Digests are left out, and `baseline.seeds`: no recipe has it, it follows from two settings that are listed.
    """
    flat = flat_settings(dict(made_from))
    return [
        (name, shortened(_plain(value), LONGEST_SETTING))
        for name, value in flat
        if name not in NO_SETTINGS and not any(part in name for part in NAMES_OF_DIGESTS)
    ]


def differing_settings(labels: Sequence[str], made_from: Sequence[Mapping[str, Any]]) -> Table:
    """The settings in which runs differ, and whether their data do."""
    flat = [dict(flat_settings(dict(parts))) for parts in made_from]
    names = dict.fromkeys(name for run in flat for name in run)
    rows = []
    for name in names:
        values = [run.get(name) for run in flat]
        if any(value != values[0] for value in values[1:]):
            digest = any(isinstance(value, str) and len(value) >= 32 for value in values)
            rows.append(
                [Cell(shown_name(name)), *(Cell(short(str(value)) if digest else _plain(value)) for value in values)]
            )
    return Table("The settings in which the runs differ", ["setting", *labels], rows)


def pairs_of_classes(confusion: Mapping[str, Any], names: Sequence[str], model: str) -> Table:
    """The most frequent confusions, at most 15, over all seeds together."""
    rows = [
        [Cell(names[label]), Cell(names[predicted]), Cell(count(times), times)]
        for label, predicted, times in confusion["pairs"][:MOST_PAIRS]
    ]
    errors, answers = plural(confusion["errors"], "error"), plural(confusion["samples"], "answer")
    caption = f"{model}: {errors} in {answers}"
    return Table(caption, ["class", "taken for", "times"], rows)


def _moment(value: Any) -> str:
    """A time of a record, as 2026-01-31 12:00:00 UTC."""
    return MISSING if value is None else str(value).replace("T", " ").replace("+00:00", " UTC")


def _measured_on(caches: Mapping[str, Mapping[str, Any]]) -> str:
    """Which rows the certificates were measured on; once where all say the same."""
    said = {split: str(cache["certificate"]["measured_on"]) for split, cache in caches.items()}
    same = set(said.values())
    return same.pop() if len(same) == 1 else "; ".join(f"{split}: {rows}" for split, rows in said.items())


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _seconds(value: float | None) -> Cell:
    return Cell(MISSING) if value is None else Cell(duration(value), value)
