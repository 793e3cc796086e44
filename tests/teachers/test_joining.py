"""Outputs reach the right samples whatever the file's kind, order and way of naming them; what cannot be is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.arrays import checked_dataset
from data.splits import split_by_content
from pipeline.errors import OutputsError
from pipeline.teachers.outputs_checks import logits_of
from pipeline.teachers.outputs_file import KINDS
from tests.teachers.source import (
    CLASSES,
    COLUMN_OF,
    ROWS,
    Written,
    as_lists,
    by_class,
    one_part,
    softmax,
    two_parts,
    whole,
    write_csv,
    write_npz,
    write_parquet,
)

TOLERANCE = {"float16": 4e-3, "float32": 1e-5, "float64": 1e-6}

SUFFIXES = ("npz", "parquet by class", "parquet of lists", "csv")


def write(folder: Path, form: str, written: Written, rows: np.ndarray, naming: str) -> Path:
    """Write these rows of the outputs in one of the forms; samples are named by index, digest, hex digest or (npy) order."""
    values = written.values()[rows]
    digests = whole().sample_digests()[rows]
    name = {
        "index": {"index": rows},
        "digest": {"digest": digests},
        "hex": {"digest": np.array([digest.tobytes().hex() for digest in digests])},
    }[naming]
    if form == "npz":
        return write_npz(folder / "outputs.npz", **{COLUMN_OF[written.kind]: values}, **name)
    plain = {column: list(given) for column, given in name.items()}
    if naming == "digest":
        plain = {"digest": [digest.tobytes() for digest in digests]}
    if form == "csv":
        return write_csv(folder / "outputs.csv", **plain, **by_class(values.astype(np.float64)))
    columns = by_class(values) if form == "parquet by class" else as_lists(values, written.kind)
    return write_parquet(folder / "outputs.parquet", **columns, **plain)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_sample_meets_its_own_outputs_in_any_form_and_order(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kind = data.draw(st.sampled_from(list(KINDS.values())))
    dtype = data.draw(st.sampled_from(["float16", "float32", "float64"]))
    temperature = 1.0 if kind == "logits" else data.draw(st.sampled_from([1.0, 2.0, 4.0]))
    written = Written(kind, temperature, dtype, seed=data.draw(st.integers(0, 99)))
    form = data.draw(st.sampled_from(SUFFIXES))
    naming = data.draw(st.sampled_from(["index", "hex"] if form == "csv" else ["index", "digest", "hex"]))
    rows = np.array(data.draw(st.permutations(range(ROWS))))
    path = write(tmp_path_factory.mktemp("outputs"), form, written, rows, naming)
    splits = one_part()
    joined = written.joined(path, splits)
    for split, dataset in splits.items():
        indices = np.arange(len(dataset))[::-1].copy()
        found = torch.softmax(joined.forward(split)(indices) / 4.0, dim=1).numpy()
        wanted = written.soft_targets(4.0)[dataset.positions[indices]]
        np.testing.assert_allclose(found, wanted, atol=TOLERANCE[dtype])
        assert len(joined.missing(split)) == 0
    assert (joined.places_sha256 is None) == (naming != "index")


def test_a_bare_npy_is_in_the_sources_order_and_is_not_held_in_memory(tmp_path: Path) -> None:
    written = Written()
    np.save(tmp_path / "outputs.npy", written.values())
    splits = one_part()
    joined = written.joined(tmp_path / "outputs.npy", splits)
    for split, dataset in splits.items():
        found = joined.forward(split)(np.arange(len(dataset))).numpy()
        np.testing.assert_array_equal(found, written.values()[dataset.positions])
    assert all(isinstance(array, np.memmap) for array in joined._arrays)


@pytest.mark.parametrize("form", ["npz", "parquet", "csv", "npz by order"])
def test_a_source_with_parts_is_joined_part_by_part(tmp_path: Path, form: str) -> None:
    written, splits = Written(), two_parts()
    values, order = written.values(), np.random.default_rng(1).permutation(ROWS)
    index = np.concatenate([np.arange(30), np.arange(10)])
    parts = np.array(["training"] * 30 + ["test"] * 10)
    training, test = order[order < 30], order[order >= 30]
    if form == "npz":
        path = write_npz(
            tmp_path / "parts.npz",
            logits_training=values[training],
            index_training=index[training],
            logits_test=values[test],
            index_test=index[test],
        )
    elif form == "npz by order":
        path = write_npz(tmp_path / "parts.npz", logits_training=values[:30], logits_test=values[30:])
    else:
        writer = {"parquet": write_parquet, "csv": write_csv}[form]
        columns = {**by_class(values[order]), "index": index[order], "split": list(parts[order])}
        path = writer(tmp_path / f"parts.{form}", **columns)
    joined = written.joined(path, splits)
    places = {"training": 0, "test": 30}
    for split, dataset in splits.items():
        found = joined.forward(split)(np.arange(len(dataset))).numpy()
        np.testing.assert_array_equal(found, values[dataset.positions + places[dataset.part]])


def test_classes_are_mapped_by_name_in_any_order(tmp_path: Path) -> None:
    written, splits = Written(), one_part()
    values = written.values()
    turned = {name: values[:, CLASSES.index(name)] for name in ("cat", "ant", "bee")}
    paths = [
        write_npz(tmp_path / "a.npz", logits=values[:, [2, 0, 1]], class_names=np.array(["cat", "ant", "bee"])),
        write_parquet(tmp_path / "a.parquet", **turned, index=np.arange(ROWS)),
        write_csv(tmp_path / "a.csv", **turned),
    ]
    for path in paths:
        found = written.joined(path, splits).forward("test")(np.arange(3)).numpy()
        np.testing.assert_array_equal(found, values[splits["test"].positions[:3]])


def test_a_larger_table_than_a_batch_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.teachers import outputs_csv, outputs_parquet

    written, splits = Written(), one_part()
    for module in (outputs_csv, outputs_parquet):
        monkeypatch.setattr(module, "BATCH_ROWS", 7)
    columns = {**by_class(written.values()), "index": np.arange(ROWS)}
    for path in (write_csv(tmp_path / "a.csv", **columns), write_parquet(tmp_path / "a.parquet", **columns)):
        found = written.joined(path, splits).forward("training")(np.arange(20)).numpy()
        np.testing.assert_array_equal(found, written.values()[splits["training"].positions[:20]])


@pytest.mark.parametrize("wrong", [2, 9])
def test_one_digest_of_another_length_is_named_in_whatever_batch_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    from pipeline.teachers import outputs_parquet

    monkeypatch.setattr(outputs_parquet, "BATCH_ROWS", 7)
    digests = [digest.tobytes() for digest in whole().sample_digests()]
    digests[wrong] = b"short"
    path = write_parquet(tmp_path / "a.parquet", **by_class(Written().values()), digest=digests)
    with pytest.raises(OutputsError, match=f"row {wrong} has digest '73686f7274' of 5 bytes; 16 are needed"):
        Written().joined(path, one_part())


def test_a_superset_serves_the_samples_that_are_asked_for_and_the_rest_is_counted(tmp_path: Path) -> None:
    written, splits = Written(), one_part()
    others = np.arange(16 * 5, dtype=np.uint8).reshape(5, 16)
    digests = np.concatenate([others, whole().sample_digests()])
    values = np.concatenate([written.values()[:5], written.values()])
    joined = written.joined(write_npz(tmp_path / "a.npz", logits=values, digest=digests), splits)
    assert joined.unmatched == 5
    found = joined.forward("test")(np.arange(3)).numpy()
    np.testing.assert_array_equal(found, written.values()[splits["test"].positions[:3]])


def test_missing_samples_are_known_by_split(tmp_path: Path) -> None:
    written, splits = Written(), one_part()
    kept = np.setdiff1d(np.arange(ROWS), splits["test"].positions[[1, 3]])
    joined = written.joined(write_npz(tmp_path / "a.npz", logits=written.values()[kept], index=kept), splits)
    assert joined.missing("test").tolist() == [1, 3]
    assert joined.missing("training").tolist() == []


def test_a_part_is_as_long_as_its_dataset_says_though_its_last_sample_is_in_no_split(tmp_path: Path) -> None:
    values = np.concatenate([Written().values(), np.full((1, 3), 9.0)])
    samples = np.concatenate([whole().values, whole().values[:1]])
    longer = checked_dataset(samples, np.arange(ROWS + 1) % 3, CLASSES, split="all", origin="the test")
    splits = split_by_content(longer.subset(np.arange(ROWS), "all"), validation=0.2, test=0.2, seed=0)
    np.save(tmp_path / "a.npy", values)
    joined = Written().joined(tmp_path / "a.npy", splits)
    for split, dataset in splits.items():
        np.testing.assert_array_equal(joined.forward(split)(np.arange(len(dataset))), values[dataset.positions])
    np.save(tmp_path / "b.npy", values[:-1])
    with pytest.raises(OutputsError, match="40 rows, but part 'all' of the source has 41 samples"):
        Written().joined(tmp_path / "b.npy", splits)


def test_the_split_seed_does_not_change_what_an_index_means(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", Written().values())
    other = split_by_content(whole(), validation=0.2, test=0.2, seed=5)
    turned = split_by_content(whole().subset(np.arange(ROWS)[::-1].copy(), "all"), validation=0.2, test=0.2, seed=0)
    renumbered = {
        split: type(d)(d.values, d.given_labels, d.class_names, split, "", "all") for split, d in turned.items()
    }
    first, same = (Written().joined(tmp_path / "a.npy", splits).places_sha256 for splits in (one_part(), other))
    assert first == same
    path = write_npz(tmp_path / "a.npz", logits=Written().values()[:24], index=np.arange(24))
    assert Written().joined(path, renumbered).places_sha256 != first


def test_a_probability_of_0_stays_exactly_0() -> None:
    given = np.array([[0.0, 1.0, 0.0], [0.25, 0.75, 0.0]], dtype=np.float32)
    logits = logits_of(given, "probabilities", 2.0)
    assert logits[0].tolist() == [-np.inf, 0.0, -np.inf]
    np.testing.assert_allclose(softmax(logits[1:].astype(np.float64) / 2.0), given[1:], atol=1e-6)


def spoilt(kind: str, rows: list[int], value: float) -> dict[str, Any]:
    values = Written(kind).values()
    values[rows, 1] = value
    return {COLUMN_OF[kind]: values}


REFUSED = [
    (
        "logits",
        spoilt("logits", [3, 17], np.nan),
        r"NaN or infinity in 2 of 40 rows \(rows 3, 17\); rows are counted from 0",
    ),
    ("logits", spoilt("logits", [5], -np.inf), r"NaN or infinity in 1 of 40 rows \(row 5\)"),
    ("probabilities", spoilt("probabilities", [39], np.inf), r"NaN or infinity in 1 of 40 rows \(row 39\)"),
    ("log-probabilities", spoilt("log-probabilities", [0], np.nan), r"NaN or \+infinity in 1 of 40 rows \(row 0\)"),
    ("probabilities", spoilt("probabilities", [4], -0.1), r"a negative probability in 1 of 40 rows \(row 4\)"),
    (
        "probabilities",
        spoilt("probabilities", list(range(9)), 0.9),
        r"sum to 1 within 0.001 in 9 of .*0, 1, 2, 3, 4, \.\.\.\)",
    ),
    (
        "log-probabilities",
        spoilt("log-probabilities", [7], 0.0),
        r"do not sum to 1 within 0.001 in 1 of 40 rows \(row 7\)",
    ),
    ("logits", {"logits": np.ones((40, 4))}, r"shape \(40, 4\), but the teacher has 3 classes: \(rows, 3\)"),
    ("logits", {"logits": np.ones(40)}, r"shape \(40,\)"),
    ("logits", {"logits": np.ones((40, 3), complex)}, "complex128"),
    ("logits", {"logits": np.ones((39, 3))}, "39 rows, but part 'all' of the source has 40 samples"),
    ("logits", {"logits": softmax(Written().logits())}, "these are probabilities.*Say values = 'probabilities'"),
    ("probabilities", {"logits": np.ones((40, 3))}, "holds logits, but the recipe says values = 'probabilities'"),
    ("logits", {"logit": np.ones((40, 3))}, "'logit' is no array of outputs. Did you mean 'logits'"),
    ("logits", {"index": np.arange(40)}, "'index' is no array of outputs"),
    ("logits", {"logits": np.ones((40, 3)), "index": np.arange(39)}, "40 rows, but 39 in index; they must match"),
    ("logits", {"logits": np.ones((40, 3)), "index": np.linspace(0, 1, 40)}, "index is float64"),
    (
        "logits",
        {"logits": np.ones((2, 3)), "index": np.array([0, 40])},
        r"index 40 of row 1 is not in part 'all'.* 0 to 39",
    ),
    ("logits", {"logits": np.ones((2, 3)), "index": np.array([-1, 0])}, r"index -1 of row 0 is not in part"),
    (
        "logits",
        {"logits": np.ones((4, 3)), "index": np.array([5, 2, 5, 5])},
        "2 rows repeat the index.* 5, in rows 0 and 2",
    ),
    (
        "logits",
        {"logits": np.ones((2, 3)), "digest": np.zeros((2, 16), np.uint8)},
        "1 rows repeat the digest.* rows 0 and 1",
    ),
    (
        "logits",
        {"logits": np.ones((2, 3)), "digest": np.zeros((2, 15), np.uint8)},
        r"digest is uint8 of shape \(2, 15\)",
    ),
    (
        "logits",
        {"logits": np.ones((2, 3)), "digest": np.array(["ab" * 16, "xy"])},
        "row 1 has digest 'xy'; 32 hex digits",
    ),
    ("logits", {"logits": np.ones((2, 3)), "digest": np.array(["ab" * 16, "a " * 16])}, "row 1 has digest"),
    ("logits", {"logits_test": np.ones((40, 3))}, "logits_test are of part 'test', but the source has 'all'"),
    (
        "logits",
        {"logits": np.ones((40, 3)), "class_names": np.array(["ant", "bee", "dog"])},
        "has the classes ant, bee, dog",
    ),
    ("logits", {"logits": np.ones((40, 3)), "temperature": np.array(2.0)}, "temperature 2, but the recipe says 1"),
    ("logits", {"logits": np.ones((40, 3)), "view": np.arange(40)}, "row 1 is of view 1; only view 0"),
    ("logits", {"logits": np.array([[None] * 3] * 40)}, "not a whole .npz file of numbers.*Python objects"),
]


@pytest.mark.parametrize(("kind", "arrays", "message"), REFUSED, ids=[message[:40] for *_, message in REFUSED])
def test_what_cannot_be_is_refused_with_row_numbers(
    tmp_path: Path, kind: str, arrays: dict[str, Any], message: str
) -> None:
    path = write_npz(tmp_path / "outputs.npz", **arrays)
    with pytest.raises(OutputsError, match=message) as refused:
        Written(kind).joined(path, one_part())
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) < 700


def test_a_source_with_parts_asks_of_which_part_a_row_is(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", Written().values())
    with pytest.raises(OutputsError, match=r"2 parts \('training', 'test'\).*logits_training.*a column part"):
        Written().joined(tmp_path / "a.npy", two_parts())


VALUES = Written().values()
TABLES: list[tuple[str, dict[str, Any], str]] = [
    (
        "parquet",
        {**by_class(VALUES), "dog": VALUES[:, 0]},
        "'dog' is no class of the teacher.*Known are ant, bee, cat, index",
    ),
    ("parquet", {"ant": VALUES[:, 0], "bee": VALUES[:, 1]}, "1 of 3 classes have no column; the first is 'cat'"),
    ("parquet", {**by_class(VALUES), "index": [None, *range(39)]}, "row 0 has no index"),
    (
        "parquet",
        {**by_class(VALUES), "bee": [0.0] * 30 + [None] * 10},
        r"NaN or infinity in 10 of 40 rows \(rows 30, 31",
    ),
    ("parquet", {**by_class(VALUES), "bee": ["x"] * 40}, "column 'bee' is string; numbers are needed"),
    ("parquet", {"logits": [[1.0, 2.0, 3.0]] * 39 + [[1.0, 2.0]]}, "row 39 has 2 numbers in logits, row 0 has 3"),
    ("parquet", {"logits": [[1.0, 2.0]] * 40}, r"shape \(40, 2\), but the teacher has 3 classes"),
    ("parquet", {"logits": [[1.0] * 3] * 40, "extra": [0] * 40}, "'extra' is no column here"),
    (
        "parquet",
        {"probabilities": [[1.0, 0.0, 0.0]] * 40},
        "the column probabilities, but the recipe says values = 'logits'",
    ),
    ("parquet", {"logits": [[1.0] * 3] * 2, "digest": [b"a", b"b"]}, "row 0 has digest '61' of 1 bytes; 16 are needed"),
    ("csv", {**by_class(VALUES), "dog": VALUES[:, 0]}, "'dog' is no class of the teacher"),
    (
        "csv",
        {**by_class(VALUES), "bee": [*VALUES[:39, 1], "many"]},
        "row 39 has 'many' in column 'bee'; a number is needed",
    ),
    ("csv", {**by_class(VALUES), "index": [*range(39), "39.5"]}, "row 39 has index '39.5'; an integer is needed"),
    ("csv", {**by_class(VALUES), "index": [*range(39), 10**30]}, "index of one of the rows 0 to 39 is beyond 64 bits"),
    ("csv", {**by_class(VALUES), "part": ["other"] * 40}, "part 'other', but the source has 'all'"),
    ("csv", {**by_class(VALUES[:0])}, "has no rows"),
]


@pytest.mark.parametrize(("suffix", "columns", "message"), TABLES, ids=[f"{s}: {m[:30]}" for s, _, m in TABLES])
def test_a_table_that_cannot_be_is_refused_with_row_numbers(
    tmp_path: Path, suffix: str, columns: dict[str, Any], message: str
) -> None:
    path = {"parquet": write_parquet, "csv": write_csv}[suffix](tmp_path / f"outputs.{suffix}", **columns)
    with pytest.raises(OutputsError, match=message) as refused:
        Written().joined(path, one_part())
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", b"\x93NUMPY", "not a whole .npy file"),
        ("a.npz", b"PK\x03\x04 no", "not a whole .npz file"),
        ("a.parquet", b"PAR1", "not a whole Parquet file"),
        ("a.csv", b"\xff\xfe\x00", "not a CSV file in UTF-8"),
        ("a.csv", b"ant,bee,cat\n1,2\n", "row 0 has 2 fields, the header 3"),
        ("a.csv", b"ant,bee,bee\n1,2,3\n", "column 'bee' is there twice"),
        ("a.txt", b"", "ends in .npy, .npz, .parquet, .csv, not '.txt'"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OutputsError, match=message) as refused:
        Written().joined(tmp_path / name, one_part())
    assert str(tmp_path / name) in str(refused.value)


def test_a_truncated_npy_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", VALUES)
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-10])
    with pytest.raises(OutputsError, match="not a whole"):
        Written().joined(tmp_path / "a.npy", one_part())


def test_an_array_of_objects_is_refused_unopened(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[print] * 3] * ROWS), allow_pickle=True)
    with pytest.raises(OutputsError, match=r"not a whole \.npy file of numbers"):
        Written().joined(tmp_path / "a.npy", one_part())


def test_a_class_named_like_a_column_of_meaning_needs_a_list_column(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", index=[0], bee=[1.0], cat=[2.0])
    with pytest.raises(OutputsError, match="class 'index' has the name of a column with a meaning"):
        Written().joined(path, one_part(), class_names=("index", "bee", "cat"))


def test_sums_of_float16_sources_are_within_the_tolerance(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    uniform = np.full((ROWS, 1000), 1 / 1000)
    peaked = softmax(generator.normal(scale=6, size=(ROWS, 1000)))
    for number, exact in enumerate((uniform, peaked)):
        for kind, values in (("probabilities", exact), ("log-probabilities", np.log(exact))):
            names = tuple(f"class {place}" for place in range(1000))
            path = write_npz(tmp_path / f"{number}.npz", **{COLUMN_OF[kind]: values.astype(np.float16)})
            joined = Written(kind).joined(path, one_part(), class_names=names)
            found = torch.softmax(joined.forward("test")(np.arange(1)), dim=1)[0].numpy()
            np.testing.assert_allclose(found, exact[one_part()["test"].positions[0]], atol=2e-3)
