"""Images from end to end: folders and IDX files train students, whatever the workers; geometry is part of the keys."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.folder import FEW_IMAGES
from pipeline.targets.reader import TargetCache
from tests.data.image_files.test_first_look import write_many
from tests.data.pictures import as_sample, colour, write
from tests.stages.conftest import Command
from tests.stages.live import live_teacher
from tests.stages.picture_toy import (
    HEIGHT,
    PICTURES,
    WIDTH,
    new_picture_toy,
    picture,
    picture_arrays,
    write_pictures,
)
from tests.stages.test_live_teacher import HEAVY, modules_after
from tests.stages.test_mistakes import assert_one_paragraph
from tests.stages.toy import CLASSES, ENVIRONMENT, Toy, write_npz

CHAIN = ["teacher", *(f"teacher-targets {split}" for split in ("training", "validation", "test")), "student seed 0"]


@pytest.fixture(scope="package")
def _pictures(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    toy = new_picture_toy(tmp_path_factory.mktemp("pictures"))
    assert toy.run("student") == CHAIN
    return toy


@pytest.fixture
def pictures(_pictures: Toy, tmp_path: Path) -> Toy:
    """A workspace whose student was trained from a folder of images."""
    return Toy(shutil.copytree(_pictures.folder, tmp_path / "pictures"))


def test_a_folder_of_images_trains_a_student_that_knows_its_classes(pictures: Toy) -> None:
    pictures.run("evaluate")
    metrics = json.loads(pictures.output("evaluate", name="metrics.json").read_text())
    assert metrics["teacher"]["accuracy"] > 0.8
    assert metrics["student"]["accuracy"]["mean"] > 0.8


def test_a_second_run_runs_nothing_and_decodes_nothing(pictures: Toy) -> None:
    assert pictures.run("student") == []
    assert modules_after(pictures) & {*HEAVY, "PIL", "numpy"} == set()


def test_an_image_that_changed_is_the_only_one_that_a_run_opens(pictures: Toy) -> None:
    assert pictures.run("student") == []
    images = pictures.folder / "images"
    shutil.copyfile(images / "bee" / "07.png", images / "bee" / "07.copy.png")
    opened = opened_by_status(pictures, images)
    assert opened == [images / "bee" / "07.copy.png"]
    assert opened_by_status(pictures, images) == []


OPENED = """\
import json, sys
from pathlib import Path

opened = []
images = str(Path(sys.argv.pop(1)))
sys.addaudithook(
    lambda event, given: opened.append(given[0]) if event == "open" and str(given[0]).startswith(images + "/") else None
)
from stages.cli import main

sys.argv[0] = "softcache"
try:
    main()
finally:
    print(json.dumps(sorted(opened)))
