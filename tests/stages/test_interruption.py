"""Runs that are killed, stopped with Ctrl-C, or started twice: nothing finished is lost and nothing is half done."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.stages.conftest import Command
from tests.stages.test_reruns import STUDENTS, assert_foretold
from tests.stages.toy import Toy, new_toy

PATIENCE_SECONDS = 60.0
STEPS = 400
LONG_RUN = [
    f"student.training.steps={STEPS}",
    "student.training.validate_every=50",
    "student.options={ hidden = [4], dropout = 0.2 }",
]
CHECKPOINTS = [*LONG_RUN, "student.training.checkpoint_seconds=0.0"]


def wait_for_step(process: subprocess.Popen[str], folder: Path, stage: str, step: int) -> None:
    """Return when the process has written a checkpoint at this step or a later one; fail when it ends before."""
    started = time.monotonic()
    while not any(step_of(path) >= step for path in folder.glob(f"runs/{stage}/*/checkpoint.safetensors")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - started < PATIENCE_SECONDS
        time.sleep(0.002)


def step_of(checkpoint: Path) -> int:
    """The step that a safetensors checkpoint was written at; 0 for one that is gone."""
    try:
        content = checkpoint.read_bytes()
    except FileNotFoundError:
        return 0
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return int(json.loads(header["__metadata__"]["progress"])["step"])


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_killed_run_leaves_what_it_finished_and_resumes_to_the_uninterrupted_result(
    fresh: Toy, tmp_path: Path
) -> None:
    fresh.run("teacher-targets")
    process = fresh.begun("student", settings=CHECKPOINTS)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("student seed 0: ")
    wait_for_step(process, fresh.folder, "student", 30)
    kill(process)
    [checkpoint] = fresh.folder.glob("runs/student/*/checkpoint.safetensors")
    assert 30 <= step_of(checkpoint) < STEPS
    assert_foretold(fresh, "student", LONG_RUN, STUDENTS[1:], "no result yet")
    assert not checkpoint.exists()

    whole = new_toy(tmp_path / "whole")
    whole.run("student", *LONG_RUN)
    for seed in (0, 1):
        resumed, uninterrupted = (toy.output("student", seed, *LONG_RUN) for toy in (fresh, whole))
        assert resumed.read_bytes() == uninterrupted.read_bytes()
        histories = [toy.records("student", *LONG_RUN)[seed].values["history"] for toy in (fresh, whole)]
        assert histories[0] == histories[1]


def test_a_killed_and_resumed_teacher_equals_an_uninterrupted_one(fresh: Toy, tmp_path: Path) -> None:
    settings = [f"teacher.training.steps={STEPS}", "teacher.training.checkpoint_seconds=0.0"]
    process = fresh.begun("student", settings=settings)
    wait_for_step(process, fresh.folder, "teacher", 30)
    kill(process)
    assert_foretold(fresh, "teacher", settings[:1], ["teacher"])
    whole = new_toy(tmp_path / "whole")
    whole.run("teacher", *settings[:1])
    assert fresh.output("teacher", 0, *settings).read_bytes() == whole.output("teacher", 0, *settings).read_bytes()


def test_ctrl_c_exits_130_and_says_that_the_same_command_goes_on(fresh: Toy) -> None:
    fresh.run("teacher-targets")
    process = fresh.begun("student", settings=CHECKPOINTS)
    wait_for_step(process, fresh.folder, "student", 1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    message = err.splitlines()[-1]
    assert message.startswith("softcache: interrupted")
    assert "kept. Run the same command again" in message
    assert "Traceback" not in err
    assert_foretold(fresh, "student", LONG_RUN, STUDENTS)


def test_two_students_started_together_do_the_work_once(fresh: Toy, softcache: Command) -> None:
    processes = [fresh.begun("student") for _ in range(2)]
    ended = [(process, *process.communicate()) for process in processes]
    codes = sorted(process.returncode for process, _, _ in ended)
    assert codes in ([0, 0], [0, 4])
    for process, _, err in ended:
        assert "Traceback" not in err
        if process.returncode == 4:
            [other] = [one for one in processes if one is not process]
            assert f"process {other.pid} on {socket.gethostname()}" in err.splitlines()[-1]
    results = [line.split(":")[0] for _, out, _ in ended for line in out.splitlines()]
    assert sorted(results) == sorted(set(results)), "each result is made, and reported, once"
    assert_foretold(fresh, "student", [], [])
    assert softcache("caches", "verify", "--workspace", str(fresh.folder)).code == 0
