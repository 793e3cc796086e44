"""What all programs share: rounds in alternation, rows with their targets, and how a program is run."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.allocator import keep_freed_memory

ROUNDS = 5
QUICK_ROUNDS = 1


@dataclass(frozen=True)
class Row:
    """One line of a table: what was compared, the figures in words, the number that counts and what it must be."""

    what: str
    measured: str
    value: float
    target: str
    reached: bool


@dataclass(frozen=True)
class Findings:
    """What a program found: rows for the table, and series for the plot."""

    title: str
    rows: list[Row]
    series: dict[str, Any] = field(default_factory=dict)


def at_most(what: str, measured: str, value: float, limit: float) -> Row:
    """A row whose value must not exceed `limit`."""
    return Row(what, measured, value, f"at most {limit:g}", value <= limit)


def at_least(what: str, measured: str, value: float, limit: float) -> Row:
    """A row whose value must reach `limit`."""
    return Row(what, measured, value, f"at least {limit:g}", value >= limit)


def reported(what: str, measured: str, value: float) -> Row:
    """A row that no target is set for."""
    return Row(what, measured, value, "reported", True)


def alternately(rounds: int, **works: Callable[[], float]) -> dict[str, list[float]]:
    """What each work returns (seconds), round by round: all of them in every round, after one round to warm up.

    Two works are compared within a round, seconds apart, so that what else the machine does meets both. Every second
    round goes through them backwards, so that none is always the first.
    """
    measured: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        names = list(works)
        for name in names if number % 2 else reversed(names):
            measured[name].append(works[name]())
    return {name: values[1:] for name, values in measured.items()}


def median_ratio(measured: Mapping[str, list[float]], above: str, below: str) -> tuple[float, str]:
    """The median over rounds of `above` / `below`, and the medians and the ratios' range in words."""
    ratios = [one / other for one, other in zip(measured[above], measured[below], strict=True)]
    ratio = statistics.median(ratios)
    seconds = {name: statistics.median(measured[name]) for name in (above, below)}
    words = (
        f"{above} {seconds[above]:.3g} s, {below} {seconds[below]:.3g} s; "
        f"ratio {ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f} in {len(ratios)} rounds)"
    )
    return ratio, words


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def table_of(findings: Findings) -> str:
    """The findings as Markdown."""
    lines = [f"### {findings.title}", "", "| what | measured | target | reached |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {row.what} | {row.measured} | {row.target} | {'yes' if row.reached else '**no**'} |"
        for row in findings.rows
    ]
    return "\n".join(lines)


def run(measure: Callable[[bool], Findings]) -> None:
    """A program: print what `measure(quick)` finds; `--quick` measures little, `--json FILE` writes it there too."""
    arguments = sys.argv[1:]
    keep_freed_memory()  # as every stage does
    findings = measure("--quick" in arguments)
    print(table_of(findings), flush=True)
    if "--json" in arguments:
        Path(arguments[arguments.index("--json") + 1]).write_text(json.dumps(asdict(findings)))
