"""Training curves over steps: of one model over its seeds, and of several runs laid over each other."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.report.drawing import FAINT, MARKS, Mark, Plot, drawing, inline_svg, panels
from pipeline.report.numbers import count, percent

MOST_ROWS = 16
History = Sequence[Mapping[str, float]]


def learning_curves(model: str, histories: Sequence[History], limits: tuple[float, float]) -> Plot:
    """Loss, validation cross-entropy and validation accuracy over steps; each seed thin, their mean bold.

    `limits` of the accuracy, in percent, are the same for all models of a page, so that they can be compared by eye.
    """
    mark, name = MARKS[model], f"curves-{model}"
    steps = [point["step"] for point in histories[0]]
    scored = all("score" in point for history in histories for point in history)
    with drawing(name):
        figure, axes = panels(2 if scored else 1, 4.2 if scored else 2.4)
        _over_seeds(axes[0], steps, _values(histories, "loss"), mark.colour, "-", "loss of a batch")
        if scored:
            _over_seeds(axes[0], steps, _values(histories, "cross_entropy"), FAINT, "--", "cross-entropy on validation")
            _over_seeds(axes[1], steps, _percentages(histories), mark.colour, "-", "")
            axes[1].set_title("accuracy on validation, %")
            axes[1].set_ylim(*limits)
        axes[0].set_title("loss, nats")
        axes[0].set_ylim(bottom=0)
        axes[0].legend(loc="best")
        axes[-1].set_xlabel("optimiser steps")
        seeds = f"{len(histories)} seeds" if len(histories) > 1 else "1 seed"
        description = f"{mark.name}, {seeds}: {_described(histories, steps, scored)}"
        svg = inline_svg(figure, name, f"Training of the {mark.name} model", description)
    caption = f"{mark.name.capitalize()}, {seeds}."
    return Plot(svg, caption, *_curve_table(histories, steps, scored))


def overlaid_curves(labels: Sequence[str], runs: Sequence[Sequence[History]], marks: Sequence[Mark]) -> Plot | None:
    """Mean validation accuracy over steps of several runs' students; None where a run was not validated."""
    if not all("score" in point for histories in runs for history in histories for point in history):
        return None
    lines = [mean_line(histories, "score") for histories in runs]
    with drawing("runs"):
        figure, [axes] = panels(1, 3.2)
        for label, mark, (steps, score) in zip(labels, marks, lines, strict=True):
            axes.plot(steps, [100 * value for value in score], color=mark.colour, linestyle=mark.line, label=label)
        axes.set_title("accuracy on validation, %")
        axes.set_xlabel("optimiser steps")
        axes.legend(loc="lower right")
        said = "; ".join(
            f"{label}: {percent(score[0])} % at step {count(steps[0])}, {percent(score[-1])} % at step {count(steps[-1])}"
            for label, (steps, score) in zip(labels, lines, strict=True)
        )
        svg = inline_svg(figure, "runs", "Validation accuracy of each run's students, mean over seeds", said)
    return Plot(svg, "Students of each run on validation, mean over seeds.")


def score_limits(models: Iterable[Sequence[History]]) -> tuple[float, float]:
    """The lowest and highest validation accuracy of all models and seeds, in percent, with a little room."""
    scores = [100 * point["score"] for seeds in models for history in seeds for point in history if "score" in point]
    low, high = min(scores, default=0.0), max(scores, default=100.0)
    room = 0.05 * (high - low) or 1.0
    return low - room, high + room


def mean_line(histories: Sequence[History], field: str) -> tuple[list[float], list[float]]:
    """Steps, and the mean over seeds of a field of their histories at each."""
    columns = _values(histories, field)
    return [point["step"] for point in histories[0]], [statistics.fmean(at) for at in zip(*columns, strict=True)]


def _over_seeds(
    axes: Any, steps: Sequence[float], seeds: Sequence[Sequence[float]], colour: str, line: str, label: str
) -> None:
    if len(seeds) > 1:
        for values in seeds:
            axes.plot(steps, values, color=colour, linestyle=line, linewidth=0.8, alpha=0.35)
    mean = [statistics.fmean(at) for at in zip(*seeds, strict=True)]
    axes.plot(steps, mean, color=colour, linestyle=line, label=label or None, marker="." if len(steps) < 3 else None)


def _values(histories: Sequence[History], field: str) -> list[list[float]]:
    return [[point[field] for point in history] for history in histories]


def _percentages(histories: Sequence[History]) -> list[list[float]]:
    return [[100 * value for value in seed] for seed in _values(histories, "score")]


def _described(histories: Sequence[History], steps: Sequence[float], scored: bool) -> str:
    _, loss = mean_line(histories, "loss")
    said = f"mean loss {loss[0]:.3f} at step {count(steps[0])}, {loss[-1]:.3f} at step {count(steps[-1])}"
    if not scored:
        return said + "; not validated, since the validation split has no labels."
    _, score = mean_line(histories, "score")
    best = max(range(len(score)), key=lambda place: score[place])
    return (
        f"{said}; mean accuracy on validation {percent(score[0])} % at step {count(steps[0])}, {percent(score[-1])} % at "
        f"step {count(steps[-1])}, at its highest {percent(score[best])} % at step {count(steps[best])}."
    )


def _curve_table(
    histories: Sequence[History], steps: Sequence[float], scored: bool
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """At most 16 of the validations, evenly spaced, the last one always."""
    stride = -(-len(steps) // MOST_ROWS)
    places = sorted({*range(len(steps) - 1, -1, -stride)})
    header = ("step", "loss") + (("validation cross-entropy", "validation accuracy, %") if scored else ())
    rows = []
    for place in places:
        fields = ("loss", "cross_entropy") if scored else ("loss",)
        means = (statistics.fmean(history[place][field] for history in histories) for field in fields)
        row = [count(steps[place]), *(f"{mean:.4f}" for mean in means)]
        if scored:
            scores = [history[place]["score"] for history in histories]
            deviation = f" ± {percent(statistics.stdev(scores))}" if len(scores) > 1 else ""
            row.append(percent(statistics.fmean(scores)) + deviation)
        rows.append(tuple(row))
    return header, tuple(rows)
