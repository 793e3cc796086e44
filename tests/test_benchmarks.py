"""Every benchmark program runs, and what they find is written where it belongs. No speed is asserted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.results import marks, section, written_into
from benchmarks.rounds import Findings, alternately, at_least, at_most, median_ratio, table_of

ROOT = Path(__file__).parents[1]
BEGIN, END = marks("bench")
TEXT = st.text(st.characters(blacklist_categories=["Cs"])).filter(lambda text: BEGIN not in text and END not in text)


def test_every_program_runs_and_a_quick_run_writes_nothing() -> None:
    before = {path: path.read_bytes() for path in (ROOT / "benchmarks").glob("*") if path.is_file()}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks", "--quick"]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    titles = [line for line in ran.stdout.splitlines() if line.startswith("### ")]
    assert len(titles) == 7
    assert "teacher of 58 MFLOP a sample" in ran.stdout
    assert "teacher of 252,650 parameters" in ran.stdout
    assert "student of 11,074" in ran.stdout
    assert "bytes for each row more" in ran.stdout
    assert {path: path.read_bytes() for path in (ROOT / "benchmarks").glob("*") if path.is_file()} == before


def test_the_program_for_a_gpu_runs_where_there_is_none_and_has_its_four_rows() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--quick"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    rows = [line for line in ran.stdout.splitlines() if line.startswith("| ")][2:]
    assert [
        next(name for name in ("ViT of", "causal language model", "student's step") if row.startswith(f"| {name}"))
        for row in rows
    ] == ["ViT of", "ViT of", "causal language model", "student's step"]
    assert all("at most 1.05" in row for row in rows)
    assert ["on the device" in rows[0], "from the host's memory" in rows[1], "top-64" in rows[2]] == [True] * 3


def test_works_take_turns_after_a_round_to_warm_up() -> None:
    called: list[str] = []

    def work(name: str) -> float:
        called.append(name)
        return float(len(called))

    measured = alternately(3, a=lambda: work("a"), b=lambda: work("b"))
    assert called == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert measured == {"a": [3.0, 6.0, 7.0], "b": [4.0, 5.0, 8.0]}


def test_a_ratio_is_the_median_of_the_rounds_ratios_and_not_the_ratio_of_medians() -> None:
    ratio, words = median_ratio({"a": [1.0, 9.0, 4.0], "b": [1.0, 3.0, 2.0]}, "a", "b")
    assert ratio == 2.0
    assert words == "a 4 s, b 2 s; ratio 2.000 (1.000 to 3.000 in 3 rounds)"


def test_a_target_that_is_not_reached_is_said() -> None:
    rows = [at_most("x", "1", 1.0, 1.05), at_most("y", "2", 2.0, 1.05), at_least("z", "3", 3.0, 3.0)]
    lines = table_of(Findings("t", rows)).splitlines()[4:]
    assert [line.split(" | ")[-1] for line in lines] == ["yes |", "**no** |", "yes |"]


@given(before=TEXT, after=TEXT, tables=st.lists(TEXT, max_size=3))
def test_results_are_replaced_where_they_stand(before: str, after: str, tables: list[str]) -> None:
    old, new = section("bench", ["old"], "then", {"a.svg": "a"}), section("bench", tables, "now", {})
    other = section("bench-storage", ["another target's"], "then", {})
    assert written_into(before + old + other + after, new, "bench") == before + new + other + after
    once = written_into(before, new, "bench")
    assert once == before.rstrip("\n") + "\n\n" + new + "\n"
    assert written_into(once, new, "bench") == once


def test_the_plot_is_the_same_for_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.results import plot

    ratios: dict[str, Any] = {"names": ["10 classes", "1000 classes"], "ratios": [1.01, 1.04], "limit": 1.05}
    series: dict[str, dict[str, Any]] = {
        "teacher_pass": ratios,
        "kd_epoch": ratios,
        "online": {"cached": 1.0, "online": 6.0, "making": 5.0},
        "memory": {"rows": [50_000, 500_000], "peaks": [200_000_000, 215_000_000]},
    }
    for name in ("one.svg", "two.svg"):
        plot(series, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "one.svg").read_text().startswith("<?xml")
