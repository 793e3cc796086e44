"""predict: classes and probabilities of new samples, by a trained student, as CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data import shaped
from pipeline.errors import UserError
from pipeline.experiment import Experiment
from pipeline.records import Record


def predict_to_csv(
    experiment: Experiment, students: Sequence[Record], source: str, output: Path, seed: int | None
) -> str:
    """Predict the test split (source "test"), the array x of a .npz, an image or a folder of them; returns one line for people.

    Raises UserError or DatasetError when the input does not fit the student.
    """
    from pipeline.batches import Preprocess, inputs_in_order
    from pipeline.devices import device_of
    from pipeline.evaluation import logits_of
    from pipeline.fitting import load_fitted
    from pipeline.student_data import learning_set

    if output.suffix != ".csv":  # what has another name is hardly an earlier table, and would be overwritten
        raise UserError(f"--output {output}: the file to write must end in .csv.")
    recipe = experiment.recipe
    chosen = _chosen(students, seed)
    trained_on = learning_set(experiment.datasets("student")["test"], recipe.student.classes)
    samples = trained_on
    if source != "test":
        new = shaped({"new": _new_samples(Path(source), trained_on.class_names)}, recipe.data)["new"]
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
    names = getattr(samples.dataset, "names", None)
    _write(output, samples.indices, names, probabilities, trained_on.class_names)
    return f"{len(probabilities):,} predictions by the student of {chosen.label} -> {output}"


def _new_samples(source: Path, class_names: tuple[str, ...]) -> Any:
    """The array x of a .npz file, an image, or the images of a folder."""
    from data.arrays import checked_dataset
    from data.folder import images_to_predict
    from data.image_files.listing import is_image
    from data.npz import read_npz

    if source.is_dir() or (source.is_file() and is_image(source)):
        return images_to_predict(source, class_names)
    arrays = read_npz(source) if source.is_file() else {}
    if "x" not in arrays:
        raise UserError(
            f"{source}: neither a .npz file with an array x, an image, a folder of images, nor the word test."
        )
    return checked_dataset(arrays["x"], None, class_names, split="new", origin=str(source))


def _chosen(students: Sequence[Record], seed: int | None) -> Record:
    if seed is None:
        return max(students, key=lambda record: record.values["validation"].get("score", 0.0))
    for record in students:
        if record.label == f"seed {seed}":
            return record
    raise UserError(f"no student of seed {seed}; there are {', '.join(record.label for record in students)}.")


def _write(
    output: Path,
    indices: np.ndarray,
    names: Sequence[str] | None,
    probabilities: np.ndarray,
    class_names: Sequence[str],
) -> None:
    """One row for each sample; with `names`, those of its image files."""
    with output.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        columns = ["index", "class", "probability", *(f"p({name})" for name in class_names)]
        rows.writerow(columns if names is None else [*columns, "file"])
        for index, row in zip(indices, probabilities, strict=True):
            best = int(row.argmax())
            cells = [int(index), class_names[best], f"{row[best]:.6f}", *(f"{value:.6f}" for value in row)]
            rows.writerow(cells if names is None else [*cells, names[index]])
