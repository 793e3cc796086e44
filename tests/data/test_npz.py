"""The .npz source: what it accepts, and that everything else is refused by file, array and row."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data.arrays import ArrayDataset, checked_dataset
from data.errors import DatasetError
from data.npz import NpzSource, read_npz, splits_of_arrays
from pipeline.dataset import Dataset

ROWS = 60

Load = Callable[..., dict[str, ArrayDataset]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mine.npz"


@pytest.fixture
def load(path: Path) -> Load:
    """Writes arrays to a .npz and loads it."""

    def load(**arrays: Any) -> dict[str, ArrayDataset]:
        np.savez(path, **arrays)
        return source_of(path).load()

    return load


def source_of(path: Path) -> NpzSource:
    return NpzSource(path, validation=0.2, test=0.2, split_seed=0)


def values_of(rows: int = ROWS, offset: int = 0) -> NDArray[np.float32]:
    return np.arange(offset, offset + rows * 4, dtype=np.float32).reshape(rows, 2, 2)


def labels_of(rows: int = ROWS) -> NDArray[np.int64]:
    return np.arange(rows, dtype=np.int64) % 3


def test_x_and_y_are_split_by_content(load: Load) -> None:
    parts = load(x=values_of(), y=labels_of())
    assert list(parts) == ["training", "validation", "test"]
    assert sum(len(part) for part in parts.values()) == ROWS
    for part in parts.values():
        assert isinstance(part, Dataset)
        assert part.class_names == ("0", "1", "2")
        assert part.sample_shape == (2, 2)
        row_of_sample = part.values[:, 0, 0].astype(np.int64) // 4
        np.testing.assert_array_equal(part.labels(), row_of_sample % 3)
        assert part.label(0) == int(part.labels()[0])
        np.testing.assert_array_equal(part.sample(1), part.samples(np.array([1]))[0])


def test_given_splits_are_kept_as_they_are(load: Load) -> None:
    arrays = {
        f"{letter}_{split}": made
        for place, split in enumerate(("training", "validation", "test"))
        for letter, made in (("x", values_of(10, 100 * place)), ("y", labels_of(10)))
    }
    parts = load(**arrays)
    for split, part in parts.items():
        np.testing.assert_array_equal(part.values, arrays[f"x_{split}"])
        np.testing.assert_array_equal(part.labels(), arrays[f"y_{split}"])


def test_a_missing_validation_split_is_taken_from_training_by_content(load: Load) -> None:
    parts = load(x_training=values_of(), y_training=labels_of(), x_test=values_of(5, 999), y_test=labels_of(5))
    assert len(parts["training"]) + len(parts["validation"]) == ROWS
    np.testing.assert_array_equal(parts["test"].values, values_of(5, 999))


def test_class_names_are_taken_from_the_file(load: Load) -> None:
    parts = load(x=values_of(), y=labels_of(), class_names=np.array(["cat", "dog", "owl", "unseen"]))
    assert parts["training"].class_names == ("cat", "dog", "owl", "unseen")


def test_class_names_of_the_recipe_are_for_a_file_that_has_none(load: Load, path: Path) -> None:
    load(x=values_of(), y=labels_of())
    named = NpzSource(path, validation=0.2, test=0.2, split_seed=0, class_names=("ant", "bee", "cat"))
    assert named.load()["training"].class_names == ("ant", "bee", "cat")
    load(x=values_of(), y=labels_of(), class_names=np.array(["a", "b", "c"]))
    with pytest.raises(
        DatasetError, match=r"the file has class_names of its own; remove data\.class_names of the recipe"
    ):
        named.load()


def test_without_class_names_the_largest_label_of_any_split_counts(load: Load) -> None:
    parts = load(
        x_training=values_of(),
        y_training=labels_of(),
        x_test=values_of(2, 999),
        y_test=np.array([0, 5], dtype=np.uint8),
    )
    assert parts["training"].class_names == parts["test"].class_names == ("0", "1", "2", "3", "4", "5")


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint64", ">i4"])
def test_labels_of_every_integer_dtype_are_read(load: Load, dtype: str) -> None:
    labels = (np.arange(ROWS) % 2).astype(dtype)
    for parts in (
        load(x=values_of(), y=labels),
        load(x_training=values_of(), y_training=labels, x_test=values_of(2, 999)),
    ):
        assert parts["training"].labels().dtype == np.int64
        assert set(parts["training"].labels().tolist()) == {0, 1}


def test_labels_may_be_absent_for_some_samples_or_for_all(load: Load) -> None:
    labels = np.where(np.arange(ROWS) < 30, labels_of(), -1)
    known = sum(int((part.labels() >= 0).sum()) for part in load(x=values_of(), y=labels).values())
    assert known == 30
    unlabelled = load(x=values_of(), class_names=np.array(["a", "b"]))["training"]
    assert (unlabelled.labels() == -1).all()
    assert unlabelled.label(0) is None


def test_the_digests_are_those_of_the_content_wherever_it_lies(load: Load) -> None:
    little = load(x=values_of(), y=labels_of())["training"].sample_digests()
    big = load(x=values_of().astype(">f4"), y=labels_of())["training"].sample_digests()
    np.testing.assert_array_equal(little, big)


def test_the_source_declares_its_file_and_version(path: Path, load: Load) -> None:
    load(x=values_of(), y=labels_of())
    assert source_of(path).files() == {"npz": path}
    assert source_of(path).version == 1


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(DatasetError, match=r"mine\.npz: no such file\. .*--data-dir"):
        source_of(path).files()
    with pytest.raises(DatasetError, match=r"mine\.npz: no such file"):
        source_of(path).load()


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_truncated_file_is_refused(path: Path, save: Callable[..., None], kept: float) -> None:
    save(path, x=values_of(), y=labels_of())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(DatasetError, match=r"mine\.npz: not a whole \.npz file"):
        source_of(path).load()


def test_changed_bytes_inside_an_array_are_refused_by_the_array_s_name(path: Path) -> None:
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=(500, 4)))
    content = bytearray(path.read_bytes())
    for position in range(len(content) // 4, len(content) // 2):
        content[position] ^= 0x5A
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"mine\.npz: array 'x' cannot be read"):
        source_of(path).load()


@pytest.mark.parametrize("content", [b"x,y\n1,2\n", pickle.dumps({"x": 1}), b"\x89PNG\r\n\x1a\n"])
def test_another_kind_of_file_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"mine\.npz: not a whole \.npz file"):
        source_of(path).load()


def test_a_npy_file_is_refused_because_it_holds_one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, values_of())
    with pytest.raises(DatasetError, match=r"mine\.npz: a \.npy file holds one array"):
        source_of(path).load()


class Malicious:
    """Leaves a marker when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.marker,)


