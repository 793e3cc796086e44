"""The report's first sentences: the result, and how to read it honestly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.report.numbers import count, duration, percent, plural, points, rough, spread


def headline(metrics: dict[str, Any]) -> str:
    """What the student reached, and what distillation brought, in one or two sentences."""
    student, baseline, gain = metrics["student"], metrics["baseline"], metrics["gain_points"]
    accuracy = spread(student.get("accuracy"), percent)
    if accuracy.value is None:
        return "The test split has no labels, so no accuracy could be measured; agreement with the teacher is below."
    said = f"The student gets {accuracy.text} % of the {count(metrics['labels']['test'])} labelled test samples right"
    teacher = metrics["teacher"].get("accuracy")
    if teacher is not None:
        said += f", its teacher {percent(teacher)} %"
    if gain["mean"] is None:
        return f"{said}. There is no label-only student to compare it with, since the student may use no label."
    plain = spread(baseline["accuracy"], percent).text
    return f"{said}, the label-only student {plain} %. {verdict(gain)}"


def reading(metrics: dict[str, Any]) -> list[str]:
    """What a reader must know to take the headline for what it is."""
    labels, seeds = metrics["labels"], len(metrics["seeds"])
    return [
        _labels_sentence(labels),
        f"± is the sample standard deviation over {seeds} student seeds; there is one teacher."
        if seeds > 1
        else "One student seed and one teacher: nothing here says how much another seed would change.",
        _choice_sentence(bool(metrics["baseline"]), labels["validation"]),
    ]


def saving_sentences(saving: dict[str, Any] | str) -> list[str]:
    """What the cache saved, as it was measured; or why that was not measured."""
    if isinstance(saving, str):
        return [f"What the cache saves was {saving}."]
    cached, online = saving["cached_epoch_seconds"], saving["online_epoch_seconds"]
    said = [
        f"An epoch of the student takes {duration(cached)} from the cache and {duration(online)} with the teacher in "
        f"its loop: {saving['online_over_cached']:.1f} times as long. Both loops were run for {saving['timed_steps']} steps in "
        f"turn; the median of {saving['rounds']} rounds is scaled to an epoch."
    ]
    if saving["cache_seconds"] is None:
        return [*said, "The cache was made in several runs, so what making it cost is not known as one number."]
    made = f"Making the cache of the training split took {duration(saving['cache_seconds'])}"
    if saving["break_even_epochs"] is None:
        return [*said, f"{made}. It never pays for itself here: the loop with the teacher is no slower."]
    return [*said, f"{made}; it has paid for itself after {rough(saving['break_even_epochs'])} epochs of one student."]


def verdict(gain: dict[str, Any]) -> str:
    """What distillation brought over the label-only student, and whether the seeds show it, in one sentence."""
    mean, deviation, seeds = gain["mean"], gain["sd"], gain["n"]
    if deviation is None:
        return f"Distillation changes accuracy by {points(mean)} points (1 seed, so no spread is known)."
    spread_of_seeds, paired = f"±\N{NO-BREAK SPACE}{deviation:.2f} points", f"({seeds} seeds, paired)"
    if abs(mean) <= deviation:
        changed = f"Distillation changes accuracy by {points(mean)} {spread_of_seeds} {paired}"
        return f"{changed}, which is within one standard deviation of nothing."
    return f"Distillation {'gains' if mean > 0 else 'loses'} {abs(mean):.2f} {spread_of_seeds} of accuracy {paired}."


def _choice_sentence(baseline: bool, validation: int) -> str:
    """What was chosen on validation, of which so many samples have a label."""
    if not baseline and validation:
        return f"The student keeps its best weights on the {plural(validation, 'labelled validation sample')}."
    if not baseline:
        return "The student keeps its last weights: the validation split has no labels to choose by."
    same = "Student and label-only student have the same network and as many optimiser steps"
    if validation:
        return (
            f"{same}; learning rate and weight decay of the latter were chosen on validation. Both keep their best "
            f"weights on the {plural(validation, 'labelled validation sample')}."
        )
    return (
        f"{same}. Neither was validated, since the validation split has no labels: both keep their last weights, and "
        "the label-only student takes the first learning rate and weight decay of its grid."
    )


def _labels_sentence(labels: dict[str, Any]) -> str:
    student, training, samples, teacher = (
        labels[name] for name in ("student", "training", "training_samples", "teacher")
    )
    some = f"all {count(training)}" if student == training else f"{count(student)} of the {count(training)}"
    may = f"The student may use {some} training labels"
    rest = samples - student
    if rest > 0:
        may += f"; the other {count(rest)} training samples are an unlabelled transfer set"
    if teacher is None:
        return f"{may}. How many labels the teacher learnt from is not recorded."
    if teacher > student:
        return (
            f"{may}. But the teacher was trained on {plural(teacher, 'label')}: the smaller number says what the student "
            "needs, not what the whole system used."
        )
    return f"{may}. The teacher was trained on {plural(teacher, 'label')}."


def summary_of_bins(bins: Sequence[dict[str, Any]]) -> str:
    """Reliability bins in words, the empty ones left out: "0.87 to 0.93: 12 samples, confidence 0.90, accuracy 0.83"."""
    return "; ".join(
        f"{one['from']:.2f} to {one['to']:.2f}: {plural(one['samples'], 'sample')}, mean confidence "
        f"{one['confidence']:.3f}, accuracy {one['accuracy']:.3f}"
        for one in bins
        if one["samples"]
    )
