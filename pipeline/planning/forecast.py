"""What making a cache will cost, said before it is made: rows that other caches hold, rows for the teacher, seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.canonical import digest_of, short
from pipeline.experiment import Experiment
from pipeline.planning.figures import speed_of
from pipeline.planning.record import kept_plan
from pipeline.report.numbers import duration
from pipeline.targets.donors import donors_of
from pipeline.targets.manifest import Manifest
from pipeline.targets.writer import UNFINISHED_FILE


@dataclass(frozen=True)
class Forecast:
    """Rows of a cache, how many of them which sealed cache holds (by its key), those that are new, and about how long.

    `kept` are those that an interrupted run has left. `seconds` are None where neither a plan nor an earlier pass of the same
    teacher says how fast it is.
    """

    rows: int
    known: dict[str, int]
    new: int
    seconds: float | None
    kept: int = 0

    def line(self) -> str:
        """The same for people."""
        if not self.new:
            time = "the teacher is not run"
        elif self.seconds is None:
            time = "time not known yet (softcache plan measures it)"
        else:
            time = f"about {duration(self.seconds)}"
        where = ", ".join(f"{rows:,} in cache {short(key)}" for key, rows in self.known.items())
        known = f"{sum(self.known.values()):,} known ({where}), " if where else ""
        kept = f"{self.kept:,} kept by an interrupted run, " if self.kept else ""
        return f"{self.rows:,} rows: {kept}{known}{self.new:,} new; {time}"


def forecast_of(experiment: Experiment, split: str) -> Forecast:
    """What making the cache of a split will cost. Donors count as whole: they are verified when rows are taken.

    Raises NotYet while the teacher is not known.
    """
    shelf, row_key, key = experiment.shelf, digest_of(experiment.row_made_from()), experiment.cache_keys()[split]
    plan, kept, known = kept_plan(experiment), 0, dict[str, int]()
    donors = [folder for folder, _ in donors_of(shelf, row_key, key, needed_temperatures(experiment, split))]
    if (shelf.folder_of(key) / UNFINISHED_FILE).exists():
        rows, kept, known = _of_interrupted(experiment, split)
    elif donors or plan is None or split not in plan.values["rows"]:
        from pipeline.dataset import rows_of
        from pipeline.targets.known_rows import unchecked_rows

        listed = rows_of(experiment.datasets("student")[split])
        rows, known = len(listed), unchecked_rows(donors, listed).taken()
    else:  # nothing to look for: no dataset needs to be loaded
        rows = int(plan.values["rows"][split])
    new = rows - kept - sum(known.values())
    speed = None if plan is None else speed_of(plan)
    if speed is not None:
        return Forecast(rows, known, new, speed.seconds([new]), kept)
    rate = _seconds_per_row(experiment, (manifest for _, manifest in shelf.sealed()), row_key)
    return Forecast(rows, known, new, None if rate is None else rate * new, kept)


def _of_interrupted(experiment: Experiment, split: str) -> tuple[int, int, dict[str, int]]:
    """Rows of a cache that was begun, how many are finished, and what its donors give of the others."""
    from pipeline.cache_plan import plan_of
    from pipeline.targets.journal import committed_blocks
    from pipeline.targets.known_rows import unchecked_rows
    from pipeline.targets.writer import as_begun, settings_to_resume

    plan, shelf = plan_of(experiment, split), experiment.shelf
    folder = shelf.folder_of(plan.key)
    begun = settings_to_resume(folder, plan)
    if begun is None:  # another process has finished it just now
        return len(plan.rows), 0, {}
    spec, finished, known = as_begun(plan, begun).block_arrays()[0], committed_blocks(folder), Counter[str]()
    found = unchecked_rows([shelf.folder_of(one.key) for one in begun["donors"] if shelf.has(one.key)], plan.rows)
    for block in range(spec.chunks):
        if block not in finished:
            known.update(found.taken(spec.rows_of_chunk(block)))
    return len(plan.rows), sum(len(spec.rows_of_chunk(block)) for block in finished), dict(known)


def needed_temperatures(experiment: Experiment, split: str) -> list[float]:
    """Temperatures that a cache must certify for the recipe: its own, and that of the loss where students learn from it."""
    wanted = wanted_temperature(experiment, split)
    return sorted({experiment.recipe.targets.temperature} | (set() if wanted is None else {wanted}))


def wanted_temperature(experiment: Experiment, split: str) -> float | None:
    """The temperature that the recipe's students will ask a split's cache for; None where they learn nothing from it."""
    distillation = experiment.recipe.student.distillation
    if split != "training" or not distillation.coefficient:
        return None
    return distillation.temperature or experiment.recipe.targets.temperature


def _seconds_per_row(experiment: Experiment, manifests: Iterable[Manifest], row_key: str) -> float | None:
    """Seconds of a row in the pass that computed most rows: of this row_key, else of the same teacher at the same precision."""
    teacher, precision = experiment.teacher_record().values["digest"], experiment.recipe.targets.precision
    timed: list[tuple[bool, int, float]] = []
    for manifest in manifests:
        made, computed = manifest.provenance, manifest.provenance.get("rows_computed")
        alike = (manifest.teacher["digest"], manifest.row_made_from.get("precision")) == (teacher, precision)
        if alike and computed and made.get("seconds"):
            timed.append((manifest.row_key == row_key, computed, made["seconds"] / computed))
    return max(timed)[2] if timed else None
