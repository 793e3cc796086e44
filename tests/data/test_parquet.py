"""Parquet and Arrow files: the same samples as everywhere, split by their names, read without ever holding a column whole."""

from __future__ import annotations

import builtins
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.digests import array_digests
from data.errors import DatasetError
from data.looks import Looks
from data.parquet import ParquetSource
from data.shaping import shaped
from pipeline.dataset import refuse_malformed
from tests.data.pictures import as_sample, colour, grey, settings

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
feather = pytest.importorskip("pyarrow.feather")

ROWS = 40


def source_of(path: Path, **options: Any) -> ParquetSource:
    return ParquetSource(path, validation=0.2, test=0.2, split_seed=0, **options)


def load(path: Path, **options: Any) -> Mapping[str, Any]:
    return source_of(path, **options).load()


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(DatasetError) as refused:
        load(path, **options)
    return str(refused.value)


def encoded(pixels: Any, form: str = "PNG") -> bytes:
    """An image file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def images(count: int = ROWS, first: int = 0) -> Any:
    """A table of grey images, as the Hub has them, and labels of two classes; every tenth row has none."""
    column = [{"bytes": encoded(grey(first + number)), "path": None} for number in range(count)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    labels = [number % 2 if number % 10 else None for number in range(count)]
    return pa.table({"image": pa.array(column, kind), "label": pa.array(labels, pa.int64())})


def numbers(values: Any, labels: Any = None) -> Any:
    """A table of lists of floats, and labels of two classes."""
    labels = [number % 2 for number in range(len(values))] if labels is None else labels
    return pa.table({"x": [row.tolist() for row in values], "label": labels})


def written(path: Path, table: Any, **options: Any) -> Path:
    """Write a table in the format of the file's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path, **options)
    elif path.suffix == ".feather":
        feather.write_feather(table, path, **options)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
def test_images_are_split_by_content_and_join_with_the_arrays(tmp_path: Path, name: str) -> None:
    parts = load(written(tmp_path / name, images()))
    assert list(parts) == ["training", "validation", "test"]
    assert sorted(position for part in parts.values() for position in part.positions.tolist()) == list(range(ROWS))
    for part in shaped(parts, settings()).values():
        refuse_malformed(part, name)
        assert part.class_names == ("0", "1")
        expected = np.stack([as_sample(grey(position)) for position in part.positions])
        np.testing.assert_array_equal(part.samples(np.arange(len(part))), expected)
        np.testing.assert_array_equal(part.sample_digests(), array_digests(expected))
        labels = [position % 2 if position % 10 else -1 for position in part.positions]
        assert part.labels().tolist() == labels


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_a_column_of_plain_bytes_holds_images_too(tmp_path: Path, kind: Any) -> None:
    table = pa.table({"image": pa.array([encoded(colour(n), "BMP") for n in range(9)], kind), "label": [0, 1, 2] * 3})
    parts = load(written(tmp_path / "a.parquet", table))
    np.testing.assert_array_equal(parts["training"].sample(0), as_sample(colour(int(parts["training"].positions[0]))))


@pytest.mark.parametrize("memory_mb", [0, 100])
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float16", "float32", "float64", "bool"])
def test_numbers_become_arrays_of_their_own_dtype_in_any_order(
    tmp_path: Path, dtype: str, name: str, memory_mb: int
) -> None:
    values = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, (ROWS, 2, 3)).astype(dtype)
    inner = pa.from_numpy_dtype(dtype)
    column = pa.array(
        values.tolist() if dtype != "float16" else list(map(list, map(list, values))), pa.list_(pa.list_(inner, 3))
    )
    path = written(tmp_path / name, pa.table({"x": column, "y": [number % 3 for number in range(ROWS)]}))
    for part in load(path, input_column="x", label_column="y", memory_mb=memory_mb).values():
        order = np.random.default_rng(1).permutation(len(part))
        assert part.samples(order).dtype == dtype
        np.testing.assert_array_equal(part.samples(order), values[part.positions[order]])
        np.testing.assert_array_equal(part.sample(0), values[part.positions[0]])
        np.testing.assert_array_equal(part.sample_digests(), array_digests(values)[part.positions])
        assert part.batches_ahead == (0 if memory_mb else 2)
        np.testing.assert_array_equal(part.samples(order), values[part.positions[order]])


