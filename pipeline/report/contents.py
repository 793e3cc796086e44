"""What a report shows, gathered from metrics.json, from records, and (for pictures) from the dataset."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.records import Record, Records
from pipeline.report import tables
from pipeline.report.curves import learning_curves, score_limits
from pipeline.report.drawing import Plot
from pipeline.report.figures import break_even, class_changes, entropies, reliability_diagram
from pipeline.report.headline import headline, reading, saving_sentences
from pipeline.report.numbers import count, percent, plural
from pipeline.report.pictures import shown_samples
from pipeline.report.planned import plan_and_actual

MODELS = ("teacher", "student", "baseline")
SampleOf = Callable[[str, int], NDArray[np.generic]]
NamesOf = Callable[[str], Sequence[str] | None]


def contents_of(
    folder: Path,
    records: Records,
    evaluated: Record,
    sample_of: SampleOf,
    names_of: NamesOf,
    plan: Record | None = None,
) -> dict[str, Any]:
    """Everything that the page of one comparison shows; `folder` holds its metrics.json.

    `sample_of(split, index)` gives a raw sample, `names_of(split)` the names of all where they are files. Numbers are
    those of metrics.json and of the records. `plan` is what `softcache plan` kept for the recipe, if it did.
    """
    metrics = read_metrics(folder)
    ran = units_of(metrics, records)
    columns = {model: metrics[model] for model in MODELS if metrics[model]}
    names = metrics["classes"]["names"]
    return {
        "recipe": metrics["recipe"],
        "headline": headline(metrics),
        "reading": reading(metrics),
        "results": tables.results(
            {tables.COLUMNS[model]: column for model, column in columns.items()},
            f"Test split, mean ± standard deviation over {len(metrics['seeds'])} seeds, KL at T = {metrics['temperature']:g}"
            if len(metrics["seeds"]) > 1
            else f"Test split, 1 seed, KL at T = {metrics['temperature']:g}",
        ),
        "missing": missing(metrics),
        "curves": curves(ran),
        "reliability": [
            reliability_diagram(model, column["reliability"], column)
            for model, column in columns.items()
            if "reliability" in column and metrics["labels"]["test"]
        ],
        "classes": class_changes(
            names,
            metrics["classes"]["test_samples"],
            {model: column["class_accuracy"] for model, column in columns.items() if "class_accuracy" in column},
        ),
        "class_names": names,
        "confusions": [
            confusion_of(model, column["confusion"], names)
            for model, column in columns.items()
            if "confusion" in column and metrics["labels"]["test"]
        ],
        "entropy": entropies(metrics["entropy"]),
        "contradicted": contradicted(metrics["entropy"]),
        "contradictions": contradictions(metrics, sample_of, names_of),
        "certificates": tables.certificates(metrics["caches"]),
        "sizes": tables.sizes(metrics["caches"]),
        "seconds": tables.seconds_of_stages(
            {**metrics["seconds"], "evaluate": evaluated.provenance.get("seconds", 0.0)}
        ),
        "saving": break_even(metrics["saving"]),
        "saving_sentences": saving_sentences(metrics["saving"]),
        "planned": plan and plan_and_actual(plan, metrics["caches"], ran),
        "caches_made": tables.caches_made(metrics["caches"]),
        "absent": absent(metrics, ran),
        "units": tables.units([*ran, evaluated]),
        "keys": keys_of(metrics, [*ran, evaluated]),
        "data_digests": data_digests(evaluated),
        "versions": versions_of([*ran, evaluated]),
        "settings": tables.settings({**metrics["teacher_made_from"], **evaluated.made_from}),
    }


def read_metrics(folder: Path) -> dict[str, Any]:
    """The metrics.json of a comparison."""
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_bytes())
    return metrics


def units_of(metrics: Mapping[str, Any], records: Records) -> list[Record]:
    """The records of the units that a comparison followed from, those that are still there."""
    found = [records.read(unit["stage"], unit["key"]) for unit in metrics["units"]]
    return [record for record in found if record is not None]


def curves(ran: Sequence[Record]) -> list[Plot]:
    """The training curves of each model whose records are here."""
    histories = {
        model: [unit.values["history"] for unit in ran if unit.stage == model and unit.values.get("history")]
        for model in MODELS
    }
    limits = score_limits(histories.values())
    return [learning_curves(model, seeds, limits) for model, seeds in histories.items() if seeds]


def missing(metrics: Mapping[str, Any]) -> list[str]:
    """What could not be measured, and why."""
    said = []
    if not metrics["labels"]["test"]:
        said.append("The test split has no labels: accuracy, calibration and confusion were not measured.")
    if not metrics["baseline"]:
        said.append("There is no label-only student: the student may use no label.")
    if "test" not in metrics["caches"]:
        said.append(
            "No cache holds the test split: the teacher's answers there, and agreement with them, were not measured."
        )
    elif metrics["teacher"].get("calibration_error") is None and metrics["labels"]["test"]:
        said.append("The teacher's calibration was not measured: no cache certifies a finite error at T = 1.")
    if metrics["teacher"].get("latency_seconds") is None:
        said.append(f"The teacher's size and latency were not measured: {metrics['teacher']['size_not_measured']}.")
    if metrics["labels"]["test"] and "fitted_temperature" not in metrics["student"]:
        said.append("No temperature was fitted: the validation split has no labels.")
    return said


def absent(metrics: Mapping[str, Any], ran: Sequence[Record]) -> list[str]:
    """The stages that made what is compared but left no record of having run here: the teacher's, and its caches'."""
    made = ("teacher", "teacher-targets") if metrics["caches"] else ("teacher",)
    return [stage for stage in made if stage not in {record.stage for record in ran}]


def confusion_of(model: str, confusion: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A confusion matrix with the fraction of each row, where classes are few; the most frequent confusions always."""
    matrix = None
    if confusion["matrix"] is not None:
        matrix = [[(times, times / sum(row) if sum(row) else 0.0) for times in row] for row in confusion["matrix"]]
    return {
        "model": tables.COLUMNS[model],
        "matrix": matrix,
        "pairs": tables.pairs_of_classes(confusion, names, tables.COLUMNS[model]),
        "samples": confusion["samples"],
    }


