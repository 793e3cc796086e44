"""The shelf: hidden folders are no caches, and a cache that cannot be read is said to be passed over, once."""

from __future__ import annotations

from pathlib import Path

from pipeline.canonical import digest_of
from pipeline.targets.shelf import Shelf
from tests.targets.tiny import Tiny


def test_what_a_killed_command_left_is_no_cache_and_serves_nobody(tmp_path: Path) -> None:
    tiny = Tiny()
    plan, folder = tiny.plan(), tiny.make(tmp_path).folder
    shelf, wanted = Shelf(tmp_path), lambda: plan.rows.digests[plan.rows.views == 0]
    assert shelf.serving(plan.row_key, digest_of("another dataset"), wanted) == folder
    for name in (".removing-", ".repacking-", ".plan-"):
        folder = folder.rename(tmp_path / f"{name}{plan.key}")
        assert shelf.folders() == []
        assert list(shelf.sealed()) == []
        assert shelf.serving(plan.row_key, digest_of("another dataset"), wanted) is None


def test_a_damaged_cache_is_said_to_be_passed_over_once(tmp_path: Path) -> None:
    tiny = Tiny()
    plan, folder = tiny.plan(), tiny.make(tmp_path).folder
    for path in folder.rglob("*"):
        if path.is_file() and "sample_digest" in str(path.parent) and path.name.startswith("c"):
            path.write_bytes(bytes(path.stat().st_size))
    said: list[str] = []
    shelf = Shelf(tmp_path, said.append)
    for _ in range(3):
        assert shelf.serving(plan.row_key, digest_of("another dataset"), tiny.digests) is None
    assert len(said) == 1
    assert said[0].startswith(
        f"warning: {folder} is passed over; where its rows are asked for, other caches give them or they are computed. cache "
    )


def test_a_cache_with_a_damaged_manifest_is_said_to_be_passed_over_once(tmp_path: Path) -> None:
    folder = Tiny().make(tmp_path).folder
    (folder / "manifest.json").write_text("{")
    said: list[str] = []
    shelf = Shelf(tmp_path, said.append)
    assert [*shelf.sealed(), *shelf.sealed()] == []
    assert [line.partition(";")[0] for line in said] == [f"warning: {folder} is passed over"]
