"""Training curves as TensorBoard's own reader sees them: live, resumed, and of what was finished before."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.curves import TAGS, Curve, Curves
from pipeline.errors import UserError
from pipeline.records import Record
from tests.stages.conftest import Command
from tests.stages.toy import Toy

HISTORY = [
    {"step": 10.0, "loss": 1.5, "learning_rate": 0.5, "score": 0.25, "cross_entropy": 2.0},
    {"step": 20.0, "loss": 1.25, "learning_rate": 0.25, "score": 0.5, "cross_entropy": 1.5},
    {"step": 25.0, "loss": 1.0, "learning_rate": 0.0, "score": 0.75, "cross_entropy": 1.0},
]


def curves_in(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The (step, value) pairs of each tag, as TensorBoard shows one run."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def curves_of(history: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = [name for name in history[0] if name != "step"]
    return {
        TAGS[name]: [(record["step"], pytest.approx(record[name], rel=1e-6)) for record in history] for name in names
    }


def runs_in(folder: Path) -> list[str]:
    return sorted({str(path.parent.relative_to(folder)) for path in folder.rglob("events.out.tfevents.*")})


def run_of(record: Record) -> str:
    return f"toy/{'-'.join([record.stage, *record.label.split(), record.key[:12]])}"


def trained_by(toy: Toy) -> list[Record]:
    return [record for stage in ("teacher", "student", "baseline") for record in toy.records(stage)]


def test_every_validation_of_every_training_is_written_and_changes_no_key(
    fresh: Toy, finished: Toy, tmp_path: Path, softcache: Command
) -> None:
    assert softcache(*fresh.arguments("evaluate", then=["--tensorboard", str(tmp_path / "curves")])).code == 0
    records = trained_by(fresh)
    assert runs_in(tmp_path / "curves") == sorted(run_of(record) for record in records)
    for record in records:
        assert curves_in(tmp_path / "curves" / run_of(record)) == curves_of(record.values["history"])
        assert set(curves_of(record.values["history"])) == set(TAGS.values())
    assert [record.key for record in records] == [record.key for record in trained_by(finished)]


def test_asking_later_shows_what_was_finished_before_and_asking_again_adds_nothing(
    finished: Toy, tmp_path: Path, softcache: Command
) -> None:
    curves = tmp_path / "curves"
    for _ in range(3):
        said = softcache(*finished.arguments("evaluate", then=["--tensorboard", str(curves)]))
        assert (said.code, "nothing ran" in said.err) == (0, True)
        for record in trained_by(finished):
            assert curves_in(curves / run_of(record)) == curves_of(record.values["history"])
    assert len(list(curves.rglob("events.out.tfevents.*"))) == len(trained_by(finished))


@pytest.mark.parametrize(("stage", "trainings"), [("teacher", 1), ("student", 3), ("baseline", 2)])
def test_each_stage_shows_its_own_trainings(
    stage: str, trainings: int, finished: Toy, tmp_path: Path, softcache: Command
) -> None:
    assert softcache(*finished.arguments(stage, then=["--tensorboard", str(tmp_path / "curves")])).code == 0
    assert len(runs_in(tmp_path / "curves")) == trainings


def test_a_cache_whose_teacher_is_unknown_here_still_shows_its_students(
    finished: Toy, tmp_path: Path, softcache: Command
) -> None:
    for record in finished.records("teacher"):
        (finished.folder / "runs" / "teacher" / record.key / "result.json").unlink()
    assert softcache(*finished.arguments("student", then=["--tensorboard", str(tmp_path / "curves")])).code == 0
    assert len(runs_in(tmp_path / "curves")) == 2


def test_a_resumed_training_shows_every_step_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    killed = Curve(tmp_path)
    killed([])
    killed(HISTORY[:1])
    killed([*HISTORY[:1], {**HISTORY[1], "loss": 7.0}])  # of after the checkpoint; it is computed again
    resumed = Curve(tmp_path)
    for done in (1, 2, 3):
        resumed(HISTORY[:done])
        assert curves_in(tmp_path) == curves_of(HISTORY[:done])
    assert len(list(tmp_path.iterdir())) == 2
    assert "out of order" not in capsys.readouterr().err


def test_a_training_that_was_begun_without_event_files_gets_its_beginning_too(tmp_path: Path) -> None:
    resumed = Curve(tmp_path)
    resumed(HISTORY[:2])
    resumed(HISTORY)
    assert curves_in(tmp_path) == curves_of(HISTORY)


@pytest.mark.parametrize("written", [0, 1, 2, 3])
def test_a_finished_history_completes_what_a_run_left(written: int, tmp_path: Path) -> None:
    Curve(tmp_path)(HISTORY[:written])
    for _ in range(2):
        Curve(tmp_path).complete(HISTORY)
        assert curves_in(tmp_path) == curves_of(HISTORY)


def test_an_event_file_that_a_kill_cut_short_is_no_obstacle(tmp_path: Path) -> None:
    Curve(tmp_path)(HISTORY)
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    Curve(tmp_path).complete(HISTORY)
    assert curves_in(tmp_path) == curves_of(HISTORY)


def test_without_the_package_it_is_said_before_anything_runs(
    fresh: Toy, tmp_path: Path, softcache: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("pipeline.curves.find_spec", lambda name: None if name == "tensorboard" else find_spec(name))
    with pytest.raises(UserError, match=r'pip install "softcache\[tensorboard\]"'):
        Curves(tmp_path)
    said = softcache(*fresh.arguments("student", then=["--tensorboard", str(tmp_path / "curves")]))
    assert (said.code, said.out) == (1, "")
    assert "--tensorboard writes event files with the package tensorboard, which is not installed." in said.err
    assert not (fresh.folder / "runs").exists()
