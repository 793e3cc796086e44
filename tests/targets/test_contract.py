"""The contract of a target cache: what every layout with every encoding keeps."""

from __future__ import annotations

import math
import resource
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import TargetCache
from pipeline.errors import CorruptCacheError, JoinError, MismatchError
from pipeline.targets.arrays import Positions
from pipeline.targets.certificate import measure
from pipeline.targets.dense import Dense
from pipeline.targets.sparse import SparseTargets
from pipeline.targets.verification import verify
from pipeline.targets.writer import CacheWriter
from tests.targets.tiny import Tiny, digests_of_samples, files_of

SAME_CACHE = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)


class CacheContract:
    """Subclasses say what a tiny cache is: its layout, compression, encoding and positions, and what they promise."""

    form: Tiny
    tolerance: float  # of a probability
    max_kl = 1e-6  # mean, beside what a tail mass that is spread evenly adds
    refused_at_3 = r"temperature 3\.0 is not certified .* is for 1\.0, 2\.0, 4\.0, 8\.0"

    @property
    def layout(self) -> str:
        return self.form.layout

    @pytest.fixture
    def tiny(self) -> Tiny:
        return self.form

    @pytest.fixture
    def cache(self, tiny: Tiny, fast_folder: Path) -> TargetCache:
        return tiny.open(fast_folder)

    def assert_holds(self, cache: TargetCache, tiny: Tiny) -> None:
        """All soft targets are the teacher's, the arrays are the plan's, and every byte is verified."""
        found = cache.soft_targets(np.arange(tiny.rows))
        assert found.dtype == torch.float32
        assert found.shape == (tiny.rows, *tiny.positions.sizes, tiny.classes)
        np.testing.assert_allclose(found.numpy(), tiny.served(), rtol=0, atol=self.tolerance)
        np.testing.assert_allclose(found.sum(dim=-1).numpy(), 1.0, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(cache.sample_digests(), tiny.digests())
        np.testing.assert_array_equal(cache.views(), tiny.views())
        np.testing.assert_array_equal(cache.labels(), tiny.labels())
        verify(cache.folder)

    def test_what_was_written_is_read_back(self, cache: TargetCache, tiny: Tiny) -> None:
        self.assert_holds(cache, tiny)
        assert len(cache) == tiny.rows
        assert cache.class_names == tiny.plan().class_names
        assert cache.temperature == tiny.temperature
        assert cache.key == tiny.plan().key

    @pytest.mark.parametrize(
        ("rows", "rows_per_block", "blocks", "rows_of_a_block"),
        [(1, 4096, 1, 1), (1, 1, 1, 1), (10, 5, 2, 5), (11, 5, 3, 5), (9, 1, 9, 1), (3, 4096, 1, 3)],
    )
    def test_any_number_of_rows_fits_any_block(
        self, rows: int, rows_per_block: int, blocks: int, rows_of_a_block: int, fast_folder: Path
    ) -> None:
        tiny = replace(self.form, rows=rows, rows_per_block=rows_per_block)
        cache = tiny.open(fast_folder)
        for array in cache.manifest.encoding_arrays():
            assert (array.chunks, array.rows_per_chunk) == (blocks, rows_of_a_block)
        self.assert_holds(cache, tiny)

    @SAME_CACHE
    @given(rows=st.lists(st.integers(0, 22), max_size=60))
    def test_any_rows_are_gathered_in_any_order_with_repeats(
        self, rows: list[int], cache: TargetCache, tiny: Tiny
    ) -> None:
        everything = cache.soft_targets(np.arange(tiny.rows))
        assert torch.equal(cache.soft_targets(np.array(rows, dtype=np.int64)), everything[rows])

    @pytest.mark.parametrize("row", [-1, 23, 24, 10**12])
    def test_a_row_that_is_not_there_is_refused(self, row: int, cache: TargetCache) -> None:
        with pytest.raises(IndexError, match=rf"row {row} of a cache of 23 rows"):
            cache.soft_targets(np.array([0, row]))

    def test_a_caller_cannot_change_the_cache_through_what_it_was_given(self, cache: TargetCache) -> None:
        before = files_of(cache.folder)
        rows = np.arange(5)
        first = cache.soft_targets(rows)
        kept = first.clone()
        cache.soft_targets(rows[::-1].copy()).fill_(7.0)
        assert torch.equal(first, kept), "what was given out is not gathered into again"
        assert torch.equal(cache.soft_targets(rows), kept)
        for index_array in (cache.sample_digests(), cache.views(), cache.labels()):
            with pytest.raises(ValueError, match="read-only"):
                index_array[0] = 0
        assert files_of(cache.folder) == before

    @SAME_CACHE
    @given(samples=st.lists(st.integers(0, 40), min_size=1, max_size=60))
    def test_samples_are_found_by_their_content(self, samples: list[int], cache: TargetCache, tiny: Tiny) -> None:
        digests = np.concatenate([digests_of_samples(range(sample, sample + 1)) for sample in samples])
        themselves = np.flatnonzero(tiny.views() == 0).tolist()
        expected = [sample if sample in themselves else -1 for sample in samples]
        assert cache.find(digests).tolist() == expected
        unknown = [place for place, row in enumerate(expected) if row < 0]
        if not unknown:
            assert cache.join(digests).tolist() == expected
            return
        first = ", ".join(str(place) for place in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        with pytest.raises(JoinError) as refused:
            cache.join(digests)
        assert f"{len(unknown)} of {len(samples)} samples have no row" in str(refused.value)
        assert f"(samples {first})" in str(refused.value)

    def test_no_sample_at_all_joins_to_no_row(self, cache: TargetCache) -> None:
        assert cache.join(np.empty((0, 16), np.uint8)).tolist() == []
        assert cache.soft_targets(np.empty(0, np.int64)).shape == (0, *self.form.positions.sizes, self.form.classes)

    @pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 8.0])
    def test_the_certificate_is_the_error_of_what_a_student_gets(
        self, temperature: float, cache: TargetCache, tiny: Tiny
    ) -> None:
        exact = tiny.exact(temperature)
        decoded = cache.soft_targets(np.arange(tiny.rows), temperature, max_kl=1.0).numpy().astype(np.float64)
        kl = (exact * np.log(exact / decoded * decoded.sum(axis=-1, keepdims=True))).sum(axis=-1)
        measured = certified(cache, temperature)
        assert measured["rows"] == tiny.rows * tiny.positions.count
        assert measured["infinite_rows"] == 0
        assert measured["kl_mean"] == pytest.approx(kl.mean(), rel=1e-6, abs=1e-13)
        assert measured["kl_max"] == pytest.approx(kl.max(), rel=1e-6, abs=1e-13)
        assert measured["absolute_error_max"] == pytest.approx(np.abs(exact - decoded).max(), rel=1e-6)
        kept = np.sort(exact, axis=-1)[..., -(tiny.k or tiny.classes) :].sum(axis=-1)
        assert measured["retained_mass_mean"] == pytest.approx(kept.mean(), abs=1e-6 if tiny.k else 1e-12)
        np.testing.assert_allclose(decoded, exact, rtol=0, atol=measured["absolute_error_max"] * (1 + 1e-6))

    @pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
    def test_retempering_is_accurate_downwards_and_upwards(
        self, temperature: float, cache: TargetCache, tiny: Tiny
    ) -> None:
        retempered = cache.soft_targets(np.arange(tiny.rows), temperature, max_kl=1.0)
        np.testing.assert_allclose(retempered.numpy(), tiny.served(temperature), rtol=0, atol=4 * self.tolerance)
        exact, served = tiny.exact(temperature), tiny.served(temperature)
        cache.check_temperature(temperature, self.max_kl + float((exact * np.log(exact / served)).sum(axis=-1).mean()))

    def test_an_uncertified_temperature_is_refused(self, cache: TargetCache) -> None:
        for refused in (lambda: cache.check_temperature(3.0), lambda: cache.soft_targets(np.array([0]), 3.0)):
            with pytest.raises(MismatchError, match=self.refused_at_3):
                refused()

    def test_an_error_above_what_the_recipe_allows_is_refused_with_both_numbers(self, cache: TargetCache) -> None:
        mean = certified(cache, 1.0)["kl_mean"]
        assert mean
        cache.check_temperature(1.0, max_kl=mean)
        with pytest.raises(MismatchError, match=rf"{mean:.3g} at temperature 1\.0; .* max_kl = {mean / 2:g}\."):
            cache.check_temperature(1.0, max_kl=mean / 2)

    def test_blocks_of_another_size_decode_to_the_same(self, fast_folder: Path) -> None:
        tiny = replace(self.form, rows=40)
        caches = [
            replace(tiny, rows_per_block=rows_per_block, batch_size=batch_size).open(fast_folder / str(rows_per_block))
            for rows_per_block, batch_size in ((1, 1), (7, 3), (40, 40), (4096, 16))
        ]
        assert len({cache.key for cache in caches}) == 1
        [first, *others] = [cache.soft_targets(np.arange(40)) for cache in caches]
        for other in others:
            assert float((first - other).abs().max()) <= 2e-3
            assert float((first * (first / other).log()).sum(dim=-1).mean()) <= 1e-5


