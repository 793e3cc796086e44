"""A folder of a million small images: seconds and anonymous memory of the first look at it, and of every later one.

python -m benchmarks.million [--quick] [--json FILE] [--folder FOLDER] [--images N]

N (default 1,000,000) and N / 10 images of 16 x 16 pixels are written in FOLDER (default: where temporary files go), in 1000
folders of classes, and removed. `softcache status` and `softcache plan` are run as programs of their own, in a workspace
where nothing ran. Files stay in the page cache and their names in the kernel's: after a reboot, a disk's time comes on top.

The parent reads RssAnon of the process and of those that it started from /proc every 20 ms; the sum counts.
"""

from __future__ import annotations

import os
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rounds import Findings, Row, at_most, reported, run, seconds_of

IMAGES, QUICK_IMAGES, CLASSES, QUICK_CLASSES = 1_000_000, 5000, 1000, 10
SIDE = 16
ROUNDS = 3
SECONDS_BETWEEN_READINGS = 0.02  # a reading takes a processor that the work could use
MOST_SECONDS = 5.0

RECIPE = """\
name = "million"

[data]
kind = "folder"
path = "images"
normalise = { mean = [128.0], std = [64.0] }

[teacher]
model = "mlp"
options = { hidden = [64] }
training = { steps = 1000, batch_size = 64, learning_rate = 1e-2, validate_every = 1000 }

[student]
model = "mlp"
options = { hidden = [16] }
training = { steps = 1000, batch_size = 64, learning_rate = 1e-2, validate_every = 1000 }
"""


@dataclass(frozen=True)
class Ran:
    """What one run of the command line took."""

    seconds: float
    anonymous_bytes: int  # at most at once, processes that it started included


def png(number: int) -> bytes:
    """A grey image that no other number has: noise, stored without compression (PNG specification, section 11)."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    pixels = number.to_bytes(8, "big") + random.Random(number).randbytes(SIDE * SIDE - 8)
    rows = b"".join(b"\0" + pixels[start : start + SIDE] for start in range(0, len(pixels), SIDE))
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 0)) + chunk(b"IEND", b"")


def make(root: Path, images: int, classes: int, first: int, step: int) -> None:
    """Every `step`-th class folder from the `first` on, with its images."""
    for label in range(first, classes, step):
        folder = root / f"class_{label:04}"
        folder.mkdir(parents=True)
        for number in range(label, images, classes):
            (folder / f"image_{number:07}.png").write_bytes(png(number))


def make_apart(workspace: Path, images: int, classes: int) -> None:
    """A workspace with a recipe and its images, written by a process for each core."""
    workspace.mkdir()
    (workspace / "million.toml").write_text(RECIPE)
    cores = os.cpu_count() or 1
    command = [sys.executable, "-m", "benchmarks.million", "make", str(workspace / "images"), str(images), str(classes)]
    makers = [subprocess.Popen([*command, str(first), str(cores)]) for first in range(cores)]
    ended = [maker.wait() for maker in makers]
    if any(ended):
        raise RuntimeError(f"the images of {workspace} could not be written")


def softcache(workspace: Path, command: str) -> Ran:
    """Run the command line in a workspace, and watch its memory."""
    words = [sys.executable, "-m", "stages.cli", command, str(workspace / "million.toml")]
    started, largest = time.perf_counter(), 0
    with subprocess.Popen(
        [*words, "--workspace", str(workspace), "--data-dir", str(workspace)], stdout=subprocess.DEVNULL
    ) as child:
        while child.poll() is None:
            largest = max(largest, sum(map(anonymous_bytes, [child.pid, *started_by(child.pid)])))
            time.sleep(SECONDS_BETWEEN_READINGS)
    if child.returncode != 0:
        raise RuntimeError(f"softcache {command} ended with {child.returncode}")
    return Ran(time.perf_counter() - started, largest)


def anonymous_bytes(process: int) -> int:
    """RssAnon of a process; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def started_by(process: int) -> list[int]:
    """The processes that one has started, and has not waited for."""
    found: list[int] = []
    try:
        for thread in Path(f"/proc/{process}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    except OSError:  # it ended meanwhile
        pass
    return found


def look_rows(small: tuple[int, Ran], large: tuple[int, Ran]) -> list[Row]:
    """The first look at the larger folder, and how much more memory each image more takes."""
    (few, low), (many, high) = small, large
    per_image = (high.anonymous_bytes - low.anonymous_bytes) / (many - few)
    return [
        reported(
            f"`softcache status` on {many:,} images of {SIDE} x {SIDE} that it never saw",
            f"{high.seconds:.1f} s, {many / high.seconds:,.0f} images/s",
            high.seconds,
        ),
        reported(
            "peak RssAnon of it",
            f"{low.anonymous_bytes / 1e6:.1f} MB at {few:,} images, {high.anonymous_bytes / 1e6:.1f} MB at {many:,}: "
            f"{per_image:.0f} bytes for each image more",
            per_image,
        ),
    ]


def again_row(command: str, images: int, rounds: list[Ran]) -> Row:
    """A command that looks at the folder for the second time, and later."""
    seconds = [ran.seconds for ran in rounds]
    median, peak = statistics.median(seconds), max(ran.anonymous_bytes for ran in rounds)
    words = (
        f"{median:.2f} s ({min(seconds):.2f} to {max(seconds):.2f} in {len(seconds)} runs); RssAnon {peak / 1e6:.1f} MB"
    )
    return at_most(f"`softcache {command}` on {images:,} images again", words, median, MOST_SECONDS)


def measure(quick: bool) -> Findings:
    """The first look at two sizes; a plan and every later look at the larger."""
    images = QUICK_IMAGES if quick else int(_argument("--images") or IMAGES)
    classes, rounds = QUICK_CLASSES if quick else CLASSES, 1 if quick else ROUNDS
    with tempfile.TemporaryDirectory(dir=_argument("--folder")) as place:
        small, large = Path(place, "small"), Path(place, "large")
        make_apart(small, images // 10, classes)
        making = seconds_of(lambda: make_apart(large, images, classes))
        looks = look_rows((images // 10, softcache(small, "status")), (images, softcache(large, "status")))
        again = again_row("status", images, [softcache(large, "status") for _ in range(rounds)])
        plan = softcache(large, "plan")
        planned = reported(
            "`softcache plan` on them, with its rehearsal (torch is loaded, and some images are kept)",
            f"{plan.seconds:.1f} s; RssAnon {plan.anonymous_bytes / 1e6:.1f} MB",
            plan.seconds,
        )
        plan_again = again_row("plan", images, [softcache(large, "plan") for _ in range(rounds)])
    print(f"{images:,} images were written in {making:.1f} s", file=sys.stderr)
    return Findings("A folder of many images", [*looks, again, planned, plan_again])


def _argument(name: str) -> str | None:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else None


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        make(Path(sys.argv[2]), *map(int, sys.argv[3:7]))
    else:
        run(measure)
