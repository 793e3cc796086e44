"""A pin of imported outputs whose file is gone: it finds the caches of the same numbers for the same samples, no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.file_memory import sha256_of_file
from pipeline.teachers.places import places_of
from tests.stages.conftest import Command
from tests.stages.imports import OUTPUTS, WEIGHTS, cached, logits_of, network, toy_with, with_teacher
from tests.stages.test_live_teacher import HEAVY, modules_after
from tests.stages.test_mistakes import assert_one_paragraph
from tests.stages.test_reruns import CACHES, STUDENTS
from tests.stages.toy import Toy, toy_arrays, write_npz
from tests.teachers.source import softmax

REVERSED = "data.path=reversed.npz"


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    """Outputs by place of a dataset, and the same samples the other way round."""
    toy, arrays = toy_with(tmp_path / "toy", OUTPUTS), toy_arrays()
    write_npz(toy.folder / "reversed.npz", {**arrays, "x": arrays["x"][::-1], "y": arrays["y"][::-1]})
    return toy


def digest_of(toy: Toy, *settings: str) -> str:
    return str(toy.experiment(*settings).teacher_record().values["digest"])


def test_the_same_file_is_another_teacher_for_samples_in_another_order(toy: Toy) -> None:
    file = sha256_of_file(toy.folder / "toy.npy")
    assert len({file, digest_of(toy), digest_of(toy, REVERSED)}) == 3


def test_no_pin_serves_a_dataset_the_cache_of_another(toy: Toy, softcache: Command) -> None:
    there, back, file = digest_of(toy), digest_of(toy, REVERSED), sha256_of_file(toy.folder / "toy.npy")
    assert toy.run("student") == [*CACHES, *STUDENTS]
    assert toy.run("student", REVERSED) == [*CACHES, *STUDENTS]
    (toy.folder / "toy.npy").unlink()
    said = softcache(*toy.arguments("student", settings=[REVERSED]))
    assert_one_paragraph(said, 1, "toy.npy: no such file", f"teacher.digest = one of: {back}.")
    assert toy.run("student", REVERSED, f"teacher.digest={back}") == []
    assert toy.run("student", f"teacher.digest={there}") == []
    said = softcache(*toy.arguments("student", settings=[REVERSED, f"teacher.digest={there}"]))
    assert_one_paragraph(said, 3, there, "known by their place in the source", "other samples", "targets.use")
    said = softcache(*toy.arguments("student", settings=[REVERSED, f"teacher.digest={file}"]))
    assert_one_paragraph(said, 1, file, "no teacher of runs/ and no cache")
    wanted = softmax(logits_of(network()).astype(float) / 4.0)
    for settings in ([f"teacher.digest={there}"], [REVERSED, f"teacher.digest={back}"]):
        places = places_of(toy.experiment(*settings).datasets("student")["test"])[1]
        np.testing.assert_allclose(cached(toy, "test", 4.0, *settings), wanted[places], atol=1e-3)


def test_a_pinned_run_that_does_nothing_imports_no_heavy_library(toy: Toy) -> None:
    there = digest_of(toy)
    toy.run("student")
    (toy.folder / "toy.npy").unlink()
    toy.recipe.write_text(with_teacher(f'outputs = {{ path = "toy.npy" }}\ndigest = "{there}"'))
    assert toy.run("student") == []
    assert modules_after(toy) & HEAVY == set()


def test_one_file_at_two_temperatures_is_two_teachers_which_pins_tell_apart(toy: Toy) -> None:
    np.save(toy.folder / "toy.npy", softmax(logits_of(network()).astype(float)))
    given = ["targets.dtype=float32", "teacher.outputs.values=probabilities"]
    at = {t: [*given, f"teacher.outputs.temperature={t}"] for t in ("2.0", "3.0")}
    pins = {t: digest_of(toy, *settings) for t, settings in at.items()}
    for settings in at.values():
        assert toy.run("teacher-targets", *settings) == CACHES
    (toy.folder / "toy.npy").unlink()
    for t, settings in at.items():
        assert toy.run("student", *settings, f"teacher.digest={pins[t]}") == STUDENTS


def test_weights_that_saw_their_samples_in_two_ways_are_found_by_the_recipes_way(tmp_path: Path) -> None:
    toy = toy_with(tmp_path / "toy", WEIGHTS)
    pin = f"teacher.digest={digest_of(toy)}"
    ways = [[], ["data.normalise={ mean = [3.0], std = [2.0] }"]]
    for settings in ways:
        assert toy.run("teacher-targets", *settings) == CACHES
    (toy.folder / "toy.safetensors").unlink()
    for settings in ways:
        assert toy.run("teacher-targets", *settings, pin) == []
