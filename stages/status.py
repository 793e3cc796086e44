"""status: what asking for each stage would do, and why. Runs nothing."""

from __future__ import annotations

from typing import Any

from pipeline.stage_runner import Runner, Step
from stages.chain import STAGES


def status_of(runner: Runner) -> list[dict[str, Any]]:
    """For each stage: its units with their action and reason, and the earlier stages that asking for it would run."""
    found = []
    for stage in STAGES:
        plan = runner.plan(stage)
        own = [step for step in plan if step.stage == stage]
        running = [step for step in own if step.action == "run"]
        found.append(
            {
                "stage": stage,
                "action": "run" if running else "up to date",
                "reason": _reason(running or own) if own else runner.absent(stage),
                "would_run_first": sorted(
                    {step.stage for step in plan if step.action == "run" and step.stage != stage},
                    key=list(STAGES).index,
                ),
                "units": [_unit(runner, step) for step in own],
            }
        )
    return found


def _unit(runner: Runner, step: Step) -> dict[str, Any]:
    forecast = runner.forecast(step)
    return {**vars(step), "forecast": None if forecast is None else {**vars(forecast), "line": forecast.line()}}


def table_of(found: list[dict[str, Any]]) -> str:
    """The status as text for a terminal."""
    lines = []
    for stage in found:
        first = f" (first: {', '.join(stage['would_run_first'])})" if stage["would_run_first"] else ""
        lines.append(
            f"{stage['stage']:16} {'would run' if stage['action'] == 'run' else 'up to date':11} {stage['reason']}{first}"
        )
        lines += [f"{'':16} {unit['label']}: {unit['forecast']['line']}" for unit in stage["units"] if unit["forecast"]]
    return "\n".join(lines)


def _reason(steps: list[Step]) -> str:
    """One line for the units of a stage: their reason where it is one, else each unit's own."""
    if len(steps) > 1 and all(step.action == "up to date" and step.reason.startswith("result") for step in steps):
        return f"{len(steps)} results"
    if len(steps) > 1 and len({step.reason for step in steps}) == 1:
        return f"{len(steps)} units: {steps[0].reason}"
    return "; ".join(f"{step.label}: {step.reason}" if step.label else step.reason for step in steps)
