"""Parquet files and WebDataset's .tar files from end to end: students train from them, and only changed content reruns them."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import pytest

from tests.data.test_parquet import encoded, pa, written
from tests.data.test_webdataset import written as write_tar
from tests.stages.conftest import Command
from tests.stages.picture_toy import EACH, PICTURES, picture
from tests.stages.test_images import CHAIN
from tests.stages.test_live_teacher import HEAVY, modules_after
from tests.stages.test_mistakes import assert_one_paragraph
from tests.stages.toy import CLASSES, Toy

ROWS = [(label, number) for number in range(EACH) for label in range(len(CLASSES))]
NAMED = 'class_names = ["ant", "bee", "cat"]'


def write_parquet(folder: Path, rows: list[tuple[int, int]], name: str) -> None:
    images = [encoded(picture(*row)) for row in rows]
    written(folder / f"{name}.parquet", pa.table({"image": images, "label": [label for label, _ in rows]}))


def write_shard(folder: Path, rows: list[tuple[int, int]], name: str) -> None:
    members = []
    for label, number in rows:
        key = f"{name}{label}{number:03}"
        members += [(f"{key}.png", encoded(picture(label, number))), (f"{key}.cls", str(label).encode())]
    folder.mkdir(exist_ok=True)
    write_tar(folder / f"{name}.tar", members)


KINDS = {"parquet": write_parquet, "webdataset": write_shard}


@pytest.fixture(params=list(KINDS), scope="package")
def _trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Toy]:
    kind: str = request.param
    toy = Toy(tmp_path_factory.mktemp(kind))
    for part in range(2):
        KINDS[kind](toy.folder / "set", ROWS[part::2], f"part{part}")
    data = f'kind = "{kind}"\npath = "set"\n{NAMED}'
    toy.recipe.write_text(PICTURES.replace('kind = "folder"\npath = "images"', data))
    assert toy.run("student") == CHAIN
    return kind, toy


@pytest.fixture
def trained(_trained: tuple[str, Toy], tmp_path: Path) -> tuple[str, Toy]:
    """A kind of data, and a workspace whose student was trained from it."""
    return _trained[0], Toy(shutil.copytree(_trained[1].folder, tmp_path / "toy"))


def test_a_second_run_and_status_load_nothing(trained: tuple[str, Toy]) -> None:
    _, toy = trained
    assert toy.run("student") == []
    assert toy.status("student")["action"] == "up to date"
    assert modules_after(toy) & {*HEAVY, "PIL", "numpy", "pyarrow", "datasets", "tarfile"} == set()


def test_a_student_learns_the_classes(trained: tuple[str, Toy]) -> None:
    _, toy = trained
    toy.run("evaluate")
    assert toy.experiment().datasets("student")["training"].class_names == CLASSES
    metrics = toy.output("evaluate", name="metrics.json").read_text()
    assert '"accuracy"' in metrics


def test_other_files_of_the_same_samples_rerun_nothing(trained: tuple[str, Toy]) -> None:
    kind, toy = trained
    shutil.rmtree(toy.folder / "set")
    for part in range(3):  # the same order
        KINDS[kind](toy.folder / "other", [*ROWS[::2], *ROWS[1::2]][30 * part : 30 * part + 30], f"shard{part}")
    assert toy.run("student", "data.path=other") == []
    assert toy.run("student", f"data.path=other/shard{{0..2}}.{'tar' if kind == 'webdataset' else 'parquet'}") == []


def test_more_samples_are_noticed(trained: tuple[str, Toy]) -> None:
    kind, toy = trained
    KINDS[kind](toy.folder / "set", [(label, 500 + label) for label in range(3)], "part2")
    assert toy.status("teacher")["action"] == "run"
    assert toy.run("student")[0] == "teacher"


def test_changed_labels_are_noticed(trained: tuple[str, Toy]) -> None:
    kind, toy = trained
    rows = ROWS[1::2]
    if kind == "parquet":
        images = [encoded(picture(*row)) for row in rows]
        labels = [(label + 1) % 3 for label, _ in rows]
        written(toy.folder / "set" / "part1.parquet", pa.table({"image": images, "label": labels}))
    else:
        path = toy.folder / "set" / "part1.tar"
        with tarfile.open(path) as tar:
            places = [member.offset_data for member in tar if member.name.endswith(".cls")]
        content = bytearray(path.read_bytes())
        for place, (label, _) in zip(places, rows, strict=True):
            content[place] = b"120"[label]
        path.write_bytes(content)
    assert "labels changed" in toy.status("teacher")["reason"]


def test_a_broken_file_is_refused_in_one_paragraph_and_nothing_is_written(
    trained: tuple[str, Toy], softcache: Command
) -> None:
    kind, toy = trained
    [path] = (toy.folder / "set").glob("part1.*")
    path.write_bytes(path.read_bytes()[:-1300] if kind == "parquet" else path.read_bytes()[:3000])
    shutil.rmtree(toy.folder / "runs")
    shutil.rmtree(toy.folder / "caches")
    assert_one_paragraph(softcache(*toy.arguments("student")), 1, path.name, "cut short")
    assert not (toy.folder / "caches").exists()


def test_links_in_a_tar_file_lead_nowhere(tmp_path: Path, softcache: Command) -> None:
    toy = Toy(tmp_path)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo("x.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member, io.BytesIO())
    toy.recipe.write_text(PICTURES.replace('kind = "folder"\npath = "images"', 'kind = "webdataset"\npath = "a.tar"'))
    assert_one_paragraph(softcache(*toy.arguments("student")), 1, "the member 'x.png' is a symbolic link")