def test_arrows_own_tensors_keep_their_shape(tmp_path: Path) -> None:
    values = np.arange(ROWS * 6, dtype=np.float32).reshape(ROWS, 2, 3)
    table = pa.table({"x": pa.FixedShapeTensorArray.from_numpy_ndarray(values), "label": [0, 1] * (ROWS // 2)})
    for name in ("a.parquet", "a.arrow"):
        part = load(written(tmp_path / name, table), input_column="x")["training"]
        np.testing.assert_array_equal(part.samples(np.arange(len(part))), values[part.positions])


def test_what_the_datasets_library_writes_keeps_its_arrays_and_class_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(), x=datasets.Array2D((2, 3), "float32"), label=datasets.ClassLabel(names=["ant", "bee"])
    )
    values = np.arange(ROWS * 6, dtype=np.float32).reshape(ROWS, 2, 3)
    columns = {
        "image": [Image.fromarray(grey(number)) for number in range(ROWS)],
        "x": list(values),
        "label": [number % 2 for number in range(ROWS)],
    }
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(tmp_path / "a.parquet"))
    part = load(tmp_path / "a.parquet")["training"]
    assert part.class_names == ("ant", "bee")
    np.testing.assert_array_equal(part.sample(3), as_sample(grey(int(part.positions[3]))))
    part = load(tmp_path / "a.parquet", input_column="x")["training"]
    np.testing.assert_array_equal(part.samples(np.arange(len(part))), values[part.positions])
    assert "column 'label' has class names of its own" in refusal(tmp_path / "a.parquet", class_names=("a", "b"))


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"),
        ("train/a.parquet", "train/b.parquet", "test/a.parquet"),
        ("Training_1.parquet", "Training_2.parquet", "Test.parquet"),
    ],
)
def test_the_splits_of_the_files_are_kept_and_a_missing_one_is_taken_from_train(
    tmp_path: Path, names: tuple[str, str, str]
) -> None:
    for place, name in enumerate(names):
        written(tmp_path / name, images(20, 100 * place))
    (tmp_path / "README.md").write_text("not a sample")
    parts = load(tmp_path)
    assert (len(parts["training"]) + len(parts["validation"]), len(parts["test"])) == (40, 20)
    np.testing.assert_array_equal(parts["test"].sample(3), as_sample(grey(203)))
    assert parts["test"].place(3) == f"{tmp_path}/{names[2]}, row 3"
    assert set(source_of(tmp_path).files()) == set(names)
    by_pattern = source_of(tmp_path / "**" / "*.parquet").files()
    assert set(by_pattern.values()) == {tmp_path / name for name in names}


def test_other_splits_than_train_may_have_no_labels_but_not_some_files_of_one(tmp_path: Path) -> None:
    written(tmp_path / "train.parquet", images(30))
    written(tmp_path / "test-0.parquet", images(5, 100).drop_columns("label"))
    assert load(tmp_path)["test"].labels().tolist() == [-1] * 5
    written(tmp_path / "test-1.parquet", images(5, 200))
    assert refusal(tmp_path).startswith(f"{tmp_path}/test-0.parquet: no column 'label'; there are image.")


def test_a_pattern_with_braces_means_all_of_its_files(tmp_path: Path) -> None:
    for number in (9, 10):
        written(tmp_path / f"a-{number:03}.parquet", images(20, 100 * number))
    parts = load(tmp_path / "a-{009..010}.parquet")
    assert sum(map(len, parts.values())) == 40
    assert refusal(tmp_path / "a-{009..011}.parquet").startswith(f"{tmp_path}/a-011.parquet: no such file")


def test_names_that_do_not_say_one_split_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "one" / "train.parquet", images(2))
    written(tmp_path / "one" / "other.parquet", images(2))
    assert "other.parquet names no split, but train.parquet is of the training split" in refusal(tmp_path / "one")
    written(tmp_path / "two" / "test.parquet", images(2))
    assert "no file of the training split (train...) is here; there is test.parquet" in refusal(tmp_path / "two")
    written(tmp_path / "three" / "train" / "test.parquet", images(2))
    assert "the path names the test and the training split" in refusal(tmp_path / "three")
    written(tmp_path / "four" / "train-00000-of-00003.parquet", images(2))
    written(tmp_path / "four" / "train-00002-of-00003.parquet", images(2))
    assert refusal(tmp_path / "four").startswith(f"{tmp_path}/four/train-00001-of-00003: this file is missing")


