"""The plots of a report, each from the numbers of records and of metrics.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pipeline.report.drawing import (
    BASELINE,
    FAINT,
    INK,
    MARKS,
    PAPER,
    STUDENT,
    TEACHER,
    Mark,
    Plot,
    drawing,
    inline_svg,
    panels,
)
from pipeline.report.headline import summary_of_bins
from pipeline.report.numbers import count, duration, percent, plural, points, rough, shortened, spread

MOST_CLASSES = 20
LIFT = 0.5  # of a class's height, between its first and its last mark
FEW_SAMPLES = 5  # a bin of so few says little: its lines are faint
ClassAccuracy = Mapping[str, float | None]
SPLIT_LINES = {"training": (INK, "-"), "validation": (STUDENT, "--"), "test": (BASELINE, ":")}


def reliability_diagram(model: str, bins: Mapping[str, Any], metrics: Mapping[str, Any]) -> Plot:
    """Accuracy against confidence before and after temperature scaling, above how many samples have that confidence."""
    mark, name = MARKS[model], f"reliability-{model}"
    before, after = bins["before"], bins.get("after")
    with drawing(name):
        figure, axes = panels(2, 4.6, (3, 1))
        axes[0].plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":")
        _calibration_line(axes[0], before, FAINT, "--", "o", "before")
        if after:
            _calibration_line(axes[0], after, mark.colour, "-", mark.marker, "after scaling")
        axes[0].set_title("accuracy")
        axes[0].set_ylim(-0.03, 1.03)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
        edges = [one["from"] for one in before] + [1.0]
        axes[1].stairs([one["samples"] for one in before], edges, color=FAINT, linestyle="--", linewidth=1.5)
        if after:
            axes[1].stairs([one["samples"] for one in after], edges, color=mark.colour, linewidth=1.5)
        axes[1].set_title("samples")
        axes[1].set_yscale("symlog", linthresh=1)
        axes[1].set_ylim(bottom=0)
        axes[1].set_yticks(_powers(max(one["samples"] for one in [*before, *(after or [])])))
        axes[1].yaxis.set_major_formatter(lambda value, place: count(value))
        axes[1].minorticks_off()
        axes[1].set_xlim(0, 1)
        axes[1].set_xlabel("confidence")
        said = f"Before scaling. {summary_of_bins(before)}." + (
            f" After scaling. {summary_of_bins(after)}." if after else ""
        )
        svg = inline_svg(figure, name, f"Reliability of the {mark.name} model", said)
    error = spread(metrics.get("calibration_error"), lambda value: f"{value:.4f}").text
    caption = f"{mark.name.capitalize()}: calibration error {error}"
    if after:
        scaled = spread(metrics.get("calibration_error_scaled"), lambda value: f"{value:.4f}").text
        fitted = spread(metrics.get("fitted_temperature"), lambda value: f"{value:.2f}").text
        caption += f"; after scaling by T = {fitted} it is {scaled}"
    return Plot(svg, caption + ".", *_bin_table(before, after))


def class_changes(
    names: Sequence[str], samples: Sequence[int], columns: Mapping[str, Sequence[ClassAccuracy]]
) -> Plot | None:
    """Accuracy of each class: the student against the label-only student, or against the teacher where there is none.

    The classes that changed most, at most 20; None where the test split has no labels. `samples` counts the labelled test
    samples of each class.
    """
    other = "baseline" if "baseline" in columns else "teacher"
    if other not in columns or "student" not in columns:
        return None
    marks = (MARKS[other], MARKS["student"])
    known = _measured_classes([columns[other], columns["student"]])
    changed = sorted(known, key=lambda place: -abs(_change(known[place])))[:MOST_CLASSES]
    shown = {place: known[place] for place in sorted(changed, key=lambda place: _change(known[place]))}
    if not shown:
        return None
    caption = f"{_how_many(shown, known)}, by the change from {marks[0].name} to student."
    header = ("class", "samples", f"{marks[0].name}, %", "student, %", "change, points")
    rows = [
        (
            names[place],
            count(samples[place]),
            *(spread(columns[model][place], percent).text for model in (other, "student")),
            points(100 * _change(values)),
        )
        for place, values in shown.items()
    ]
    return Plot(_class_plot(names, shown, marks), caption, header, tuple(reversed(rows)))


def classes_of_runs(
    names: Sequence[str], runs: Sequence[Sequence[ClassAccuracy]], marks: Sequence[Mark]
) -> Plot | None:
    """Accuracy of each class in several runs; those in which the runs differ most, at most 20."""
    known = _measured_classes(runs)
    if not known:
        return None
    apart = {place: max(values) - min(values) for place, values in known.items()}
    differing = sorted(known, key=lambda place: -apart[place])[:MOST_CLASSES]
    shown = {place: known[place] for place in sorted(differing, key=lambda place: apart[place])}
    header = ("class", *(f"{mark.name}, %" for mark in marks))
    rows = [(names[place], *(percent(value) for value in values)) for place, values in shown.items()]
    caption = f"{_how_many(shown, known)}; the runs differ most in the uppermost."
    return Plot(_class_plot(names, shown, marks), caption, header, tuple(reversed(rows)))


def _class_plot(names: Sequence[str], shown: Mapping[int, Sequence[float]], marks: Sequence[Mark]) -> str:
    """One line for each class, from its lowest to its highest accuracy, with a mark for each model.

    Marks lie a little above each other: else one of two equal accuracies would hide the other.
    """
    with drawing("classes"):
        each = 0.27 + 0.04 * (len(marks) - 2)
        figure, [axes] = panels(1, 1.0 + 0.25 * -(-len(marks) // 2) + each * len(shown))
        heights = range(len(shown))
        lowest, highest = ([100 * end(values) for values in shown.values()] for end in (min, max))
        axes.hlines(heights, lowest, highest, color=FAINT, linewidth=1.5)
        for which, mark in enumerate(marks):
            accuracies = [100 * values[which] for values in shown.values()]
            lifted = [height + LIFT * (0.5 - which / (len(marks) - 1)) for height in heights]
            face = PAPER if which == 0 else mark.colour
            style: dict[str, Any] = {"linestyle": "", "marker": mark.marker, "markersize": 7}
            axes.plot(accuracies, lifted, color=mark.colour, markerfacecolor=face, label=mark.name, **style)
        axes.set_yticks(heights, [shortened(names[place]) for place in shown])
        axes.set_ylim(-0.7, len(shown) - 0.3)
        axes.set_xlabel("accuracy on the test split, %")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2)
        said = "; ".join(
            f"{names[place]}: "
            + ", ".join(f"{mark.name} {percent(value)} %" for mark, value in zip(marks, values, strict=True))
            for place, values in reversed(list(shown.items()))
        )
        return inline_svg(figure, "classes", "Accuracy of each class", said)


def _measured_classes(columns: Sequence[Sequence[ClassAccuracy]]) -> dict[int, list[float]]:
    """The mean accuracies of each class that has labelled test samples, by its position."""
    rows = enumerate(zip(*columns, strict=True))
    return {
        place: [one["mean"] for one in row if one["mean"] is not None]
        for place, row in rows
        if row[0]["mean"] is not None
    }


def _change(values: Sequence[float]) -> float:
    return values[1] - values[0]


def _how_many(shown: Mapping[int, Any], known: Mapping[int, Any]) -> str:
    return f"{len(shown)} of {len(known)} classes" if len(known) > len(shown) else "Every class"


def entropies(by_split: Mapping[str, Any]) -> Plot | None:
    """How the entropy of the soft targets is distributed in each split, as fractions of its samples."""
    measured = {split: one for split, one in by_split.items() if one["samples"]}
    if not measured:
        return None
    highest = max(one["highest"] for one in measured.values())
    with drawing("entropy"):
        figure, [axes] = panels(1, 2.9)
        for split, one in measured.items():
            colour, line = SPLIT_LINES.get(split, (TEACHER, "-."))
            bins = len(one["counts"])
            edges = [one["highest"] * place / bins for place in range(bins + 1)]
            axes.stairs(
                [100 * each / one["samples"] for each in one["counts"]],
                edges,
                color=colour,
                linestyle=line,
                linewidth=2,
                label=split,
            )
        axes.set_xlim(0, highest)
        axes.set_title("samples, %")
        axes.set_xlabel(f"entropy, nats (0 is certain, {highest:.2f} knows nothing)")
        axes.legend()
        said = "; ".join(
            f"{split}: {plural(one['samples'], 'sample')}, mean {one['mean']:.3f} nats, quartiles "
            + ", ".join(f"{value:.3f}" for value in one["quartiles"])
            for split, one in measured.items()
        )
        svg = inline_svg(figure, "entropy", "Entropy of the soft targets", said)
    temperature = next(iter(measured.values()))["temperature"]
    header = ("split", "samples", "mean, nats", "lower quartile", "median", "upper quartile")
    rows = [
        (split, count(one["samples"]), f"{one['mean']:.4f}", *(f"{value:.4f}" for value in one["quartiles"]))
        for split, one in measured.items()
    ]
    return Plot(svg, f"Entropy of the cached soft targets at T = {temperature:g}.", header, tuple(rows))


def break_even(saving: Mapping[str, Any] | str) -> Plot | None:
    """Seconds spent after so many epochs, with the cache (made first) and with the teacher in the loop."""
    if isinstance(saving, str) or saving["cache_seconds"] is None:
        return None
    cached, online, made = (saving[f"{name}_seconds"] for name in ("cached_epoch", "online_epoch", "cache"))
    from matplotlib.ticker import MaxNLocator

    even = saving["break_even_epochs"]
    last = 10 if even is None else max(3, math.ceil(2 * even))
    with drawing("saving"):
        figure, [axes] = panels(1, 2.9)
        ends = (0, last)
        axes.plot(ends, [online * epoch for epoch in ends], color=TEACHER, linestyle=":", label="teacher in the loop")
        axes.plot(ends, [made + cached * epoch for epoch in ends], color=STUDENT, linestyle="-", label="from the cache")
        if even is not None:
            axes.plot([even], [online * even], marker="o", markersize=8, color=INK, markerfacecolor=PAPER, linestyle="")
        axes.set_xlim(0, last)
        axes.set_ylim(bottom=0)
        axes.set_title("seconds")
        axes.set_xlabel("epochs of one student")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper left")
        when = "they never meet" if even is None else f"they meet after {rough(even)} epochs"
        said = (
            f"With the teacher in the loop {duration(online)} for each epoch; from the cache {duration(made)} once and "
            f"{duration(cached)} for each epoch; {when}."
        )
        svg = inline_svg(figure, "saving", "Time with and without the cache", said)
    return Plot(svg, f"Seconds spent after so many epochs, making the cache included; {when}.")


def _calibration_line(
    axes: Any, bins: Sequence[Mapping[str, Any]], colour: str, line: str, marker: str, label: str
) -> None:
    """Accuracy against confidence; a mark is the larger, the more samples its bin has."""
    filled = [one for one in bins if one["samples"]]
    confidence, accuracy = [one["confidence"] for one in filled], [one["accuracy"] for one in filled]
    face = PAPER if line == "--" else colour
    sizes = [8 + 16 * math.log10(one["samples"]) for one in filled]
    for one, two in pairwise(range(len(filled))):
        faint = min(filled[one]["samples"], filled[two]["samples"]) <= FEW_SAMPLES
        ends = confidence[one : two + 1], accuracy[one : two + 1]
        axes.plot(*ends, color=colour, linestyle=line, linewidth=1.2, alpha=0.2 if faint else 1.0)
    style = {"marker": marker, "edgecolors": colour, "facecolors": face, "zorder": 3, "clip_on": False}
    axes.scatter(confidence, accuracy, s=sizes, **style)
    axes.plot([], [], color=colour, linestyle=line, linewidth=1.2, marker=marker, markerfacecolor=face, label=label)


def _bin_table(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]] | None
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    header: tuple[str, ...] = ("confidence", "samples before", "accuracy before")
    header += ("samples after", "accuracy after") if after else ()
    rows = []
    for place, one in enumerate(before):
        row: tuple[str, ...] = (f"{one['from']:.2f}–{one['to']:.2f}",)
        for each in (one, after[place]) if after else (one,):
            row += (count(each["samples"]), "–" if each["accuracy"] is None else f"{each['accuracy']:.3f}")
        rows.append(row)
    return header, tuple(rows)


def _powers(highest: float) -> list[float]:
    """Ticks of a logarithmic axis: 0, 1, and every power of ten (or of a hundred, where there are many) up to `highest`."""
    powers = max(1, math.ceil(math.log10(max(2, highest))))
    return [0, *(10**power for power in range(0, powers + 1, 1 if powers < 3 else 2))]
