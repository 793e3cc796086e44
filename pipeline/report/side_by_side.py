"""Several comparisons of students of one cache, side by side: which runs, that they may be compared, what differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.canonical import digest_of, short
from pipeline.errors import MismatchError, UserError
from pipeline.records import RECORD_FILE, Record, Records
from pipeline.report import tables
from pipeline.report.contents import read_metrics, units_of
from pipeline.report.curves import overlaid_curves
from pipeline.report.drawing import RUNS, Mark
from pipeline.report.figures import classes_of_runs
from pipeline.report.numbers import Cell, percent, points, spread

LINES = ("-", "--", ":", "-.")
MARKERS = ("s", "o", "^", "D", "v", "P", "X", "*")
MOST_RUNS = len(RUNS)


@dataclass(frozen=True)
class Run:
    """One result of evaluate: its record, its metrics, and the records of the units that it followed from."""

    record: Record
    metrics: dict[str, Any]
    units: Sequence[Record]

    @property
    def label(self) -> str:
        return f"{self.metrics['recipe']} {self.record.key[:6]}"

    @property
    def row_key(self) -> str:
        return digest_of(self.record.made_from["targets"])


def find_run(name: str, workspace: Path) -> Run:
    """The run of a key of evaluate, of the start of one, or of its folder.

    Raises UserError when none or several match, or when it was made by another version of evaluate.
    """
    folder = _folder_of(name, workspace / "runs" / "evaluate")
    records = Records(folder.parent.parent)
    record = records.read("evaluate", folder.name)
    if record is None or record.stage != "evaluate" or not (folder / "metrics.json").is_file():
        raise UserError(
            f"{name!r} is {folder}, which holds no finished result of evaluate ({RECORD_FILE}, metrics.json)."
        )
    metrics = read_metrics(folder)
    if "units" not in metrics or "class_accuracy" not in metrics["student"]:
        raise UserError(
            f"{folder} was made by an older softcache, whose metrics.json lacks what this page shows. Run evaluate again."
        )
    return Run(record, metrics, units_of(metrics, records))


def refuse_unlike(runs: Sequence[Run]) -> None:
    """Raises UserError for too few or too many runs or one given twice, MismatchError for another cache or test data."""
    if not 2 <= len(runs) <= MOST_RUNS:
        raise UserError(f"--compare takes 2 to {MOST_RUNS} runs; {len(runs)} given.")
    first = runs[0]
    for place, run in enumerate(runs[1:], 1):
        if any(run.record.key == earlier.record.key for earlier in runs[:place]):
            raise UserError(f"run {short(run.record.key)} is given twice; give each once.")
        for what, ours, theirs in (
            ("row_key of the cache", first.row_key, run.row_key),
            ("samples of the test split", *_test_data(first, run, "digests_sha256")),
            ("labels of the test split", *_test_data(first, run, "labels_sha256")),
            ("classes", first.metrics["classes"]["names"], run.metrics["classes"]["names"]),
        ):
            if ours != theirs:
                raise MismatchError(
                    f"runs {short(first.record.key)} and {short(run.record.key)} cannot be compared: {what} is "
                    f"{_shown(ours)} in one and {_shown(theirs)} in the other. Compare students of one cache and one test split."
                )


def side_by_side(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything that the page of several runs shows. Raises as `refuse_unlike` does."""
    refuse_unlike(runs)
    labels = [run.label for run in runs]
    marks = [Mark(label, RUNS[place], LINES[place % len(LINES)], MARKERS[place]) for place, label in enumerate(labels)]
    histories = [_histories(run) for run in runs]
    columns = {label: run.metrics["student"] for label, run in zip(labels, runs, strict=True)}
    caption = (
        f"Distilled students on the test split of {runs[0].metrics['test_samples']:,} samples, mean ± sd over seeds"
    )
    results = _with_temperatures(tables.results(columns, caption), [run.metrics["temperature"] for run in runs])
    extra = [
        [Cell("seeds"), *(Cell(str(len(run.metrics["seeds"])), len(run.metrics["seeds"])) for run in runs)],
        [
            Cell("T of the loss and of KL"),
            *(spread(run.metrics["temperature"], lambda value: f"{value:g}") for run in runs),
        ],
        [Cell("label-only: accuracy, %"), *(spread(run.metrics["baseline"].get("accuracy"), percent) for run in runs)],
        [Cell("gain over label-only, points"), *(_gain(run.metrics["gain_points"]) for run in runs)],
    ]
    names = runs[0].metrics["classes"]["names"]
    return {
        "labels": labels,
        "headline": _best(runs),
        "row_key": runs[0].row_key,
        "results": tables.Table(results.caption, results.header, [*results.rows, *extra]),
        "settings": tables.differing_settings(labels, [run.record.made_from for run in runs]),
        "curves": overlaid_curves(labels, histories, marks) if all(histories) else None,
        "classes": classes_of_runs(names, [run.metrics["student"]["class_accuracy"] for run in runs], marks),
        "keys": [(label, run.record.key) for label, run in zip(labels, runs, strict=True)],
    }


