"""predict: classes and probabilities of new samples, by a trained student, as CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.experiment import Experiment
from pipeline.records import Record


def predict_to_csv(
    experiment: Experiment, students: Sequence[Record], source: str, output: Path, seed: int | None
) -> str:
    """Predict the test split (source "test") or the array x of a .npz; returns one line for people.

    Raises UserError or DatasetError when the input does not fit the student.
    """
    from data.arrays import checked_dataset
    from data.npz import read_npz
    from pipeline.batches import Preprocess, inputs_in_order
    from pipeline.devices import device_of
    from pipeline.evaluation import logits_of
    from pipeline.fitting import load_fitted
    from pipeline.student_data import learning_set

    recipe = experiment.recipe
    chosen = _chosen(students, seed)
    trained_on = learning_set(experiment.datasets("student")["test"], recipe.student.classes)
    samples = trained_on
    if source != "test":
        arrays = read_npz(Path(source)) if Path(source).is_file() else None
        if arrays is None or "x" not in arrays:
            raise UserError(f"{source}: neither a .npz file with an array x, nor the word test.")
        new = checked_dataset(arrays["x"], None, trained_on.class_names, split="new", origin=source)
        if new.sample_shape != trained_on.dataset.sample_shape:
            raise UserError(
                f"{source}: samples have shape {new.sample_shape}; the student takes {trained_on.dataset.sample_shape}."
            )
        samples = learning_set(new)
    model = load_fitted(recipe.student, trained_on, experiment.records.folder_of("student", chosen.key))
    device = device_of(recipe.device)
    preprocess = Preprocess(recipe.data.normalise, trained_on.dataset.sample_shape)
    inputs = inputs_in_order(samples.dataset, samples.indices, preprocess, recipe.evaluation.batch_size)
    probabilities = logits_of(model.to(device), inputs, device).softmax(dim=1).numpy()
    _write(output, samples.indices, probabilities, trained_on.class_names)
    return f"{len(probabilities):,} predictions by the student of {chosen.label} -> {output}"


def _chosen(students: Sequence[Record], seed: int | None) -> Record:
    if seed is None:
        return max(students, key=lambda record: record.values["validation"].get("score", 0.0))
    for record in students:
        if record.label == f"seed {seed}":
            return record
    raise UserError(f"no student of seed {seed}; there are {', '.join(record.label for record in students)}.")


def _write(output: Path, indices: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]) -> None:
    with output.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["index", "class", "probability", *(f"p({name})" for name in class_names)])
        for index, row in zip(indices, probabilities, strict=True):
            best = int(row.argmax())
            rows.writerow([int(index), class_names[best], f"{row[best]:.6f}", *(f"{value:.6f}" for value in row)])
