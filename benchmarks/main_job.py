"""The main job of the default recipe, timed as a user types it: from nothing, and again when nothing is left to do.

    .venv/bin/python benchmarks/main_job.py

prints the rows of RESULTS.md. Start-up is that of Python and typer alone, measured in the same rounds.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time

ROUNDS = 7


def seconds(*arguments: str) -> float:
    """Wall time of one Python process with these arguments."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Time the main job once, and the no-op and the start-up in alternation."""
    with tempfile.TemporaryDirectory() as workspace:

        def softcache(stage: str) -> float:
            return seconds("-m", "stages.cli", stage, "digits", "--workspace", workspace)

        first_student, first_evaluate = softcache("student"), softcache("evaluate")
        rounds = [(seconds("-c", "import typer"), softcache("student")) for _ in range(ROUNDS)]
    start_up = statistics.median(plain for plain, _ in rounds)
    again = statistics.median(no_op for _, no_op in rounds)
    print(f"| first `student`, then `evaluate` | {first_student:.1f} s + {first_evaluate:.1f} s |")
    print(f"| Python's and typer's start-up (median of {ROUNDS}) | {start_up:.3f} s |")
    print(f"| second `student` (median of {ROUNDS}) | {again:.3f} s: {again - start_up:.3f} s beyond the start-up |")


if __name__ == "__main__":
    main()