class FloatContract(CacheContract):
    """What only plain probabilities promise."""

    def test_stored_float16_values_are_the_rounded_probabilities(self, cache: TargetCache, tiny: Tiny) -> None:
        exact = torch.softmax(torch.from_numpy(tiny.logits()) / tiny.temperature, dim=1).to(getattr(torch, tiny.dtype))
        rounded = exact.to(torch.float32)
        expected = rounded / rounded.sum(dim=1, keepdim=True)
        assert torch.equal(cache.soft_targets(np.arange(tiny.rows)), expected)

    def test_the_last_block_is_stored_full_size_and_padded(self, cache: TargetCache, tiny: Tiny) -> None:
        assert tiny.rows % tiny.rows_per_block == 3
        [array] = cache.manifest.encoding_arrays()
        table = np.load(cache.folder / "blocks.npy")
        trailer = 4 if self.layout == "zarr" else 0
        assert set(table["size"][-array.chunks :].tolist()) == {array.chunk_bytes + trailer}
        offset = int(table["offset"][-1])
        file = "targets.zarr/soft_targets/c.4.0" if self.layout == "zarr" else "targets.h5"
        last = np.frombuffer(files_of(cache.folder)[file], tiny.dtype, count=5 * tiny.classes, offset=offset)
        assert np.isnan(last.reshape(5, tiny.classes)).all(axis=1).tolist() == [False, False, False, True, True]