def test_a_path_without_files_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere").startswith(f"{tmp_path / 'nowhere'}: no such file or folder")
    assert "no .parquet or .arrow or .feather file is in this folder" in refusal(tmp_path)
    assert "has a name of this pattern" in refusal(tmp_path / "*.parquet")
    (tmp_path / "a.csv").write_text("x,y")
    assert "whose name ends in .parquet, .arrow, .feather is needed" in refusal(tmp_path / "a.csv")


def test_rows_that_break_the_rules_are_refused_by_file_and_row(tmp_path: Path) -> None:
    good = np.ones((3, 2))
    place = f"{tmp_path}/b.parquet"
    for column, mentions in (
        ([[1.0, 2.0], [3.0], [5.0, 6.0]], f"{place}, row 1: shape (1,), but a.parquet, row 0 has (2,)"),
        ([[1.0, 2.0], None, [5.0, 6.0]], f"{place}, row 1: shape None, but a.parquet, row 0 has (2,)"),
        ([[1.0, 2.0], [3.0, 4.0], [None, 6.0]], f"{place}, row 2: column 'x' is no array (a number is missing)"),
        ([[1.0, 2.0], [3.0, 4.0], [np.nan, 6.0]], f"{place}, row 2: the sample holds NaN or infinity"),
    ):
        written(tmp_path / "a.parquet", numbers(good))
        written(tmp_path / "b.parquet", pa.table({"x": column, "label": [0, 1, 0]}))
        assert refusal(tmp_path, input_column="x").startswith(mentions)
    written(tmp_path / "b.parquet", numbers(good, [0, 1, 7]))
    assert refusal(tmp_path, input_column="x", class_names=("a", "b")).startswith(f"{place}, row 2 has label 7")
    written(
        tmp_path / "b.parquet", numbers(good).cast(pa.schema([("x", pa.list_(pa.float32())), ("label", pa.int64())]))
    )
    assert "row 0: column 'x' is of type list<" in refusal(tmp_path, input_column="x")


def test_images_that_break_the_rules_are_refused_by_file_and_row(tmp_path: Path) -> None:
    def changed(row: Any) -> Path:
        table = images()
        column = table.column("image").to_pylist()
        column[4] = row
        return written(
            tmp_path / "a.parquet", table.set_column(0, "image", pa.array(column, table.schema.field(0).type))
        )

    place = f"{tmp_path}/a.parquet, row 4"
    assert refusal(changed(None)).startswith(f"{place}: the row holds no image")
    assert "only the path of an image, a.png" in refusal(changed({"bytes": None, "path": "a.png"}))
    assert refusal(changed({"bytes": encoded(grey(4))[:40], "path": None})).startswith(f"{place}: this image cannot")
    with pytest.raises(DatasetError, match=r"row 4 is coloured \(RGB\)"):
        shaped(load(changed({"bytes": encoded(colour(4)), "path": None})), settings())


def test_columns_of_other_names_and_types_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", images())
    assert "no column 'picture'; there are image, label. Name the columns" in refusal(path, input_column="picture")
    assert "no column 'class'; there are image, label. Name the columns" in refusal(path, label_column="class")
    unlabelled = load(path, label_column="class", class_names=("a", "b"))
    assert (unlabelled["training"].labels() == -1).all()
    texts = written(
        tmp_path / "b.parquet", pa.table({"x": ["a", "b"], "label": ["c", "d"], "n": [1, 2], "m": [2.0, 3.0]})
    )
    assert "labels of column 'label' are of type string; integers are needed" in refusal(texts, input_column="x")
    assert "column 'x' is of type string; images or numbers are needed" in refusal(
        texts, input_column="x", label_column="n"
    )
    assert "labels of column 'm' are of type double" in refusal(texts, input_column="x", label_column="m")
    assert "samples have shape (2,)" in refusal(texts, input_column="m", label_column="n")
    large = written(tmp_path / "c.parquet", pa.table({"x": [[1], [2]], "label": pa.array([1, 2**64 - 1], pa.uint64())}))
    assert "the labels of column 'label' are no class numbers" in refusal(large, input_column="x")
    assert "there are no samples in it" in refusal(written(tmp_path / "d.parquet", images(0)), class_names=("a", "b"))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
