"""A repacked cache holds the same rows under the same key, and a kill leaves one of the two, whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import CorruptCacheError
from pipeline.locks import locked
from pipeline.targets.reader import TargetCache
from pipeline.targets.repack import repack
from pipeline.targets.verification import verify
from tests.targets.tiny import DTYPES, LAYOUT_NAMES, Tiny, files_of, made_content

KILLED_BEFORE_THE_EXCHANGE = """
import os, signal, sys
from pathlib import Path
from pipeline.targets import repack
repack._exchange = lambda one, other: os.kill(os.getpid(), signal.SIGKILL)
repack.repack(Path(sys.argv[1]), sys.argv[2])
"""


def other(layout: str) -> str:
    return LAYOUT_NAMES[1 - LAYOUT_NAMES.index(layout)]


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_repacked_cache_is_the_one_that_the_teacher_would_have_made_in_that_layout(
    layout: str, dtype: str, tmp_path: Path
) -> None:
    folder = Tiny(layout, dtype).make(tmp_path / "one").folder
    expected = Tiny(other(layout), dtype).make(tmp_path / "two").folder
    assert repack(folder, other(layout))
    verify(folder)
    assert made_content(folder) == made_content(expected)
    assert [path.name for path in (tmp_path / "one").iterdir() if path.name != ".locks"] == [folder.name]


def test_there_and_back_again_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = Tiny().make(tmp_path).folder
    before = made_content(folder)
    assert repack(folder, "hdf5")
    assert repack(folder, "zarr")
    assert made_content(folder) == before
    assert not repack(folder, "zarr")


def test_a_damaged_cache_is_not_repacked(tmp_path: Path) -> None:
    folder = Tiny().make(tmp_path).folder
    block = folder / "targets.zarr" / "soft_targets" / "c.1.0"
    block.write_bytes(b"\xff" + block.read_bytes()[1:])
    before = files_of(folder)
    with pytest.raises(CorruptCacheError, match=r"soft_targets/c\.1\.0"):
        repack(folder, "hdf5")
    assert files_of(folder) == before


def test_a_repacking_killed_before_the_exchange_changes_nothing_and_can_be_done_again(tmp_path: Path) -> None:
    tiny = Tiny()
    folder = tiny.make(tmp_path).folder
    before = files_of(folder)
    command = [sys.executable, "-c", KILLED_BEFORE_THE_EXCHANGE, str(folder), "hdf5"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    assert files_of(folder) == before
    assert repack(folder, "hdf5")
    cache = TargetCache(folder)
    np.testing.assert_allclose(cache.soft_targets(np.arange(tiny.rows)).numpy(), tiny.exact(), rtol=0, atol=1e-3)


def test_a_repacking_waits_for_nobody(tmp_path: Path) -> None:
    folder = Tiny().make(tmp_path).folder
    code = "import sys\nfrom pathlib import Path\nfrom pipeline.targets.repack import repack\nrepack(Path(sys.argv[1]), 'hdf5')"
    with locked(tmp_path / ".locks" / folder.name, "it"):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-c", code, str(folder)]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert f"LockedError: cache {folder.name[:12]} is being made by another run: process {os.getpid()}" in ran.stderr
