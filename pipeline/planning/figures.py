"""What a plan says: rows, bytes, seconds and money, as plain values and as a text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.canonical import short
from pipeline.planning.price import DEVICES, PassSpeed, StudentSpeed, break_even_epochs, price
from pipeline.records import Record
from pipeline.report.numbers import duration, rough

STANDS = {
    "itself": "",
    "untrained": "The teacher was timed without its weights, as its network is built: weights change no time.",
    "outputs": "The teacher is a file of outputs: what is timed is reading and encoding it, on one machine; there is no loop "
    "without a cache.",
    "noise": "The teacher was absent, so its pass was not timed; a student's epoch was, with noise for soft targets.",
}


@dataclass(frozen=True)
class SplitRows:
    """The rows of one split: its distinct samples, and how many of them each sealed cache holds already, by its key."""

    samples: int
    rows: int
    known: Mapping[str, int]

    @property
    def new(self) -> int:
        return self.rows - sum(self.known.values())


@dataclass(frozen=True)
class Plan:
    """A kept measurement, with the rows that are new now. `row_key` is None while the teacher is not known.

    `per_hour` is a price for each device and hour, None where nobody asked; `kept` says that nothing was measured now.
    """

    record: Record
    splits: Mapping[str, SplitRows]
    row_key: str | None
    per_hour: float | None
    kept: bool

    @property
    def speed(self) -> PassSpeed | None:
        """How fast the teacher's pass is."""
        return speed_of(self.record)

    @property
    def student(self) -> StudentSpeed | None:
        """How fast the student is."""
        return student_of(self.record)

    @property
    def devices(self) -> Sequence[int]:
        """For how many devices the teacher's time is told: a file of outputs is read once."""
        return DEVICES if self.record.values["teacher"] != "outputs" else DEVICES[:1]

    def teacher_seconds(self, devices: int) -> float | None:
        """Seconds of the pass over all new rows."""
        new = [split.new for split in self.splits.values()]
        return None if self.speed is None else self.speed.seconds(new, devices)

    def break_even(self) -> float | None:
        """Epochs of one student after which the cache of the training split has paid for its new rows."""
        if self.speed is None or self.student is None:
            return None
        making = self.speed.seconds([self.splits["training"].new])
        return break_even_epochs(making, self.student.cached_epoch_seconds, self.student.online_epoch_seconds)


def speed_of(record: Record) -> PassSpeed | None:
    """The pass that a plan's record measured."""
    found = record.values["speed"]
    return None if found is None else PassSpeed(**found)


