"""A teacher pass may be killed at any instant: what it committed is kept, and the cache ends in the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import CorruptCacheError, Interrupted
from pipeline.targets.production import TeacherForward
from pipeline.targets.verification import verify
from tests.targets.killed import Attempt, Death, committed_blocks, committed_rows, computed_rows, folders_in
from tests.targets.tiny import LAYOUT_NAMES, Tiny, chunk_extents, files_of, made_content, overwrite

KILLED = -signal.SIGKILL


def uninterrupted(tiny: Tiny, folder: Path) -> dict[str, bytes]:
    """What a run that nobody killed ends in."""
    folder.mkdir()
    attempt = Attempt(tiny, folder / "caches", folder / "log")
    assert attempt.wait() == 0
    assert computed_rows(attempt.log) == list(range(tiny.rows))
    return made_content(attempt.cache)


def stopped_at(tiny: Tiny, row: int) -> TeacherForward:
    """A teacher whose user presses Ctrl-C when it comes to this row."""

    def forward(indices: NDArray[np.int64]) -> Tensor:
        if indices[-1] >= row:
            raise KeyboardInterrupt
        return tiny.teacher()(indices)

    return forward


def deaths_of(tiny: Tiny, folder: Path) -> list[Death]:
    """Every point of a whole run, from before the cache's folder exists until after the seal."""
    folder.mkdir()
    counted = folder / "counted.json"
    assert Attempt(tiny, folder / "caches", folder / "log", counted=counted).wait() == 0
    found = json.loads(counted.read_text())
    return [Death(point) for point in range(found["points"])] + [
        Death(point, halfway=True) for point in found["writes"]
    ]


def assert_every_kill_is_survived(tiny: Tiny, folder: Path, second_kills: bool) -> None:
    expected = uninterrupted(tiny, folder / "uninterrupted")
    deaths = deaths_of(tiny, folder / "counting")
    places = folders_in(folder)
    chosen = random.Random(0)
    for death in deaths:
        place = next(places)
        attempt = Attempt(tiny, place / "caches", place / "log", death)
        assert attempt.wait() == KILLED, death
        finished = committed_rows(tiny, attempt.cache)
        before = len(computed_rows(attempt.log))
        if second_kills:  # the run that repairs may be killed as well, or finish before its point comes
            again = replace(attempt, death=chosen.choice(deaths))
            assert again.wait() in (KILLED, 0), (death, again.death)
            assert not finished & set(computed_rows(attempt.log)[before:]), (death, again.death)
            finished = committed_rows(tiny, attempt.cache) or finished
            before = len(computed_rows(attempt.log))
        assert replace(attempt, death=None).wait() == 0, death
        assert not finished & set(computed_rows(attempt.log)[before:]), death
        assert made_content(attempt.cache) == expected, death


SEVERAL_OBJECTS = Tiny(
    "zarr", rows=8, k=2, compression="zstd"
)  # three for each block, of sizes that only its line tells


@pytest.mark.parametrize("tiny", [Tiny("zarr", rows=13), Tiny("hdf5", rows=13), SEVERAL_OBJECTS])
def test_a_run_killed_at_any_point_of_the_commit_protocol_ends_in_the_same_bytes(tiny: Tiny, fast_folder: Path) -> None:
    assert_every_kill_is_survived(tiny, fast_folder, second_kills=False)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_a_run_of_twenty_blocks_killed_twice_at_any_points_ends_in_the_same_bytes(
    layout: str, fast_folder: Path
) -> None:
    assert_every_kill_is_survived(Tiny(layout, rows=98), fast_folder, second_kills=True)


