"""The real `softcache teacher-targets`, with a user's own slow teacher, killed and interrupted from outside."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.targets.verification import verify
from tests.targets.killed import committed_blocks
from tests.targets.tiny import files_of, made_content

TEACHER = '''
import os, time
from torch import nn

class Slow(nn.Module):
    """Logs the first feature of each sample, which is its index, whenever it is slowed."""

    def __init__(self, features, classes):
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def forward(self, inputs):
        if "SECONDS_PER_BATCH" in os.environ:
            log = os.open(os.environ["LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(log, "".join(f"{int(index)}\\n" for index in inputs[:, 0]).encode())
            os.close(log)
            time.sleep(float(os.environ["SECONDS_PER_BATCH"]))
        return self.linear(inputs * 0.01)

def build(sample_shape, class_count):
    return Slow(sample_shape[0], class_count)
'''

RECIPE = """
name = "slow"
device = "cpu"
data = { kind = "npz", path = "samples.npz" }
teacher = { model = "slow_teacher:build", training = { steps = 1 } }
targets = { rows_per_block = 5, batch_size = 2 }
student = { model = "mlp", training = { steps = 1 } }
"""


class Command:
    """A workspace of its own, and `softcache` in it."""

    def __init__(self, folder: Path):
        self.folder = folder

    def start(self, stage: str, seconds_per_batch: float | None = None) -> subprocess.Popen[str]:
        environment = {**os.environ, "LOG": str(self.folder / "log"), "SOFTCACHE_DATA": str(self.folder)}
        if seconds_per_batch is not None:
            environment["SECONDS_PER_BATCH"] = str(seconds_per_batch)
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "stages.cli",
                stage,
                str(self.folder / "slow.toml"),
                "--workspace",
                str(self.folder),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def finish(self, stage: str, seconds_per_batch: float | None = None) -> None:
        process = self.start(stage, seconds_per_batch)
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr

    def rows_computed(self) -> list[int]:
        log = self.folder / "log"
        return [int(line) for line in log.read_text().split()] if log.exists() else []

    def rows_committed(self) -> set[int]:
        """Of the training split, whose samples are 0 to 119 in that order."""
        return {row for block in self.blocks_committed() for row in range(block * 5, block * 5 + 5)}

    def blocks_committed(self) -> set[int]:
        return {block for cache in (self.folder / "caches").glob("[!.]*") for block in committed_blocks(cache)}

    def contents(self) -> dict[str, dict[str, bytes]]:
        """What must not depend on how each of the three caches was made."""
        return {cache.name: made_content(cache) for cache in (self.folder / "caches").glob("[!.]*")}

    def wait_for_more_than(self, blocks: int, process: subprocess.Popen[str]) -> None:
        while len(self.blocks_committed()) <= blocks:
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)


def new_workspace(folder: Path) -> Command:
    folder.mkdir()
    (folder / "slow_teacher.py").write_text(TEACHER)
    (folder / "slow.toml").write_text(RECIPE)
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, first, count in (("training", 0, 120), ("validation", 1000, 6), ("test", 2000, 6)):
        samples = generator.normal(size=(count, 3)).astype(np.float32)
        samples[:, 0] = np.arange(first, first + count)
        arrays |= {f"x_{split}": samples, f"y_{split}": np.arange(count) % 3}
    np.savez(folder / "samples.npz", **arrays)
    return Command(folder)


def test_a_killed_and_interrupted_command_goes_on_to_the_same_caches(tmp_path: Path) -> None:
    command = new_workspace(tmp_path / "killed")
    command.finish("teacher")
    shutil.copytree(command.folder, tmp_path / "whole")
    whole = Command(tmp_path / "whole")
    whole.finish("teacher-targets", seconds_per_batch=0.0)
    assert sorted(whole.rows_computed()) == [*range(120), *range(1000, 1006), *range(2000, 2006)]

    for blocks in (0, 5):
        before, finished = len(command.rows_computed()), command.rows_committed()
        process = command.start("teacher-targets", seconds_per_batch=0.03)
        command.wait_for_more_than(max(blocks, len(command.blocks_committed())), process)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not finished & set(command.rows_computed()[before:])

    before, finished = len(command.rows_computed()), command.rows_committed()
    process = command.start("teacher-targets", seconds_per_batch=0.03)
    command.wait_for_more_than(len(command.blocks_committed()), process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    kept = len(command.blocks_committed())
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert f"interrupted: {kept} of 24 blocks are kept in " in stderr
    assert "Run the same command again to go on" in stderr
    assert "Traceback" not in stderr
    assert not finished & set(command.rows_computed()[before:])
    assert 6 < kept < 24

    before, finished = len(command.rows_computed()), command.rows_committed()
    command.finish("teacher-targets", seconds_per_batch=0.0)
    assert sorted(set(command.rows_computed()[before:])) == sorted(set(whole.rows_computed()) - finished)
    assert command.contents() == whole.contents()
    for cache in (command.folder / "caches").glob("[!.]*"):
        verify(cache)
    caches = {name: files_of(command.folder / "caches" / name) for name in command.contents()}
    command.finish("teacher-targets", seconds_per_batch=0.0)
    assert {name: files_of(command.folder / "caches" / name) for name in command.contents()} == caches
