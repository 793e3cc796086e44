"""Rows that sealed caches hold already are taken from them: the teacher runs on the others alone, and nothing else differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import CorruptCacheError, Interrupted, UserError
from pipeline.progress import no_bar
from pipeline.targets.arrays import Positions
from pipeline.targets.known_rows import known_rows
from pipeline.targets.production import take_known
from pipeline.targets.reader import TargetCache
from pipeline.targets.repack import repack
from pipeline.targets.shelf import Shelf
from pipeline.targets.verification import verify
from pipeline.targets.writer import CacheWriter
from pipeline.teacher_pass import Pass, make_cache
from tests.targets.killed import Attempt, Death, committed_blocks
from tests.targets.tiny import LAYOUT_NAMES, Tiny, chunk_extents, files_of, made_content, overwrite

FORMS = {
    "float16": Tiny(),
    "float16 in hdf5": Tiny("hdf5"),
    "log-uint8": Tiny(dtype="log-uint8"),
    "top-k": Tiny(classes=9, k=2),
    "zstd": Tiny(compression="zstd"),
    "tokens": Tiny("hdf5", positions=Positions(("token",), (3,))),
}


@dataclass
class Made:
    """Caches that were made of some samples, and which samples the teacher was run on, batch by batch."""

    folder: Path
    said: list[str] = field(default_factory=list)
    batches: list[list[int]] = field(default_factory=list)

    def make(self, tiny: Tiny) -> Pass:
        """Make a cache on this shelf."""
        self.batches, self.said, forward = [], [], tiny.teacher()

        def counting(indices: NDArray[np.int64]) -> Tensor:
            self.batches.append(indices.tolist())
            return forward(indices)

        return make_cache(
            Shelf(self.folder, self.said.append), tiny.plan(), lambda order: counting, no_bar, self.said.append, {}
        )

    @property
    def computed(self) -> list[int]:
        return [index for batch in self.batches for index in batch]


def of(tiny: Tiny, samples: Sequence[int]) -> Tiny:
    return replace(tiny, of_samples=tuple(samples))


def arrays_of(folder: Path) -> dict[str, bytes]:
    """The bytes of a cache's store."""
    return {name: content for name, content in files_of(folder).items() if name.startswith("targets.")}


def assert_as_a_full_run(made: Pass, tiny: Tiny, elsewhere: Path) -> None:
    """The cache holds the bytes of one for which the teacher ran on every row; this teacher's do not depend on batches."""
    full = tiny.make(elsewhere)
    assert arrays_of(made.folder) == arrays_of(full.folder)
    assert TargetCache(made.folder).key == TargetCache(full.folder).key
    verify(made.folder)


@pytest.mark.parametrize("tiny", FORMS.values(), ids=FORMS.keys())
def test_a_grown_dataset_runs_the_teacher_on_the_new_rows_alone(tiny: Tiny, tmp_path: Path) -> None:
    caches = Made(tmp_path / "caches")
    donor = caches.make(of(tiny, range(20)))
    made = caches.make(tiny)
    assert caches.computed == [20, 21, 22]
    assert (made.rows_computed, made.rows_resumed, made.rows_taken) == (3, 0, {donor.folder.name: 20})
    assert_as_a_full_run(made, tiny, tmp_path / "full")
    provenance = TargetCache(made.folder).manifest.provenance
    assert (provenance["rows_computed"], provenance["rows_taken"]) == (3, {donor.folder.name: 20})


@pytest.mark.parametrize("tiny", FORMS.values(), ids=FORMS.keys())
def test_rows_that_caches_hold_together_need_no_teacher_in_any_order(tiny: Tiny, tmp_path: Path) -> None:
    caches = Made(tmp_path / "caches")
    caches.make(of(tiny, range(14)))
    caches.make(of(tiny, range(9, 23)))
    assert caches.computed == list(range(14, 23))
    mixed = of(tiny, np.random.default_rng(0).permutation(23).tolist()[:21])
    made = caches.make(mixed)
    assert (caches.computed, made.rows_computed, sum(made.rows_taken.values())) == ([], 0, 21)
    assert_as_a_full_run(made, mixed, tmp_path / "full")


