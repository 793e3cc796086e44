"""Toy recipes whose teacher is imported, and what they are imported from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.weights import save_weights
from tests.stages.toy import CLASSES, RECIPE, Toy, new_toy, toy_arrays

TRAINED = RECIPE[RECIPE.index("[teacher]") : RECIPE.index("[targets]")]


def with_teacher(table: str) -> str:
    """The toy recipe with another [teacher]."""
    return RECIPE.replace(TRAINED, f"[teacher]\n{table}\n\n")


WEIGHTS = with_teacher('model = "mlp"\noptions = { hidden = [16] }\nweights = "toy.safetensors"')
PROGRAM = with_teacher('weights = "toy.pt2"\ntrusted = true')
ESTIMATOR = with_teacher('estimator = "users_estimator:load"')
OUTPUTS = with_teacher('outputs = { path = "toy.npy" }')

USERS_ESTIMATOR = """\
import numpy as np


class Nearest:
    classes_ = np.array(["cat", "ant", "bee"])

    def __init__(self, centres):
        self.centres = centres

    def predict_proba(self, features):
        distances = ((features[:, None].astype(float) - self.centres) ** 2).sum(axis=2)
        weights = np.exp(distances.min(axis=1, keepdims=True) - distances)
        return weights / weights.sum(axis=1, keepdims=True)


def load(folder):
    return Nearest(np.load(folder / "centres.npy")[[2, 0, 1]])


load.version = 1
load.files = ["centres.npy"]
"""


def network() -> nn.Module:
    """What the toy recipe's mlp of 16 hidden units is, with weights of its own: it tells the classes apart."""
    arrays = toy_arrays()
    x, y = torch.from_numpy(arrays["x"].astype(np.float32)), torch.from_numpy(arrays["y"].astype(np.int64))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.0), nn.Linear(16, 3))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return model.eval()


def centres() -> NDArray[np.float64]:
    """The mean sample (3, 6) of each class."""
    arrays = toy_arrays()
    return np.stack([arrays["x"][arrays["y"] == label].mean(axis=0) for label in range(len(CLASSES))])


@torch.inference_mode()
def logits_of(model: nn.Module) -> NDArray[np.float32]:
    """Logits (200, 3) of all toy samples in the order of toy.npz."""
    logits: Tensor = model(torch.from_numpy(toy_arrays()["x"].astype(np.float32)))
    return logits.numpy()


def toy_with(folder: Path, recipe: str) -> Toy:
    """A fresh toy workspace with every file that the imported teachers ask for."""
    toy, model = new_toy(folder, recipe), network()
    save_weights(folder / "toy.safetensors", model.state_dict())
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(model, (torch.zeros(4, 6),), dynamic_shapes=shapes), folder / "toy.pt2")
    np.save(folder / "centres.npy", centres())
    (folder / "users_estimator.py").write_text(USERS_ESTIMATOR)
    np.save(folder / "toy.npy", logits_of(model))
    return toy


def cached(toy: Toy, split: str, temperature: float = 4.0, *settings: str) -> NDArray[np.float32]:
    """Soft targets of a split from its cache, joined by content."""
    experiment = toy.experiment(*settings)
    cache = experiment.shelf.open(toy.cache(split, *settings))
    rows = cache.join(experiment.datasets("student")[split].sample_digests())
    found: NDArray[np.float32] = cache.soft_targets(rows, temperature).numpy()
    return found


def of_split(toy: Toy, split: str, values: NDArray[Any]) -> NDArray[Any]:
    """Those rows of values (200, ...) that are of a split's samples."""
    positions: NDArray[np.int64] = toy.experiment().datasets("student")[split].positions  # type: ignore[attr-defined]
    return np.asarray(values[positions])
