"""The certificate of a large cache: measured on a random sample that no run can choose and no resume can change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from pipeline.progress import no_bar
from pipeline.targets.certificate import Inherited, certificate_of, measured_positions
from pipeline.targets.dense import dense_of
from pipeline.targets.encoders import encoded_pieces
from pipeline.targets.reader import TargetCache
from pipeline.targets.shelf import Shelf
from pipeline.teacher_pass import make_cache
from tests.targets.tiny import DTYPES, Tiny, made_content

FIXED = [[33, 49, 59, 67], [5, 15, 47, 69], [45, 60, 66, 86]]
KEYS = st.text("0123456789abcdef", min_size=64, max_size=64)


@pytest.fixture
def eight_probabilities_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.targets.certificate.MEASURED_PER_BLOCK", 8)


@given(key=KEYS, block=st.integers(0, 10**6), rows=st.integers(1, 4096), classes=st.integers(1, 3000))
def test_every_block_gives_the_same_share_of_its_rows_and_at_least_one(
    key: str, block: int, rows: int, classes: int
) -> None:
    sample = measured_positions(key, block, rows, 4096, classes)
    assert len(sample) == min(rows, max(1, -(-rows * 2**17 // (4096 * classes)))) == len(np.unique(sample))
    assert sample.tolist() == sorted(sample.tolist())
    assert 0 <= sample[0] <= sample[-1] < rows
    assert np.array_equal(sample, measured_positions(key, block, rows, 4096, classes))


def test_up_to_32_classes_every_row_is_measured() -> None:
    assert measured_positions("a" * 64, 7, 4096, 4096, 32).tolist() == list(range(4096))
    assert len(measured_positions("a" * 64, 7, 4096, 4096, 33)) == 3972
    assert len(measured_positions("a" * 64, 7, 4096, 4096, 1000)) == 132


def test_the_sample_of_a_key_and_block_is_fixed_for_ever() -> None:
    assert measured_positions("0" * 64, 0, 100, 4096, 1000).tolist() == FIXED[0]
    assert measured_positions("0" * 64, 1, 100, 4096, 1000).tolist() == FIXED[1]
    assert measured_positions("1" * 64, 0, 100, 4096, 1000).tolist() == FIXED[2]


def test_every_row_is_as_likely_to_be_measured() -> None:
    drawn = np.concatenate([measured_positions("5" * 64, block, 100, 4096, 320) for block in range(1000)])
    counts = np.bincount(drawn, minlength=100)
    assert counts.sum() == 10_000
    assert 60 < counts.min() <= counts.max() < 140  # binomial: 100 expected, standard deviation 9.5


@pytest.mark.usefixtures("eight_probabilities_a_block")
def test_a_sampled_certificate_is_the_error_of_the_sampled_rows(tmp_path: Path) -> None:
    tiny = Tiny(rows_per_block=5)  # 4 classes: 2 rows of each block of 5, and 2 of the last 3
    cache = tiny.open(tmp_path)
    starts = range(0, 23, 5)
    chosen = [
        start + measured_positions(cache.key, block, min(5, 23 - start), 5, 4) for block, start in enumerate(starts)
    ]
    rows = np.concatenate(chosen)
    assert len(rows) == 10
    assert cache.manifest.certificate["measured_on"] == "10 of 23 rows, drawn at random from every block"
    for temperature in tiny.certify:
        exact = tiny.exact(temperature)[rows]
        decoded = cache.soft_targets(rows, temperature).numpy().astype(np.float64)
        kl = (exact * np.log(exact / decoded * decoded.sum(axis=1, keepdims=True))).sum(axis=1)
        measured = cache.manifest.certificate["temperatures"][str(temperature)]
        assert measured["rows"] == 10
        assert measured["kl_mean"] == pytest.approx(kl.mean(), rel=1e-6, abs=1e-13)
        assert measured["kl_max"] == pytest.approx(kl.max(), rel=1e-6, abs=1e-13)
        assert measured["absolute_error_max"] == pytest.approx(np.abs(exact - decoded).max(), rel=1e-6)


@pytest.mark.usefixtures("eight_probabilities_a_block")
@pytest.mark.parametrize("layout", ["zarr", "hdf5"])
def test_a_resumed_cache_with_a_sampled_certificate_is_identical(layout: str, tmp_path: Path) -> None:
    tiny = Tiny(layout)

    def stopping_at(row: int) -> Callable[[NDArray[np.int64]], Tensor]:
        def teacher(indices: NDArray[np.int64]) -> Tensor:
            if indices[0] >= row:
                raise RuntimeError("stopped")
            return tiny.teacher()(indices)

        return teacher

    for row in (5, 15):
        with pytest.raises(RuntimeError, match="stopped"):
            tiny.make(tmp_path, stopping_at(row))
    assert made_content(tiny.make(tmp_path).folder) == made_content(tiny.make(tmp_path / "whole").folder)


def test_all_rows_are_measured_where_that_is_cheap(tmp_path: Path) -> None:
    cache: TargetCache = Tiny().open(tmp_path)
    assert cache.manifest.certificate["measured_on"] == "all rows"


@pytest.mark.parametrize("classes", [2, 1000, 70_000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_encoding_in_pieces_gives_the_same_bytes(classes: int, dtype: str) -> None:
    tiny = Tiny(dtype=dtype, rows=150, classes=classes)
    logits = torch.from_numpy(tiny.logits())
    encoding = dense_of(dtype)
    pieces = [piece for batch in torch.split(logits, 64) for piece in encoded_pieces(encoding, batch, 4.0)]
    for whole, parts in zip(encoding.encode(logits, 4.0), zip(*pieces, strict=True), strict=True):
        assert torch.equal(whole.view(torch.uint8), torch.cat(parts).view(torch.uint8))


def test_the_teachers_threads_are_those_it_was_given_while_blocks_are_committed(tmp_path: Path) -> None:
    before, seen, tiny = torch.get_num_threads(), set[int](), Tiny()

    def teacher(indices: NDArray[np.int64]) -> Tensor:
        seen.add(torch.get_num_threads())
        return tiny.teacher()(indices)

    plan = replace(tiny.plan(), resumable={**tiny.plan().resumable, "threads": 3})
    torch.set_num_threads(2)
    try:
        make_cache(Shelf(tmp_path), plan, lambda order: teacher, no_bar, lambda text: None, {"recipe": "tiny"})
        assert seen == {3}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def inherited(taken: int, rows: int, measured: int, kl_mean: float | None = 1e-5, infinite: int = 0) -> Inherited:
    """So many of the rows of a donor that measured some of its own."""
    error = {
        "kl_mean": kl_mean,
        "kl_max": kl_mean and 3 * kl_mean,
        "infinite_rows": infinite,
        "absolute_error_max": 1e-3,
        "retained_mass_mean": 0.5,
        "rows": measured,
    }
    return Inherited("d" * 64, taken, rows, {"measured_on": "some", "temperatures": {"4.0": error}})


def block_sums(measured: int, kl_mean: float) -> dict[str, dict[str, float]]:
    """What was measured of a block of one's own."""
    return {
        "4.0": {
            "kl_sum": measured * kl_mean,
            "kl_max": 2 * kl_mean,
            "infinite_rows": 0.0,
            "absolute_error_max": 2e-3,
            "retained_mass_sum": measured * 1.0,
            "rows": float(measured),
        }
    }


