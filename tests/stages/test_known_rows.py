"""A changed dataset costs what its new rows cost, which is said before: append, delete, reorder, repeat, overlap."""

from __future__ import annotations

import json
import re
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.cache_plan import plan_of
from pipeline.errors import Interrupted
from pipeline.experiment import SPLITS
from pipeline.progress import no_bar
from pipeline.targets.journal import committed_blocks
from pipeline.targets.reader import TargetCache
from pipeline.targets.verification import verify
from pipeline.teacher_pass import make_cache
from pipeline.teachers.opening import open_teacher
from tests.stages.conftest import Command
from tests.stages.toy import Toy, toy_arrays, write_npz

Arrays = dict[str, NDArray[np.generic]]
OTHER = "data.path=other.npz"


def write_other(toy: Toy, order: NDArray[np.int64], samples: int = 400) -> None:
    """A second dataset: these samples of an endless list, in this order."""
    arrays = toy_arrays(samples=samples)
    write_npz(toy.folder / "other.npz", {**arrays, "x": arrays["x"][order], "y": arrays["y"][order]})


def digests_of(toy: Toy, split: str, *settings: str) -> set[bytes]:
    return {digest.tobytes() for digest in toy.experiment(*settings).datasets("student")[split].sample_digests()}


def computed(toy: Toy, *settings: str) -> dict[str, int]:
    """On how many rows each split's cache ran the teacher, by its record; of caches that were made for these settings."""
    return {record.label: record.values["rows_computed"] for record in toy.records("teacher-targets", *settings)}


@pytest.mark.parametrize("samples", [220, 240])
def test_a_grown_dataset_runs_the_teacher_on_its_new_rows_alone(
    fixed_teacher: Toy, samples: int, softcache: Command
) -> None:
    before = {split: digests_of(fixed_teacher, split) for split in SPLITS}
    write_other(fixed_teacher, np.arange(samples))
    new = {split: len(digests_of(fixed_teacher, split, OTHER) - before[split]) for split in SPLITS}
    assert sum(new.values()) == samples - 200
    said = softcache(*fixed_teacher.arguments("teacher-targets", settings=[OTHER]))
    grown = {split for split in SPLITS if new[split]}
    assert computed(fixed_teacher, OTHER) == {split: new[split] for split in grown}
    for split in grown:
        known = len(before[split])
        assert re.search(
            rf"teacher-targets {split}: {known + new[split]} rows: {known} known \({known} in cache [0-9a-f]{{12}}\), "
            rf"{new[split]} new; about ",
            said.err,
        )
        cache = TargetCache(fixed_teacher.cache(split, OTHER))
        assert list(cache.manifest.certificate["inherited"].values()) == [known]
        verify(cache.folder)


def test_the_arrays_of_a_grown_cache_equal_those_of_a_full_run(fixed_teacher: Toy) -> None:
    write_other(fixed_teacher, np.arange(260))
    fixed_teacher.run("teacher-targets", OTHER)
    grown = TargetCache(fixed_teacher.cache("training", OTHER))
    elsewhere = Toy(shutil.copytree(fixed_teacher.folder, fixed_teacher.folder.parent / "elsewhere"))
    shutil.rmtree(elsewhere.folder / "caches")
    elsewhere.run("teacher-targets", OTHER)
    full = TargetCache(elsewhere.cache("training", OTHER))
    assert (grown.key, grown.manifest.rows_sha256) == (full.key, full.manifest.rows_sha256)
    assert "inherited" not in full.manifest.certificate
    rows = np.arange(len(full))
    torch.testing.assert_close(grown.soft_targets(rows), full.soft_targets(rows), rtol=0, atol=2e-3)
    exact, found = full.soft_targets(rows).double(), grown.soft_targets(rows).double()
    assert float((exact * (exact.log() - found.log())).sum(dim=1).mean()) < 1e-5


def test_reordered_halved_and_repeated_datasets_never_run_the_teacher(fixed_teacher: Toy) -> None:
    generator = np.random.default_rng(0)
    shuffled = generator.permutation(200)
    for order in (shuffled, shuffled[:100], np.concatenate([shuffled, shuffled[:50]])):
        write_other(fixed_teacher, order)
        assert not [step for step in fixed_teacher.run("student", OTHER) if step.startswith("teacher")]


def test_the_teacher_may_be_gone_when_every_row_is_known_to_some_cache(fixed_teacher: Toy) -> None:
    write_other(fixed_teacher, np.arange(100, 300))
    fixed_teacher.run("teacher-targets", OTHER)
    fixed_teacher.output("teacher").unlink()
    write_npz(fixed_teacher.folder / "union.npz", toy_arrays(samples=300))
    union = "data.path=union.npz"
    fixed_teacher.run("student", union)
    assert set(computed(fixed_teacher, union).values()) == {0}
    cache = TargetCache(fixed_teacher.cache("training", union))
    assert len(cache.manifest.provenance["rows_taken"]) == 2