class SparseContract(CacheContract):
    """What only top-k promises."""

    max_kl = 2e-6
    refused_at_3 = (
        r"temperature 3 is not listed by cache .*top-k k=2.* known at 1, 2, 4, 8 alone.*targets\.temperatures"
    )

    def test_sparse_targets_are_the_dense_ones(self, cache: TargetCache, tiny: Tiny) -> None:
        for temperature in tiny.certify:
            rows = np.array([3, 1, 3, 22])
            sparse = cache.served(rows, temperature)
            assert isinstance(sparse, SparseTargets)
            assert sparse.class_ids.shape == (4, *tiny.positions.sizes, tiny.k)
            dense = cache.soft_targets(rows, temperature)  # and so the memory of the first is gathered into again
            torch.testing.assert_close(sparse.dense(), dense, rtol=1e-5, atol=1e-7)
            before = sparse.dense()
            cache.served(rows[::-1].copy(), temperature)
            assert torch.equal(sparse.dense(), before)


TOKENS, PIXELS = Positions(("token",), (3,)), Positions(("height", "width"), (2, 3))


class TestZarrFloat16(FloatContract):
    form, tolerance = Tiny("zarr"), 0.001


class TestZarrFloat32(FloatContract):
    form, tolerance = Tiny("zarr", dtype="float32"), 1e-06


