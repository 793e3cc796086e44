"""Hugging Face datasets from disk: images and arrays, split or whole; other columns and types are refused by name."""

from __future__ import annotations

import builtins
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.digests import array_digests
from data.errors import DatasetError
from data.huggingface import HuggingFaceSource
from data.shaping import shaped
from pipeline.dataset import refuse_malformed
from tests.data.pictures import as_sample, colour, grey, settings

datasets = pytest.importorskip("datasets")

ROWS = 40


def source_of(folder: Path, **options: Any) -> HuggingFaceSource:
    return HuggingFaceSource(folder, validation=0.2, test=0.2, split_seed=0, **options)


def load(folder: Path, **options: Any) -> Mapping[str, Any]:
    return source_of(folder, **options).load()


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(DatasetError) as refused:
        load(folder, **options)
    return str(refused.value)


def images(count: int = ROWS, first: int = 0) -> Any:
    """A Dataset of grey images in two named classes; every tenth has no label."""
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["ant", "bee"]))
    columns = {
        "image": [Image.fromarray(grey(first + number)) for number in range(count)],
        "label": [number % 2 if number % 10 else None for number in range(count)],
    }
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images().save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def test_a_dataset_of_images_is_split_by_content_and_joins_with_the_arrays(folder: Path) -> None:
    parts = load(folder)
    assert list(parts) == ["training", "validation", "test"]
    assert sorted(position for part in parts.values() for position in part.positions.tolist()) == list(range(ROWS))
    for part in shaped(parts, settings()).values():
        refuse_malformed(part, "saved")
        assert part.class_names == ("ant", "bee")
        expected = np.stack([as_sample(grey(position)) for position in part.positions])
        np.testing.assert_array_equal(part.samples(np.arange(len(part))), expected)
        np.testing.assert_array_equal(part.sample_digests(), array_digests(expected))
        labels = [position % 2 if position % 10 else -1 for position in part.positions]
        assert part.labels().tolist() == labels


@pytest.mark.parametrize("names", [("train", "validation", "test"), ("training", "val", "test")])
def test_the_splits_of_a_dataset_dict_are_kept(tmp_path: Path, names: tuple[str, str, str]) -> None:
    saved = datasets.DatasetDict({name: images(10, 100 * place) for place, name in enumerate(names)})
    saved.save_to_disk(str(tmp_path / "saved"))
    parts = load(tmp_path / "saved")
    assert {split: len(part) for split, part in parts.items()} == {"training": 10, "validation": 10, "test": 10}
    np.testing.assert_array_equal(parts["test"].sample(3), as_sample(grey(203)))
    assert parts["test"].part == "test"


def test_other_splits_than_train_may_have_no_labels(tmp_path: Path) -> None:
    saved = {"train": images(30), "test": images(5, 100).remove_columns("label")}
    datasets.DatasetDict(saved).save_to_disk(str(tmp_path / "saved"))
    assert load(tmp_path / "saved")["test"].labels().tolist() == [-1] * 5


def test_a_missing_split_is_taken_from_train(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": images(30), "test": images(5, 100)}).save_to_disk(str(tmp_path / "saved"))
    parts = load(tmp_path / "saved")
    assert (len(parts["training"]) + len(parts["validation"]), len(parts["test"])) == (30, 5)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["Array2D", "nested lists", "list"])
def test_numeric_columns_become_arrays_of_their_own_dtype(tmp_path: Path, kind: str, dtype: str) -> None:
    values = np.arange(ROWS * 6).astype(dtype).reshape((ROWS, 6) if kind == "list" else (ROWS, 2, 3))
    feature = {
        "Array2D": datasets.Array2D((2, 3), dtype),
        "nested lists": datasets.Sequence(datasets.Sequence(datasets.Value(dtype))),
        "list": datasets.Sequence(datasets.Value(dtype), length=6),
    }[kind]
    features = datasets.Features(x=feature, y=datasets.Value("int64"))
    columns = {"x": list(values), "y": [number % 3 for number in range(ROWS)]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "saved"))
    parts = load(tmp_path / "saved", input_column="x", label_column="y")
    for part in parts.values():
        found = part.samples(np.arange(len(part)))
        assert found.dtype == dtype
        assert part.class_names == ("0", "1", "2")
        np.testing.assert_array_equal(found, values[part.positions])
        np.testing.assert_array_equal(part.sample_digests(), array_digests(values)[part.positions])


def test_labels_that_are_mere_integers_are_named_by_the_recipe(tmp_path: Path) -> None:
    images().cast_column("label", datasets.Value("int64")).save_to_disk(str(tmp_path / "saved"))
    assert load(tmp_path / "saved", class_names=("a", "b", "c"))["training"].class_names == ("a", "b", "c")
    assert load(tmp_path / "saved")["training"].class_names == ("0", "1")