def student_of(record: Record) -> StudentSpeed | None:
    """The student that a plan's record measured."""
    found = record.values["student"]
    return None if found is None else StudentSpeed(**found)


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain values; null is what was not measured, or not asked for."""
    student, speed = plan.student, plan.speed
    seconds = {devices: plan.teacher_seconds(devices) for devices in plan.devices}
    return {
        "recipe": plan.record.recipe,
        "key": plan.record.key,
        "row_key": plan.row_key,
        "measured": {**plan.record.provenance, "teacher": plan.record.values["teacher"], "kept": plan.kept},
        "rows": {
            split: {"samples": one.samples, "rows": one.rows, "known": dict(one.known), "new": one.new}
            for split, one in plan.splits.items()
        },
        "encodings": [
            {
                **one,
                "recipe": place == 0,
                "total_bytes": sum(one["bytes"].values()),
            }
            for place, one in enumerate(plan.record.values["encodings"])
        ],
        "teacher": speed
        and {
            **plan.record.values["speed"],
            "seconds": {str(devices): found for devices, found in seconds.items()},
            "per_hour": plan.per_hour,
            "price": {
                str(devices): None if plan.per_hour is None else round(price(found, devices, plan.per_hour), 2)
                for devices, found in seconds.items()
                if found is not None
            },
        },
        "student": student
        and {
            **plan.record.values["student"],
            "cached_epoch_seconds": student.cached_epoch_seconds,
            "online_epoch_seconds": student.online_epoch_seconds,
            "break_even_epochs": plan.break_even(),
        },
    }


def text_of(plan: Plan) -> str:
    """The plan for people."""
    parts = [_measured(plan), _rows(plan), _bytes(plan), _teacher(plan), _student(plan)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _measured(plan: Plan) -> list[str]:
    made, again = plan.record.provenance, "; --again measures anew" if plan.kept else ""
    lines = [
        f"{plan.record.recipe}: measured {moment(made['measured'])} on {made['device']}, batches of {made['batch_size']}{again}"
    ]
    said = STANDS[plan.record.values["teacher"]]
    return [*lines, said] if said else lines


def _rows(plan: Plan) -> list[str]:
    lines = table(
        ["rows", "samples", "distinct", "known", "new"],
        [[split, one.samples, one.rows, one.rows - one.new, one.new] for split, one in plan.splits.items()],
    )
    where: dict[str, int] = {}
    for one in plan.splits.values():
        for key, rows in one.known.items():
            where[key] = where.get(key, 0) + rows
    lines += [f"known: {rows:,} in cache {short(key)}" for key, rows in where.items()]
    if plan.row_key is None:
        lines.append("No row is known before the teacher is.")
    return lines


def _bytes(plan: Plan) -> list[str]:
    found = plan.record.values["encodings"]
    exact = all(one["exact"] for one in found)
    splits = list(plan.splits)
    rows: list[list[Any]] = []
    for place, one in enumerate(found):
        mark = "  <- the recipe's" if place == 0 else ""
        sizes = [one["bytes"][split] for split in splits]
        rows.append([one["encoding"], *sizes, sum(sizes), mark])
    lines = table(["bytes on disk" if exact else "bytes at most", *splits, "all", ""], rows)
    estimate = found[0].get("estimated_bytes")
    if estimate is not None:
        lines.append(
            f"Compressed, the recipe's will take about {sum(estimate.values()):,} bytes, an estimate: of the timed rows "
            f"{100 * plan.record.values['stored_share']:.0f} % was stored."
        )
    return lines


def _teacher(plan: Plan) -> list[str]:
    if plan.speed is None:
        return []
    new = sum(one.new for one in plan.splits.values())
    if not new:
        return [f"No row is new: the teacher is not run. A row takes it {duration(plan.speed.row_seconds)}."]
    seconds = [plan.teacher_seconds(devices) or 0.0 for devices in plan.devices]
    rows: list[list[Any]] = [["time", *map(duration, seconds)]]
    if plan.per_hour is not None:
        prices = [price(found, devices, plan.per_hour) for found, devices in zip(seconds, plan.devices, strict=True)]
        rows.append(["price", *(f"{one:,.2f}" for one in prices)])
    lines = table(["the teacher's pass", *(f"{one} device{'s' if one > 1 else ''}" for one in plan.devices)], rows)
    each, startup = duration(plan.speed.row_seconds), duration(plan.speed.startup_seconds)
    lines.append(
        f"Over {new:,} new rows: {each} each, encoding, checksums and disk included ({plan.speed.timed_rows:,} rows were timed), "
        f"after {startup} of start-up."
    )
    if len(plan.devices) > 1:
        lines.append(
            "Assumed: rows divided evenly over devices that are as fast as this one and start up together, once."
        )
    if plan.per_hour is not None:
        lines.append(f"The price is for all devices, at {plan.per_hour:g} per device-hour.")
    return lines


def _student(plan: Plan) -> list[str]:
    student = plan.student
    if student is None:
        return ["A student's epoch was not timed: none of the timed rows is of its classes."]
    cached, online = student.cached_epoch_seconds, student.online_epoch_seconds
    first = (
        f"A student's epoch from the cache takes {duration(cached)} ({student.samples:,} samples, validations included)"
    )
    if online is None:
        return [f"{first}."]
    first += f", with the teacher in its loop {duration(online)}."
    even = plan.break_even()
    if even is None:
        return [first, "A cache saves no time in an epoch of this student."]
    if even == 0:
        return [first, "The training rows are known: the cache saves time from the first epoch."]
    epochs = "1 epoch" if rough(even) == "1" else f"{rough(even)} epochs"
    return [first, f"The cache has paid for itself after {epochs} of one student."]


def moment(stated: str) -> str:
    """A time of a record, as 2026-01-31 12:00:00 UTC."""
    return stated.replace("T", " ").replace("+00:00", " UTC")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Lines of columns: the first to the left, numbers to the right, with thousands separated."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(wide) for cell, wide in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in cells
    ]