def test_two_datasets_that_overlap_by_half_cost_half_the_rows(fixed_teacher: Toy) -> None:
    before = {split: digests_of(fixed_teacher, split) for split in SPLITS}
    write_other(fixed_teacher, np.arange(100, 300))
    fixed_teacher.run("teacher-targets", OTHER)
    rows = {split: digests_of(fixed_teacher, split, OTHER) for split in SPLITS}
    assert computed(fixed_teacher, OTHER) == {split: len(rows[split] - before[split]) for split in SPLITS}
    assert sum(computed(fixed_teacher, OTHER).values()) == 100


def test_status_foretells_known_and_new_rows_and_seconds(fixed_teacher: Toy, softcache: Command) -> None:
    key, known = fixed_teacher.cache().name, len(digests_of(fixed_teacher, "training"))
    write_other(fixed_teacher, np.arange(240))
    found: list[dict[str, Any]] = json.loads(
        softcache(*fixed_teacher.arguments("status", "--json", settings=[OTHER])).out
    )
    [targets] = [entry for entry in found if entry["stage"] == "teacher-targets"]
    [training] = [unit for unit in targets["units"] if unit["label"] == "training"]
    rows = len(digests_of(fixed_teacher, "training", OTHER))
    forecast = training["forecast"]
    assert (forecast["rows"], forecast["known"], forecast["new"]) == (rows, {key: known}, rows - known)
    assert 0 < forecast["seconds"] < 60
    people = softcache(*fixed_teacher.arguments("status", settings=[OTHER])).out
    assert f"training: {forecast['line']}" in people
    assert not list(fixed_teacher.folder.glob("caches/*/unfinished.json"))


def test_status_plan_and_the_closing_line_count_what_an_interrupted_run_has_left(
    fixed_teacher: Toy, softcache: Command
) -> None:
    known = len(digests_of(fixed_teacher, "training"))
    write_other(fixed_teacher, np.arange(400))
    experiment = fixed_teacher.experiment(OTHER)
    plan, teacher = plan_of(experiment, "training"), open_teacher(experiment, "training")
    asked: list[int] = []

    def stopped(indices: NDArray[np.int64]) -> torch.Tensor:
        if len(asked) >= 50:
            raise KeyboardInterrupt
        asked.extend(indices.tolist())
        return teacher(indices)

    with pytest.raises(Interrupted):
        make_cache(experiment.shelf, plan, lambda order: stopped, no_bar, print, {})
    folder = experiment.shelf.folder_of(plan.key)
    finished = committed_blocks(folder)
    kept = sum(len(plan.block_arrays()[0].rows_of_chunk(block)) for block in finished)
    taken = sum(sum(block.inherited.values()) for block in finished.values())
    new = len(plan.rows) - known - len(asked)
    assert kept == taken + len(asked)
    line = (
        f"{len(plan.rows)} rows: {kept} kept by an interrupted run, {known - taken} known ("
        if known > taken
        else (f"{len(plan.rows)} rows: {kept} kept by an interrupted run, {new} new")
    )
    assert f"training: {line}" in softcache(*fixed_teacher.arguments("status", settings=[OTHER])).out
    planned = json.loads(softcache(*fixed_teacher.arguments("plan", "--json", settings=[OTHER])).out)
    assert planned["rows"]["training"]["new"] == new
    said = softcache(*fixed_teacher.arguments("teacher-targets", settings=[OTHER]))
    [closing] = [line for line in said.out.splitlines() if line.startswith("teacher-targets training")]
    assert f"({new} by the teacher now" in closing
    assert f"{kept} kept of an interrupted run" in closing


def test_a_damaged_donor_is_said_and_what_it_cannot_give_is_computed(fixed_teacher: Toy, softcache: Command) -> None:
    donor, known = fixed_teacher.cache(), len(digests_of(fixed_teacher, "training"))
    block = donor / "targets.zarr/soft_targets/c.1.0"
    content = bytearray(block.read_bytes())
    content[100] ^= 4
    block.write_bytes(content)
    write_other(fixed_teacher, np.arange(240))
    said = softcache(*fixed_teacher.arguments("teacher-targets", settings=[OTHER]))
    assert said.code == 0
    assert f"blocks that cache {donor.name[:12]} was to give are damaged, so 32 rows are not taken" in said.err
    new = len(digests_of(fixed_teacher, "training", OTHER)) - known
    assert computed(fixed_teacher, OTHER)["training"] == new + 32
    verify(fixed_teacher.cache("training", OTHER))


def test_caches_show_tells_what_was_inherited(fixed_teacher: Toy, softcache: Command) -> None:
    donor, known = fixed_teacher.cache().name, len(digests_of(fixed_teacher, "training"))
    write_other(fixed_teacher, np.arange(240))
    fixed_teacher.run("teacher-targets", OTHER)
    shown = softcache(
        "caches", "show", fixed_teacher.cache("training", OTHER).name, "--workspace", str(fixed_teacher.folder)
    ).out
    assert f"{known} rows were taken from cache {donor[:12]} and count as it measured its own" in shown
