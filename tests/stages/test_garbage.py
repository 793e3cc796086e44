"""caches gc: what no run and no pin uses goes, after it was said; all else stays, with the reason."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.targets.reader import TargetCache
from pipeline.targets.verification import verify
from tests.stages.conftest import Command
from tests.stages.toy import Toy, toy_arrays, write_npz

OTHER = "data.path=other.npz"


def keys(toy: Toy) -> set[str]:
    return {path.parent.name for path in toy.folder.glob("caches/*/manifest.json")}


def place(toy: Toy) -> tuple[str, str]:
    return ("--workspace", str(toy.folder))


def found(toy: Toy, softcache: Command, *options: str) -> dict[str, Any]:
    """What `caches gc --json` says; it removes nothing without --yes."""
    said: dict[str, Any] = json.loads(softcache("caches", "gc", "--json", *options, *place(toy)).out)
    return said


def go(toy: Toy, softcache: Command) -> set[str]:
    return {cache["key"] for cache in found(toy, softcache)["remove"]}


def reasons(toy: Toy, softcache: Command) -> dict[str, str]:
    return {cache["key"]: "; ".join(cache["stays"]) for cache in found(toy, softcache)["keep"]}


def grown(toy: Toy, samples: int = 240) -> None:
    write_npz(toy.folder / "other.npz", toy_arrays(samples=samples))
    toy.run("student", OTHER)


def test_caches_that_runs_use_stay_and_the_reason_is_said(finished: Toy, softcache: Command) -> None:
    assert go(finished, softcache) == set()
    said = reasons(finished, softcache)
    assert set(said) == keys(finished)
    assert "student seed 0 of toy" in said[finished.cache().name]
    assert said[finished.cache("test").name] == "teacher-targets test of toy"


def test_a_cache_of_settings_that_no_run_uses_any_more_goes_after_it_was_said(
    finished: Toy, softcache: Command
) -> None:
    before = keys(finished)
    finished.run("teacher-targets", "targets.dtype=float32")
    tried = keys(finished) - before
    finished.run("teacher-targets", "targets.dtype=log-uint8")
    assert go(finished, softcache) == tried | (before - {finished.cache().name})
    said = softcache("caches", "gc", *place(finished))
    assert (said.code, said.out.splitlines()[-1]) == (0, "nothing was removed; --yes removes them")
    assert said.out.count("\nremove  ") + said.out.startswith("remove  ") == len(tried) + 2
    assert before | tried <= keys(finished)
    said = softcache("caches", "gc", "--yes", *place(finished))
    assert said.out.splitlines()[-1].startswith("removed 5 caches; ")
    assert tried.isdisjoint(keys(finished))
    assert finished.cache().name in keys(finished)
    assert softcache("caches", "gc", "--yes", *place(finished)).out.endswith("nothing to remove\n")


def test_without_runs_every_cache_goes_but_a_pinned_one(finished: Toy, softcache: Command) -> None:
    shutil.rmtree(finished.folder / "runs")
    [kept, *others] = sorted(keys(finished))
    softcache("caches", "pin", kept[:10], "--note", "for team B", *place(finished))
    assert reasons(finished, softcache) == {kept: "pinned: for team B"}
    softcache("caches", "gc", "--yes", *place(finished))
    assert keys(finished) == {kept}
    assert softcache("caches", "unpin", kept[:10], *place(finished)).code == 0
    assert go(finished, softcache) == {kept}
    again = softcache("caches", "unpin", kept, *place(finished))
    assert (again.code, "is not pinned; pinned are: none" in again.err) == (1, True)
    assert len(others) == 2


def test_an_unused_cache_that_shares_blocks_with_a_used_one_stays(fixed_teacher: Toy, softcache: Command) -> None:
    old = fixed_teacher.cache().name
    grown(fixed_teacher)
    new = fixed_teacher.cache("training", OTHER).name
    for path in fixed_teacher.folder.glob("runs/student/*/result.json"):
        if old in path.read_text():
            shutil.rmtree(path.parent)
    said = found(fixed_teacher, softcache)
    assert old not in {cache["key"] for cache in said["remove"]}
    [reason] = [cache["stays"] for cache in said["keep"] if cache["key"] == old]
    shared = TargetCache(fixed_teacher.folder / "caches" / old).manifest.rows // 32
    assert reason == [f"shares {shared} blocks with {new[:12]}"]


def test_what_is_freed_counts_shared_blocks_once_and_only_when_all_their_caches_go(
    fixed_teacher: Toy, softcache: Command
) -> None:
    grown(fixed_teacher)
    shutil.rmtree(fixed_teacher.folder / "runs")
    inodes = {
        (status.st_ino, status.st_size)
        for key in keys(fixed_teacher)
        for path in (fixed_teacher.folder / "caches" / key).rglob("*")
        if path.is_file() and (status := path.stat())
    }
    said = found(fixed_teacher, softcache)
    assert said["frees"] == sum(size for _, size in inodes) < sum(cache["bytes"] for cache in said["remove"])


def test_removing_a_donor_leaves_its_heir_whole(fixed_teacher: Toy, softcache: Command) -> None:
    donor = fixed_teacher.cache()
    grown(fixed_teacher)
    heir = fixed_teacher.cache("training", OTHER)
    shutil.rmtree(donor)
    verify(heir)


def test_an_unfinished_cache_stays_with_its_donors_until_it_is_named(fixed_teacher: Toy, softcache: Command) -> None:
    donor = fixed_teacher.cache()
    grown(fixed_teacher)
    heir = fixed_teacher.cache("training", OTHER)
    manifest = TargetCache(donor).manifest
    shutil.rmtree(fixed_teacher.folder / "runs")
    (heir / "manifest.json").unlink()
    started = {"donors": [{"key": donor.name, "rows": manifest.rows, "certificate": {}, "damaged": []}]}
    (heir / "unfinished.json").write_text(json.dumps(started))
    said = reasons(fixed_teacher, softcache)
    assert said[heir.name] == "unfinished; --unfinished removes it"
    assert said[donor.name] == f"gives rows to {heir.name[:12]}, which is unfinished"
    softcache("caches", "gc", "--yes", "--unfinished", *place(fixed_teacher))
    assert not heir.exists()
    assert not donor.exists()


def test_leftovers_of_killed_commands_go(finished: Toy, softcache: Command) -> None:
    for name in (f".removing-{'a' * 64}", f".repacking-{'b' * 64}"):
        (finished.folder / "caches" / name / "targets.zarr").mkdir(parents=True)
    softcache("caches", "gc", "--yes", *place(finished))
    assert not list(finished.folder.glob("caches/.re*"))
    assert len(keys(finished)) == 3


def test_nothing_is_removed_while_a_run_works_here(finished: Toy, softcache: Command) -> None:
    shutil.rmtree(finished.folder / "runs/student")
    lock = finished.folder / "runs/.locks/student-x"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"{os.getpid()} here\n")
        file.flush()
        said = softcache("caches", "gc", "--yes", *place(finished))
    assert (said.code, f"process {os.getpid()} on here" in said.err) == (4, True)
    assert len(keys(finished)) == 3


def test_a_folder_that_is_no_workspace_is_refused(tmp_path: Path, softcache: Command) -> None:
    said = softcache("caches", "gc", "--workspace", str(tmp_path / "nowhere"))
    assert (said.code, "no such folder" in said.err) == (1, True)


@pytest.mark.parametrize("command", ["pin", "unpin"])
def test_a_key_that_is_not_here_cannot_be_pinned(finished: Toy, softcache: Command, command: str) -> None:
    said = softcache("caches", command, "feed", *place(finished))
    assert (said.code, "no cache 'feed'" in said.err) == (1, True)
    assert not list(finished.folder.glob("caches/.pins/*"))