def _with_temperatures(results: tables.Table, temperatures: Sequence[float]) -> tables.Table:
    """A KL at one T says nothing beside a KL at another, so each then says its T."""
    if len(set(temperatures)) == 1:
        return results

    def at(cell: Cell, temperature: float) -> Cell:
        return cell if cell.value is None else Cell(f"{cell.text} at T = {temperature:g}", cell.value)

    rows = [
        [row[0], *map(at, row[1:], temperatures)] if row[0].text == tables.DIVERGENCE else row for row in results.rows
    ]
    return tables.Table(f"{results.caption}; KLs at different T cannot be compared", results.header, rows)


def _folder_of(name: str, folder: Path) -> Path:
    if (Path(name) / RECORD_FILE).is_file():
        return Path(name).resolve()
    if name and Path(name).is_dir():
        raise UserError(
            f"{name} is a folder without {RECORD_FILE}, so it holds no result of evaluate. Give a folder such as {folder}/KEY."
        )
    there = sorted(path.parent for path in folder.glob(f"*/{RECORD_FILE}"))
    matching = [path for path in there if path.name.startswith(name)] if name else []
    if len(matching) == 1:
        return matching[0]
    keys = ", ".join(short(path.name) for path in matching or there) or "none"
    if matching:
        raise UserError(f"{name!r} is the start of {len(matching)} results of evaluate: {keys}. Give more digits.")
    raise UserError(f"no result of evaluate {name!r} in {folder}, and no such folder. The results here are: {keys}.")


def _test_data(first: Run, other: Run, part: str) -> tuple[str, str]:
    return first.record.made_from["test"][part], other.record.made_from["test"][part]


def _histories(run: Run) -> list[Any]:
    return [unit.values["history"] for unit in run.units if unit.stage == "student"]


def _gain(gain: dict[str, Any]) -> Cell:
    if gain["mean"] is None:
        return Cell("–")
    return Cell(
        points(gain["mean"]) + ("" if gain["sd"] is None else f" ±\N{NO-BREAK SPACE}{gain['sd']:.2f}"), gain["mean"]
    )


def _best(runs: Sequence[Run]) -> str:
    scored = [(run.metrics["student"]["accuracy"], run.label) for run in runs if "accuracy" in run.metrics["student"]]
    if len(scored) < len(runs):
        return "The test split has no labels, so accuracies were not measured; agreement with the teacher is below."
    (best, label), (second, _) = sorted(scored, key=lambda one: -one[0]["mean"])[:2]
    difference = 100 * (best["mean"] - second["mean"])
    said = (
        f"{label} has the highest mean accuracy, {spread(best, percent).text} %, {difference:.2f} points above the next"
    )
    spreads = [100 * one["sd"] for one in (best, second) if one["sd"] is not None]
    if len(spreads) < 2:
        return f"{said}. With one seed, nothing says whether another seed would change that order."
    within = difference <= max(spreads)
    return f"{said}, which is {'within' if within else 'more than'} one standard deviation over seeds, the larger of the two."


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