"""


def opened_by_status(toy: Toy, images: Path) -> list[Path]:
    """The files below `images` that a process opens which says the status."""
    ended = subprocess.run(
        [sys.executable, "-c", OPENED, str(images), *toy.arguments("status")],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=True,
    )
    return [Path(path) for path in json.loads(ended.stdout.splitlines()[-1])]


def test_status_of_a_few_images_writes_nothing_where_nothing_ran(tmp_path: Path, softcache: Command) -> None:
    toy = new_picture_toy(tmp_path / "toy")
    assert softcache(*toy.arguments("status")).code == 0
    assert not (toy.folder / "runs").exists()


def test_status_of_many_images_remembers_them_even_where_nothing_ran(tmp_path: Path) -> None:
    toy = new_picture_toy(tmp_path / "toy")
    write_many(toy.folder / "many", 4, FEW_IMAGES // 4)
    settings = ["data.path=many"]
    first = toy.process("status", settings=settings)
    assert first.returncode == 0, first.stderr
    [memory] = (toy.folder / "runs" / ".memory").glob("images-*.bin")
    before = memory.stat().st_mtime_ns
    again = toy.process("status", settings=settings)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert memory.stat().st_mtime_ns == before
    many = toy.experiment(*settings)
    assert sum(len(part) for part in many.datasets("student").values()) == FEW_IMAGES


def test_an_image_that_moved_to_another_class_is_noticed(pictures: Toy) -> None:
    images = pictures.folder / "images"
    name = pictures.experiment().datasets("student")["training"].names[0]  # type: ignore[attr-defined]
    assert name.startswith("ant/")
    (images / name).rename(images / "cat" / "moved.png")
    assert "teacher.data.training.labels changed" in pictures.status("teacher")["reason"]
    assert pictures.run("student")[0] == "teacher"


def test_new_names_and_formats_of_the_same_images_rerun_nothing(pictures: Toy) -> None:
    images = pictures.folder / "images"
    shutil.rmtree(images)
    write_pictures(images, "bmp")
    assert pictures.run("student") == []
    images.rename(pictures.folder / "elsewhere")
    assert pictures.run("student", "data.path=elsewhere") == []


def test_neither_workers_nor_memory_change_a_bit(pictures: Toy, tmp_path: Path) -> None:
    for number, settings in enumerate((["data.workers=1", "data.memory_mb=0"], ["data.workers=4", "data.memory_mb=0"])):
        other = new_picture_toy(tmp_path / str(number))
        assert other.run("student", *settings) == CHAIN
        for stage in ("teacher", "student"):
            assert other.records(stage)[0].key == pictures.records(stage)[0].key
            assert other.output(stage).read_bytes() == pictures.output(stage).read_bytes()
        for split in ("training", "validation", "test"):
            ours, theirs = pictures.cache(split) / "targets.zarr", other.cache(split) / "targets.zarr"
            for path in ours.rglob("*"):
                if path.is_file():
                    assert (theirs / path.relative_to(ours)).read_bytes() == path.read_bytes()
        assert other.run("student") == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("prefetch", "read-ahead"))]


@pytest.mark.parametrize("setting", ["data.resize=6", "data.crop=[6, 8]", "data.mode=RGB", "data.resize=[10, 8]"])
def test_geometry_is_part_of_the_keys_of_teacher_cache_and_student(pictures: Toy, setting: str) -> None:
    settings = [setting]
    before, after = (pictures.experiment(*chosen) for chosen in ([], settings))
    assert before.teacher_key() != after.teacher_key()
    assert pictures.run("teacher-targets", *settings) == CHAIN[:4]
    name = setting.split("=")[0].removeprefix("data.")
    assert name in after.row_made_from()["preprocessing"]
    assert name not in before.row_made_from()["preprocessing"]
    assert pictures.run("student", *settings) == CHAIN[4:]
    assert name in pictures.records("student", *settings)[0].made_from["data"]
    assert pictures.run("student") == []


def test_a_pinned_teacher_is_refused_another_geometry_than_it_was_trained_with(
    pictures: Toy, softcache: Command
) -> None:
    pinned = f"teacher.digest={pictures.records('teacher')[0].values['digest']}"
    assert pictures.run("student", pinned) == []
    said = softcache(*pictures.arguments("student", settings=[pinned, "data.resize=6"]))
    assert_one_paragraph(said, 3, "teacher.resize", "6")


ITS_OWN = (
    PICTURES
    + """
