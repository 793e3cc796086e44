"""Listings of image folders: the order, labels and digests of the plainest computation, whatever the names."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.digests import array_digests
from data.errors import DatasetError
from data.folder import FILES_WORTH_PROCESSES, FolderSource
from data.image_files.folder_layout import layout_of
from data.image_files.listing import listed
from data.names import Names
from tests.data.image_files.test_first_look import write_many
from tests.data.pictures import as_sample, grey, write

# Folders and files of which one name begins another, up to what is sorted before and after the slash.
STEMS = ("a", "a b", "a-b", "a.b", "a!", "a0", "ab", "A", "b", "é", "日本", "z" * 40)
ENDINGS = (".png", ".PNG", ".bmp", ".tiff", ".ppm")


def write_tree(folder: Path, generator: random.Random, depth: int = 0) -> None:
    """Images with odd names, perhaps in folders within."""
    for stem in generator.sample(STEMS, 4):
        write(folder / f"{stem}{generator.choice(ENDINGS)}", grey(generator.randrange(10**6)))
    if depth < 2 and generator.random() < 0.6:
        for stem in generator.sample(STEMS, 2):
            write_tree(folder / stem, generator, depth + 1)


def plainly(root: Path, part: Path, class_names: list[str]) -> tuple[list[str], list[int]]:
    """The images of one part: sorted paths, and labels from the folder's name; those without a label are the last."""
    paths = sorted(path.relative_to(root).as_posix() for path in part.rglob("*") if path.is_file())
    classes = {name: Path(name).relative_to(part.relative_to(root)).parts[0] for name in paths}
    unlabelled = [name for name in paths if classes[name] not in class_names]
    labelled = [name for name in paths if classes[name] in class_names]
    labels = [class_names.index(classes[name]) for name in labelled]
    return labelled + unlabelled, labels + [-1] * len(unlabelled)


@pytest.mark.parametrize("seed", range(12))
def test_order_labels_and_digests_are_those_of_the_plainest_computation(tmp_path: Path, seed: int) -> None:
    generator, root = random.Random(seed), tmp_path / "images"
    with_splits, class_names = seed % 2 == 1, sorted(random.Random(seed).sample(STEMS, 3))
    for part in ("train", "val", "test") if with_splits else ("",):
        for name in class_names:
            write_tree(root / part / name, generator)
    if not with_splits:
        write_tree(root / "unlabelled", generator)
    layout = layout_of(root)
    assert list(layout.class_names) == class_names
    names = list(Names(layout.files.names))
    parts = {"test": "test", "train": "training", "val": "validation"} if with_splits else {"": "all"}
    assert list(layout.parts) == list(parts.values())
    source = FolderSource(root, validation=0.2, test=0.2, split_seed=1, workers=2)
    whole: dict[str, bytes] = {}
    for folder, part in parts.items():
        expected, labels = plainly(root, root / folder, class_names)
        run = layout.parts[part]
        assert names[run.start : run.stop] == expected
        assert [label for label, count in run.runs for _ in range(count)] == labels
        for name in expected:
            whole[name] = array_digests(as_sample(np.asarray(Image.open(root / name)))[None]).tobytes()
    for dataset in source.load().values():
        assert [whole[name] for name in dataset.names] == [digest.tobytes() for digest in dataset.sample_digests()]
        for name, label in zip(dataset.names, dataset.labels().tolist(), strict=True):
            place = Path(name).parts[1 if with_splits else 0]
            assert label == (class_names.index(place) if place in class_names else -1)
    assert list(source.files()) == names


def test_identities_are_those_that_the_system_tells(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/b/2.png", "a/c.png"):
        write(tmp_path / name, grey(len(name)))
    (tmp_path / "a" / "link.png").symlink_to(tmp_path / "a" / "1.png")
    found = listed(tmp_path, tmp_path / "a")
    names = list(Names(found.names))
    assert names == ["a/1.png", "a/b/2.png", "a/c.png", "a/link.png"]
    statuses = [(tmp_path / name).stat() for name in names]
    assert found.identities.tolist() == [
        number for s in statuses for number in (s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino)
    ]


def test_the_first_misplaced_file_by_name_is_told(tmp_path: Path) -> None:
    root = tmp_path / "images"
    for name in ("cat", "cat-2"):
        write(root / name / "1.png", grey(1))
        (root / name / "z.txt").write_text("no image")
        (root / name / "z").mkdir()
        (root / name / "z" / "a.txt").write_text("no image")
    for gone in ("cat/z/a.txt", "cat/z.txt", "cat-2/z/a.txt", "cat-2/z.txt"):
        with pytest.raises(DatasetError) as refused:
            layout_of(root)
        assert str(refused.value).startswith(f"{root / gone}: no image, by its extension")
        (root / gone).unlink()
    assert list(Names(layout_of(root).files.names)) == ["cat-2/1.png", "cat/1.png"]


@pytest.mark.parametrize("name", ["1jpeg", "1.png~", "png", "1.", "jpeg.", "1.png.txt", "1.npy"])
def test_a_name_that_only_resembles_an_image_is_no_image(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).touch()
    with pytest.raises(DatasetError, match="no image, by its extension"):
        listed(tmp_path, tmp_path / "a")


@pytest.mark.parametrize("name", ["1.PNG", "1.JPEG", "1.jPeg", "1.tar.tiff", "1..webp", "é.JPG"])
def test_an_extension_counts_in_any_letters(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).touch()
    assert list(Names(listed(tmp_path, tmp_path / "a").names)) == [f"a/{name}"]


def test_what_is_wrong_in_an_earlier_folder_is_told_first(tmp_path: Path) -> None:
    root = tmp_path / "images"
    for name in ("train/a", "train/b", "val/a", "val/other"):
        write(root / name / "1.png", grey(1))
    (root / "train" / "b" / "1.png").rename(root / "train" / "b" / ".1.png")
    with pytest.raises(DatasetError, match="train/b: the folder holds no image"):
        layout_of(root)
    (root / "train" / "b" / ".1.png").rename(root / "train" / "b" / "1.png")
    with pytest.raises(DatasetError, match="val/other: there is no such class among those of training: a, b"):
        layout_of(root)


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.png", grey(1))
    (tmp_path / "a" / "2.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DatasetError, match=r"a/2\.png: this file cannot be read .*a link that leads nowhere"):
        listed(tmp_path, tmp_path / "a")


def test_many_files_are_listed_by_several_processes_just_as_by_one(tmp_path: Path) -> None:
    root = tmp_path / "images"
    write_many(root, 4, 1)
    [image] = (root / "class_0").iterdir()
    for number in range(FILES_WORTH_PROCESSES):
        os.link(image, root / "class_0" / f"more{number:05}.png")
    lists = [FolderSource(root, validation=0, test=0, split_seed=0, workers=count)._layout for count in (1, 3)]
    assert lists[0] == lists[1]
    assert len(lists[0].files) == FILES_WORTH_PROCESSES + 4
    (root / "class_3" / "note.txt").write_text("no image")
    with pytest.raises(DatasetError, match=r"class_3/note\.txt: no image, by its extension"):
        FolderSource(root, validation=0, test=0, split_seed=0, workers=2).files()
