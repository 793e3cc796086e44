"""evaluate: compare teacher, students and baselines on the test split; say what distillation and caching bought."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.canonical import digest_of
from pipeline.experiment import Experiment
from pipeline.keys import stage_key
from pipeline.made_from import baseline_made_from, student_made_from
from pipeline.stage_runner import Need, Outcome, Stage, Unit
from stages import baseline, student

SOURCES = ("stages/evaluate.py", "pipeline/comparison.py", "pipeline/saving.py", "pipeline/evaluation.py")
METRICS_FILE = "metrics.json"


def units(experiment: Experiment) -> Sequence[Unit]:
    """One comparison of all seeds."""
    made_from = {
        **student_made_from(experiment),
        "seeds": list(experiment.recipe.student.seeds),
        "evaluation": experiment.recipe.evaluation.model_dump(mode="json"),
        "test": experiment.fingerprints("student")["test"],
        "baseline": baseline_made_from(experiment)["baseline"],
        "results_sha256": digest_of([unit.key for stage in (student, baseline) for unit in stage.units(experiment)]),
    }
    return [Unit("", stage_key("evaluate", made_from), made_from)]


def run(experiment: Experiment, unit: Unit, folder: Path) -> Outcome:
    """Measure every model on the test split and write metrics.json."""
    from pipeline.comparison import compare
    from pipeline.comparison_table import table_of
    from pipeline.durable import write_durably

    metrics = compare(
        experiment,
        students=[experiment.records.folder_of("student", model.key) for model in student.units(experiment)],
        baselines=[experiment.records.folder_of("baseline", model.key) for model in baseline.units(experiment)],
    )
    write_durably(folder / METRICS_FILE, json.dumps(metrics, indent=1).encode())
    line = f"{len(metrics['seeds'])} seeds on {metrics['test_samples']:,} test samples -> {folder / METRICS_FILE}"
    return Outcome([METRICS_FILE], {"table": table_of(metrics)}, line)


STAGE = Stage(
    "evaluate",
    SOURCES,
    units,
    run,
    needs=(Need("teacher-targets", ("test",)), Need("student"), Need("baseline")),
)
