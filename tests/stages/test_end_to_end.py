"""The whole pipeline on the default recipe: what distillation brought, as metrics.json says it."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from tests.stages.conftest import Command

FAST = [
    "teacher.training.steps=30",
    "student.training.steps=30",
    "student.seeds=[0, 1]",
    "baseline.learning_rates=[1e-2]",
    "baseline.weight_decays=[0.01]",
    "baseline.search_seeds=1",
]


def evaluated(softcache: Command, workspace: Path, settings: list[str]) -> dict[str, Any]:
    sets = [part for setting in settings for part in ("--set", setting)]
    said = softcache("evaluate", "digits", "--workspace", str(workspace), "--json", *sets)
    assert said.code == 0, said.err
    [written] = workspace.glob("runs/evaluate/*/metrics.json")
    metrics: dict[str, Any] = json.loads(written.read_text())
    assert json.loads(said.out) == metrics
    return metrics


def test_evaluate_compares_teacher_student_and_baseline_over_the_seeds(tmp_path: Path, softcache: Command) -> None:
    metrics = evaluated(softcache, tmp_path, FAST)
    assert (metrics["recipe"], metrics["temperature"], metrics["seeds"]) == ("digits", 4.0, [0, 1])
    for model in ("student", "baseline"):
        for name in ("accuracy", "cross_entropy", "calibration_error", "agreement", "kl"):
            measured = metrics[model][name]
            assert len(measured["values"]) == 2
            assert measured["mean"] == statistics.fmean(measured["values"])
            assert measured["sd"] == statistics.stdev(measured["values"])
        assert metrics[model]["parameters"] == 1210
        assert metrics[model]["bytes"] == 4 * 1210
        assert metrics[model]["latency_seconds"] > 0
    assert metrics["teacher"]["parameters"] == 56_554
    assert 0 <= metrics["teacher"]["accuracy"] <= 1
    assert 0 <= metrics["teacher"]["calibration_error"] <= 1
    pairs = zip(metrics["student"]["accuracy"]["values"], metrics["baseline"]["accuracy"]["values"], strict=True)
    gains = [100 * (student - baseline) for student, baseline in pairs]
    assert metrics["gain_points"] == {"mean": statistics.fmean(gains), "sd": statistics.stdev(gains), "n": 2}
    saving = metrics["saving"]
    assert saving["online_over_cached"] == saving["online_epoch_seconds"] / saving["cached_epoch_seconds"]
    assert saving["online_epoch_seconds"] > saving["cached_epoch_seconds"] > 0
    assert saving["cache_seconds"] > 0


@pytest.mark.slow
def test_the_default_recipes_student_beats_the_baseline_by_8_points_over_5_seeds(
    tmp_path: Path, softcache: Command
) -> None:
    metrics = evaluated(softcache, tmp_path, [])
    assert metrics["gain_points"]["n"] == 5
    assert metrics["gain_points"]["mean"] >= 8.0
    assert metrics["teacher"]["accuracy"] > metrics["student"]["accuracy"]["mean"]
    assert metrics["student"]["agreement"]["mean"] > metrics["baseline"]["agreement"]["mean"]
