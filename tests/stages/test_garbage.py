"""caches gc: what no run and no pin uses goes, after it was said; all else stays, with the reason."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import LockedError
from pipeline.experiment import Workspace
from pipeline.fitting import CHECKPOINT_FILE
from pipeline.garbage import remove, sweep_of
from pipeline.report.numbers import size
from pipeline.targets.reader import TargetCache
from pipeline.targets.verification import verify
from stages.caches import collect_garbage
from tests.stages.conftest import Command
from tests.stages.toy import ENVIRONMENT, Toy, new_toy, toy_arrays, write_npz

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


def forget(toy: Toy, *stages: str) -> None:
    for stage in stages:
        shutil.rmtree(toy.folder / "runs" / stage)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def working(toy: Toy, lock: str = "runs/.locks/student-x") -> Iterator[None]:
    """As long as another command holds a lock."""
    with (toy.folder / lock).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"{os.getpid()} here\n")
        file.flush()
        yield


def test_caches_that_runs_use_stay_and_the_reason_is_said(finished: Toy, softcache: Command) -> None:
    assert go(finished, softcache) == set()
    said = reasons(finished, softcache)
    assert set(said) == keys(finished)
    for split in ("training", "validation"):
        assert said[finished.cache(split).name] == "evaluate of toy; student seed 0 of toy; 2 more"
    assert said[finished.cache("test").name] == "evaluate of toy; teacher-targets test of toy; 2 more"


def test_what_a_student_alone_needs_to_be_evaluated_stays(finished: Toy, softcache: Command) -> None:
    forget(finished, "evaluate", "teacher-targets")
    assert reasons(finished, softcache) == dict.fromkeys(keys(finished), "student seed 0 of toy; student seed 1 of toy")


def test_what_a_comparison_alone_would_find_by_its_keys_stays(finished: Toy, softcache: Command) -> None:
    forget(finished, "student", "teacher-targets")
    assert reasons(finished, softcache) == dict.fromkeys(keys(finished), "evaluate of toy")


def test_a_record_of_teacher_targets_counts_by_the_time_that_it_says(finished: Toy, softcache: Command) -> None:
    before = keys(finished)
    finished.run("teacher-targets", "targets.dtype=float32")
    forget(finished, "evaluate", "student")
    for path in finished.folder.glob("runs/teacher-targets/*/result.json"):
        record = json.loads(path.read_text())
        of_float16 = record["key"] in before
        record["provenance"]["started"] = f"202{5 if of_float16 else 6}-01-01T00:00:00+00:00"
        path.write_text(json.dumps(record))
        os.utime(path, (2e9, 2e9) if of_float16 else (1e9, 1e9))  # as a copy of the workspace may have it
    assert go(finished, softcache) == before
    for path in finished.folder.glob("runs/teacher-targets/*/result.json"):
        record, times = json.loads(path.read_text()), path.stat().st_mtime
        del record["provenance"]["started"]
        path.write_text(json.dumps(record))
        os.utime(path, (times, times))
    assert go(finished, softcache) == keys(finished) - before


def test_a_cache_of_settings_that_no_run_uses_any_more_goes_after_it_was_said(
    finished: Toy, softcache: Command
) -> None:
    before = keys(finished)
    finished.run("teacher-targets", "targets.dtype=float32")
    tried = keys(finished) - before
    finished.run("teacher-targets", "targets.dtype=log-uint8")
    assert len(tried) == 3
    assert go(finished, softcache) == tried
    said = softcache("caches", "gc", *place(finished))
    assert (said.code, said.out.splitlines()[-1]) == (0, "nothing was removed; --yes removes them")
    assert said.out.count("\nremove  ") + said.out.startswith("remove  ") == len(tried)
    assert before | tried <= keys(finished)
    said = softcache("caches", "gc", "--yes", *place(finished))
    assert said.out.splitlines()[-1].startswith("removed 3 caches; ")
    assert tried.isdisjoint(keys(finished))
    assert before < keys(finished)
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
    softcache("caches", "pin", heir.name, *place(fixed_teacher))
    softcache("caches", "gc", "--yes", "--unfinished", *place(fixed_teacher))
    assert heir.exists()
    assert donor.exists()
    softcache("caches", "unpin", heir.name, *place(fixed_teacher))
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
    forget(finished, "student", "evaluate", "teacher-targets")
    with working(finished):
        said = softcache("caches", "gc", "--yes", *place(finished))
    assert (said.code, f"process {os.getpid()} on here" in said.err) == (4, True)
    assert len(keys(finished)) == 3


def test_what_came_into_use_while_the_question_stood_stays(finished: Toy, softcache: Command) -> None:
    forget(finished, "student", "evaluate", "teacher-targets")
    kept = finished.cache()

    def agreed(question: str) -> bool:
        assert question == "Remove 3 caches?"
        return softcache("caches", "pin", kept.name, *place(finished)).code == 0

    freed = sum(size_of(folder) for folder in finished.folder.glob("caches/[!.]*") if folder != kept)
    said = collect_garbage(finished.folder, unfinished=False, as_json=False, agreed=agreed, tell=lambda text: None)
    assert keys(finished) == {kept.name}
    since = "1 stayed, since something came to use them after they were listed"
    assert said == f"removed 2 caches; {size(freed)} freed; {since}"


def test_what_came_after_the_question_was_not_agreed_to(finished: Toy) -> None:
    late = finished.folder / "caches" / ("d" * 64)
    forget(finished, "student", "evaluate", "teacher-targets")
    copied = finished.cache()

    def agreed(question: str) -> bool:
        return shutil.copytree(copied, late).is_dir()

    collect_garbage(finished.folder, unfinished=False, as_json=False, agreed=agreed, tell=lambda text: None)
    assert keys(finished) == {late.name}


def test_a_run_that_began_while_the_question_stood_keeps_everything(finished: Toy) -> None:
    forget(finished, "student", "evaluate", "teacher-targets")
    run = working(finished)

    def agreed(question: str) -> bool:
        run.__enter__()
        return True

    with pytest.raises(LockedError, match=f"process {os.getpid()} on here"):
        collect_garbage(finished.folder, unfinished=False, as_json=False, agreed=agreed, tell=lambda text: None)
    run.__exit__(None, None, None)
    assert len(keys(finished)) == 3


def test_a_run_that_begins_between_two_removals_ends_them(finished: Toy) -> None:
    forget(finished, "student", "evaluate", "teacher-targets")
    workspace, run = Workspace(finished.folder), working(finished)
    with pytest.raises(LockedError, match=f"process {os.getpid()} on here"):
        remove(workspace, sweep_of(workspace), lambda caches: run.__enter__())
    run.__exit__(None, None, None)
    assert len(keys(finished)) == 2


def test_a_renamed_cache_is_used_by_its_key_and_removed_by_its_name(finished: Toy, softcache: Command) -> None:
    key = finished.cache().name
    team = finished.cache().rename(finished.folder / "caches/teamB")
    forget(finished, "student", "evaluate", "teacher-targets")
    finished.run("student", "targets.use=caches/teamB", "student.training.steps=5")
    [kept] = [cache for cache in found(finished, softcache)["keep"] if cache["folder"] == str(team)]
    assert (kept["key"], kept["stays"]) == (key, ["student seed 0 of toy", "student seed 1 of toy"])
    forget(finished, "student")
    for lock in (key, "teamB"):
        with working(finished, f"caches/.locks/{lock}"):
            assert softcache("caches", "gc", "--yes", *place(finished)).code == 4
            assert team.is_dir()
    softcache("caches", "pin", "teamB", *place(finished))
    assert reasons(finished, softcache) == {key: "pinned"}
    softcache("caches", "unpin", "teamB", *place(finished))
    assert softcache("caches", "gc", "--yes", *place(finished)).code == 0
    assert keys(finished) == set()


def test_a_cache_that_cannot_be_read_stays_with_the_reason(finished: Toy, softcache: Command) -> None:
    damaged = finished.cache()
    (damaged / "manifest.json").write_text("{")
    forget(finished, "student", "evaluate", "teacher-targets")
    [(name, reason)] = reasons(finished, softcache).items()
    assert name == damaged.name
    assert reason.startswith(f"cannot be read: {damaged / 'manifest.json'} is damaged: ")


def test_a_link_to_a_cache_elsewhere_stays(finished: Toy, tmp_path: Path, softcache: Command) -> None:
    forget(finished, "student", "evaluate", "teacher-targets")
    name = finished.cache().name
    shutil.move(finished.folder / "caches" / name, tmp_path / name)
    (finished.folder / "caches" / name).symlink_to(tmp_path / name)
    assert reasons(finished, softcache) == {name: "a link; what it points to is not of this workspace"}


def test_a_killed_command_s_copy_is_no_cache_and_counts_once(finished: Toy, softcache: Command) -> None:
    copy = finished.folder / "caches" / f".removing-{finished.cache().name}"
    shutil.copytree(finished.cache(), copy)
    said = found(finished, softcache)
    assert (said["remove"], said["leftovers"]) == ([], [str(copy)])
    assert said["frees"] == size_of(copy)
    assert len(said["keep"]) == 3


def test_a_cache_goes_although_an_earlier_removal_of_it_was_killed(finished: Toy, softcache: Command) -> None:
    forget(finished, "student", "evaluate", "teacher-targets")
    shutil.copytree(finished.cache(), finished.folder / "caches" / f".removing-{finished.cache().name}")
    assert softcache("caches", "gc", "--yes", *place(finished)).code == 0
    assert not [path for path in finished.folder.glob("caches/*") if path.name not in (".locks", ".pins")]


def test_a_damaged_record_is_refused_since_its_caches_are_not_known(finished: Toy, softcache: Command) -> None:
    path = finished.folder / "runs/student" / finished.records("student")[0].key / "result.json"
    path.write_text('{"stage": "stud')
    said = softcache("caches", "gc", "--yes", *place(finished))
    assert (said.code, said.out) == (1, "")
    assert f"{path} cannot be read" in said.err
    assert f"Restore it, or delete {path.parent} if the run is not needed" in said.err
    assert len(keys(finished)) == 3


def test_caches_stay_while_a_training_is_interrupted(finished: Toy, softcache: Command) -> None:
    folder = finished.folder / "runs/student" / finished.records("student")[0].key
    forget(finished, "student", "evaluate", "teacher-targets")
    folder.mkdir(parents=True)
    assert go(finished, softcache) == keys(finished)
    (folder / CHECKPOINT_FILE).touch()
    reason = f"a training in runs/student/{folder.name[:12]} was interrupted"
    assert reasons(finished, softcache) == dict.fromkeys(keys(finished), reason)


def test_a_cache_that_shares_with_one_kept_for_sharing_stays_too(finished: Toy, softcache: Command) -> None:
    forget(finished, "student", "evaluate", "teacher-targets")
    first, second, third = sorted(finished.folder.glob("caches/[!.]*"))
    for one, other in ((third, second), (second, first)):
        (one / f"shared-with-{other.name[:4]}").write_text("a block")
        (other / f"shared-with-{one.name[:4]}").hardlink_to(one / f"shared-with-{other.name[:4]}")
    softcache("caches", "pin", third.name, *place(finished))
    assert reasons(finished, softcache) == {
        third.name: "pinned",
        second.name: f"shares 1 block with {third.name[:12]}",
        first.name: f"shares 1 block with {second.name[:12]}",
    }


def test_a_cache_of_another_workspace_cannot_be_pinned(finished: Toy, tmp_path: Path, softcache: Command) -> None:
    other = new_toy(tmp_path / "other")
    (other.folder / "caches").mkdir()
    for command in ("pin", "unpin"):
        said = softcache("caches", command, str(finished.cache()), *place(other))
        assert (said.code, f"is not in {other.folder / 'caches'}" in said.err) == (1, True)
    assert not list(other.folder.glob("caches/.pins/*"))
    assert softcache("caches", "pin", str(finished.cache()), *place(finished)).code == 0


def test_a_folder_that_is_no_workspace_is_refused(tmp_path: Path, softcache: Command) -> None:
    said = softcache("caches", "gc", "--workspace", str(tmp_path / "nowhere"))
    assert (said.code, "no such folder" in said.err) == (1, True)


@pytest.mark.parametrize("command", ["pin", "unpin"])
def test_a_key_that_is_not_here_cannot_be_pinned(finished: Toy, softcache: Command, command: str) -> None:
    said = softcache("caches", command, "feed", *place(finished))
    assert (said.code, "no cache 'feed'" in said.err) == (1, True)
    assert not list(finished.folder.glob("caches/.pins/*"))


@pytest.mark.parametrize(
    ("answer", "code", "said", "left"),
    [
        (b"n\n", 0, "nothing was removed; --yes removes them", 3),
        (b"y\n", 0, "removed 3 caches; ", 0),
        (None, 130, "interrupted: nothing was removed.", 3),
    ],
    ids=["no", "yes", "Ctrl-C"],
)
def test_in_a_terminal_the_user_is_asked(finished: Toy, answer: bytes | None, code: int, said: str, left: int) -> None:
    shutil.rmtree(finished.folder / "runs")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "stages.cli", "caches", "gc", *place(finished)]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=ENVIRONMENT, start_new_session=True
    )
    os.close(theirs)
    shown = b""
    while b"[y/N]" not in shown:
        shown += os.read(ours, 4096)
    if answer is None:
        process.send_signal(signal.SIGINT)
    else:
        os.write(ours, answer)
    with suppress(OSError):  # how a terminal says that its last writer has gone
        while chunk := os.read(ours, 4096):
            shown += chunk
    os.close(ours)
    assert (process.wait(), said in shown.decode()) == (code, True)
    assert len(keys(finished)) == left