def contradicted(by_split: Mapping[str, Any]) -> str:
    """How many of the labelled samples that were looked at have a label that the teacher contradicts, in each split."""
    return "; ".join(
        f"{split}: {count(one['contradicted'])} of {plural(one['labelled'], 'labelled sample')}"
        if one["labelled"]
        else f"{split}: no labels"
        for split, one in by_split.items()
    )


def contradictions(metrics: Mapping[str, Any], sample_of: SampleOf, names_of: NamesOf) -> list[dict[str, Any]]:
    """The samples where teacher and label disagree most, each with its picture or its values, and its file's name."""

    def place_of(split: str, index: int) -> str:
        files = names_of(split)
        return f"{split} {index}" + ("" if files is None else f": {files[index]}")

    found, names = metrics["contradictions"], metrics["classes"]["names"]
    shown = shown_samples([sample_of(one["split"], one["index"]) for one in found])
    return [
        {
            **sample,
            "place": place_of(one["split"], one["index"]),
            "label": names[one["label"]],
            "predicted": names[one["predicted"]],
            "probability": percent(one["probability"]),
            "label_probability": percent(one["label_probability"]),
            "temperature": one["temperature"],
        }
        for one, sample in zip(found, shown, strict=True)
    ]


def keys_of(metrics: Mapping[str, Any], records: Sequence[Record]) -> list[tuple[str, str]]:
    """The full keys and digests of what took part, by name."""
    keys = [(f"cache, {split} split", cache["key"]) for split, cache in metrics["caches"].items()]
    some = next(iter(metrics["caches"].values()), None)
    if some is not None:
        keys += [("row_key", some["row_key"]), ("digest of the teacher", some["teacher_digest"])]
        if not any(one.stage == "teacher" for one in records):
            keys += [("teacher", some["teacher_key"])]
    return keys + [(f"{one.stage} {one.label}".strip(), one.key) for one in records if one.stage != "teacher-targets"]


def data_digests(evaluated: Record) -> list[tuple[str, str]]:
    """What identifies the samples and the labels of each split of the student's data."""
    splits = {**evaluated.made_from["data"], "test": evaluated.made_from["test"]}
    return [
        (f"{what}, {split} split", splits[split][field])
        for split in ("training", "validation", "test")
        for what, field in (("samples", "digests_sha256"), ("labels", "labels_sha256"))
    ]


def versions_of(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Each version and commit that took part, once."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        parts = {**record.provenance.get("versions", {}), "commit": record.provenance.get("commit")}
        for name, value in parts.items():
            if value is not None:
                found.setdefault(name, {})[str(value)] = None
    return [(name, ", ".join(values)) for name, values in found.items()]