class TestZarrLogUint8(CacheContract):
    form, tolerance = Tiny("zarr", dtype="log-uint8"), 0.01
    max_kl = 0.0003


class TestZarrLogUint16(CacheContract):
    form, tolerance = Tiny("zarr", dtype="log-uint16"), 5e-05


class TestZarrTopK(SparseContract):
    form, tolerance = Tiny("zarr", k=2), 5e-05


class TestHdf5Float16(FloatContract):
    form, tolerance = Tiny("hdf5"), 0.001


class TestHdf5Float32(FloatContract):
    form, tolerance = Tiny("hdf5", dtype="float32"), 1e-06


class TestHdf5LogUint8(CacheContract):
    form, tolerance = Tiny("hdf5", dtype="log-uint8"), 0.01
    max_kl = 0.0003


class TestHdf5LogUint16(CacheContract):
    form, tolerance = Tiny("hdf5", dtype="log-uint16"), 5e-05


class TestHdf5TopK(SparseContract):
    form, tolerance = Tiny("hdf5", k=2), 5e-05


class TestTopKOf8Bits(SparseContract):
    form, tolerance = Tiny("hdf5", k=2, value_bits=8), 0.01
    max_kl = 0.0003


class TestTopKOf4Bits(SparseContract):
    form, tolerance = Tiny("zarr", k=2, value_bits=4), 0.2
    max_kl = 0.1


class TestTopKOfTokens(SparseContract):
    form, tolerance = Tiny("zarr", k=2, positions=TOKENS), 5e-05


class TestFloat16OfPixels(CacheContract):
    form, tolerance = Tiny("hdf5", positions=PIXELS), 0.001


class TestLogUint8OfTokens(CacheContract):
    form, tolerance = Tiny("zarr", dtype="log-uint8", positions=TOKENS), 0.01
    max_kl = 0.0003


class TestZstdFloat16(CacheContract):
    form, tolerance = Tiny("zarr", compression="zstd"), 0.001


class TestBloscFloat16(CacheContract):
    form, tolerance = Tiny("zarr", compression="blosc-lz4"), 0.001


class TestZstdTopKOfTokens(SparseContract):
    form, tolerance = Tiny("zarr", k=2, positions=TOKENS, compression="zstd"), 5e-05


class TestBloscLogUint16(CacheContract):
    form, tolerance = Tiny("zarr", dtype="log-uint16", compression="blosc-lz4"), 5e-05


def certified(cache: TargetCache, temperature: float) -> dict[str, Any]:
    measured: dict[str, Any] = cache.manifest.certificate["temperatures"][str(temperature)]
    return measured


@pytest.mark.parametrize("layout", ["zarr", "hdf5"])
def test_probabilities_that_float16_lost_are_certified_as_infinite(layout: str, tmp_path: Path) -> None:
    tiny = Tiny(layout, temperature=1.0, spread=12.0, certify=(1.0, 4.0))
    cache = tiny.open(tmp_path)
    rounded = tiny.exact(1.0).astype(np.float16)
    lost = (rounded == 0).any(axis=1)
    assert 0 < lost.sum() < tiny.rows
    for temperature in (1.0, 4.0):
        measured = certified(cache, temperature)
        assert (measured["kl_mean"], measured["kl_max"]) == (None, None)
        assert measured["infinite_rows"] == lost.sum()
        kept = np.where(rounded > 0, tiny.exact(temperature), 0.0).sum(axis=1).mean()
        assert measured["retained_mass_mean"] == pytest.approx(kept, rel=1e-12)
        with pytest.raises(MismatchError, match=rf"infinite in {lost.sum()} rows at temperature {temperature}"):
            cache.check_temperature(temperature, max_kl=1e9)
    everything = np.arange(tiny.rows)
    with pytest.raises(MismatchError, match="infinite"):
        cache.soft_targets(everything, 4.0)
    assert np.isfinite(cache.soft_targets(everything, 4.0, max_kl=math.inf).numpy()).all()


