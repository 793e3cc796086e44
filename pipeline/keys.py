"""Keys: hashes of everything that may change a result, and of nothing else.

Not in any key: paths, times, host, device, batch size of the teacher's pass, rows_per_block, layout, library versions,
source code.
"""

from __future__ import annotations

from typing import Any

from pipeline.canonical import digest_of
from pipeline.recipe import Model, Training

KEY_SCHEMA = 1

# The declared version of each stage: raised when the same inputs would give another result.
STAGE_VERSIONS = {
    "teacher": 1,
    "teacher-targets": 1,
    "student": 1,
    "baseline-search": 1,
    "baseline": 1,
    "evaluate": 1,
}


def stage_key(stage: str, made_from: dict[str, Any]) -> str:
    """The key of one unit of a stage."""
    version = STAGE_VERSIONS[stage]
    return digest_of({"key_schema": KEY_SCHEMA, "stage": stage, "version": version, "made_from": made_from})


def cache_key(row_key: str, rows_sha256: str) -> str:
    """A cache's key: what makes its rows, and which (sample digest, view) rows they are, in order."""
    return digest_of({"row_key": row_key, "rows": rows_sha256})


def model_parts(model: Model) -> dict[str, Any]:
    """The part of a key that says which network."""
    return {"model": model.model, "options": _plain(model.options), "version": model.version}


def training_parts(training: Training) -> dict[str, Any]:
    """The part of a key that says how it is trained; when checkpoints are written does not matter."""
    return training.model_dump(mode="json", exclude={"checkpoint_seconds"})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value