[teacher.data]
kind = "folder"
path = "images"
mode = "RGB"
resize = [14, 12]
crop = 11
normalise = { mean = [100.0, 110.0, 120.0], std = [50.0, 60.0, 70.0] }
"""
)


def test_a_teacher_at_another_size_gives_the_soft_targets_of_a_by_hand_computation(tmp_path: Path) -> None:
    toy = new_picture_toy(tmp_path / "toy", ITS_OWN)
    settings = ["data.resize=[5, 4]"]
    assert toy.run("evaluate", *settings)[: len(CHAIN)] == CHAIN
    experiment = toy.experiment(*settings)
    assert experiment.datasets("student")["training"].sample_shape == (1, 5, 4)
    teacher, cache = live_teacher(toy, *settings), TargetCache.open(toy.cache("training", *settings))
    part = experiment.datasets("student")["training"]
    rows = cache.join(part.sample_digests())
    for index, name in enumerate(part.names):  # type: ignore[attr-defined]
        image = Image.open(toy.folder / "images" / name).convert("RGB").resize((12, 14), Image.Resampling.BILINEAR)
        seen = np.asarray(image).astype(np.float32)[2:13, 0:11]  # offsets 1.5 and 0.5, by round()
        inputs = (torch.from_numpy(seen) - torch.tensor([100.0, 110, 120])) / torch.tensor([50.0, 60, 70])
        with torch.inference_mode():
            expected = torch.softmax(teacher(inputs.permute(2, 0, 1)[None]) / 2.0, dim=1)[0]
        torch.testing.assert_close(cache.soft_targets(rows[index : index + 1])[0], expected, atol=2e-6, rtol=0)
    saving = json.loads(toy.output("evaluate", 0, *settings, name="metrics.json").read_text())["saving"]
    assert saving["online_epoch_seconds"] > 0
    assert toy.run("evaluate", *settings) == []
    assert toy.run("student", *settings, "data.resize=[6, 4]") == ["student seed 0"]  # the same cache serves it


def test_a_teacher_that_cannot_see_the_students_samples_is_refused_with_both_shapes(
    tmp_path: Path, softcache: Command
) -> None:
    toy = new_picture_toy(tmp_path / "toy", ITS_OWN.replace('path = "images"\nmode', 'path = "others"\nmode'))
    write_pictures(toy.folder / "others")
    for path in (toy.folder / "images").rglob("*.png"):
        write(path, np.asarray(Image.open(path))[:7, :7])
    said = softcache(*toy.arguments("student", settings=["teacher.data.crop=none", "teacher.data.resize=11"]))
    assert_one_paragraph(said, 1, "[3, 13, 11]", "[3, 11, 11]", "mode, resize and crop of [teacher.data]")


def test_the_same_pixels_in_a_npz_file_are_served_by_the_cache_of_the_folder(tmp_path: Path) -> None:
    recipe = (
        PICTURES + '\n[teacher.data]\nkind = "folder"\npath = "images"\nnormalise = { mean = [128.0], std = [64.0] }\n'
    )
    toy = new_picture_toy(tmp_path / "toy", recipe)
    toy.run("student")
    write_npz(toy.folder / "pictures.npz", picture_arrays())
    from_arrays = ["data.kind=npz", "data.path=pictures.npz"]
    assert toy.run("teacher-targets", *from_arrays) == []
    assert toy.cache("training", *from_arrays) == toy.cache("training")


def broken(images: Path) -> None:
    (images / "bee" / "07.png").write_bytes((images / "bee" / "07.png").read_bytes()[:50])


def with_note(images: Path) -> None:
    (images / "bee" / "note.txt").write_text("a note")


def with_empty_class(images: Path) -> None:
    (images / "dog").mkdir()


def with_colour(images: Path) -> None:
    write(images / "bee" / "07.png", colour(1, HEIGHT, WIDTH))


def with_alpha(images: Path) -> None:
    image = Image.fromarray(colour(1, HEIGHT, WIDTH))
    image.putalpha(9)
    image.save(images / "bee" / "07.png")


def with_sixteen_bits(images: Path) -> None:
    write(images / "bee" / "07.png", np.full((HEIGHT, WIDTH), 999, np.uint16))


@pytest.mark.parametrize(
    ("change", "mentions"),
    [
        (broken, ("images/bee/07.png", "cannot be decoded")),
        (with_note, ("images/bee/note.txt", "no image, by its extension")),
        (with_empty_class, ("images/dog", "holds no image")),
        (with_colour, ("images/bee/07.png", "coloured (RGB)", "grey (L)", 'data.mode = "L"')),
        (with_alpha, ("images/bee/07.png", "not opaque", "Flatten it")),
        (with_sixteen_bits, ("images/bee/07.png", "16 bits a channel", "nothing is clipped")),
    ],
)
def test_a_folder_with_a_mistake_is_refused_in_one_paragraph_and_nothing_is_written(
    tmp_path: Path, softcache: Command, change: object, mentions: tuple[str, ...]
) -> None:
    toy = new_picture_toy(tmp_path / "toy")
    assert callable(change)
    change(toy.folder / "images")
    assert_one_paragraph(softcache(*toy.arguments("student")), 1, *mentions)
    assert not (toy.folder / "caches").exists()
    assert not list((toy.folder / "runs").rglob("*.safetensors"))


def test_an_image_that_breaks_while_workers_read_ahead_is_named(pictures: Toy, softcache: Command) -> None:
    settings = ["data.memory_mb=0", "data.workers=2", "student.training.learning_rate=0.02"]
    name = "bee/07.png"
    experiment = pictures.experiment(*settings)
    dataset = experiment.datasets("student")["training"]
    (pictures.folder / "images" / name).write_bytes(b"broken")
    assert dataset.batches_ahead == 2  # type: ignore[attr-defined]
    assert_one_paragraph(softcache(*pictures.arguments("student", settings=settings)), 1, name, "cannot be decoded")


def test_predict_takes_an_image_and_a_folder_of_images(pictures: Toy, softcache: Command) -> None:
    output, new = pictures.folder / "out.csv", pictures.folder / "new"
    for label in range(3):
        write(new / "deep" / f"{label}.bmp", picture(label, 900))
    said = softcache(*pictures.arguments("predict", then=[str(new)]), "-o", str(output))
    assert said.code == 0, said.err
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["deep/0.bmp", "deep/1.bmp", "deep/2.bmp"]
    assert [row["class"] for row in rows] == list(CLASSES)
    one = str(new / "deep" / "1.bmp")
    assert softcache(*pictures.arguments("predict", then=[one]), "-o", str(output)).code == 0
    with output.open(newline="") as file:
        [row] = csv.DictReader(file)
    assert (row["file"], row["p(bee)"]) == ("1.bmp", rows[1]["p(bee)"])
    assert softcache(*pictures.arguments("predict", then=["test"]), "-o", str(output)).code == 0
    with output.open(newline="") as file:
        assert {row["file"].split("/")[0] for row in csv.DictReader(file)} == set(CLASSES)


def test_predict_refuses_an_image_of_another_size_unless_the_recipe_resizes(pictures: Toy, softcache: Command) -> None:
    large = write(pictures.folder / "large.png", np.zeros((20, 16), np.uint8))
    said = softcache(*pictures.arguments("predict", then=[str(large)]))
    assert_one_paragraph(said, 1, "large.png", "(1, 20, 16)", "(1, 10, 8)")
    settings = ["data.resize=[10, 8]"]
    output = str(pictures.folder / "out.csv")
    said = softcache(*pictures.arguments("predict", then=[str(large)], settings=settings), "-o", output)
    assert said.code == 0, said.err


def test_idx_files_train_a_student(tmp_path: Path) -> None:
    toy = new_picture_toy(tmp_path / "toy")
    values, labels = picture_arrays()["x"][:, 0], picture_arrays()["y"]
    for part, taken in (("train", np.arange(90) % 3 > 0), ("t10k", np.arange(90) % 3 == 0)):
        for kind, array in (("images-idx3", values[taken]), ("labels-idx1", labels[taken].astype(np.uint8))):
            header = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (toy.folder / "images" / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())
    settings = ["data.kind=idx", 'data.class_names=["ant", "bee", "cat"]']
    assert toy.run("student", *settings) == CHAIN
    assert modules_after(toy, *settings) & {*HEAVY, "PIL", "numpy"} == set()
    assert toy.records("teacher", *settings)[0].values["class_names"] == list(CLASSES)
    np.testing.assert_array_equal(
        toy.experiment(*settings).datasets("student")["test"].sample(0), as_sample(picture(0, 0))
    )


def test_a_hugging_face_dataset_trains_a_student(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    toy = new_picture_toy(tmp_path / "toy")
    arrays = picture_arrays()
    features = datasets.Features(img=datasets.Image(), fine=datasets.ClassLabel(names=list(CLASSES)))
    columns = {"img": [Image.fromarray(one[0]) for one in arrays["x"]], "fine": arrays["y"].tolist()}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(toy.folder / "saved"))
    settings = ["data.kind=huggingface", "data.path=saved", "data.input=img", "data.label=fine"]
    assert toy.run("student", *settings) == CHAIN
    assert modules_after(toy, *settings) & {*HEAVY, "PIL", "numpy", "datasets", "pyarrow"} == set()


def test_ctrl_c_ends_a_run_whose_workers_are_reading_ahead(tmp_path: Path) -> None:
    toy = new_picture_toy(tmp_path / "toy")
    process = toy.begun(
        "teacher",
        settings=[
            "data.memory_mb=0",
            "data.workers=2",
            "teacher.training.steps=100000",
            "teacher.training.checkpoint_seconds=0",
        ],
    )
    started = time.monotonic()
    while not list(toy.folder.glob("runs/teacher/*/checkpoint.safetensors")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - started < 60
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in out + err