def test_the_certificate_does_not_depend_on_the_layout(tmp_path: Path) -> None:
    caches = [Tiny(layout).open(tmp_path / layout) for layout in ("zarr", "hdf5")]
    assert caches[0].manifest.certificate == caches[1].manifest.certificate


@pytest.mark.parametrize("layout", ["zarr", "hdf5"])
def test_index_arrays_of_several_chunks_are_read_whole(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.targets.arrays.LARGEST_CHUNK_BYTES", 100)
    monkeypatch.setattr("pipeline.targets.manifest.LARGEST_CHUNK_BYTES", 100)
    tiny = Tiny(layout)
    cache = tiny.open(tmp_path)
    assert [spec.chunks for spec in cache.manifest.specs()] == [4, 1, 2, 5]
    np.testing.assert_array_equal(cache.sample_digests(), tiny.digests())
    np.testing.assert_array_equal(cache.labels(), tiny.labels())
    themselves = np.flatnonzero(tiny.views() == 0)
    assert cache.join(tiny.digests()[themselves]).tolist() == themselves.tolist()
    verify(cache.folder)


@pytest.mark.parametrize("layout", ["zarr", "hdf5"])
def test_a_cache_of_more_blocks_than_files_may_be_open_is_read(layout: str, tmp_path: Path) -> None:
    tiny = Tiny(layout, rows=700, rows_per_block=1)
    cache = tiny.open(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    try:
        read = [cache.soft_targets(np.arange(tiny.rows)[::step]).numpy() for step in (1, -1)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    np.testing.assert_allclose(read[0], tiny.exact(), rtol=0, atol=1e-3)
    np.testing.assert_array_equal(read[0], read[1][::-1])


@pytest.mark.parametrize("layout", ["zarr", "hdf5"])
def test_a_sealed_row_that_is_no_distribution_is_named_by_verify(layout: str, tmp_path: Path) -> None:
    tiny = Tiny(layout)
    plan, broken = tiny.plan(), torch.full((tiny.rows_per_block, tiny.classes), 0.25).half().numpy()
    writer = CacheWriter(tmp_path / plan.key, plan)
    for block in range(writer.blocks):
        values = broken[: len(writer.rows_of_block(block))].copy()
        if block == 2:
            values[1, 0] = np.nan
        sums = measure(
            torch.zeros(len(values), tiny.classes),
            (torch.from_numpy(broken[: len(values)]),),
            Dense("float16"),
            4.0,
            [4.0],
        )
        writer.commit(block, [values], sums)
    writer.seal({})
    writer.close()
    with pytest.raises(CorruptCacheError, match="row 11 of soft_targets is no distribution"):
        verify(tmp_path / plan.key)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> TargetCache:
    """A cache of more rows than are looked through at once."""
    return Tiny(rows=80_000, classes=2, rows_per_block=4096, batch_size=4096).open(tmp_path_factory.mktemp("large"))


def test_many_samples_are_found_in_any_order(large: TargetCache) -> None:
    samples = np.random.default_rng(0).permutation(82_000)  # the last 2000 have no row
    digests = digests_of_samples(range(82_000))[samples]
    has_row = (samples < 80_000) & (samples % 7 != 5)  # every seventh row is of another view
    assert np.array_equal(large.find(digests), np.where(has_row, samples, -1))
    assert np.array_equal(large.find(digests[:10]), np.where(has_row, samples, -1)[:10])


def test_joining_a_whole_dataset_takes_few_bytes_a_row(large: TargetCache) -> None:
    in_order = large.sample_digests()[large.views() == 0].copy()
    for digests in (in_order, in_order[::-1].copy()):
        tracemalloc.start()
        rows = large.join(digests)
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert rows.dtype == np.int32
        assert held < 4 * len(rows) + 100_000  # the answer alone is kept
        assert peak < 4 * len(rows) + 4 * len(large) + 12_000_000  # and the index, and one piece of 2^16 rows
