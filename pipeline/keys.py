"""Keys: hashes of everything that may change a result, and of nothing else.

Not in any key: paths, times, host, device, batch size of the teacher's pass, rows_per_block, layout, library versions,
source code.
"""

from __future__ import annotations

from typing import Any

from pipeline.canonical import digest_of
from pipeline.recipe import MODEL_OPTIONS, Data, Model, Training

KEY_SCHEMA = 1

# The declared version of each stage: raised when the same inputs would give another result.
STAGE_VERSIONS = {
    "teacher": 1,
    "teacher-targets": 1,
    "student": 2,
    "baseline-search": 1,
    "baseline": 1,
    "evaluate": 3,
    "report": 1,
}

_SAMPLES = (
    "data/geometry.py",
    "data/image_files/pixels.py",
    "data/shaping.py",
    "data/workers.py",
    "pipeline/prefetch.py",
)

_ENCODINGS = (
    "pipeline/targets/dense.py",
    "pipeline/targets/elias_fano.py",
    "pipeline/targets/encodings.py",
    "pipeline/targets/largest.py",
    "pipeline/targets/sparse.py",
    "pipeline/targets/tail_mass.py",
    "pipeline/targets/top_k.py",
)

_LEARNING = (
    *_SAMPLES,
    "data/splits.py",
    "pipeline/batches.py",
    "pipeline/dataset.py",
    "pipeline/evaluation.py",
    "pipeline/fitting.py",
    "pipeline/losses.py",
    "pipeline/models.py",
    "pipeline/sorting.py",
    "pipeline/sparse_loss.py",
    "pipeline/student_data.py",
    "pipeline/targets/order.py",
    "pipeline/training.py",
)

# The files that decide what a stage gives, relative to the packages. When one of them changed while the version above
# did not, a warning says so; the result is used all the same.
STAGE_SOURCES = {
    "teacher": ("stages/teacher.py", *_LEARNING),
    "teacher-targets": (
        "stages/teacher_targets.py",
        *_SAMPLES,
        "pipeline/batches.py",
        "pipeline/cache_plan.py",
        "pipeline/dataset.py",
        "pipeline/models.py",
        "pipeline/sorting.py",
        *_ENCODINGS,
        "pipeline/targets/encoders.py",
        "pipeline/targets/known_rows.py",
        "pipeline/targets/production.py",
        "pipeline/teacher_pass.py",
        "pipeline/teachers/coverage.py",
        "pipeline/teachers/estimator.py",
        "pipeline/teachers/joining.py",
        "pipeline/teachers/opening.py",
        "pipeline/teachers/outputs_checks.py",
        "pipeline/teachers/outputs_csv.py",
        "pipeline/teachers/outputs_file.py",
        "pipeline/teachers/outputs_npz.py",
        "pipeline/teachers/outputs_parquet.py",
        "pipeline/teachers/outputs_tables.py",
        "pipeline/teachers/places.py",
        "pipeline/teachers/program.py",
    ),
    "student": (
        "stages/student.py",
        *_LEARNING,
        "pipeline/student_targets.py",
        *_ENCODINGS,
        "pipeline/targets/join.py",
        "pipeline/targets/reader.py",
    ),
    "baseline-search": ("stages/baseline_search.py", "stages/baseline.py", *_LEARNING),
    "baseline": ("stages/baseline.py", *_LEARNING),
    "evaluate": (
        "stages/evaluate.py",
        *_SAMPLES,
        "pipeline/cache_contents.py",
        "pipeline/calibration.py",
        "pipeline/class_results.py",
        "pipeline/comparison.py",
        "pipeline/evaluation.py",
        "pipeline/held_out.py",
        "pipeline/measurement.py",
        "pipeline/saving.py",
        "pipeline/step_timing.py",
        *_ENCODINGS,
        "pipeline/targets/join.py",
        "pipeline/targets/reader.py",
    ),
    "report": (
        "stages/report.py",
        "pipeline/planning/figures.py",
        "pipeline/planning/price.py",
        "pipeline/report/contents.py",
        "pipeline/report/curves.py",
        "pipeline/report/drawing.py",
        "pipeline/report/figures.py",
        "pipeline/report/frame.html",
        "pipeline/report/headline.py",
        "pipeline/report/numbers.py",
        "pipeline/report/page.py",
        "pipeline/report/parts.html",
        "pipeline/report/pictures.py",
        "pipeline/report/planned.py",
        "pipeline/report/report.html",
        "pipeline/report/style.css",
        "pipeline/report/tables.py",
    ),
}


def stage_key(stage: str, made_from: dict[str, Any]) -> str:
    """The key of one unit of a stage."""
    version = STAGE_VERSIONS[stage]
    return digest_of({"key_schema": KEY_SCHEMA, "stage": stage, "version": version, "made_from": made_from})


def cache_key(row_key: str, rows_sha256: str) -> str:
    """A cache's key: what makes its rows, and which (sample digest, view) rows they are, in order."""
    return digest_of({"row_key": row_key, "rows": rows_sha256})


def model_parts(model: Model) -> dict[str, Any]:
    """The part of a key that says which network; a built-in one's options with their defaults."""
    known = MODEL_OPTIONS.get(model.model)
    options = _plain(model.options) if known is None else known.model_validate(model.options).model_dump(mode="json")
    return {"model": model.model, "options": options, "version": model.version}


def training_parts(training: Training) -> dict[str, Any]:
    """The part of a key that says how it is trained; when checkpoints are written does not matter."""
    return training.model_dump(mode="json", exclude={"checkpoint_seconds"})


def sight_parts(data: Data) -> dict[str, Any]:
    """The part of a key that says what a model sees of a sample. What is left out of a recipe is left out of the key."""
    geometry = data.model_dump(mode="json", include={"mode", "resize", "crop"}, exclude_none=True)
    return {"normalise": data.normalise.model_dump(mode="json"), **geometry}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value
