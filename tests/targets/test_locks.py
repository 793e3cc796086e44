"""Two runs never work on the same key at once, and a lock dies with its process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import LockedError
from pipeline.locks import locked
from tests.targets.tiny import Tiny

HOLD = """
import sys
from pathlib import Path
from pipeline.locks import locked
with locked(Path(sys.argv[1]), "the thing"):
    print("held", flush=True)
    sys.stdin.read()
"""


def start_holder(path: Path) -> subprocess.Popen[str]:
    """A process that holds the lock until its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "key"
    holder = start_holder(path)
    with pytest.raises(LockedError) as refused, locked(path, "the thing"):
        pass
    assert str(refused.value).startswith(
        f"the thing is being made by another run: process {holder.pid} on {socket.gethostname()}. "
    )
    assert refused.value.exit_code == 4
    assert path.read_text() == f"{holder.pid} {socket.gethostname()}\n"
    holder.communicate()
    with locked(path, "the thing"):
        assert path.read_text() == f"{os.getpid()} {socket.gethostname()}\n"


def test_a_lock_is_free_when_its_holder_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "key"
    holder = start_holder(path)
    holder.kill()
    holder.communicate()
    assert holder.returncode == -signal.SIGKILL
    with locked(path, "the thing"):
        pass


def test_a_lock_is_free_after_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked(tmp_path / "key", "the thing"):
            raise ZeroDivisionError


def test_two_runs_cannot_make_the_same_cache(tmp_path: Path) -> None:
    tiny = Tiny()
    key = tiny.plan().key
    holder = start_holder(tmp_path / ".locks" / key)
    with pytest.raises(LockedError, match=rf"cache {key[:12]} is being made by another run: process {holder.pid} on "):
        tiny.make(tmp_path)
    assert not (tmp_path / key).exists()
    holder.communicate()
    tiny.make(tmp_path)
