"""evaluate: compare teacher, students and baselines on the test split; say what distillation and caching bought."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.canonical import digest_of
from pipeline.experiment import SPLITS, Experiment
from pipeline.keys import STAGE_VERSIONS, stage_key
from pipeline.made_from import baseline_made_from, student_made_from
from pipeline.records import Record
from pipeline.stage_runner import Need, Outcome, Stage, Unit
from stages import baseline, baseline_search, student, teacher_targets

METRICS_FILE = "metrics.json"


def units(experiment: Experiment) -> Sequence[Unit]:
    """One comparison of all seeds."""
    made_from = {
        **student_made_from(experiment),
        "seeds": list(experiment.recipe.student.seeds),
        "evaluation": experiment.recipe.evaluation.model_dump(mode="json"),
        "test": experiment.fingerprints("student")["test"],
        "baseline": baseline_made_from(experiment)["baseline"],
        "unit_versions": [STAGE_VERSIONS["student"], STAGE_VERSIONS["baseline"]],
    }
    return [Unit("", stage_key("evaluate", made_from), made_from)]


def weights(experiment: Experiment) -> str:
    """Hash of the weights that are compared: the same key gives other bits on another device."""
    units = [("student", unit) for unit in student.units(experiment)]
    units += [("baseline", unit) for unit in baseline.units(experiment)]
    records = [experiment.records.read(stage, unit.key) for stage, unit in units]
    return digest_of([record and record.outputs for record in records])


def lineage(experiment: Experiment) -> list[Record]:
    """The records of everything that a comparison follows from, as far as this workspace has them."""
    from pipeline.saving import teacher_record

    records = [teacher_record(experiment)]
    for stage in (teacher_targets, student, baseline_search, baseline):
        records += [experiment.records.read(stage.STAGE.name, unit.key) for unit in stage.units(experiment)]
    return [record for record in records if record is not None and record.provenance]


def certificates(experiment: Experiment) -> dict[str, str]:
    """Hash of the certificate of each split's cache, as far as there is one here."""
    from pipeline.targets.manifest import read_manifest

    found = {}
    for split in SPLITS:
        folder = experiment.cache_folder(split)
        if folder is not None:
            found[split] = digest_of(read_manifest(folder).certificate)
    return found


def stale(experiment: Experiment, record: Record) -> str | None:
    """A comparison holds for the weights and the certificates that it was made with; caches may be gone since."""
    if record.values["weights_sha256"] != weights(experiment):
        return "the weights of a student or baseline changed"
    made_with = record.values["certificates"]
    changed = [split for split, certificate in certificates(experiment).items() if made_with.get(split) != certificate]
    return f"the cache of the {changed[0]} split is another, or has another certificate" if changed else None


def run(experiment: Experiment, unit: Unit, folder: Path) -> Outcome:
    """Measure every model on the test split and write metrics.json."""
    from pipeline.comparison import compare
    from pipeline.comparison_table import table_of
    from pipeline.devices import described, device_of
    from pipeline.durable import write_durably
    from pipeline.report.numbers import plural

    metrics = compare(
        experiment,
        students=[experiment.records.folder_of("student", model.key) for model in student.units(experiment)],
        baselines=[experiment.records.folder_of("baseline", model.key) for model in baseline.units(experiment)],
        units=lineage(experiment),
    )
    write_durably(folder / METRICS_FILE, json.dumps(metrics, indent=1).encode())
    seeds = plural(len(metrics["seeds"]), "seed")
    line = f"{seeds} on {metrics['test_samples']:,} test samples -> {folder / METRICS_FILE}"
    values = {
        "table": table_of(metrics),
        "weights_sha256": weights(experiment),
        "certificates": certificates(experiment),
    }
    device = described(device_of(experiment.recipe.device), "float32")
    return Outcome([METRICS_FILE], values, line, {"device": device})


STAGE = Stage(
    "evaluate",
    units,
    run,
    needs=(Need("teacher-targets", ("test",)), Need("student"), Need("baseline")),
    stale=stale,
)
