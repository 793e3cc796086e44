"""A report where something is missing: equal sizes, labels, a cache of the test split, the teacher's own runs."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.pictures import colour, grey, write
from tests.stages.imports import OUTPUTS, logits_of, network, of_split, toy_with, with_teacher
from tests.stages.picture_toy import PICTURES
from tests.stages.toy import CLASSES, Toy, new_toy, toy_arrays, write_npz


def page_of(toy: Toy, *settings: str) -> str:
    """The HTML of a report, made now."""
    toy.run("report", *settings)
    return toy.output("report", 0, *settings, name="report.html").read_text()


def words_of(html: str) -> str:
    """What a page says, without its style sheet and tags, spaces in a row as one."""
    body = html[html.index("<main>") :]
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).replace("\N{NO-BREAK SPACE}", " ").split())


def metrics_of(toy: Toy, *settings: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(toy.output("evaluate", 0, *settings, name="metrics.json").read_text())
    return found


def with_labels_only_in(toy: Toy, *labelled: str) -> Toy:
    """The toy's data in three splits, of which only these have labels."""
    arrays = toy_arrays()
    parts: dict[str, Any] = {}
    for split, at in (("training", slice(100)), ("validation", slice(100, 150)), ("test", slice(150, None))):
        labels = arrays["y"][at]
        parts |= {f"x_{split}": arrays["x"][at], f"y_{split}": labels if split in labelled else labels * 0 - 1}
    write_npz(toy.folder / "toy.npz", {**parts, "class_names": arrays["class_names"]})
    return toy


def test_images_of_different_sizes_and_modes_are_shown_by_their_file_names(tmp_path: Path) -> None:
    recipe = PICTURES.replace('path = "images"', 'path = "images"\nmode = "L"\nresize = [10, 8]')
    toy = Toy(tmp_path)
    toy.recipe.write_text(recipe)
    for label, name in enumerate(CLASSES):
        for number in range(30):
            wrong = CLASSES[(label + 1) % 3] if number % 7 == 0 else name
            size = (8 + number % 5, 6 + label)
            make = colour if number % 2 else grey
            pixels = make(100 * label + number, *size) // 4 + np.uint8(60 * label)
            write(tmp_path / "images" / wrong / f"{name}-{number}.png", pixels)
    page = page_of(toy)
    found = metrics_of(toy)["contradictions"]
    assert page.count("<img ") == len(found) > 0
    names = toy.experiment().datasets("student")[found[0]["split"]].names  # type: ignore[attr-defined]
    assert names[found[0]["index"]] in words_of(page)


def test_without_labels_in_test_and_validation_nothing_is_said_of_errors_or_of_a_choice(tmp_path: Path) -> None:
    toy = with_labels_only_in(new_toy(tmp_path / "toy"), "training")
    page = page_of(toy, "baseline.learning_rates=[1e-2, 1e-3]")
    words = words_of(page)
    assert metrics_of(toy, "baseline.learning_rates=[1e-2, 1e-3]")["labels"]["validation"] == 0
    assert 'class="matrix"' not in page
    assert "errors in" not in words
    assert "chosen on validation" not in words
    assert "best weights on validation" not in words
    assert "the validation split has no labels" in words
    assert "the first learning rate and weight decay" in words
    assert "validation: no labels" in words
    assert "test: no labels" in words
    assert re.search(r"training: \d+ of 100 labelled samples", words)


def test_a_search_without_validation_labels_says_that_it_chose_nothing(tmp_path: Path) -> None:
    toy = with_labels_only_in(new_toy(tmp_path / "toy"), "training", "test")
    ended = toy.process("baseline", settings=["baseline.learning_rates=[1e-2, 1e-3]"])
    [said] = [line for line in ended.stdout.splitlines() if line.startswith("baseline-search: ")]
    assert said == (
        "baseline-search: not validated: no labels; the first of 2 pairs is taken, learning rate 0.01 and weight decay 0.01"
    )
    [record] = toy.records("baseline-search", "baseline.learning_rates=[1e-2, 1e-3]")
    assert record.values["chosen"] == {"learning_rate": 0.01, "weight_decay": 0.01}
    assert [pair["score"] for pair in record.values["tried"]] == [None, None]


