"""What people see of long work, in a real terminal and without one."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import progress
from pipeline.progress import Advance, Bar, Meter, Note, no_bar, stderr_bar
from pipeline.targets.repack import repack
from pipeline.targets.shelf import Shelf
from pipeline.targets.verification import verify
from pipeline.teacher_pass import make_cache
from tests.stages.toy import new_toy
from tests.targets.tiny import Tiny

ROOT = Path(__file__).parents[1]


class Clock:
    """A clock that stands until it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def metered(total: int, unit: str, bytes_each: float = 0.0) -> tuple[Meter, Clock]:
    clock = Clock()
    return Meter(total, unit, bytes_each, clock), clock


def test_rows_their_bytes_and_the_remaining_time_are_shown() -> None:
    meter, clock = metered(60_000, "rows", bytes_each=2000)
    assert meter.text() == "0 of 60,000 rows"
    meter.add(1024)
    clock.now = 0.2
    assert meter.text() == "1,024 of 60,000 rows, 5,120 rows/s, 10.2 MB/s, 00:12 left"


def test_steps_of_an_earlier_run_are_done_but_make_no_rate() -> None:
    meter, clock = metered(1000, "steps")
    meter.add(900, earlier=True)
    clock.now = 2.0
    assert meter.text() == "900 of 1,000 steps"
    meter.add(1)
    assert meter.text() == "901 of 1,000 steps, 0.5 steps/s, 03:18 left"


def test_bytes_are_shown_as_megabytes() -> None:
    meter, clock = metered(4_000_000_000, "bytes")
    meter.add(16_000_000)
    clock.now = 0.01
    assert meter.text() == "16 of 4,000 MB, 1,600 MB/s, 00:02 left"


def test_hours_are_shown_where_there_are_any() -> None:
    meter, clock = metered(7200, "rows")
    meter.add(1)
    clock.now = 1.0
    assert meter.text().endswith("1:59:59 left")


@given(
    total=st.integers(1, 10**12),
    parts=st.lists(st.tuples(st.integers(0, 10**9), st.booleans())),
    seconds=st.floats(0, 1e6),
)
def test_any_amount_in_any_time_can_be_shown(total: int, parts: list[tuple[int, bool]], seconds: float) -> None:
    meter, clock = metered(total, "rows", 16)
    for amount, earlier in parts:
        meter.add(amount, earlier=earlier)
    clock.now = seconds
    assert meter.text().startswith(f"{meter.done:,} of {total:,} rows")


def test_without_a_terminal_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stderr_bar("training", 10, "steps") as advance:
        for _ in range(10):
            advance(1, pytest.fail)  # a note is not asked for when nothing is shown
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with stderr_bar("training", 10, "steps") as advance:
        advance(4, earlier=True)
        advance(1, lambda: "loss 0.5")
    [line] = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"training: 5 of 10 steps, [\d.,]+ steps/s, \d\d:\d\d left, loss 0.5", line)


def test_no_bar_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with no_bar("training", 2, "steps", 8) as advance:
        advance(1, lambda: "loss 0.5")
        advance(1, earlier=True)
    assert capsys.readouterr() == ("", "")


@dataclass
class Shown:
    """A bar that remembers what it was told: what, total, unit, bytes of each, and the amounts."""

    what: str
    total: int
    unit: str
    bytes_each: float
    amounts: list[int] = field(default_factory=list)


def remembering(shown: list[Shown]) -> Bar:
    @contextmanager
    def bar(what: str, total: int, unit: str, bytes_each: float = 0.0) -> Iterator[Advance]:
        shown.append(Shown(what, total, unit, bytes_each))

        def advance(amount: int, note: Note | None = None, *, earlier: bool = False) -> None:
            shown[-1].amounts.append(amount)

        yield advance

    return bar


@pytest.mark.parametrize("layout", ["zarr", "hdf5"])
def test_every_bar_of_a_cache_ends_where_it_said(layout: str, tmp_path: Path) -> None:
    tiny, shown = Tiny(layout), list[Shown]()
    bar = remembering(shown)
    plan, other = tiny.plan(), {"zarr": "hdf5", "hdf5": "zarr"}[layout]
    made = make_cache(Shelf(tmp_path), plan, lambda order: tiny.teacher(), bar, lambda text: None, {"recipe": "tiny"})
    verify(made.folder, bar)
    assert repack(made.folder, other, bar)
    assert [(one.what.split(" ")[0], one.total, one.unit, one.bytes_each) for one in shown] == [
        ("teacher-targets,", 23, "rows", 8.0),  # 4 classes in float16
        ("verifying", 2 * (23 * 28 + 200) + 200, "bytes", 0.0),  # 28 bytes of index arrays a row, 5 blocks of 5 rows
        ("verifying", 23 * 28 + 200, "bytes", 0.0),
        ("writing", 200, "bytes", 0.0),
    ]
    assert [sum(one.amounts) for one in shown] == [one.total for one in shown]


IN_A_TERMINAL = """
from pipeline.progress import stderr_bar
with stderr_bar("teacher-targets, training", 400, "rows", 2000.0) as advance:
    for _ in range(4):
        advance(100, lambda: "loss 0.25")
print("result")
"""


def seen_in_a_terminal(*command: str, columns: int = 150, rows: int = 40) -> tuple[str, str]:
    """(stdout, what a terminal of so many columns got of stderr) of a process that ends well."""
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (rows, columns))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=follower, env=environment, text=True
    )
    os.close(follower)
    shown = b""
    while select.select([leader], [], [], 60)[0]:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # Linux says EIO when the other side was closed
            break
        if not piece:
            break
        shown += piece
    os.close(leader)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, shown.decode()
    return out, shown.decode()


def test_a_terminal_gets_a_bar_which_is_gone_when_the_work_is_done() -> None:
    out, shown = seen_in_a_terminal("-c", IN_A_TERMINAL)
    assert out == "result\n"
    pattern = r"teacher-targets, training:  25%\|.+\| 100 of 400 rows, [\d.,e+]+ rows/s, [\d.,e+]+ MB/s, 00:00 left, loss 0.25"
    assert re.search(pattern, shown)
    assert shown.rstrip("\r").endswith(" ")  # written over with blanks


@pytest.mark.parametrize("rows", [0, 40])
def test_a_terminal_that_does_not_know_its_size_gets_80_columns(rows: int) -> None:
    _, shown = seen_in_a_terminal("-c", IN_A_TERMINAL, columns=0, rows=rows)
    assert "teacher-targets, training:  25%|" in shown
    assert max(map(len, shown.split("\r"))) <= 80


def test_a_stage_shows_its_bars_in_a_terminal_and_prints_results_to_stdout(tmp_path: Path) -> None:
    toy = new_toy(tmp_path / "toy")
    out, shown = seen_in_a_terminal("-m", "stages.cli", *toy.arguments("student"))
    assert "student seed 0: " in out
    assert re.search(
        r"training, cpu with 1 thread, float32: .*of 40 steps, [\d.,]+ steps/s, \d\d:\d\d left, loss \d", shown
    )
    assert re.search(r"teacher-targets, training: .*of \d+ rows, [\d.,]+ rows/s, [\d.e-]+ MB/s, \d\d:\d\d left", shown)
    _, verified = seen_in_a_terminal("-m", "stages.cli", "caches", "verify", "--workspace", str(toy.folder))
    assert re.search(r"verifying [0-9a-f]+: .*[\d.]+ of [\d.]+ MB, [\d.,]+ MB/s, \d\d:\d\d left", verified)
