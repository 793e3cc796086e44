"""The stage runner: which stages must run and why, one run per key, and a record when it is done.

Stages are demand-driven: an earlier stage runs only when a stage that must run needs its missing output. Every decision
is by content; plans are made without importing torch or loading a dataset where records suffice.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.canonical import digest_of, short
from pipeline.experiment import Experiment, NotYet
from pipeline.file_memory import sha256_of_file, sha256_of_source
from pipeline.keys import STAGE_SOURCES, STAGE_VERSIONS
from pipeline.locks import locked
from pipeline.records import Record, difference

if TYPE_CHECKING:
    from pipeline.planning.forecast import Forecast

PACKAGE_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Unit:
    """One thing that a stage makes under a key of its own: one seed, one split. `label` tells units of a stage apart."""

    label: str
    key: str
    made_from: dict[str, Any]
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What running a unit gave: files in its folder, values for its record, and one line for people."""

    outputs: Sequence[str]
    values: dict[str, Any]
    line: str
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Need:
    """The outputs of an earlier stage that a stage needs to run; no labels means all its units."""

    stage: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """A stage as the runner sees it.

    `available` may say that a unit's output is there without a record of it; None means that it must be made. `advice` is
    added to the reason when an earlier result was made from something else. `stale` may say why a finished result does
    not hold any more although its key does. `absent` says why a recipe has no unit of this stage. `forecast` says what
    running a unit will cost, where that is worth knowing before.
    """

    name: str
    units: Callable[[Experiment], Sequence[Unit]]
    run: Callable[[Experiment, Unit, Path], Outcome]
    needs: tuple[Need, ...] = ()
    user_models: Callable[[Experiment], Sequence[str]] = lambda experiment: ()
    available: Callable[[Experiment, Unit], str | None] | None = None
    advice: Callable[[Record, Unit], str] = lambda earlier, unit: ""
    stale: Callable[[Experiment, Record], str | None] = lambda experiment, record: None
    absent: Callable[[Experiment], str] = lambda experiment: "this recipe has none"
    forecast: Callable[[Experiment, Unit], Forecast | None] = lambda experiment, unit: None


@dataclass(frozen=True)
class Step:
    """What happens to one unit of a stage, and why. The key is None while an earlier stage decides it."""

    stage: str
    label: str
    key: str | None
    action: Literal["run", "up to date"]
    reason: str


