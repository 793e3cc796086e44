"""What the programs work on: images, caches of made-up logits, networks and one epoch of a student."""

from __future__ import annotations

import gzip
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.arrays import ArrayDataset
from pipeline.batches import Preprocess, SoftTargets
from pipeline.canonical import digest_of
from pipeline.dataset import NO_LABEL, rows_of
from pipeline.fitting import Fit, fit
from pipeline.models import build_model
from pipeline.progress import no_bar
from pipeline.recipe import Distillation, Model, Normalise, Precision, Training
from pipeline.student_data import LearningSet
from pipeline.targets.production import TeacherForward
from pipeline.targets.shelf import Shelf
from pipeline.targets.writer import CachePlan
from pipeline.teacher_pass import Pass, forward_of, make_cache

TEMPERATURE = 4.0
NORMALISE = Normalise(mean=(73.0,), std=(90.0,))  # grey values of Fashion-MNIST, about
IMAGE = (1, 28, 28)
TRAINING_IMAGES, TRAINING_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def class_names(classes: int) -> tuple[str, ...]:
    """Names of so many classes."""
    return tuple(f"class {number}" for number in range(classes))


def random_images(samples: int, classes: int) -> ArrayDataset:
    """Images of noise (samples, 1, 28, 28) uint8 with labels."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (samples, *IMAGE), dtype=np.uint8)
    return ArrayDataset(images, generator.integers(0, classes, samples), class_names(classes), "training", "noise")


def fashion(samples: int) -> tuple[ArrayDataset, str]:
    """The first training images of Fashion-MNIST, read from SOFTCACHE_DATA, or noise of the same shape; and which."""
    folder = os.environ.get("SOFTCACHE_DATA")
    found = [path for name in ("", "fashion-mnist") for path in Path(folder or ".", name).glob(f"{TRAINING_IMAGES}*")]
    if folder is None or not found:
        return random_images(samples, 10), "noise of the shape of Fashion-MNIST"
    images = _idx(found[0], 16).reshape(-1, *IMAGE)[:samples]
    labels = _idx(next(found[0].parent.glob(f"{TRAINING_LABELS}*")), 8)[:samples].astype(np.int64)
    return ArrayDataset(images, labels, class_names(10), "training", "Fashion-MNIST"), "Fashion-MNIST"


def _idx(path: Path, header_bytes: int) -> NDArray[np.uint8]:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return np.frombuffer(content, dtype=np.uint8, offset=header_bytes)


def plan_of(dataset: ArrayDataset, batch_size: int = 256) -> CachePlan:
    """The plan of a float16 cache of all samples, as a recipe with default settings has it."""
    names = dataset.class_names
    digest = digest_of({"benchmark": len(names)})
    row_made_from = {
        "teacher": {"digest": digest},
        "class_names": list(names),
        "encoding": {"name": "dense", "dtype": "float16"},
        "temperature": TEMPERATURE,
    }
    return CachePlan(
        row_key=digest_of(row_made_from),
        row_made_from=row_made_from,
        rows=rows_of(dataset),
        split="training",
        layout="zarr",
        rows_per_block=4096,
        class_names=names,
        teacher={
            "key": digest,
            "recipe": "benchmark",
            "made_from": {},
            "digest": digest,
            "sample_shape": list(dataset.sample_shape),
            "class_names": list(names),
        },
        resumable={
            "batch_size": batch_size,
            "precision": "float32",
            "threads": torch.get_num_threads(),
            "certify": [1.0, 2.0, 4.0, 8.0],
        },
    )


def cache_in(folder: Path, plan: CachePlan, forward: TeacherForward) -> Pass:
    """Make the cache as the stage teacher-targets makes it."""
    return make_cache(Shelf(folder), plan, lambda order: forward, no_bar, lambda text: None, {"recipe": "benchmark"})


def made_up_teacher(classes: int) -> TeacherForward:
    """Random logits that cost next to nothing, for programs in which the teacher does not count."""
    generator = torch.Generator().manual_seed(0)
    return lambda indices: 3.0 * torch.randn(len(indices), classes, generator=generator)


def network(options: dict[str, object], classes: int) -> nn.Module:
    """A built-in CNN for these images."""
    return build_model("cnn", options, IMAGE, classes)


def forward_over(teacher: nn.Module, dataset: ArrayDataset) -> TeacherForward:
    """The teacher as the stage teacher-targets runs it."""
    return forward_of(teacher, dataset, Preprocess(NORMALISE, dataset.sample_shape), "float32", torch.device("cpu"))


def mflop_per_sample(model: nn.Module) -> float:
    """Millions of floating-point operations (two for each multiply-add) of one forward pass, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.eval()(torch.zeros(1, *IMAGE))
    return float(counter.get_total_flops()) / 1e6


def epoch_seconds(
    student: Model,
    learn: LearningSet,
    batch_size: int,
    soft_targets: SoftTargets | None,
    epochs: int = 1,
    device: str = "cpu",
    precision: Precision = "float32",
) -> float:
    """Seconds of one epoch in the real training loop, without validation and checkpoints.

    With `soft_targets` by the convex loss with coefficient 0.9, else from labels alone.
    """
    steps = max(1, epochs * len(learn) // batch_size)
    training = Training(
        steps=steps,
        batch_size=batch_size,
        learning_rate=1e-3,
        validate_every=steps,
        checkpoint_seconds=1e9,
        precision=precision,
    )
    nothing = replace(learn.at(np.arange(1)), labels=np.array([NO_LABEL]))
    with tempfile.TemporaryDirectory() as folder:
        trained = fit(
            Fit(student, training, NORMALISE, 0, device, steps),
            learn,
            nothing,
            Path(folder),
            no_bar,
            distillation=Distillation(coefficient=0.9) if soft_targets else None,
            temperature=TEMPERATURE,
            soft_targets=soft_targets,
        )
    return trained.seconds / epochs


def live(teacher: nn.Module, dataset: ArrayDataset) -> SoftTargets:
    """Soft targets as a loop without a cache computes them."""
    forward = forward_over(teacher, dataset)

    def soft_targets(positions: NDArray[np.int64]) -> Tensor:
        return torch.softmax(forward(positions).float() / TEMPERATURE, dim=1)

    return soft_targets
