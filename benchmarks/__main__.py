"""All benchmark programs of a target, each in a process of its own; then RESULTS.md and its plots.

python -m benchmarks            what `make bench` runs: writes RESULTS.md, results.svg and encodings.svg
python -m benchmarks storage    what `make bench-storage` runs: writes its own part, and storage.svg
python -m benchmarks --quick    every program of `make bench` once, on little data: says whether they run, writes nothing
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.results import FOLDER, circumstances, plot, plot_storage, section, written_into

PROGRAMS = {
    "bench": ("teacher_pass", "reuse", "kd_epoch", "online", "memory", "encodings", "scale"),
    "bench-storage": ("storage",),
}
PICTURES = {
    "bench": {
        "results.svg": "Ratios of each benchmark against their targets, and what the cache saves over epochs",
        "encodings.svg": "Bytes a row against the mean KL of each encoding",
    },
    "bench-storage": {
        "storage.svg": "Speed of a shuffled epoch, of target caches and of other ways of storing soft targets"
    },
}


def draw(target: str, series: Mapping[str, Any], folder: Path) -> None:
    """The plots of a target."""
    if target == "bench-storage":
        plot_storage(series["storage"], folder / "storage.svg")
        return
    from benchmarks.encodings import draw_encodings

    plot(series, folder / "results.svg")
    draw_encodings(series["encodings"], folder / "encodings.svg")


def ran(program: str, quick: bool) -> tuple[str, Any]:
    """What a program printed from its first table on, and its series."""
    with tempfile.TemporaryDirectory() as place:
        found = Path(place, "found.json")
        command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{program}", "--json", str(found)]
        ended = subprocess.run(
            [*command, *(["--quick"] if quick else [])], check=True, stdout=subprocess.PIPE, text=True
        )
        print(ended.stdout, flush=True)
        return ended.stdout[ended.stdout.index("### ") :].strip(), json.loads(found.read_text())["series"]


def main() -> None:
    """Run the programs and, unless the run was a quick one, write what they found."""
    quick, target = "--quick" in sys.argv[1:], "bench-storage" if "storage" in sys.argv[1:] else "bench"
    described = circumstances()  # first: the load is that of others
    found = {program: ran(program, quick) for program in PROGRAMS[target]}
    series = {program: values for program, (_, values) in found.items()}
    if quick:
        with tempfile.TemporaryDirectory() as place:
            draw(target, series, Path(place))
        print(f"{described}\nquick: nothing was written")
        return
    draw(target, series, FOLDER)
    made = section(target, [table for table, _ in found.values()], described, PICTURES[target])
    results = FOLDER / "RESULTS.md"
    results.write_text(written_into(results.read_text("utf-8"), made, target), "utf-8")
    print(f"{described}\n-> {results}, {', '.join(PICTURES[target])}")


if __name__ == "__main__":
    main()
