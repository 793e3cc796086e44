"""All benchmark programs, each in a process of its own; then RESULTS.md and its plot.

python -m benchmarks            what `make bench` runs: writes RESULTS.md and results.svg
python -m benchmarks --quick    every program once, on little data: says whether they run, writes nothing
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.results import FOLDER, circumstances, plot, section, written_into

PROGRAMS = ("teacher_pass", "kd_epoch", "online", "memory")


def main() -> None:
    """Run the programs and, unless the run was a quick one, write what they found."""
    quick = "--quick" in sys.argv[1:]
    described = circumstances()  # first: the load is that of others
    tables, series = [], {}
    with tempfile.TemporaryDirectory() as place:
        for program in PROGRAMS:
            found = Path(place, f"{program}.json")
            command = [
                sys.executable,
                "-m",
                f"benchmarks.{program}",
                "--json",
                str(found),
                *(["--quick"] if quick else []),
            ]
            ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            print(ran.stdout, flush=True)
            tables.append(ran.stdout[ran.stdout.index("### ") :].strip())
            series[program] = json.loads(found.read_text())["series"]
        picture = Path(place, "results.svg") if quick else FOLDER / "results.svg"
        plot(series, picture)
    made = section(tables, described)
    if quick:
        print(f"{described}\nquick: nothing was written")
        return
    results = FOLDER / "RESULTS.md"
    results.write_text(written_into(results.read_text("utf-8"), made), "utf-8")
    print(f"{described}\n-> {results}, {picture}")


if __name__ == "__main__":
    main()