def test_a_student_without_labels_is_not_told_apart_from_one_that_is_not_there(finished: Toy) -> None:
    words = words_of(page_of(finished, "student.labelled=0", "student.distillation.coefficient=1.0"))
    assert "There is no label-only student" in words
    assert "and label-only student" not in words
    assert "The student keeps its best weights on the 39 labelled validation samples." in words


def test_without_a_cache_of_the_test_split_the_reason_is_that_and_not_the_certificate(tmp_path: Path) -> None:
    toy = toy_with(tmp_path / "toy", OUTPUTS.replace('path = "toy.npy"', 'path = "some.npz"'))
    digests = toy.experiment().datasets("student")
    held = {split: digests[split] for split in ("training", "validation")}
    np.savez(
        toy.folder / "some.npz",
        logits=np.concatenate([of_split(toy, split, logits_of(network())) for split in held]),
        digest=np.concatenate([data.sample_digests() for data in held.values()]),
    )
    words = words_of(page_of(toy))
    assert list(metrics_of(toy)["caches"]) == ["training", "validation"]
    assert (
        "No cache holds the test split: the teacher's answers there, and agreement with them, were not measured."
        in words
    )
    assert "no cache certifies" not in words
    assert "The teacher's size and latency were not measured: the teacher is imported outputs." in words


def test_a_workspace_that_only_has_the_caches_says_where_they_and_their_teacher_are_from(
    finished: Toy, tmp_path: Path
) -> None:
    toy = new_toy(tmp_path / "elsewhere")
    shutil.copytree(finished.folder / "caches", toy.folder / "caches")
    words = words_of(page_of(toy))
    provenance = metrics_of(toy)["caches"]["training"]["provenance"]
    for shown in ("commit", "device", "teacher_form"):
        assert str(provenance[shown]) in words
    assert provenance["sealed"].replace("T", " ").replace("+00:00", " UTC") in words
    assert "Not among them: teacher, teacher-targets" in words
    assert "teacher.training.steps 40" in words


def test_the_digests_of_samples_and_labels_and_the_settings_of_the_teacher_are_shown(finished: Toy) -> None:
    words = words_of(page_of(finished))
    for split, parts in finished.experiment().fingerprints("student").items():
        assert f"samples, {split} split {parts['digests_sha256']}" in words
        assert f"labels, {split} split {parts['labels_sha256']}" in words
    assert "teacher.training.learning_rate 0.03" in words
    assert "teacher.seed 0" in words
    assert "Not among them" not in words


@pytest.mark.parametrize("setting", ["baseline.seeds", "every setting"])
def test_nothing_is_called_a_setting_that_no_recipe_has(finished: Toy, setting: str) -> None:
    assert setting not in words_of(page_of(finished)).lower()


def test_a_teacher_with_probabilities_of_zero_is_calibrated_and_its_infinite_cross_entropy_left_out(
    tmp_path: Path,
) -> None:
    toy = new_toy(tmp_path, with_teacher('outputs = { path = "certain.npz", values = "probabilities" }'))
    labels = toy_arrays()["y"]
    certain = np.full((len(labels), 3), 0.5)
    certain[np.arange(len(labels)), (labels + 1) % 3] = 0.0
    certain[::20] = np.eye(3)[(labels[::20] + 1) % 3]  # sure of another class than the label's
    write_npz(toy.folder / "certain.npz", {"probabilities": certain})
    page, teacher = page_of(toy), metrics_of(toy)["teacher"]
    assert teacher["calibration_error"] is not None
    assert (teacher["cross_entropy"], teacher["fitted_temperature"]) == (None, None)
    assert "calibration was not measured" not in words_of(page)
