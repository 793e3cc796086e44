"""Numbers as a page shows them: percentages, spreads over seeds, counts, bytes, seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MISSING = "–"
Form = Callable[[float], str]


@dataclass(frozen=True)
class Cell:
    """One number of a table: its text for people, and the value behind it (None where nothing was measured)."""

    text: str
    value: float | None = None


def percent(value: float) -> str:
    """A fraction in percent, with two decimals: 0.9558 is "95.58"."""
    return f"{100 * value:.2f}"


def points(value: float) -> str:
    """Percentage points with their sign: "+11.21"."""
    return f"{value:+.2f}".replace("-", "−")


def fixed(digits: int) -> Form:
    """A form with a fixed number of decimals."""
    return lambda value: f"{value:.{digits}f}"


def count(value: float) -> str:
    """A whole number with thousands separated."""
    return f"{round(value):,}"


def plural(value: int, noun: str) -> str:
    """A count with its noun: "1 seed", "2 seeds"."""
    return f"{count(value)} {noun}" if value == 1 else f"{count(value)} {noun}s"


def rough(value: float) -> str:
    """Two significant digits, as 0.35, 6.4 or 1,200."""
    rounded = float(f"{value:.1e}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def scientific(value: float | None) -> str:
    """Three significant digits, as 1.75e-10; "infinite" for None, as certificates have it."""
    return "infinite" if value is None else f"{value:.2e}"


def size(value: float) -> str:
    """Bytes in decimal units: "59.2 kB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.1f} {unit}"
    return f"{value:.0f} B"


def duration(value: float) -> str:
    """Seconds in a unit that suits them: "27 µs", "3.1 ms", "0.55 s", "3 min 20 s", "2 h 5 min", "16 d 4 h"."""
    if value >= 2 * 86400:
        return f"{int(value // 86400)} d {int(value % 86400 // 3600)} h"
    if value >= 3600:
        return f"{int(value // 3600)} h {int(value % 3600 // 60)} min"
    if value >= 60:
        return f"{int(value // 60)} min {int(value % 60)} s"
    if value >= 0.1:
        return f"{value:.2f} s"
    return f"{1e3 * value:.1f} ms" if value >= 1e-3 else f"{1e6 * value:.0f} µs"


def spread(measured: Any, form: Form) -> Cell:
    """A metric of metrics.json: a number, a mean with its standard deviation over seeds, or nothing."""
    if isinstance(measured, dict):
        if measured["mean"] is None:
            return Cell(MISSING)
        deviation = "" if measured["sd"] is None else f" ±\N{NO-BREAK SPACE}{form(measured['sd'])}"
        return Cell(form(measured["mean"]) + deviation, measured["mean"])
    return Cell(MISSING) if measured is None else Cell(form(measured), measured)


def shortened(text: str, most: int = 22) -> str:
    """A name cut to `most` characters, with an ellipsis in the middle: long names often differ only at their ends."""
    head = most // 2
    return text if len(text) <= most else text[:head] + "…" + text[len(text) - (most - 1 - head) :]