def test_inherited_means_weigh_the_rows_that_were_taken_not_those_that_were_measured() -> None:
    """The donor measured all of its few rows, the heir a hundredth of its many."""
    found = certificate_of([block_sums(40, 9e-5)], 4400, 1, [inherited(400, 400, 400)])
    error = found["temperatures"]["4.0"]
    assert error["kl_mean"] == pytest.approx((400 * 1e-5 + 4000 * 9e-5) / 4400, rel=1e-12)
    assert error["retained_mass_mean"] == pytest.approx((400 * 0.5 + 4000 * 1.0) / 4400, rel=1e-12)
    assert (error["kl_max"], error["absolute_error_max"], error["rows"]) == (2 * 9e-5, 2e-3, 440)
    assert found["measured_on"] == (
        "440 of 4,400 rows, drawn at random from every block, and of inherited ones as their caches measured them"
    )


def test_however_few_rows_are_taken_one_that_was_measured_stands_for_them_through_all_generations() -> None:
    child = certificate_of([], 2, 1, [inherited(2, 800, 66)])
    assert child["temperatures"]["4.0"]["rows"] == 1
    grandchild = certificate_of([], 1, 1, [Inherited("c" * 64, 1, 2, child)])
    assert grandchild["temperatures"]["4.0"] == child["temperatures"]["4.0"]
    assert grandchild["inherited"] == {"c" * 64: 1}


def test_a_donor_with_an_infinite_row_may_have_given_it() -> None:
    child = certificate_of([block_sums(40, 9e-5)], 42, 1, [inherited(2, 800, 66, kl_mean=None, infinite=1)])
    error = child["temperatures"]["4.0"]
    assert (error["kl_mean"], error["kl_max"], error["infinite_rows"], error["rows"]) == (None, None, 1, 41)
    grandchild = certificate_of([], 1, 1, [Inherited("c" * 64, 1, 42, child)])
    assert grandchild["temperatures"]["4.0"]["infinite_rows"] == 1


def test_positions_of_inherited_rows_are_counted_as_positions() -> None:
    found = certificate_of([block_sums(6, 1e-5)], 4, 3, [inherited(2, 2, 6)])
    assert (found["measured_on"], found["temperatures"]["4.0"]["rows"]) == ("all positions", 12)