class Runner:
    """Plans and runs the stages of one experiment. `report` gets the one line that each finished unit prints."""

    def __init__(self, stages: Mapping[str, Stage], experiment: Experiment, report: Callable[[str], None]):
        self._stages = stages
        self._experiment = experiment
        self._report = report
        self._warned: set[str] = set()
        self._begun: set[str] = set()  # a stage that ran one unit makes all of them: evaluate then needs no teacher

    def plan(self, target: str) -> list[Step]:
        """What asking for `target` would do, earlier stages first. Stages that nothing needs do not appear."""
        steps: dict[str, list[Step]] = {}
        self._visit(Need(target), steps)
        return [step for stage in self._stages for step in steps.get(stage, [])]

    def run(self, target: str) -> list[Step]:
        """Run what the plan says, planning anew after each unit, since results decide later keys; returns what ran."""
        done: list[Step] = []
        while True:
            plan = self.plan(target)
            waiting = [step for step in plan if step.action == "run"]
            if not waiting:
                self._warn_of_changed_sources(plan)
                self._experiment.save_memory()
                return done
            step = waiting[0]
            if any((step.stage, step.key) == (earlier.stage, earlier.key) for earlier in done):
                raise RuntimeError(f"stage {step.stage} ran, but its output is still missing: {step.reason}")
            self._begun.add(step.stage)
            self._run_unit(step)
            self._experiment.save_memory()
            done.append(step)

    def absent(self, stage: str) -> str:
        """Why this recipe has no unit of a stage, when it has none."""
        return self._stages[stage].absent(self._experiment)

    def forecast(self, step: Step) -> Forecast | None:
        """What running a step will cost; None for one that will not run, or of which nothing is known before."""
        if step.action != "run" or step.key is None:
            return None
        unit = next(unit for unit in self._units(step.stage) if unit.label == step.label)
        return self._stages[step.stage].forecast(self._experiment, unit)

    def records(self, stage: str) -> list[Record]:
        """The records of a stage's units for this recipe. Call after `run`."""
        found = [self._experiment.records.read(stage, unit.key) for unit in self._units(stage)]
        return [record for record in found if record is not None]

    def _visit(self, need: Need, steps: dict[str, list[Step]]) -> None:
        stage = self._stages[need.stage]
        if any(step.action == "run" for step in steps.get(stage.name, [])):
            return
        try:
            decided = [self._decide(stage, unit) for unit in self._units(stage.name)]
        except NotYet as unknown:
            for earlier in (Need(unknown.stage), *stage.needs):
                self._visit(earlier, steps)
            steps[stage.name] = [Step(stage.name, "", None, "run", f"after {unknown.stage}")]
            return
        wanted = [step for step in decided if not need.labels or step.label in need.labels or stage.name in self._begun]
        if not any(step.action == "run" for step in wanted):
            steps.setdefault(stage.name, wanted)
            return
        for earlier in stage.needs:
            self._visit(earlier, steps)
        steps[stage.name] = decided

    def _units(self, stage: str) -> Sequence[Unit]:
        return self._stages[stage].units(self._experiment)

    def _decide(self, stage: Stage, unit: Unit) -> Step:
        reason = self._why(stage, unit)
        if reason is None:
            return Step(stage.name, unit.label, unit.key, "up to date", self._where(stage, unit))
        return Step(stage.name, unit.label, unit.key, "run", reason)

    def _where(self, stage: Stage, unit: Unit) -> str:
        said = stage.available(self._experiment, unit) if stage.available else None
        return said or f"result {short(unit.key)}"

    def _why(self, stage: Stage, unit: Unit) -> str | None:
        """Why a unit must run when its output is wanted, or None when the output is there."""
        if stage.available is not None and stage.available(self._experiment, unit) is not None:
            return None
        record = self._experiment.records.read(stage.name, unit.key)
        if record is None:
            return self._what_changed(stage, unit)
        if stage.available is not None:
            return "its output is missing"
        folder = self._experiment.records.folder_of(stage.name, unit.key)
        for name, sha256 in record.outputs.items():
            path = folder / name
            if not path.is_file():
                return f"its output {name} is missing"
            if self._experiment.memory.recall(path, sha256_of_file) != sha256:
                return f"its output {name} was changed"
        return stage.stale(self._experiment, record)

    def _what_changed(self, stage: Stage, unit: Unit) -> str:
        for record in self._experiment.records.of_stage(stage.name):
            if record.recipe == self._experiment.recipe.name and record.label == unit.label:
                changed = difference(record.made_from, unit.made_from)
                return (changed or f"stage version is now {STAGE_VERSIONS[stage.name]}") + stage.advice(record, unit)
        return "no result yet"

    def _run_unit(self, step: Step) -> None:
        from pipeline.allocator import keep_freed_memory

        experiment, stage = self._experiment, self._stages[step.stage]
        unit = next(unit for unit in self._units(stage.name) if unit.label == step.label)
        name = f"{stage.name} {unit.label}".strip()
        lock = experiment.workspace.runs / ".locks" / f"{stage.name}-{unit.key}"
        with locked(lock, f"{name} ({short(unit.key)})"):
            if self._why(stage, unit) is None:
                return  # another run finished it between the plan and the lock
            experiment.say(f"{name}: running, because {step.reason}")
            forecast = stage.forecast(experiment, unit)
            if forecast is not None:
                experiment.say(f"{name}: {forecast.line()}")
            folder = experiment.records.folder_of(stage.name, unit.key)
            folder.mkdir(parents=True, exist_ok=True)
            keep_freed_memory()
            started, clock = datetime.now(UTC), time.monotonic()
            outcome = stage.run(experiment, unit, folder)
            provenance = {
                "why": step.reason,
                "started": started.isoformat(timespec="seconds"),
                "seconds": round(time.monotonic() - clock, 3),
                "sources_sha256": self._sources_sha256(stage),
                **software(),
                **outcome.provenance,
            }
            outputs = {output: sha256_of_file(folder / output) for output in outcome.outputs}
            experiment.records.write(
                Record(
                    stage.name,
                    unit.label,
                    unit.key,
                    experiment.recipe.name,
                    unit.made_from,
                    outputs,
                    outcome.values,
                    provenance,
                )
            )
        self._report(f"{name}: {outcome.line}")

    def _warn_of_changed_sources(self, plan: Sequence[Step]) -> None:
        for step in plan:
            record = self._experiment.records.read(step.stage, step.key) if step.key else None
            if record is None or step.stage in self._warned:
                continue
            if record.provenance.get("sources_sha256") != self._sources_sha256(self._stages[step.stage]):
                self._warned.add(step.stage)
                folder = self._experiment.records.folder_of(step.stage, record.key)
                self._experiment.say(
                    f"warning: the source of stage {step.stage} changed since result {short(record.key)} was made, but its "
                    f"version did not; the result is used as it is. Delete {folder} to make it anew."
                )

    def _sources_sha256(self, stage: Stage) -> str:
        paths = [PACKAGE_ROOT / source for source in STAGE_SOURCES[stage.name]]
        paths += [path for name in stage.user_models(self._experiment) if (path := _file_of(name)) is not None]
        return digest_of([self._experiment.memory.recall(path, sha256_of_source) for path in paths])


def software() -> dict[str, Any]:
    """Versions and the commit of this checkout, for provenance."""
    versions = {"python": sys.version.split()[0]}
    for package in ("softcache", "torch", "numpy", "zarr", "h5py"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": versions, "commit": _commit()}


def _commit() -> str | None:
    command = ["git", "-C", str(PACKAGE_ROOT), "rev-parse", "--show-toplevel", "--short=12", "HEAD"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.split("\n")
    except (OSError, subprocess.SubprocessError):
        return None
    return said[1] if Path(said[0]) == PACKAGE_ROOT else None  # installed within somebody else's checkout


def _file_of(model: str) -> Path | None:
    """The source file of a user's "package.module:function", whose module is not imported; None for a built-in model."""
    module, colon, _ = model.partition(":")
    try:
        spec = find_spec(module) if colon else None
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None and Path(spec.origin).is_file() else None
