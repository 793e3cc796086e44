"""Plots as SVG: the same each time, with a text alternative, harmless names, and no id that is used twice."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from pipeline.report.curves import learning_curves, overlaid_curves, score_limits
from pipeline.report.drawing import MARKS, RUNS, Mark, Plot
from pipeline.report.figures import break_even, class_changes, classes_of_runs, entropies, reliability_diagram

HOSTILE = '<script>alert(1)</script> id="x" #000006 -->'
SAVING = {"cached_epoch_seconds": 0.5, "online_epoch_seconds": 2.0, "cache_seconds": 3.0, "break_even_epochs": 2.0}


def history(first: float, labelled: bool = True) -> list[dict[str, float]]:
    scored = [{"score": first, "cross_entropy": 1.0}, {"score": 0.9, "cross_entropy": 0.4}]
    return [{"step": 10 * (place + 1), "loss": 2.0 - place, **(scored[place] if labelled else {})} for place in (0, 1)]


def classes(*means: float | None) -> list[dict[str, float | None]]:
    return [{"mean": mean, "sd": None} for mean in means]


def bins(*samples: int) -> list[dict[str, Any]]:
    width = 1 / len(samples)
    return [
        {
            "from": place * width,
            "to": (place + 1) * width,
            "samples": count,
            "confidence": (place + 0.5) * width if count else None,
            "accuracy": 0.5 if count else None,
        }
        for place, count in enumerate(samples)
    ]


def entropy(samples: int = 4) -> dict[str, Any]:
    quartiles = [0.1, 0.2, 0.3]
    return {
        "temperature": 4.0,
        "samples": samples,
        "highest": 1.1,
        "counts": [1, 3],
        "mean": 0.2,
        "quartiles": quartiles,
    }


def plots() -> dict[str, Plot | None]:
    names = [HOSTILE, "$\\frac{", "b & \"c'"]
    seeds = [history(0.5), history(0.7)]
    return {
        "curves": learning_curves("student", seeds, score_limits([seeds])),
        "curves of one seed": learning_curves("teacher", seeds[:1], (0, 100)),
        "curves without labels": learning_curves("baseline", [history(0.5, labelled=False)], (0, 100)),
        "runs": overlaid_curves([HOSTILE, "b"], [seeds, seeds], [MARKS["student"], MARKS["baseline"]]),
        "reliability": reliability_diagram("student", {"before": bins(0, 9, 1000), "after": bins(1, 8, 1000)}, {}),
        "reliability before": reliability_diagram("teacher", {"before": bins(0, 0, 1)}, {"calibration_error": 0.5}),
        "classes": class_changes(
            names, [9, 0, 1], {"baseline": classes(0.5, None, 0.25), "student": classes(0.25, None, 1.0)}
        ),
        "entropy": entropies({"training": entropy(), "test": entropy()}),
        "saving": break_even(SAVING),
        "saving without break-even": break_even({**SAVING, "break_even_epochs": None}),
    }


DRAWN = plots()


@pytest.mark.parametrize("name", DRAWN)
def test_a_plot_is_an_image_with_a_title_and_its_numbers_as_text(name: str) -> None:
    plot = DRAWN[name]
    assert plot is not None
    svg = ET.fromstring(plot.svg)
    assert svg.get("role") == "img"
    found = {element.get("id") or "": element.text or "" for element in svg if element.tag.endswith(("title", "desc"))}
    labelled_by = (svg.get("aria-labelledby") or "").split()
    assert sorted(found) == sorted(labelled_by)
    assert re.search(r"\d", found[labelled_by[1]]), "the description holds numbers"
    assert plot.caption


@pytest.mark.parametrize("name", DRAWN)
def test_a_plot_holds_no_script_no_link_and_no_colour_of_its_own(name: str) -> None:
    plot = DRAWN[name]
    assert plot is not None
    assert "<script" not in plot.svg
    assert not re.search(r"(href|src)=\"(?!#)", plot.svg)
    assert "<metadata" not in plot.svg
    assert not re.search(r"(fill|stroke): #", plot.svg), "every colour is a variable of the style sheet"


@pytest.mark.parametrize("name", DRAWN)
def test_no_id_of_a_plot_is_used_twice(name: str) -> None:
    plot = DRAWN[name]
    assert plot is not None
    ids = re.findall(r' id="([^"]+)"', plot.svg)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'"(?:url\()?#([^")]+)', plot.svg)) <= set(ids)


def test_the_same_numbers_give_the_same_plot() -> None:
    assert plots() == DRAWN


def test_classes_are_told_by_their_change_the_greatest_gain_first() -> None:
    plot = DRAWN["classes"]
    assert plot is not None
    assert plot.header == ("class", "samples", "label-only, %", "student, %", "change, points")
    assert plot.rows == (("b & \"c'", "1", "25.00", "100.00", "+75.00"), (HOSTILE, "9", "50.00", "25.00", "−25.00"))


def test_a_class_is_told_with_the_spread_over_seeds() -> None:
    spread = [{"mean": 0.5, "sd": 0.125}]
    plot = class_changes(["a"], [8], {"baseline": spread, "student": spread})
    assert plot is not None
    assert plot.rows == (("a", "8", "50.00 ±\N{NO-BREAK SPACE}12.50", "50.00 ±\N{NO-BREAK SPACE}12.50", "+0.00"),)


def test_of_many_classes_those_that_changed_most_are_drawn() -> None:
    names = [f"class {place}" for place in range(1000)]
    before = classes(*[0.5] * 1000)
    after = classes(*[0.5 + (place % 500) / 1000 * (-1) ** place for place in range(1000)])
    plot = class_changes(names, [1] * 1000, {"baseline": before, "student": after})
    assert plot is not None
    assert len(plot.rows) == 20
    assert plot.caption.startswith("20 of 1000 classes")
    assert {row[0] for row in plot.rows[:2]} == {"class 498", "class 998"}
    assert {row[0] for row in plot.rows[-2:]} == {"class 499", "class 999"}


def test_without_a_label_only_student_classes_are_compared_with_the_teacher() -> None:
    plot = class_changes(["a", "b"], [1, 1], {"teacher": classes(1.0, 0.5), "student": classes(0.5, 0.5)})
    assert plot is not None
    assert plot.header[2] == "teacher, %"


def test_what_was_not_measured_is_not_drawn() -> None:
    assert class_changes(["a"], [1], {"student": classes(0.5)}) is None
    assert class_changes(["a"], [0], {"baseline": classes(None), "student": classes(None)}) is None
    assert entropies({}) is None
    assert entropies({"test": entropy(samples=0)}) is None
    assert break_even("not measured: teacher absent") is None
    assert break_even({**SAVING, "cache_seconds": None}) is None
    assert overlaid_curves(["a"], [[history(0.5, labelled=False)]], [MARKS["student"]]) is None


@pytest.mark.parametrize("runs", [2, 8])
def test_equal_accuracies_do_not_hide_each_other(runs: int) -> None:
    marks = [Mark(f"run {place}", RUNS[place], "-", "o") for place in range(runs)]
    plot = classes_of_runs(["a", "b"], [classes(0.5, 0.5)] * runs, marks)
    assert plot is not None
    drawn = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', plot.svg)
    assert len(drawn) >= 2 * runs
    assert len(set(drawn)) == len(drawn)


def test_a_mark_at_the_edge_of_a_reliability_diagram_is_whole_and_lines_to_small_bins_are_faint() -> None:
    plot = reliability_diagram("student", {"before": bins(5, 900, 1000)}, {})
    assert "<g clip-path" not in plot.svg, "marks are not cut at the axes"
    assert plot.svg.count("stroke-opacity: 0.2") == 1


def test_the_runs_differ_most_in_the_uppermost_class() -> None:
    marks = [MARKS["baseline"], MARKS["student"]]
    plot = classes_of_runs(["a", "b", "c"], [classes(0.5, 0.5, None), classes(0.6, 0.1, None)], marks)
    assert plot is not None
    assert plot.rows == (("b", "50.00", "10.00"), ("a", "50.00", "60.00"))