def test_the_teacher_is_not_even_built_where_every_row_is_known(tmp_path: Path) -> None:
    tiny = Tiny()
    tiny.make(tmp_path)

    def never(order: object) -> object:
        raise AssertionError("the teacher was built")

    make_cache(Shelf(tmp_path), of(tiny, range(22, -1, -1)).plan(), never, no_bar, print, {})  # type: ignore[arg-type]


def test_two_datasets_that_overlap_by_half_need_half_the_calls(tmp_path: Path) -> None:
    tiny, caches = Tiny(rows=60, batch_size=1), Made(tmp_path)
    caches.make(of(tiny, range(40)))
    caches.make(of(tiny, range(20, 60)))
    assert caches.computed == list(range(40, 60))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_was_cached_before_every_row_is_right_and_computed_once(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Datasets are drawn one after another; each takes what all before it hold, in any layout and block size."""
    folder = tmp_path_factory.mktemp("caches")
    caches, known = Made(folder / "caches"), set[int]()
    for _ in range(data.draw(st.integers(2, 4))):
        tiny = Tiny(
            data.draw(st.sampled_from(LAYOUT_NAMES)),
            rows=17,
            rows_per_block=data.draw(st.integers(1, 8)),
            batch_size=data.draw(st.integers(1, 5)),
        )
        samples = data.draw(st.lists(st.integers(0, 16), min_size=1, unique=True))
        made = caches.make(of(tiny, samples))
        if made.seconds:  # else an equal dataset came before
            assert sorted(caches.computed) == sorted(set(samples) - known)
        known |= set(samples)
        stored = TargetCache(made.folder).stored(np.arange(len(samples)))
        assert torch.equal(stored[0], tiny.plan().encoding.encode(torch.from_numpy(tiny.logits()[samples]), 4.0)[0])
        assert verify(made.folder)["rows"] == len(samples)


def test_batches_of_new_rows_are_full_though_known_rows_lie_between(tmp_path: Path) -> None:
    tiny, caches = Tiny(rows=40, rows_per_block=8, batch_size=3), Made(tmp_path / "caches")
    caches.make(of(tiny, [index for index in range(40) if index % 4]))
    made = caches.make(tiny)
    assert caches.batches == [[0, 4, 8], [12, 16, 20], [24, 28], [32, 36]]  # 4 blocks' new rows are those of one block
    assert_as_a_full_run(made, tiny, tmp_path / "full")


def test_whole_blocks_share_the_files_of_their_donor(tmp_path: Path) -> None:
    tiny, caches = Tiny(), Made(tmp_path)
    donor = caches.make(of(tiny, range(20))).folder
    grown = caches.make(tiny).folder
    chunks = "targets.zarr/soft_targets"
    assert [(grown / chunks / f"c.{block}.0").samefile(donor / chunks / f"c.{block}.0") for block in range(4)] == [
        True
    ] * 4
    shutil.rmtree(donor)
    verify(grown)
    assert not list(grown.rglob(".unfinished*"))


def test_blocks_of_another_size_layout_or_compression_are_copied_row_by_row(tmp_path: Path) -> None:
    tiny, caches = Tiny(), Made(tmp_path / "caches")
    caches.make(of(tiny, range(20)))
    for number, other in enumerate((Tiny("hdf5"), Tiny(rows_per_block=7), Tiny(compression="blosc-lz4"))):
        grown = of(other, [*range(20), 20 + number])
        assert caches.make(grown).rows_computed == 1
        assert_as_a_full_run(Pass(caches.folder / grown.plan().key, 0, 0, 0.0, {}), grown, tmp_path / "full")


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_a_damaged_block_of_a_donor_gives_no_row_and_is_named(layout: str, tmp_path: Path) -> None:
    tiny, caches = Tiny(layout), Made(tmp_path / "caches")
    donor = caches.make(of(tiny, range(20))).folder
    extent = chunk_extents(donor, of(tiny, range(20)))["soft_targets/c.1.0"]
    overwrite(donor / extent.file, extent.offset + 3, b"\x77")
    made = caches.make(tiny)
    assert caches.computed == [5, 6, 7, 8, 9, 20, 21, 22]
    [said] = [line for line in caches.said if "damaged" in line]
    assert "1 of 4 blocks" in said
    assert "5 rows are not taken" in said
    assert "soft_targets/c.1.0" in said
    assert_as_a_full_run(made, tiny, tmp_path / "full")


def test_rows_of_a_damaged_block_are_taken_from_another_cache_that_has_them(tmp_path: Path) -> None:
    tiny, caches = Tiny(), Made(tmp_path / "caches")
    shutil.copytree(caches.make(of(tiny, range(5, 12))).folder, tmp_path / "kept")
    donor = caches.make(of(tiny, range(20))).folder
    file = donor / "targets.zarr/soft_targets/c.1.0"
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.unlink()  # the other cache may share it
    file.write_bytes(content)
    made = caches.make(tiny)
    assert caches.computed == [20, 21, 22]
    assert sorted(made.rows_taken.values()) == [5, 15]
    assert_as_a_full_run(made, tiny, tmp_path / "full")


@pytest.mark.parametrize(
    "object_name", ["manifest.json", "blocks.npy", "targets.zarr/sample_digest/c.0.0", "targets.zarr/zarr.json"]
)
def test_a_donor_whose_index_or_metadata_are_damaged_gives_no_row_at_all(object_name: str, tmp_path: Path) -> None:
    tiny, caches = Tiny(), Made(tmp_path / "caches")
    donor = caches.make(of(tiny, range(20))).folder
    content = bytearray((donor / object_name).read_bytes())
    content[len(content) // 2] ^= 1
    (donor / object_name).write_bytes(content)
    made = caches.make(tiny)
    assert caches.computed == list(range(23))
    assert any(str(donor) in line for line in caches.said)
    assert "inherited" not in TargetCache(made.folder).manifest.certificate
    assert_as_a_full_run(made, tiny, tmp_path / "full")


def test_the_certificate_takes_the_donors_sums_and_the_larger_maximum_marked_as_inherited(tmp_path: Path) -> None:
    tiny, caches = Tiny(dtype="log-uint8"), Made(tmp_path / "caches")
    donor = TargetCache(caches.make(of(tiny, range(20))).folder).manifest
    grown = TargetCache(caches.make(tiny).folder).manifest.certificate
    new = TargetCache(Made(tmp_path / "new").make(of(tiny, range(20, 23))).folder).manifest.certificate
    assert (grown["inherited"], grown["measured_on"]) == ({donor.key: 20}, "all rows")
    assert set(grown["temperatures"]) == {"1.0", "2.0", "4.0", "8.0"}
    for temperature, error in grown["temperatures"].items():
        before, after = donor.certificate["temperatures"][temperature], new["temperatures"][temperature]
        assert error["kl_mean"] == pytest.approx((20 * before["kl_mean"] + 3 * after["kl_mean"]) / 23, rel=1e-12)
        assert error["kl_max"] == max(before["kl_max"], after["kl_max"])
        assert error["absolute_error_max"] == max(before["absolute_error_max"], after["absolute_error_max"])
        assert (error["rows"], error["infinite_rows"]) == (23, 0)


def test_a_share_of_a_donor_counts_as_that_share_of_its_sums(tmp_path: Path) -> None:
    tiny, caches = Tiny(), Made(tmp_path)
    donor = TargetCache(caches.make(of(tiny, range(20))).folder).manifest
    half = TargetCache(caches.make(of(tiny, range(0, 20, 2))).folder).manifest.certificate
    assert half["inherited"] == {donor.key: 10}
    for temperature, error in half["temperatures"].items():
        assert error["kl_mean"] == pytest.approx(donor.certificate["temperatures"][temperature]["kl_mean"], rel=1e-12)
        assert error["rows"] == 10


def test_temperatures_that_a_donor_does_not_certify_are_left_out(tmp_path: Path) -> None:
    tiny, caches = Tiny(certify=(4.0, 8.0)), Made(tmp_path)
    caches.make(of(tiny, range(20)))
    grown = caches.make(replace(tiny, certify=(1.0, 4.0))).folder
    assert list(TargetCache(grown).manifest.certificate["temperatures"]) == ["4.0"]


def test_a_donor_that_cannot_vouch_for_the_students_temperature_gives_no_row(tmp_path: Path) -> None:
    tiny = Tiny(certify=(4.0,))
    of(tiny, range(20)).make(tmp_path)
    plan = replace(replace(tiny, certify=(2.0, 4.0)).plan(), wanted_at=2.0)
    made = make_cache(Shelf(tmp_path), plan, lambda order: tiny.teacher(), no_bar, print, {})
    assert made.rows_computed == 23


def test_rows_that_would_be_refused_to_every_student_are_not_taken_in_vain(tmp_path: Path) -> None:
    sure = Tiny(spread=60.0)
    donor = of(sure, range(20)).make(tmp_path).folder.name
    plan = replace(sure.plan(), wanted_at=1.0)
    with pytest.raises(UserError, match=f"rows of cache {donor[:12]} have probabilities at temperature 1 that vanish"):
        make_cache(Shelf(tmp_path), plan, lambda order: sure.teacher(), no_bar, print, {})
    assert not (tmp_path / plan.key).exists()


def test_only_caches_of_the_same_row_key_are_asked(tmp_path: Path) -> None:
    caches = Made(tmp_path)
    caches.make(of(Tiny(), range(20)))
    for other in (Tiny(dtype="float32"), Tiny(temperature=2.0), Tiny(seed=1)):
        caches.make(other)
        assert len(caches.computed) == 23


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_a_run_that_was_killed_anywhere_while_rows_were_taken_ends_in_the_same_bytes(
    layout: str, fast_folder: Path
) -> None:
    tiny = Tiny(layout, rows=14, rows_per_block=4, batch_size=2)
    begun = Made(fast_folder / "begun")
    begun.make(of(tiny, range(4)))
    begun.make(of(tiny, [0, 5, 6, 8, 9]))
    whole = fast_folder / "whole"
    shutil.copytree(begun.folder, whole, copy_function=shutil.copy2)
    counted = fast_folder / "counted"
    assert Attempt(tiny, whole, fast_folder / "log", counted=counted).wait() == 0
    expected, points = made_content(whole / tiny.plan().key), json.loads(counted.read_text())
    for point in range(points["points"]):
        place = fast_folder / f"killed at {point}"
        shutil.copytree(begun.folder, place)
        donors = {path: files_of(path) for path in place.iterdir() if (path / "manifest.json").exists()}
        killed = Attempt(tiny, place, place / "log", Death(point, point in points["writes"]))
        assert killed.wait() == -9
        assert replace(killed, death=None).wait() == 0
        assert made_content(place / tiny.plan().key) == expected
        assert {path: files_of(path) for path in donors} == donors
        shutil.rmtree(place)


def test_rows_of_a_donor_that_went_away_meanwhile_are_computed(tmp_path: Path) -> None:
    tiny, caches = Tiny(), Made(tmp_path / "caches")
    donor = caches.make(of(tiny, range(20))).folder

    def stopped(indices: NDArray[np.int64]) -> Tensor:
        raise KeyboardInterrupt

    file = donor / "targets.zarr/soft_targets/c.3.0"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(Interrupted, match="3 of 5 blocks are kept"):
        make_cache(Shelf(caches.folder), tiny.plan(), lambda order: stopped, no_bar, print, {})
    shutil.rmtree(donor)
    made = caches.make(tiny)
    assert caches.computed == list(range(15, 23))
    assert (made.rows_computed, made.rows_resumed, made.rows_taken) == (8, 15, {donor.name: 15})
    assert TargetCache(made.folder).manifest.certificate["inherited"] == {donor.name: 15}
    assert arrays_of(made.folder) == arrays_of(tiny.make(tmp_path / "full").folder)


def test_a_repacked_donor_still_gives_its_rows_and_a_repacked_heir_keeps_its_marks(tmp_path: Path) -> None:
    tiny, caches = Tiny(), Made(tmp_path / "caches")
    donor = caches.make(of(tiny, range(20))).folder
    repack(donor, "hdf5")
    made = caches.make(tiny)
    assert caches.computed == [20, 21, 22]
    assert_as_a_full_run(made, tiny, tmp_path / "full")
    before = TargetCache(made.folder).manifest.certificate
    repack(made.folder, "hdf5")
    assert TargetCache(made.folder).manifest.certificate == before


def test_a_donor_that_changes_after_it_was_checked_is_never_used_silently(tmp_path: Path) -> None:
    """Its blocks were whole when the run began; what is read later has its crc32c compared again."""
    tiny, caches = Tiny(rows_per_block=5), Made(tmp_path)
    donor = caches.make(of(tiny, range(20))).folder
    shuffled = of(tiny, [3, 12, 7, 0, 22])
    cache = TargetCache(donor)
    overwrite(donor / "targets.zarr/soft_targets/c.2.0", 0, b"\x55")
    with pytest.raises(CorruptCacheError):
        cache.stored(np.array([12]))
    assert caches.make(shuffled).rows_taken == {donor.name: 3}
    assert committed_blocks(tmp_path / shuffled.plan().key) == set()


def test_a_donor_that_is_removed_while_rows_are_taken_ends_the_run_and_the_next_goes_on(tmp_path: Path) -> None:
    tiny, caches = Tiny(), Made(tmp_path / "caches")
    donor = caches.make(of(tiny, range(20))).folder
    plan = tiny.plan()
    known = known_rows(Shelf(caches.folder), plan)
    writer = CacheWriter(caches.folder / plan.key, plan, known)
    take_known(writer, known, [0, 1])
    shutil.rmtree(donor)
    with pytest.raises(CorruptCacheError, match=r"was removed.*soft_targets/c.2.0.*Run the same command again"):
        take_known(writer, known, [2])
    writer.close()
    made = caches.make(tiny)
    assert (made.rows_computed, made.rows_resumed) == (13, 10)
    assert_as_a_full_run(made, tiny, tmp_path / "full")


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_donor_that_is_removed_while_rows_are_copied_one_by_one_says_the_same(
    compression: str, tmp_path: Path
) -> None:
    tiny, caches = Tiny(compression=compression), Made(tmp_path)
    donor = caches.make(of(tiny, range(20))).folder
    plan = of(tiny, [3, 12, 7, 0, 16, 22]).plan()
    known = known_rows(Shelf(caches.folder), plan)
    writer = CacheWriter(caches.folder / plan.key, plan, known)
    shutil.rmtree(donor)
    with pytest.raises(CorruptCacheError, match=r"was removed, repacked or damaged.*Run the same command again"):
        take_known(writer, known, [0])
    writer.close()


@pytest.mark.parametrize("damage", ["missing", "truncated", "a link"])
def test_a_donor_without_one_of_its_blocks_gives_the_others(damage: str, tmp_path: Path) -> None:
    tiny, caches = Tiny(), Made(tmp_path / "caches")
    donor = caches.make(of(tiny, range(20))).folder
    block = donor / "targets.zarr/soft_targets/c.1.0"
    content = block.read_bytes()
    block.unlink()
    if damage == "truncated":
        block.write_bytes(content[:7])
    elif damage == "a link":
        (tmp_path / "elsewhere").write_bytes(content)
        block.symlink_to(tmp_path / "elsewhere")
    for grown in (tiny, of(tiny, [22, 21, 17, 8, 3, 12])):
        made = caches.make(grown)
        assert any("soft_targets/c.1.0" in line for line in caches.said)
        assert_as_a_full_run(made, grown, tmp_path / "full")
        shutil.rmtree(made.folder)
    assert caches.computed == [22, 21, 8]