def test_class_names_of_the_recipe_do_not_replace_those_of_the_dataset(folder: Path) -> None:
    assert "column 'label' has class names of its own" in refusal(folder, class_names=("a", "b"))


def test_rows_that_break_the_rules_are_refused_by_number(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {
        "image": [Image.fromarray(grey(number)) for number in range(ROWS)],
        "label": [0, 1] * (ROWS // 2),
    }
    columns["image"][4] = Image.fromarray(np.full((8, 6), 999, np.uint16))
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "deep"))
    assert refusal(tmp_path / "deep").startswith(f"{tmp_path / 'deep'}, row 4: the image has 16 bits a channel")
    columns["image"][4] = None
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "none"))
    assert refusal(tmp_path / "none").startswith(f"{tmp_path / 'none'}, row 4: the row holds no image")
    columns["image"][4] = Image.fromarray(colour(4))
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "mixed"))
    with pytest.raises(DatasetError, match=r"mixed, row 4 is coloured \(RGB\)"):
        shaped(load(tmp_path / "mixed"), settings())


def test_lists_of_unequal_shape_and_texts_are_refused(tmp_path: Path) -> None:
    uneven = datasets.Dataset.from_dict({"x": [[1, 2], [3, 4], [5]], "label": [0, 1, 0]})
    uneven.save_to_disk(str(tmp_path / "uneven"))
    assert "row 2: shape (1,), but row 0 has (2,)" in refusal(tmp_path / "uneven", input_column="x")
    ragged = datasets.Dataset.from_dict({"x": [[[1, 2], [3]], [[1, 2], [3]]], "label": [0, 1]})
    ragged.save_to_disk(str(tmp_path / "ragged"))
    assert "row 0: shape None, but row 0 has None; all must be of one shape" in refusal(
        tmp_path / "ragged", input_column="x"
    )
    images(4).select([]).save_to_disk(str(tmp_path / "empty"))
    assert refusal(tmp_path / "empty").startswith(f"{tmp_path / 'empty'}: the saved dataset cannot be read")
    gaps = datasets.Dataset.from_dict({"x": [[1, 2], None, [5, 6]], "label": [0, 1, 0]})
    gaps.save_to_disk(str(tmp_path / "gaps"))
    assert "row 1: shape None, but row 0 has (2,)" in refusal(tmp_path / "gaps", input_column="x")
    holes = datasets.Dataset.from_dict({"x": [[1, 2], [3, None], [5, 6]], "label": [0, 1, 0]})
    holes.save_to_disk(str(tmp_path / "holes"))
    assert "row 1: column 'x' is no array" in refusal(tmp_path / "holes", input_column="x")
    texts = datasets.Dataset.from_dict({"x": ["a", "b"], "label": ["c", "d"]})
    texts.save_to_disk(str(tmp_path / "texts"))
    assert "labels of column 'label' are of type string; integers are needed" in refusal(
        tmp_path / "texts", input_column="x"
    )


def test_a_missing_column_is_named_with_those_there_are(folder: Path) -> None:
    assert "no column 'picture'; there are image, label. Name the columns" in refusal(folder, input_column="picture")
    assert "no column 'class'; there are image, label. Name the columns" in refusal(folder, label_column="class")


def test_a_label_out_of_range_is_refused_by_row(tmp_path: Path) -> None:
    saved = images(10).cast_column("label", datasets.Value("int64"))
    saved.save_to_disk(str(tmp_path / "saved"))
    assert len(load(tmp_path / "saved", class_names=("a", "b"))["training"]) > 0
    beyond = datasets.Dataset.from_dict({"x": [[1.0], [2.0], [3.0]], "label": [0, 1, 7]})
    beyond.save_to_disk(str(tmp_path / "beyond"))
    assert "row 2 has label 7; 0 to 1 are allowed" in refusal(
        tmp_path / "beyond", input_column="x", class_names=("a", "b")
    )


def test_a_folder_that_is_none_or_no_dataset_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere").startswith(f"{tmp_path / 'nowhere'}: no such folder")
    assert "no dataset that save_to_disk wrote" in refusal(tmp_path)


def test_a_damaged_dataset_is_refused_by_its_folder(folder: Path) -> None:
    (folder / "state.json").write_text("{")
    assert refusal(folder).startswith(f"{folder}: the saved dataset cannot be read")


def test_without_the_library_it_is_said_how_to_install_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "datasets":
            raise ImportError
        return really(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert 'pip install "softcache[huggingface]"' in refusal(folder)


def test_files_are_known_without_the_library_and_move_with_the_content(folder: Path, tmp_path: Path) -> None:
    names = set(source_of(folder).files())
    assert {"state.json", "dataset_info.json"} < names
    shutil.move(folder, tmp_path / "moved")
    assert set(source_of(tmp_path / "moved").files()) == names
