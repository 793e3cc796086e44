"""The comparison as a table for a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.report.headline import verdict
from pipeline.report.numbers import rough


def table_of(metrics: dict[str, Any]) -> str:
    """The comparison as text for a terminal."""
    teacher, student, baseline = metrics["teacher"], metrics["student"], metrics["baseline"]
    lines = [f"{'test split of ' + metrics['recipe']:28} {'teacher':>16} {'student':>16} {'label-only':>16}"]

    def row(title: str, name: str, form: Callable[[float], str]) -> None:
        cells = [_cell(column.get(name), form) for column in (teacher, student, baseline)]
        lines.append(f"{title:28} " + " ".join(f"{cell:>16}" for cell in cells))

    row("accuracy, %", "accuracy", lambda value: f"{100 * value:.2f}")
    row("agreement with teacher, %", "agreement", lambda value: f"{100 * value:.2f}")
    row(f"KL from teacher (T = {metrics['temperature']:g})", "kl", lambda value: f"{value:.4f}")
    row("cross-entropy, nats", "cross_entropy", lambda value: f"{value:.4f}")
    row("calibration error", "calibration_error", lambda value: f"{value:.4f}")
    row("parameters", "parameters", lambda value: f"{value:,.0f}")
    row("weights, kB", "bytes", lambda value: f"{value / 1000:.1f}")
    row("latency of one sample, ms", "latency_seconds", lambda value: f"{1000 * value:.3f}")
    lines += [gain_line(metrics["gain_points"]), _saving_line(metrics["saving"])]
    return "\n".join(lines)


def gain_line(gain: dict[str, Any]) -> str:
    """What distillation gained over the label-only student, in one sentence."""
    if gain["mean"] is None:
        return "gain of distillation: not measured, since the test split or the student has no labels."
    said = verdict(gain).replace("\N{NO-BREAK SPACE}", " ").replace("−", "-")
    return said[0].lower() + said[1:]


def _saving_line(saving: dict[str, Any] | str) -> str:
    if isinstance(saving, str):
        return f"time saved by the cache: {saving}."
    break_even = saving["break_even_epochs"]
    when = "" if break_even is None else f"; the cache has paid for itself after {rough(break_even)} epochs"
    return (
        f"a student epoch takes {saving['cached_epoch_seconds']:.3f} s from the cache, {saving['online_epoch_seconds']:.3f} s "
        f"with the teacher in the loop ({saving['online_over_cached']:.1f} times){when}."
    )


def _cell(value: Any, form: Callable[[float], str]) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        spread = "" if value["sd"] is None else f" ± {form(value['sd'])}"
        return form(value["mean"]) + spread
    return form(value)