def kill_after_a_commit(process: ForkServerProcess, cache: Path, had: set[int], delay: float) -> None:
    """Kill a process some time after it committed its first block of its own, unless it has ended by then."""
    while process.is_alive() and committed_blocks(cache) == had:
        time.sleep(0.001)
    time.sleep(delay)
    if process.is_alive():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
    process.join()


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_a_run_killed_at_fifty_random_instants_ends_in_the_same_bytes(layout: str, fast_folder: Path) -> None:
    tiny = Tiny(layout, rows=598)  # 120 blocks
    expected = uninterrupted(tiny, fast_folder / "uninterrupted")
    places = folders_in(fast_folder)
    delays = random.Random(1)
    kills = 0
    while kills < 50:
        place = next(places)
        attempt = Attempt(tiny, place / "caches", place / "log", seconds_per_batch=0.002)
        finished: set[int] = set()
        exit_code: int | None = KILLED
        while exit_code == KILLED:
            before = len(computed_rows(attempt.log))
            if kills < 50:
                process = attempt.start()
                kill_after_a_commit(process, attempt.cache, committed_blocks(attempt.cache), delays.uniform(0, 0.01))
                exit_code = process.exitcode
                kills += exit_code == KILLED
            else:
                exit_code = replace(attempt, seconds_per_batch=0.0).wait()
            assert not finished & set(computed_rows(attempt.log)[before:])
            finished = committed_rows(tiny, attempt.cache)
        assert exit_code == 0
        assert set(computed_rows(attempt.log)) == set(range(tiny.rows))
        assert made_content(attempt.cache) == expected
        verify(attempt.cache)


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_a_store_that_was_only_half_laid_out_is_begun_anew(layout: str, tmp_path: Path) -> None:
    tiny = Tiny(layout)
    expected = made_content(tiny.make(tmp_path / "whole").folder)
    torn = tmp_path / "torn" / tiny.plan().key
    store = torn / ("targets.zarr/soft_targets" if layout == "zarr" else "")
    store.mkdir(parents=True)
    (store / ("c.0.0" if layout == "zarr" else "targets.h5")).write_bytes(b"half a file")
    assert made_content(tiny.make(tmp_path / "torn").folder) == expected


@pytest.mark.parametrize(
    ("layout", "place"), [("zarr", 3), ("hdf5", 3), ("zarr", 40)], ids=["zarr data", "hdf5 data", "zarr trailer"]
)
def test_a_committed_block_whose_bytes_were_lost_is_computed_again(layout: str, place: int, tmp_path: Path) -> None:
    tiny = Tiny(layout)
    expected = made_content(tiny.make(tmp_path / "whole").folder)
    caches = tmp_path / "caches"
    cache = caches / tiny.plan().key
    computed: list[int] = []

    def counting(indices: NDArray[np.int64]) -> Tensor:
        computed.extend(indices.tolist())
        return tiny.teacher()(indices)

    with pytest.raises(Interrupted):
        tiny.make(caches, stopped_at(tiny, 20))
    assert committed_blocks(cache) == {0, 1, 2, 3}
    extent = chunk_extents(cache, tiny)["soft_targets/c.2.0"]
    overwrite(cache / extent.file, extent.offset + place, b"\xff\xff")
    made = tiny.make(caches, counting)
    assert computed == [10, 11, 12, 13, 14, 20, 21, 22]
    assert (made.rows_computed, made.rows_resumed) == (8, 15)
    assert made_content(cache) == expected


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_labels_that_changed_before_a_resume_are_those_of_the_sealed_cache(layout: str, tmp_path: Path) -> None:
    tiny = Tiny(layout)

    with pytest.raises(Interrupted):
        tiny.make(tmp_path, stopped_at(tiny, 10))
    relabelled = RelabelledTiny(layout)
    cache = relabelled.open(tmp_path)  # the same key: labels are in none
    assert cache.key == tiny.plan().key
    np.testing.assert_array_equal(cache.labels(), relabelled.labels())
    verify(cache.folder)


class RelabelledTiny(Tiny):
    """The same cache with other labels."""

    def labels(self) -> NDArray[np.int64]:
        return (super().labels() + 2) % self.classes


@pytest.mark.parametrize("content", [b"{}", b"torn", b"[1]"])
def test_committed_blocks_are_never_thrown_away_for_damaged_settings(content: bytes, tmp_path: Path) -> None:
    tiny = Tiny()

    with pytest.raises(Interrupted):
        tiny.make(tmp_path, stopped_at(tiny, 10))
    cache = tmp_path / tiny.plan().key
    (cache / "unfinished.json").write_bytes(content)
    with pytest.raises(CorruptCacheError, match=r"unfinished\.json is damaged, or of another version"):
        tiny.make(tmp_path)
    assert committed_blocks(cache) == {0, 1}


def test_a_sealed_cache_that_lost_its_manifest_is_not_overwritten(tmp_path: Path) -> None:
    tiny = Tiny()
    folder = tiny.make(tmp_path).folder
    (folder / "manifest.json").unlink()
    before = files_of(folder)
    with pytest.raises(CorruptCacheError, match=r"was sealed but has lost its manifest\.json"):
        tiny.make(tmp_path)
    assert files_of(folder) == before
