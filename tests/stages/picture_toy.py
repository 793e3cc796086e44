"""A toy experiment on a folder of small images, which a test can run through whole in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.data.pictures import Pixels, write
from tests.stages.toy import CLASSES, Toy

EACH = 30
HEIGHT, WIDTH = 10, 8

PICTURES = """\
name = "pictures"

[data]
kind = "folder"
path = "images"
normalise = { mean = [128.0], std = [64.0] }

[teacher]
model = "cnn"
options = { channels = [4, 8] }
training = { steps = 30, batch_size = 16, learning_rate = 2e-2, validate_every = 15 }

[targets]
temperature = 2.0
dtype = "float32"
rows_per_block = 16
batch_size = 8

[student]
model = "mlp"
options = { hidden = [6] }
seeds = [0]
training = { steps = 20, batch_size = 16, learning_rate = 1e-2, validate_every = 10 }

[baseline]
learning_rates = [1e-2]
weight_decays = [0.01]
search_seeds = 1
"""


def picture(label: int, number: int) -> Pixels:
    """Grey pixels (H, W): noise, and a bright bar whose place is the class."""
    pixels = np.random.default_rng(1000 * label + number).integers(0, 120, (HEIGHT, WIDTH), dtype=np.uint8)
    pixels[3 * label : 3 * label + 3] += 100
    return pixels


def picture_arrays() -> dict[str, NDArray[np.generic]]:
    """The same pictures as arrays of a .npz file, class after class."""
    values = np.stack([picture(label, number) for label in range(len(CLASSES)) for number in range(EACH)])
    return {"x": values[:, None], "y": np.repeat(np.arange(len(CLASSES)), EACH), "class_names": np.array(CLASSES)}


def write_pictures(root: Path, extension: str = "png") -> None:
    """One folder for each class."""
    for label, name in enumerate(CLASSES):
        for number in range(EACH):
            write(root / name / f"{number:02}.{extension}", picture(label, number))


def new_picture_toy(folder: Path, recipe: str = PICTURES) -> Toy:
    """A fresh workspace with a folder of images, in which nothing ran yet."""
    write_pictures(folder / "images")
    toy = Toy(folder)
    toy.recipe.write_text(recipe)
    return toy
