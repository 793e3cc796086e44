"""Folders of images: what is a sample, of which split and class, in which order; all else is refused by name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data.digests import array_digests
from data.errors import DatasetError
from data.folder import FolderSource
from data.image_files.images import ImageDataset
from data.shaping import ShapedDataset, shaped
from pipeline.dataset import Dataset, refuse_malformed
from tests.data.pictures import as_sample, colour, grey, settings, write

EACH = 12


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two class folders of grey images; the formats alternate."""
    for name, first in (("cat", 0), ("ant", 100)):
        for number in range(EACH):
            write(tmp_path / "images" / name / f"{number:02}.{('png', 'bmp')[number % 2]}", grey(first + number))
    return tmp_path / "images"


def source_of(root: Path, workers: int | None = 1, memory_mb: int = 1024) -> FolderSource:
    return FolderSource(root, validation=0.25, test=0.25, split_seed=0, workers=workers, memory_mb=memory_mb)


def load(root: Path) -> dict[str, ImageDataset]:
    return source_of(root).load()


def refusal(root: Path, **fields: object) -> str:
    """What is said when the folder is loaded and shown to a model."""
    with pytest.raises(DatasetError) as refused:
        shaped(load(root), settings(**fields))
    return str(refused.value)


def pixels_by_name(root: Path) -> dict[str, NDArray[np.generic]]:
    return {
        path.relative_to(root).as_posix(): as_sample(np.asarray(Image.open(path)))
        for path in root.rglob("*")
        if path.is_file()
    }


def test_classes_are_the_sorted_folder_names_and_samples_the_sorted_paths(root: Path) -> None:
    parts = load(root)
    expected = pixels_by_name(root)
    assert list(parts) == ["training", "validation", "test"]
    assert sorted(name for part in parts.values() for name in part.names) == sorted(expected)
    in_order = sorted(expected)
    for split, part in parts.items():
        assert isinstance(part, Dataset)
        refuse_malformed(part, split)
        assert part.class_names == ("ant", "cat")
        assert part.names == sorted(part.names)
        assert [in_order[position] for position in part.positions] == part.names
        assert part.sample_shape == (1, 8, 6)
        for index, name in enumerate(part.names):
            np.testing.assert_array_equal(part.sample(index), expected[name])
            assert part.class_names[int(part.labels()[index])] == name.split("/")[0]
        np.testing.assert_array_equal(part.samples(np.arange(len(part))), np.stack([expected[n] for n in part.names]))
        np.testing.assert_array_equal(
            part.sample_digests(), array_digests(np.stack([expected[name] for name in part.names]))
        )