def test_a_pickled_object_array_is_refused_and_its_code_does_not_run(tmp_path: Path, path: Path) -> None:
    marker = tmp_path / "was-run"
    np.savez(path, x=np.array([Malicious(marker)] * 3, dtype=object), y=labels_of(3))
    with pytest.raises(
        DatasetError, match=r"mine\.npz: array 'x' cannot be read .*Python objects, which are never opened"
    ):
        source_of(path).load()
    assert not marker.exists()


def test_an_array_that_declares_more_than_the_memory_is_refused(path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**15, 10)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue())
    with pytest.raises(DatasetError, match=r"mine\.npz: array 'x' cannot be read"):
        read_npz(path)


def test_unequal_lengths_are_refused_with_both(load: Load) -> None:
    with pytest.raises(DatasetError, match=r"mine\.npz \(x\): 60 samples but labels of shape \(59,\)"):
        load(x=values_of(), y=labels_of(59))


def test_a_label_out_of_range_is_refused_by_row_and_value(load: Load) -> None:
    labels = labels_of()
    labels[[17, 40]] = 3
    with pytest.raises(DatasetError, match=r"\(x\): row 17 has label 3; 0 to 2 are allowed, and -1 for none"):
        load(x=values_of(), y=labels, class_names=np.array(["a", "b", "c"]))
    labels[[17, 40]] = -2
    with pytest.raises(DatasetError, match="row 17 has label -2"):
        load(x=values_of(), y=labels)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_by_row(load: Load, bad: float) -> None:
    values = values_of()
    values[41, 1, 0] = values[50, 0, 0] = bad
    with pytest.raises(DatasetError, match=r"mine\.npz \(x_test\): row 41 of the samples holds NaN or infinity"):
        load(x_training=values_of(), y_training=labels_of(), x_test=values)


