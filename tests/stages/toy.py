"""A toy experiment that a test can run through whole in a second: its recipe, its data, its workspace."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.experiment import Experiment
from pipeline.records import Record
from pipeline.stage_runner import Runner
from stages.chain import open_experiment, runner_of
from stages.status import status_of

CLASSES = ("ant", "bee", "cat")

RECIPE = """\
name = "toy"

[data]
kind = "npz"
path = "toy.npz"

[teacher]
model = "mlp"
options = { hidden = [16] }
training = { steps = 40, batch_size = 32, learning_rate = 3e-2, validate_every = 20 }

[targets]
temperature = 4.0
dtype = "float16"
rows_per_block = 32

[student]
model = "mlp"
options = { hidden = [4] }
seeds = [0, 1]
labelled = 30
training = { steps = 20, batch_size = 32, learning_rate = 1e-2, validate_every = 10 }

[student.distillation]
coefficient = 0.9

[baseline]
learning_rates = [1e-2]
weight_decays = [0.01]
search_seeds = 1
"""

FIXED_TEACHER = """
[teacher.data]
kind = "npz"
path = "toy.npz"
"""

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


def toy_arrays(samples: int = 200, first: int = 0) -> dict[str, NDArray[np.generic]]:
    """Three clouds of points in six dimensions: samples `first` to `first + samples` of an endless list."""
    generator = np.random.default_rng(7)
    centres = 1.5 * generator.normal(size=(len(CLASSES), 6))
    noise = generator.normal(size=(first + samples, 6))
    labels = np.arange(first + samples) % len(CLASSES)
    values = (centres[labels] + noise).astype(np.float32)
    return {"x": values[first:], "y": labels[first:], "class_names": np.array(CLASSES)}


def write_npz(path: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub mistakes the names for its own argument


@dataclass(frozen=True)
class Toy:
    """A folder with a recipe and its data, which is the workspace as well."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "toy.toml"

    def experiment(self, *settings: str) -> Experiment:
        return open_experiment(str(self.recipe), settings, self.folder, self.folder)

    def runner(self, *settings: str) -> Runner:
        return runner_of(self.experiment(*settings), report=lambda line: None)

    def run(self, stage: str, *settings: str) -> list[str]:
        """Ask for a stage; returns what ran, such as "student seed 0"."""
        return [f"{step.stage} {step.label}".strip() for step in self.runner(*settings).run(stage)]

    def status(self, stage: str, *settings: str) -> dict[str, Any]:
        """What `status --json` says of a stage."""
        [found] = [entry for entry in status_of(self.runner(*settings)) if entry["stage"] == stage]
        return found

    def records(self, stage: str, *settings: str) -> list[Record]:
        return self.runner(*settings).records(stage)

    def output(self, stage: str, seed: int = 0, *settings: str, name: str = "model.safetensors") -> Path:
        """A file that a finished stage left; `seed` counts its units."""
        return self.folder / "runs" / stage / self.records(stage, *settings)[seed].key / name

    def cache(self, split: str = "training", *settings: str) -> Path:
        found = self.experiment(*settings).cache_folder(split)
        assert found is not None
        return found

    def arguments(self, *words: str, then: Sequence[str] = (), settings: Sequence[str] = ()) -> list[str]:
        """Arguments of the command line for this recipe (`then` follow it) in this workspace."""
        sets = [part for setting in settings for part in ("--set", setting)]
        return [*words, str(self.recipe), *then, "--workspace", str(self.folder), "--data-dir", str(self.folder), *sets]

    def process(self, *words: str, settings: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Run the command line as a process of its own, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "stages.cli", *self.arguments(*words, settings=settings)],
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            cwd=self.folder,
            check=False,
        )

    def begun(self, *words: str, settings: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Start the command line as a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "stages.cli", *self.arguments(*words, settings=settings)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            cwd=self.folder,
        )


def new_toy(folder: Path, recipe: str = RECIPE) -> Toy:
    """A fresh workspace in which nothing ran yet."""
    folder.mkdir(parents=True, exist_ok=True)
    write_npz(folder / "toy.npz", toy_arrays())
    toy = Toy(folder)
    toy.recipe.write_text(recipe)
    return toy
