"""report: draw one comparison as a single HTML page, from its metrics.json and the records behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from pipeline.canonical import digest_of
from pipeline.durable import write_durably
from pipeline.errors import UserError
from pipeline.experiment import Experiment
from pipeline.keys import STAGE_VERSIONS, stage_key
from pipeline.planning.record import kept_plan
from pipeline.records import Record
from pipeline.report.numbers import size
from pipeline.stage_runner import Need, Outcome, Stage, Unit
from stages import evaluate

PAGE_FILE = "report.html"


def units(experiment: Experiment) -> Sequence[Unit]:
    """One page for one comparison."""
    [compared] = evaluate.units(experiment)
    titled = {"evaluate_version": STAGE_VERSIONS["evaluate"], "title": experiment.recipe.name}
    plan = kept_plan(experiment)
    planned = {} if plan is None else {"plan_sha256": digest_of(asdict(plan))}  # a plan that is made anew is shown anew
    made_from = {**compared.made_from, **titled, **planned}
    return [Unit("", stage_key("report", made_from), made_from, {"evaluate": compared.key})]


def stale(experiment: Experiment, record: Record) -> str | None:
    """A page holds for the metrics that it shows, and they for the weights that they were measured on."""
    [compared] = evaluate.units(experiment)
    evaluated = experiment.records.read("evaluate", compared.key)
    if evaluated is None:
        return None
    if evaluated.outputs != record.values["metrics"]:
        return "the comparison was made again"
    return evaluate.stale(experiment, evaluated)


def run(experiment: Experiment, unit: Unit, folder: Path) -> Outcome:
    """Gather what the page shows, fill its template, write it."""
    from pipeline.report.contents import contents_of
    from pipeline.report.page import render

    key = unit.parameters["evaluate"]
    evaluated = experiment.records.read("evaluate", key)
    assert evaluated is not None, "the runner runs evaluate first"
    contents = contents_of(
        experiment.records.folder_of("evaluate", key),
        experiment.records,
        evaluated,
        lambda split, index: experiment.datasets("student")[split].sample(index),
        cache(lambda split: getattr(experiment.datasets("student")[split], "names", None)),
        kept_plan(experiment),
    )
    # Recipes that differ in their names alone share a comparison, but not a page.
    page = render("report.html", {**contents, "recipe": experiment.recipe.name}).encode()
    write_durably(folder / PAGE_FILE, page)
    return Outcome([PAGE_FILE], {"metrics": evaluated.outputs}, f"{size(len(page))} -> {folder / PAGE_FILE}")


def the_one_recipe(names: Sequence[str] | None, output: Path | None = None) -> str:
    """The recipe that is named, or digits. Raises UserError for what only goes with --compare."""
    if len(names or ()) > 1:
        raise UserError(f"report takes one recipe; {len(names or ())} given. To put runs side by side, add --compare.")
    if output is not None:
        raise UserError(f"--output {output} goes with --compare; the report of a recipe is kept under runs/report.")
    return names[0] if names else "digits"


def refuse_ignored(overrides: Sequence[str], data_dir: Path | None) -> None:
    """Raises UserError for options of a recipe beside --compare, which takes runs as they are."""
    given = [*(f"--set {override}" for override in overrides), *([f"--data-dir {data_dir}"] if data_dir else [])]
    if given:
        raise UserError(
            f"{given[0]} goes with a recipe; --compare shows runs as they were made. Leave it out, or make that run first."
        )


def compare_runs(names: Sequence[str], workspace: Path, output: Path) -> str:
    """Write the page of several runs of one cache to `output`; returns one line for people.

    Raises UserError for a run that is not there or an output that is a folder, MismatchError for runs of different caches
    or test data.
    """
    from pipeline.report.page import render
    from pipeline.report.side_by_side import find_run, side_by_side

    if output.is_dir():
        raise UserError(f"--output {output} is a folder; give the file to write, such as {output / 'compare.html'}.")
    if output.suffix != ".html":  # what has another name is hardly an earlier page, and would be overwritten
        raise UserError(f"--output {output}: the file to write must end in .html.")
    page = render("compare.html", side_by_side([find_run(name, workspace) for name in names])).encode()
    output.parent.mkdir(parents=True, exist_ok=True)
    write_durably(output, page)
    return f"{len(names)} runs, {size(len(page))} -> {output}"


STAGE = Stage("report", units, run, needs=(Need("evaluate"),), stale=stale)
