"""caches import and caches export on the command line: what is sealed, what is said, and what is refused unsealed."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.teachers.places import places_of
from tests.data.pictures import write
from tests.stages.conftest import Command
from tests.stages.imports import cached, of_split, with_teacher
from tests.stages.picture_toy import new_picture_toy, picture
from tests.stages.test_mistakes import assert_one_paragraph
from tests.stages.test_reruns import STUDENTS
from tests.stages.toy import CLASSES, RECIPE, Toy, new_toy, toy_arrays
from tests.teachers.source import softmax, write_csv, write_npz, write_parquet

LOGITS = np.random.default_rng(0).normal(scale=3.0, size=(200, 3)).astype(np.float32)


@pytest.fixture
def file(fresh: Toy) -> Path:
    path = fresh.folder / "logits.npy"
    np.save(path, LOGITS)
    return path


def importing(toy: Toy, file: Path, *options: str, settings: tuple[str, ...] = ()) -> list[str]:
    return toy.arguments("caches", "import", then=[str(file), *options], settings=settings)


def sealed(toy: Toy) -> list[Path]:
    return sorted(toy.folder.glob("caches/*/manifest.json"))


def test_import_seals_every_split_and_says_how_to_train_from_it(fresh: Toy, file: Path, softcache: Command) -> None:
    said = softcache(*importing(fresh, file))
    assert said.code == 0, said.err
    *lines, last = said.out.splitlines()
    splits = ("training", "validation", "test")
    sizes = {split: len(dataset) for split, dataset in fresh.experiment().datasets("student").items()}
    for line, split in zip(lines, splits, strict=True):
        rows = sizes[split]
        assert line.startswith(
            f"teacher-targets {split}: {rows} rows ({rows} imported now), imported outputs logits.npy, "
        )
    words = shlex.split(last.removeprefix("to train students from it: "))
    assert words[:3] == ["softcache", "student", str(fresh.recipe)]
    use = words[words.index("--set") + 1]
    assert fresh.run("student", use) == STUDENTS
    for split in splits:
        wanted = of_split(fresh, split, softmax(LOGITS.astype(float) / 4.0))
        np.testing.assert_allclose(cached(fresh, split, 4.0, use), wanted, atol=1e-3)


def printed(out: str) -> list[str]:
    """The arguments of the command that an import prints last."""
    program, *words = shlex.split(out.splitlines()[-1].removeprefix("to train students from it: "))
    assert program == "softcache"
    return words


PINNED = f'[teacher]\ndigest = "{"0" * 64}"\n'


@pytest.mark.parametrize(
    ("old", "new", "settings"),
    [
        ("", "", ()),
        ("", "", (f"teacher.digest={'0' * 64}", "student.seeds=[3]")),
        ("[teacher]\n", PINNED, ()),
        ("[teacher]\n", PINNED, ("teacher.seed=4", "targets.temperature=2.0")),
        ('model = "mlp"\noptions = { hidden = [16] }', "", ("teacher.model=mlp",)),
    ],
    ids=[
        "nothing else",
        "a pin in the settings",
        "a pin in the recipe",
        "a pin and settings",
        "a model in the settings",
    ],
)
def test_the_command_that_an_import_prints_trains_from_its_cache(
    fresh: Toy, file: Path, softcache: Command, old: str, new: str, settings: tuple[str, ...]
) -> None:
    fresh.recipe.write_text(RECIPE.replace(old, new, 1))
    said = softcache(*importing(fresh, file, settings=settings))
    assert said.code == 0, said.err
    words = printed(said.out)
    trained = softcache(*words)
    assert trained.code == 0, trained.err
    [use] = [word for word in words if word.startswith("targets.use=")]
    used = {
        record["values"]["cache"][:12] for record in map(read_json, fresh.folder.glob("runs/student/*/result.json"))
    }
    assert used == {use.removeprefix("targets.use=")}


def read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_import_seals_the_same_cache_as_a_recipe_with_outputs(fresh: Toy, file: Path, softcache: Command) -> None:
    softcache(*importing(fresh, file))
    before = sealed(fresh)
    fresh.recipe.write_text(with_teacher('outputs = { path = "logits.npy" }'))
    assert fresh.run("teacher-targets") == []
    assert fresh.run("student") == STUDENTS
    assert sealed(fresh) == before


def test_a_second_import_runs_nothing_and_another_temperature_is_another_cache(
    fresh: Toy, file: Path, softcache: Command
) -> None:
    softcache(*importing(fresh, file))
    again = softcache(*importing(fresh, file))
    assert again.err == "caches import: these outputs are sealed already; nothing ran\n"
    assert len(sealed(fresh)) == 3
    other = softcache(*importing(fresh, file, settings=("targets.temperature=2.0",)))
    assert other.code == 0
    assert "--set targets.temperature=2.0" in other.out.splitlines()[-1]
    assert len(sealed(fresh)) == 6


def test_splits_without_all_their_rows_get_no_cache_and_evaluate_still_works(fresh: Toy, softcache: Command) -> None:
    datasets = fresh.experiment().datasets("student")
    training, test = (datasets[split].positions for split in ("training", "test"))  # type: ignore[attr-defined]
    kept = np.concatenate([training, test[3:]])
    write_npz(fresh.folder / "logits.npz", logits=LOGITS[kept], index=kept)
    fresh.recipe.write_text(with_teacher('outputs = { path = "logits.npz" }'))
    said = softcache(*fresh.arguments("evaluate"))
    assert said.code == 0, said.err
    lacking = f"index {test[0]}, {test[1]}, {test[2]} of part 'all'"
    assert f"3 of {len(test)} samples of the test split have no row in logits.npz ({lacking})" in said.err
    assert f"{len(datasets['validation'])} of {len(datasets['validation'])} samples of the validation split" in said.err
    assert len(sealed(fresh)) == 1
    assert [entry["label"] for entry in fresh.status("teacher-targets")["units"]] == ["training"]
    metrics = json.loads(fresh.output("evaluate", name="metrics.json").read_text())
    assert metrics["teacher"]["accuracy"] is None
    assert metrics["student"]["accuracy"]["mean"] > 0
    again = softcache(*fresh.arguments("evaluate"))
    assert "up to date" in again.err


def test_rows_of_no_sample_are_counted_and_said(fresh: Toy, softcache: Command) -> None:
    digests = np.concatenate([d.sample_digests() for d in fresh.experiment().datasets("student").values()])
    path = write_npz(
        fresh.folder / "a.npz",
        logits=np.concatenate([LOGITS, LOGITS[:7]]),
        digest=np.concatenate([digests, np.arange(7 * 16, dtype=np.uint8).reshape(7, 16)]),
    )
    said = softcache(*importing(fresh, path))
    assert said.code == 0
    assert "7 rows of a.npz are of no sample of the dataset; they were left out" in said.err


def test_a_row_for_each_image_is_imported_though_the_last_is_left_out(tmp_path: Path, softcache: Command) -> None:
    toy = new_picture_toy(tmp_path / "toy")
    images, twin = toy.folder / "images", toy.experiment().datasets("student")["test"].raw.names[0]  # type: ignore[attr-defined]
    (images / "unlabelled").mkdir()
    write(images / "unlabelled" / "1.png", picture(0, 900))
    shutil.copy(images / twin, images / "unlabelled" / "2.png")
    files = [path.relative_to(images).as_posix() for path in sorted(images.rglob("*.png"))]
    assert files[-2:] == ["unlabelled/1.png", "unlabelled/2.png"]
    logits = np.random.default_rng(0).normal(size=(len(files), 3)).astype(np.float32)
    np.save(toy.folder / "logits.npy", logits)
    said = softcache(*importing(toy, toy.folder / "logits.npy"))
    assert said.code == 0, said.err
    use = next(word for word in printed(said.out) if word.startswith("targets.use="))
    names = toy.experiment().datasets("student")["training"].raw.names  # type: ignore[attr-defined]
    assert names[-1] == "unlabelled/1.png"
    wanted = softmax(logits[[files.index(name) for name in names]].astype(float) / 2.0)
    np.testing.assert_allclose(cached(toy, "training", 2.0, use), wanted, atol=1e-6)


@pytest.mark.parametrize("noise", [0.0, 1e-4, 1.0])
def test_rows_that_contradict_each_other_for_equal_samples_are_counted_and_said(
    fresh: Toy, softcache: Command, noise: float
) -> None:
    arrays, training = toy_arrays(), places_of(fresh.experiment().datasets("student")["training"])[1]
    twins = training[[4, 9]]
    write_npz(
        fresh.folder / "toy.npz",
        x=np.concatenate([arrays["x"], arrays["x"][twins]]),
        y=np.concatenate([arrays["y"], arrays["y"][twins]]),
        class_names=arrays["class_names"],
    )
    np.save(fresh.folder / "logits.npy", np.concatenate([LOGITS, LOGITS[twins] + noise * np.array([1, 0, -1])]))
    said = softcache(*importing(fresh, fresh.folder / "logits.npy"))
    assert said.code == 0, said.err
    last = [len(training), len(training) + 1]
    note = f"2 samples of the training split (samples {last[0]}, {last[1]}) equal an earlier one, but their rows in logits.npy"
    assert (note in said.err) == (noise == 1.0)
    use = next(word for word in printed(said.out) if word.startswith("targets.use="))
    wanted = softmax(LOGITS[training].astype(float) / 4.0)
    np.testing.assert_allclose(cached(fresh, "training", 4.0, use), np.concatenate([wanted, wanted[[4, 9]]]), atol=1e-3)


def test_the_same_index_in_a_reordered_dataset_is_another_row(fresh: Toy, file: Path, softcache: Command) -> None:
    softcache(*importing(fresh, file))
    arrays = toy_arrays()
    order = np.random.default_rng(1).permutation(200)
    write_npz(fresh.folder / "toy.npz", x=arrays["x"][order], y=arrays["y"][order], class_names=arrays["class_names"])
    said = softcache(*importing(fresh, file))
    use = said.out.rpartition("targets.use=")[2].split()[0]
    wanted = of_split(fresh, "test", softmax(LOGITS.astype(float) / 4.0))
    np.testing.assert_allclose(cached(fresh, "test", 4.0, f"targets.use={use}"), wanted, atol=1e-3)
    assert len(sealed(fresh)) == 6


def nan_rows(folder: Path) -> Path:
    values = LOGITS.copy()
    values[[4, 150], 1] = np.nan
    np.save(folder / "bad.npy", values)
    return folder / "bad.npy"


def test_missing_rows_of_a_file_with_digests_are_named_by_digest(fresh: Toy, softcache: Command) -> None:
    digests = fresh.experiment().datasets("student")["training"].sample_digests()
    kept = np.isin(np.arange(len(digests)), [4, 9], invert=True)
    file = write_npz(fresh.folder / "some.npz", logits=np.zeros((kept.sum(), 3)), digest=digests[kept])
    absent = ", ".join(digests[row].tobytes().hex() for row in (4, 9))
    assert_one_paragraph(softcache(*importing(fresh, file)), 1, f"some.npz (digests {absent})")


def fewer(folder: Path) -> Path:
    np.save(folder / "bad.npy", LOGITS[:150])
    return folder / "bad.npy"


def unnormalised(folder: Path) -> Path:
    rows = softmax(LOGITS.astype(float))
    rows[[7, 9]] *= 1.1
    return write_parquet(folder / "bad.parquet", **{name: rows[:, at] for at, name in enumerate(CLASSES)})


def duplicated(folder: Path) -> Path:
    return write_npz(folder / "bad.npz", logits=LOGITS, index=np.array([*range(199), 12]))


def duplicated_in_csv(folder: Path) -> Path:
    columns = {name: LOGITS[:, at] for at, name in enumerate(CLASSES)}
    return write_csv(folder / "bad.csv", **columns, index=[*range(199), 12])


def named_twice(folder: Path) -> Path:
    digests = np.arange(200 * 16, dtype=np.uint8).reshape(200, 16)
    return write_npz(folder / "bad.npz", logits=LOGITS, index=np.arange(200)[::-1], digest=digests)


def missing(folder: Path) -> Path:
    return write_npz(folder / "bad.npz", logits=LOGITS[:100], index=np.arange(100))


def other_classes(folder: Path) -> Path:
    return write_npz(folder / "bad.npz", logits=np.ones((200, 5)))


def pickled(folder: Path) -> Path:
    np.save(folder / "bad.npy", np.array([[print] * 3] * 200), allow_pickle=True)
    return folder / "bad.npy"


def absent(folder: Path) -> Path:
    return folder / "bad.npy"


PROBABILITIES = ("--values", "probabilities")
REFUSED: list[tuple[Callable[[Path], Path], tuple[str, ...], tuple[str, ...]]] = [
    (nan_rows, (), ("NaN or infinity in 2 of 200 rows (rows 4, 150)", "counted from 0")),
    (fewer, (), ("150 rows", "200 samples")),
    (unnormalised, PROBABILITIES, ("do not sum to 1 within 0.001 in 2 of 200 rows (rows 7, 9)",)),
    (duplicated, (), ("the first is 12, in rows 12 and 199",)),
    (duplicated_in_csv, (), ("the first is 12, in rows 12 and 199",)),
    (named_twice, (), ("have an index and a digest", "leave out the one")),
    (missing, (), ("samples of the training split have no row", "a student needs all of them")),
    (other_classes, (), ("shape (200, 5)", "3 classes")),
    (pickled, (), ("not a whole .npy file of numbers",)),
    (absent, (), ("bad.npy: no such file",)),
    (nan_rows, ("--temperature", "2"), ("count as temperature 1",)),
    (nan_rows, (*PROBABILITIES, "--temperature", "0"), ("teacher.outputs.temperature", "greater than 0")),
    (nan_rows, (*PROBABILITIES, "--temperature", "-1"), ("teacher.outputs.temperature", "greater than 0")),
]


@pytest.mark.parametrize(
    ("write", "options", "mentions"), REFUSED, ids=[f"{write.__name__} {' '.join(o)}" for write, o, _ in REFUSED]
)
def test_a_file_that_is_refused_seals_nothing(
    fresh: Toy,
    softcache: Command,
    write: Callable[[Path], Path],
    options: tuple[str, ...],
    mentions: tuple[str, ...],
) -> None:
    file = write(fresh.folder)
    named = () if "--temperature" in options else (file.name,)  # a wrong setting is found before the file is read
    assert_one_paragraph(softcache(*importing(fresh, file, *options)), 1, *named, *mentions)
    assert sealed(fresh) == []
    assert not (fresh.folder / "caches").exists()


def test_what_a_recipe_says_of_another_teacher_makes_way_for_the_file(tmp_path: Path, softcache: Command) -> None:
    for table in (
        'weights = "none.pt2"\ntrusted = true',
        'estimator = "users_none:load"',
        'outputs = { path = "none.npz", values = "probabilities", temperature = 3.0 }',
    ):
        toy = new_toy(tmp_path / table[:5], with_teacher(table))
        np.save(toy.folder / "p.npy", softmax(LOGITS.astype(float)))
        said = softcache(*importing(toy, toy.folder / "p.npy", *PROBABILITIES))
        assert said.code == 0, said.err
        [manifest] = {json.loads(path.read_text())["row_made_from"]["teacher"]["temperature"] for path in sealed(toy)}
        assert manifest == 1.0


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@pytest.mark.parametrize("layout", ["zarr", "hdf5"])
def test_an_exported_cache_serves_another_workspace_in_another_order(
    finished: Toy, tmp_path: Path, softcache: Command, suffix: str, layout: str
) -> None:
    settings = ["targets.dtype=float32", f"targets.layout={layout}"]
    finished.run("teacher-targets", *settings)
    out = tmp_path / f"out{suffix}"
    key = finished.cache("training", *settings).name
    said = softcache("caches", "export", key, str(out), "--workspace", str(finished.folder))
    rows = len(finished.experiment().datasets("student")["training"])
    line = f"{key[:12]}: {rows} rows, probabilities of 3 classes at T = 4 -> {out}\n"
    assert (said.code, said.out, said.err) == (0, line, "")
    other = new_toy(tmp_path / "other", RECIPE)
    arrays = toy_arrays()
    write_npz(other.folder / "toy.npz", x=arrays["x"][::-1], y=arrays["y"][::-1], class_names=arrays["class_names"])
    options = [*PROBABILITIES, "--temperature", "4"]
    said = softcache(*importing(other, out, *options, settings=("targets.dtype=float32",)))
    assert said.code == 0, said.err
    use = said.out.rpartition("targets.use=")[2].split()[0]
    mine = finished.experiment().datasets("student")["training"].sample_digests()
    [cache] = [other.experiment().shelf.open(path.parent) for path in sealed(other)]
    found = cache.soft_targets(cache.join(mine)).numpy()
    np.testing.assert_allclose(found, cached(finished, "training", 4.0, *settings), atol=1e-6)
    assert other.run("student", f"targets.use={use}") == STUDENTS


def test_an_export_of_the_wrong_temperature_is_refused_at_import_with_both(
    finished: Toy, tmp_path: Path, softcache: Command
) -> None:
    out = tmp_path / "out.npz"
    softcache("caches", "export", finished.cache().name, str(out), "--workspace", str(finished.folder))
    said = softcache(*importing(finished, out, *PROBABILITIES))
    assert_one_paragraph(said, 1, "softened with temperature 4", "the recipe says 1", "--temperature 4")


def test_export_refuses_what_it_cannot_write(finished: Toy, tmp_path: Path, softcache: Command) -> None:
    out = tmp_path / "out.npz"
    words = ["caches", "export", finished.cache().name, str(out), "--workspace", str(finished.folder)]
    assert softcache(*words).code == 0
    assert_one_paragraph(softcache(*words), 1, "out.npz is there already", "--force")
    assert softcache(*words, "--force").code == 0
    assert_one_paragraph(softcache(*words, "--force", "--temperature", "3"), 3, "temperature 3.0 is not certified")
    other = [*words[:3], str(tmp_path / "out.txt"), *words[4:]]
    assert_one_paragraph(softcache(*other), 1, ".npz or .parquet")


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_an_export_never_writes_over_a_folder(finished: Toy, tmp_path: Path, softcache: Command, suffix: str) -> None:
    (tmp_path / f"out{suffix}").mkdir()
    words = [
        "caches",
        "export",
        finished.cache().name,
        str(tmp_path / f"out{suffix}"),
        "--workspace",
        str(finished.folder),
    ]
    for force in ([], ["--force"]):
        said = softcache(*words, *force)
        assert_one_paragraph(said, 1, f"{tmp_path / f'out{suffix}'} is a folder; name the file to write")
        assert "unfinished" not in said.err


def test_a_missing_extra_says_what_to_install(fresh: Toy, softcache: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    path = write_parquet(fresh.folder / "a.parquet", **{name: LOGITS[:, at] for at, name in enumerate(CLASSES)})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    said = softcache(*importing(fresh, path))
    assert_one_paragraph(said, UserError.exit_code, 'pip install "softcache[parquet]"')