def test_an_unknown_array_is_refused_by_name_with_the_names_there_are(load: Load) -> None:
    with pytest.raises(DatasetError, match=r"unknown array 'images'\. The arrays are: x and \(optional\) y"):
        load(images=values_of())


@pytest.mark.parametrize("extra", ["x_test", "y_training", "y_validation"])
def test_an_array_that_would_be_ignored_beside_x_is_refused(load: Load, extra: str) -> None:
    with pytest.raises(DatasetError, match=f"array '{extra}' has no partner here"):
        load(x=values_of(), y=labels_of(), **{extra: values_of()})


def test_labels_of_a_split_without_samples_are_refused(load: Load) -> None:
    with pytest.raises(DatasetError, match="array 'y_validation' has no partner here"):
        load(x_training=values_of(), y_training=labels_of(), y_validation=labels_of())


def test_a_file_without_training_samples_is_refused(load: Load) -> None:
    with pytest.raises(DatasetError, match="neither x nor x_training is there"):
        load(x_test=values_of(), y_test=labels_of())


def test_splits_of_unequal_sample_shape_are_refused_with_both(load: Load) -> None:
    with pytest.raises(DatasetError, match=r"x_test have shape \(3,\), those of x_training \(2, 2\)"):
        load(x_training=values_of(), y_training=labels_of(), x_test=np.ones((4, 3)))


def test_one_class_is_refused(load: Load) -> None:
    with pytest.raises(DatasetError, match="1 classes are known; give class_names, or labels of two classes"):
        load(x=values_of(), y=np.zeros(ROWS, dtype=np.int64))


def test_samples_without_labels_need_class_names(load: Load) -> None:
    with pytest.raises(DatasetError, match="0 classes are known; give class_names"):
        load(x=values_of())


def test_repeated_class_names_are_refused(load: Load) -> None:
    with pytest.raises(DatasetError, match="class names repeat: a, b, a"):
        load(x=values_of(), y=labels_of(), class_names=np.array(["a", "b", "a"]))


def test_labels_that_are_no_integers_are_refused_by_dtype(load: Load) -> None:
    with pytest.raises(DatasetError, match="labels have dtype float64; integers are needed"):
        load(x=values_of(), y=labels_of().astype(np.float64))


@pytest.mark.parametrize("dtype", ["<U3", "complex64", "datetime64[s]", "longdouble"])
def test_samples_that_are_no_plain_numbers_are_refused_by_dtype(dtype: str) -> None:
    values = np.zeros((4, 2)).astype(dtype)
    with pytest.raises(DatasetError, match="samples have dtype"):
        checked_dataset(values, None, ["a", "b"], split="all", origin="here")


@pytest.mark.parametrize("shape", [(0, 2), (5,), (5, 0)])
def test_no_rows_or_no_dimension_after_the_rows_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DatasetError, match="here: samples have shape"):
        checked_dataset(np.zeros(shape), None, ["a", "b"], split="all", origin="here")


@pytest.mark.parametrize("label", [10**15, 2**63 - 1])
@pytest.mark.parametrize("names", [("x", "y"), ("x_training", "y_training")])
def test_a_label_as_large_as_no_class_is_refused_without_counting_up_to_it(
    label: int, names: tuple[str, str], tmp_path: Path
) -> None:
    labels: NDArray[np.generic] = np.array([0, 1, 0, label, 1])
    arrays: dict[str, NDArray[np.generic]] = {names[0]: np.zeros((5, 2), np.float32), names[1]: labels}
    with pytest.raises(DatasetError, match=rf"row 3 has label {label}; without class_names at most 1000000"):
        splits_of_arrays(arrays, "mine", validation=0.2, test=0.2, seed=0)


def test_an_unsigned_label_never_turns_into_no_label() -> None:
    arrays: dict[str, NDArray[np.generic]] = {
        "x": np.zeros((3, 2), np.float32),
        "y": np.array([0, 1, 2**64 - 1], np.uint64),
    }
    with pytest.raises(DatasetError, match=f"row 2 has label {2**64 - 1}, which is no class"):
        splits_of_arrays(arrays, "mine", validation=0.2, test=0.2, seed=0)