def test_png_and_bmp_of_the_same_pixels_join_and_so_does_the_array(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for path in root.rglob("*.*"):
        pixels = np.asarray(Image.open(path))
        write(other / path.parent.name / f"{path.stem}.{'tiff' if path.suffix == '.png' else 'png'}", pixels)
    ours, theirs = load(root), load(other)
    for split in ours:
        np.testing.assert_array_equal(ours[split].sample_digests(), theirs[split].sample_digests())
        np.testing.assert_array_equal(ours[split].labels(), theirs[split].labels())


def move_to_splits(root: Path, **parts: range) -> None:
    for split, numbers in parts.items():
        for name in ("ant", "cat"):
            for number in numbers:
                [path] = (root / name).glob(f"{number:02}.*")
                target = root / split / name / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                path.rename(target)
    for name in ("ant", "cat"):
        shutil.rmtree(root / name)


@pytest.mark.parametrize(("training", "validation"), [("train", "val"), ("training", "validation")])
def test_folders_of_splits_are_kept_as_they_are(root: Path, training: str, validation: str) -> None:
    move_to_splits(root, **{training: range(6), validation: range(6, 9), "test": range(9, 12)})
    parts = load(root)
    assert {split: len(part) for split, part in parts.items()} == {"training": 12, "validation": 6, "test": 6}
    assert {part.part for part in parts.values()} == {"training", "validation", "test"}
    assert parts["validation"].names[0] == f"{validation}/ant/06.png"
    assert parts["test"].labels().tolist() == [0, 0, 0, 1, 1, 1]


def test_a_split_without_a_folder_is_taken_from_training_by_content(root: Path) -> None:
    move_to_splits(root, train=range(9), test=range(9, 12))
    parts = load(root)
    assert len(parts["training"]) + len(parts["validation"]) == 18
    assert len(parts["validation"]) > 0
    assert parts["test"].names == sorted(
        f"test/{name}/{stem}" for name in ("ant", "cat") for stem in ("09.bmp", "10.png", "11.bmp")
    )


@pytest.mark.parametrize("with_splits", [False, True])
def test_unlabelled_images_are_the_end_of_training_unless_they_are_held_out(root: Path, with_splits: bool) -> None:
    if with_splits:
        move_to_splits(root, train=range(6), val=range(6, 9), test=range(9, 12))
    before = load(root)
    held_out = before["test"].names[0]
    (root / "unlabelled" / "more").mkdir(parents=True)
    shutil.copyfile(root / held_out, root / "unlabelled" / f"held-out{Path(held_out).suffix}")
    for number in range(5):
        write(root / "unlabelled" / "more" / f"{number}.png", grey(700 + number))
    after = load(root)
    for split in ("validation", "test"):
        assert after[split].names == before[split].names
    assert after["training"].names == [*before["training"].names, *(f"unlabelled/more/{n}.png" for n in range(5))]
    assert after["training"].labels()[-5:].tolist() == [-1] * 5
    assert after["training"].part_samples == (12 if with_splits else 24) + 6  # with the one that was left out
    assert after["training"].class_names == ("ant", "cat")


def test_hidden_files_and_what_windows_leaves_are_passed_over(root: Path) -> None:
    before = load(root)["training"].names
    for name in (".DS_Store", "ant/.hidden.png", "ant/Thumbs.db", "cat/desktop.ini"):
        (root / name).write_bytes(b"x")
    (root / ".git").mkdir()
    (root / "README.txt").write_text("these are images")
    assert load(root)["training"].names == before


def test_images_in_folders_within_a_class_belong_to_it(root: Path) -> None:
    write(root / "cat" / "tabby" / "more.png", grey(500))
    assert source_of(root).files()["cat/tabby/more.png"] == root / "cat" / "tabby" / "more.png"


def test_a_broken_image_is_named(root: Path) -> None:
    path = root / "cat" / "02.png"
    path.write_bytes(path.read_bytes()[:-30])
    assert refusal(root).startswith(f"{path}: this image cannot be decoded")


def test_the_first_broken_image_is_named_whatever_the_workers(root: Path) -> None:
    for name in ("ant/05.bmp", "cat/02.png", "cat/03.bmp"):
        (root / name).write_bytes(b"broken")
    for workers in (1, 3):
        with pytest.raises(DatasetError, match=r"ant/05\.bmp: this image cannot be decoded"):
            source_of(root, workers).load()


def test_a_text_file_in_a_class_folder_is_named(root: Path) -> None:
    (root / "cat" / "notes.txt").write_text("a note")
    assert refusal(root).startswith(f"{root}/cat/notes.txt: no image, by its extension")


def test_a_class_without_images_is_named(root: Path) -> None:
    (root / "dog").mkdir()
    (root / "dog" / ".keep").touch()
    assert refusal(root) == f"{root / 'dog'}: the folder holds no image. Put images in, or remove it."


def test_an_image_beside_the_class_folders_is_named(root: Path) -> None:
    write(root / "stray.PNG", grey(1))
    assert refusal(root).startswith(
        f"{root / 'stray.PNG'}: this image lies beside the class folders, so it has no class"
    )


def test_a_class_that_training_does_not_have_is_named(root: Path) -> None:
    move_to_splits(root, train=range(6), test=range(6, 12))
    write(root / "test" / "dog" / "1.png", grey(1))
    assert refusal(root) == f"{root / 'test' / 'dog'}: there is no such class among those of training: ant, cat."


def test_other_folders_beside_train_and_two_of_one_split_are_refused(root: Path) -> None:
    move_to_splits(root, train=range(6), test=range(6, 12))
    (root / "extra").mkdir()
    assert refusal(root).startswith(
        f"{root / 'extra'}: beside a folder of training samples there may be train, training,"
    )
    (root / "extra").rename(root / "training")
    assert (
        refusal(root) == f"{root / 'train'} and {root / 'training'} are both of the training split; keep one of them."
    )


@pytest.mark.parametrize("name", ["test", "Train", "VAL"])
def test_folders_that_look_like_splits_never_become_classes(root: Path, name: str) -> None:
    write(root / name / "ant" / "1.png", grey(1))
    assert refusal(root).startswith(f"{root / name}: this looks like a split, since folders are in it, but there is no")
    (root / name / "ant" / "1.png").rename(root / name / "1.png")
    (root / name / "ant").rmdir()
    assert name in load(root)["training"].class_names


def test_unlabelled_images_within_a_split_are_no_class(root: Path) -> None:
    move_to_splits(root, train=range(6), test=range(6, 12))
    write(root / "train" / "unlabelled" / "1.png", grey(1))
    said = refusal(root)
    assert said == f"{root / 'train' / 'unlabelled'}: images without labels belong into {root / 'unlabelled'}."


def test_a_missing_folder_and_one_without_classes_are_refused(root: Path) -> None:
    assert refusal(root / "nowhere").startswith(f"{root / 'nowhere'}: no such folder. A relative path starts at")
    assert refusal(root / "cat").startswith(f"{root / 'cat' / '00.png'}: this image lies beside the class folders")
    (root.parent / "empty").mkdir()
    assert refusal(root.parent / "empty").startswith(
        f"{root.parent / 'empty'}: 0 class folders are there; at least two"
    )


@pytest.mark.parametrize("place", ["ant/caf\\xe9.png", "ant/caf\\xe9/1.png", "caf\\xe9/1.png"])
def test_a_name_that_is_not_utf8_is_refused_with_its_bytes_escaped(root: Path, place: str) -> None:
    path = Path(os.fsdecode(os.fsencode(root) + b"/" + place.encode().replace(b"\\xe9", b"\xe9")))
    write(path, grey(1))
    named = root / place.partition("\\xe9")[0]
    with pytest.raises(DatasetError) as refused:
        source_of(root).files()
    assert str(refused.value).startswith(f"{named}\\xe9")
    assert "this name is not UTF-8" in str(refused.value)


def test_a_link_back_is_refused_instead_of_followed_for_ever(root: Path) -> None:
    (root / "cat" / "again").symlink_to(root / "cat", target_is_directory=True)
    assert refusal(root) == f"{root / 'cat' / 'again'}: this link leads back to a folder that it lies in."


def test_grey_and_coloured_images_need_a_mode_and_then_work(root: Path) -> None:
    mixed = root / "cat" / "04.png"
    write(mixed, colour(1))
    said = refusal(root)
    assert "is grey (L)" in said
    assert f"{mixed} is coloured (RGB)" in said
    assert 'Convert all with data.mode = "RGB" or data.mode = "L".' in said
    before = load(root)
    for mode, channels in (("L", 1), ("RGB", 3)):
        parts = shaped(load(root), settings(mode=mode))
        for split, part in parts.items():
            assert part.sample_shape == (channels, 8, 6)
            np.testing.assert_array_equal(part.sample_digests(), before[split].sample_digests())
            assert part.samples(np.arange(len(part))).shape == (len(part), channels, 8, 6)


def test_splits_that_differ_in_mode_are_refused_with_a_file_of_each(root: Path) -> None:
    move_to_splits(root, train=range(6), val=range(6, 9), test=range(9, 12))
    for path in (root / "test").rglob("*.*"):
        write(path, colour(int(path.stem)))
    said = refusal(root)
    assert f"{root}/train/ant/00.png is grey (L), {root}/test/ant/09.bmp is coloured (RGB)" in said


def test_images_of_several_sizes_need_a_geometry_and_then_work(root: Path) -> None:
    large = root / "ant" / "03.bmp"
    write(large, grey(1, 16, 30))
    said = refusal(root)
    assert f"{large} is 16 x 30" in said
    assert "Make all equal with data.resize = [height, width], or with data.resize and data.crop." in said
    assert "is 6 x 11" in refusal(root, resize=6)
    for fields in ({"resize": (5, 4)}, {"resize": 5, "crop": (5, 4)}, {"crop": (5, 4)}):
        for part in shaped(load(root), settings(**fields)).values():
            assert part.sample_shape == (1, 5, 4)
    assert "crop = (16, 20) is larger than the image, 8 x 6" in refusal(root, crop=(16, 20))


@pytest.mark.parametrize("name", ["RGBA", "16 bit"])
def test_a_mode_that_cannot_be_read_is_refused_by_file(root: Path, name: str) -> None:
    path = root / "ant" / "00.png"
    if name == "RGBA":
        image = Image.fromarray(colour(1))
        image.putalpha(7)
        image.save(path)
    else:
        write(path, np.full((8, 6), 999, np.uint16))
    said = refusal(root)
    assert said.startswith(f"{path}: the image ")
    assert ("Flatten it" if name == "RGBA" else "Convert it to 8 bits") in said


@pytest.mark.parametrize("memory_mb", [0, 1])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_samples_never_depend_on_workers_or_memory(root: Path, workers: int, memory_mb: int) -> None:
    expected = shaped(load(root), settings(resize=(7, 5)))
    parts = shaped(source_of(root, workers, memory_mb).load(), settings(resize=(7, 5)))
    for split, part in parts.items():
        assert isinstance(part, ShapedDataset)
        assert part.batches_ahead == (0 if memory_mb else 2)
        np.testing.assert_array_equal(part.sample_digests(), expected[split].sample_digests())
        indices = np.arange(len(part))[::-1]
        np.testing.assert_array_equal(part.samples(indices), expected[split].samples(indices))


def test_a_set_that_is_too_large_is_not_kept_and_is_read_all_the_same(tmp_path: Path) -> None:
    for number in range(24):
        write(tmp_path / "large" / "ab"[number % 2] / f"{number}.bmp", grey(number, 250, 260))
    dataset = load_with_memory(tmp_path / "large", 1)  # 24 x 65 kB
    assert not dataset.store.in_memory
    assert load_with_memory(tmp_path / "large", 2).store.in_memory
    assert dataset.sample(0).shape == (1, 250, 260)


def load_with_memory(root: Path, memory_mb: int) -> ImageDataset:
    return source_of(root, 2, memory_mb).load()["training"]


def test_an_image_that_breaks_while_it_is_used_is_named(root: Path) -> None:
    part = shaped(source_of(root, 2, memory_mb=0).load(), settings())["training"]
    path = root / part.names[3]
    path.write_bytes(b"broken now")
    with pytest.raises(DatasetError, match=f"{path.name}: this image cannot be decoded"):
        part.samples(np.arange(len(part)))


@pytest.mark.parametrize("name", ["unlabeled", "Unlabelled", "un-labelled"])
def test_unlabelled_spelled_otherwise_is_no_silent_class(name: str, root: Path) -> None:
    write(root / name / "0.png", grey(900))
    with pytest.raises(DatasetError, match=rf"{name}: would be a class\. .* name it unlabelled"):
        load(root)