def test_a_file_that_was_cut_short_or_damaged_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, images())
    whole = path.read_bytes()
    for content in (b"", whole[:9], whole[: len(whole) // 2], b"nonsense" * 100):
        path.write_bytes(content)
        assert refusal(path).startswith(f"{path}: this file cannot be read (")


def test_a_damaged_page_is_refused_with_the_rows_that_it_holds(tmp_path: Path) -> None:
    table = numbers(np.random.default_rng(0).normal(size=(3000, 4)))
    path = written(tmp_path / "a.parquet", table, row_group_size=1000, compression="none", write_page_checksum=True)
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + 500] ^= 1
    path.write_bytes(content)
    assert refusal(path, input_column="x").startswith(f"{path}: the rows from 1000 of column 'x' cannot be read (")


@pytest.fixture
def copying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is small enough to be decompressed into memory, nor too few to be remembered."""
    monkeypatch.setattr("data.parquet.SMALL_COLUMN", 0)
    monkeypatch.setattr("data.shards.shard_looks.FEW_SAMPLES", 0)


def kept(folder: Path, kind: str) -> dict[str, int]:
    """What is kept of a kind, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob(f"{kind}-*/*")}


@pytest.mark.usefixtures("copying")
@pytest.mark.parametrize("what", ["image", "x"])
def test_copies_and_digests_are_made_once_for_each_file_and_let_go_when_it_changes(tmp_path: Path, what: str) -> None:
    def table(first: int) -> Any:
        return images(20, first) if what == "image" else numbers(np.arange(first, first + 80.0).reshape(20, 4))

    for number in range(2):
        written(tmp_path / "set" / f"{number}.parquet", table(100 * number))
    looks = Looks(tmp_path / "memory")
    first = load(tmp_path / "set", input_column=what, looks=looks)
    copies, seen = kept(looks.folder or tmp_path, "arrow"), kept(looks.folder or tmp_path, "looks")
    assert (len(copies), len(seen)) == (2, 2)
    again = load(tmp_path / "set", input_column=what, looks=looks)
    assert kept(tmp_path / "memory", "arrow") == copies
    assert kept(tmp_path / "memory", "looks") == seen
    for split, part in first.items():
        np.testing.assert_array_equal(part.sample_digests(), again[split].sample_digests())
        np.testing.assert_array_equal(part.sample(2), again[split].sample(2))
    written(tmp_path / "set" / "1.parquet", table(300))
    changed = load(tmp_path / "set", input_column=what, looks=looks)
    for before, kind in ((copies, "arrow"), (seen, "looks")):
        now = kept(tmp_path / "memory", kind)
        assert len(now) == 2
        assert len(now.items() & before.items()) == 1
    digests = {bytes(one) for part in changed.values() for one in part.sample_digests()}
    assert len(digests - {bytes(one) for part in first.values() for one in part.sample_digests()}) == 20


@pytest.mark.usefixtures("copying")
def test_a_damaged_memory_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    path, looks = written(tmp_path / "a.parquet", images()), Looks(tmp_path / "memory")
    expected = load(path, looks=looks)["training"].sample_digests()
    [memory] = (tmp_path / "memory").glob("looks-*/*")
    content = bytearray(memory.read_bytes())
    content[len(content) // 3] ^= 1
    memory.write_bytes(content)
    np.testing.assert_array_equal(load(path, looks=looks)["training"].sample_digests(), expected)


@pytest.mark.usefixtures("copying")
def test_a_copy_that_does_not_fit_on_the_disk_is_refused_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "a.parquet", images())
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10})())
    assert "a copy of column 'image' needs 0.0 GB, and 0.0 GB are free here" in refusal(
        path, looks=Looks(tmp_path / "memory")
    )
    assert not (tmp_path / "memory").exists()


@pytest.mark.usefixtures("copying")
def test_without_a_place_for_memories_copies_are_gone_with_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()
    source = source_of(written(tmp_path / "a.parquet", images()))
    part = source.load()["training"]
    assert len(list((tmp_path / "temporary").rglob("arrow-*/*"))) == 1
    del source
    assert not list((tmp_path / "temporary").iterdir())
    np.testing.assert_array_equal(part.sample(0), as_sample(grey(int(part.positions[0]))))  # mapped, so still there


def test_without_the_library_it_is_said_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.parquet", images())
    really = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError
        return really(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert 'pip install "softcache[parquet]"' in refusal(path)
    assert set(source_of(path).files()) == {"file"}
