"""Another dataset than the teacher's: every sample gets its own soft targets, or is refused, whatever its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.arrays import ArrayDataset
from pipeline.errors import MismatchError
from pipeline.student_data import CachedSoftTargets, LearningSet, learning_set
from pipeline.targets.reader import TargetCache
from tests.stages.conftest import Command
from tests.stages.live import live_soft_targets
from tests.stages.test_reruns import CACHES, STUDENTS, assert_foretold
from tests.stages.toy import Toy, toy_arrays, write_npz
from tests.targets.tiny import Tiny

ORDERS: dict[str, NDArray[np.int64]] = {
    "shuffled": np.random.default_rng(1).permutation(200),
    "half": np.arange(0, 200, 2),
    "repeated": np.repeat(np.arange(200), 3),
    "shuffled, filtered and repeated": np.random.default_rng(2).integers(0, 200, size=300),
}


def rewrite(toy: Toy, order: NDArray[np.int64]) -> None:
    arrays = toy_arrays()
    write_npz(toy.folder / "other.npz", {**arrays, "x": arrays["x"][order], "y": arrays["y"][order]})


def training_samples(toy: Toy, *settings: str) -> LearningSet:
    experiment = toy.experiment(*settings)
    return learning_set(experiment.datasets("student")["training"], experiment.recipe.student.classes)


def served(toy: Toy, samples: LearningSet, *settings: str) -> Tensor:
    """The soft targets that the student of these settings is trained on, sample by sample."""
    cache = TargetCache(toy.cache("training", *settings))
    classes = toy.experiment(*settings).recipe.student.classes
    return CachedSoftTargets(cache, samples, cache.temperature, classes)(np.arange(len(samples)))


@pytest.mark.parametrize("kind", ORDERS)
def test_a_reordered_dataset_joins_to_the_right_targets_without_a_new_cache(fixed_teacher: Toy, kind: str) -> None:
    rewrite(fixed_teacher, ORDERS[kind])
    settings = ["data.path=other.npz"]
    caches = sorted(fixed_teacher.folder.glob("caches/*"))
    assert_foretold(fixed_teacher, "student", settings, STUDENTS)
    assert sorted(fixed_teacher.folder.glob("caches/*")) == caches
    samples = training_samples(fixed_teacher, *settings)
    found, expected = (
        served(fixed_teacher, samples, *settings),
        live_soft_targets(fixed_teacher, samples, 4.0, *settings),
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_toys_targets_tell_its_samples_apart(fixed_teacher: Toy) -> None:
    """Otherwise the test above would prove nothing."""
    samples = training_samples(fixed_teacher)
    targets = live_soft_targets(fixed_teacher, samples, 4.0)
    distances = torch.cdist(targets.double(), targets.double(), p=torch.inf) + torch.eye(len(samples))
    assert float(distances.min()) > 1e-5


def test_validation_and_test_samples_join_as_well(fixed_teacher: Toy) -> None:
    rewrite(fixed_teacher, ORDERS["shuffled"])
    settings = ["data.path=other.npz"]
    for split in ("validation", "test"):
        assert fixed_teacher.cache(split, *settings) == fixed_teacher.cache(split)
    assert fixed_teacher.run("teacher-targets", *settings) == []


def test_equal_samples_share_one_row(fresh: Toy) -> None:
    rewrite(fresh, ORDERS["repeated"])
    settings = ["data.path=other.npz"]
    fresh.run("teacher-targets", *settings)
    samples = training_samples(fresh, *settings)
    cache = TargetCache(fresh.cache("training", *settings))
    assert len(samples) == 3 * len(cache)
    assert cache.join(samples.sample_digests()).tolist() == np.repeat(np.arange(len(cache)), 3).tolist()


def test_an_unknown_sample_is_refused_with_count_and_indices(fixed_teacher: Toy, softcache: Command) -> None:
    write_npz(fixed_teacher.folder / "other.npz", toy_arrays(samples=240))
    settings = ["data.path=other.npz", f"targets.use={fixed_teacher.cache().name}"]
    known = training_samples(fixed_teacher).sample_digests()
    samples = training_samples(fixed_teacher, *settings)
    unknown = np.flatnonzero([digest.tolist() not in known.tolist() for digest in samples.sample_digests()])
    said = softcache(*fixed_teacher.arguments("student", settings=settings))
    assert said.code == 3
    assert f"{len(unknown)} of {len(samples)} samples have no row in cache" in said.err
    assert f"(samples {', '.join(map(str, unknown[:5]))}, ...)" in said.err
    assert not list(fixed_teacher.folder.glob("runs/student/*/checkpoint.safetensors"))
    assert len(fixed_teacher.records("student", *settings)) == 0


def test_unknown_samples_are_skipped_when_the_recipe_says_so_and_counted(
    fixed_teacher: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    write_npz(fixed_teacher.folder / "other.npz", toy_arrays(samples=240))
    settings = ["data.path=other.npz", f"targets.use={fixed_teacher.cache().name}", "student.missing=skip"]
    known, given = len(training_samples(fixed_teacher)), len(training_samples(fixed_teacher, *settings))
    assert_foretold(fixed_teacher, "student", settings, STUDENTS)
    assert f"{given - known} of {given} samples have no row in " in capsys.readouterr().err
    for record in fixed_teacher.records("student", *settings):
        assert record.values["skipped"] == given - known
        assert record.values["samples"] == known


def test_a_grown_dataset_makes_a_new_cache_with_the_same_teacher(fixed_teacher: Toy) -> None:
    write_npz(fixed_teacher.folder / "other.npz", toy_arrays(samples=240))
    settings = ["data.path=other.npz"]
    assert_foretold(fixed_teacher, "student", settings, [*CACHES, *STUDENTS], "training.samples")
    samples = training_samples(fixed_teacher, *settings)
    torch.testing.assert_close(
        served(fixed_teacher, samples, *settings),
        live_soft_targets(fixed_teacher, samples, 4.0, *settings),
        rtol=0,
        atol=1e-6,
    )


def with_classes(toy: Toy, names: list[str]) -> None:
    """The same samples, with the classes in another order or only some of them."""
    arrays = toy_arrays()
    old = [str(name) for name in arrays["class_names"]]
    labels = np.array([names.index(old[int(label)]) if old[int(label)] in names else -1 for label in arrays["y"]])
    kept = labels >= 0
    write_npz(toy.folder / "other.npz", {"x": arrays["x"][kept], "y": labels[kept], "class_names": np.array(names)})


@pytest.mark.parametrize("names", [["cat", "ant", "bee"], ["cat", "ant"]], ids=["permuted", "subset"])
def test_other_classes_are_mapped_by_name_renormalised_and_said(
    fixed_teacher: Toy, capsys: pytest.CaptureFixture[str], names: list[str]
) -> None:
    with_classes(fixed_teacher, names)
    settings = ["data.path=other.npz", f"student.classes={names}".replace("'", '"')]
    assert_foretold(fixed_teacher, "student", settings, STUDENTS)
    said = capsys.readouterr().err
    assert f"the cache's 3 classes are mapped by name to {', '.join(names)}" in said
    assert ("renormalised" in said) == (len(names) < 3)
    samples = training_samples(fixed_teacher, *settings)
    columns = [("ant", "bee", "cat").index(name) for name in names]
    chosen = live_soft_targets(fixed_teacher, samples, 4.0, *settings)[:, columns]
    expected = chosen / chosen.sum(dim=1, keepdim=True)
    torch.testing.assert_close(served(fixed_teacher, samples, *settings), expected, rtol=0, atol=1e-6)


def test_a_student_of_some_classes_learns_from_the_samples_of_these_alone(fixed_teacher: Toy) -> None:
    settings = ['student.classes=["cat", "ant"]']
    fixed_teacher.run("student", *settings)
    samples = training_samples(fixed_teacher, *settings)
    dataset = fixed_teacher.experiment().datasets("student")["training"]
    names = np.array(dataset.class_names)[dataset.labels()]
    assert samples.indices.tolist() == np.flatnonzero(names != "bee").tolist()
    assert [("cat", "ant")[label] for label in samples.labels] == [name for name in names if name != "bee"]
    assert fixed_teacher.records("student", *settings)[0].values["samples"] == len(samples)


@pytest.mark.parametrize("names", [["cat", "ant", "bee"], ["cat", "ant"]], ids=["permuted", "subset"])
def test_other_classes_are_refused_where_the_recipe_does_not_map_them(
    fixed_teacher: Toy, softcache: Command, names: list[str]
) -> None:
    with_classes(fixed_teacher, names)
    said = softcache(*fixed_teacher.arguments("student", settings=["data.path=other.npz"]))
    assert said.code == 3
    assert f"[data] has {', '.join(names)}." in said.err
    assert "ant, bee, cat" in said.err
    assert "student.classes" in said.err


def test_a_new_caches_labels_are_in_the_teachers_classes(fixed_teacher: Toy) -> None:
    arrays = toy_arrays(samples=240)
    names = ["cat", "ant", "bee"]
    labels = (arrays["y"].astype(np.int64) + 1) % 3  # ant 0 -> 1, bee 1 -> 2, cat 2 -> 0
    write_npz(fixed_teacher.folder / "other.npz", {"x": arrays["x"], "y": labels, "class_names": np.array(names)})
    settings = ["data.path=other.npz", 'student.classes=["cat", "ant", "bee"]']
    fixed_teacher.run("teacher-targets", *settings)
    cache = TargetCache(fixed_teacher.cache("training", *settings))
    dataset = fixed_teacher.experiment(*settings).datasets("student")["training"]
    assert cache.class_names == ("ant", "bee", "cat")
    assert [cache.class_names[label] for label in cache.labels()] == [names[label] for label in dataset.labels()]


def test_a_cache_in_another_caches_folder_is_refused(fixed_teacher: Toy, softcache: Command) -> None:
    """Two teams' caches were mixed up while they were copied: same samples, another teacher."""
    fixed_teacher.run("student", "teacher.seed=1")
    mine, other = fixed_teacher.cache(), fixed_teacher.cache("training", "teacher.seed=1")
    aside = mine.with_name("aside")
    mine.rename(aside)
    other.rename(mine)
    aside.rename(other)
    said = softcache(*fixed_teacher.arguments("student", settings=["student.distillation.coefficient=0.5"]))
    assert said.code == 3
    assert mine.name[:12] in said.err
    assert other.name[:12] in said.err


def test_samples_without_mass_in_the_kept_classes_are_refused_with_count_and_indices(tmp_path: Path) -> None:
    tiny = Tiny(temperature=1.0, spread=40.0, certify=(1.0,))
    cache = tiny.open(tmp_path)
    values = np.zeros((tiny.rows, 1), np.float32)
    dataset = ArrayDataset(values, np.zeros(tiny.rows, np.int64), ("class 0", "class 1"), "training", "made up")
    themselves = np.flatnonzero(tiny.views() == 0)

    class Digested(LearningSet):
        def sample_digests(self) -> NDArray[np.uint8]:
            return tiny.digests()[themselves]

    samples = Digested(dataset, themselves, np.zeros(len(themselves), np.int64), ("class 0", "class 1"))
    targets = CachedSoftTargets(cache, samples, 1.0, ("class 0", "class 1"))
    empty = np.flatnonzero(tiny.exact().astype(np.float16)[themselves][:, :2].sum(axis=1) == 0)
    assert len(empty) > 0
    with pytest.raises(MismatchError, match=f"{len(empty)} of {len(themselves)} samples \\(samples {empty[0]},"):
        targets.kept_mass()
