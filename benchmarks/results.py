"""RESULTS.md and its plots: what `make bench` and `make bench-storage` found, with date, commit and machine."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def circumstances() -> str:
    """Date, commit, processor, threads and versions, as one line."""
    import torch

    git = ["git", "-C", str(FOLDER)]
    commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run(
        [*git, "status", "--porcelain"], capture_output=True, text=True, check=False
    ).stdout.strip()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit.stdout.strip() or 'unknown'}{' with changes' if changed else ''}, "
        f"{_processor()}, {os.cpu_count()} cores, {gpu}, {torch.get_num_threads()} torch threads, load before "
        f"{os.getloadavg()[0]:.1f}; Python {platform.python_version()}, torch {torch.__version__}"
    )


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def marks(target: str) -> tuple[str, str]:
    """The comments around the part of RESULTS.md that one target of the Makefile writes."""
    return f"<!-- make {target} -->", f"<!-- end of make {target} -->"


def section(target: str, tables: list[str], circumstances: str, pictures: Mapping[str, str]) -> str:
    """The part of RESULTS.md that `make TARGET` writes; `pictures` are descriptions by file."""
    begin, end = marks(target)
    head = (
        f"## `make {target}`\n\n"
        + circumstances
        + ". Ratios are medians over rounds in which both sides run one after the other."
    )
    plots = [f"![{described}]({file})" for file, described in pictures.items()]
    return "\n\n".join([begin, head, *tables, *plots, end])


def written_into(text: str, made: str, target: str) -> str:
    """RESULTS.md with the part of `make TARGET` replaced, or appended where there was none."""
    begin, end = marks(target)
    if begin not in text:
        return text.rstrip("\n") + "\n\n" + made + "\n"
    before, _, rest = text.partition(begin)
    return before + made + rest.partition(end)[2]


def plot(series: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Four panels as SVG: the two ratios, seconds over epochs with and without a cache, memory over rows."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    with mpl.rc_context({"svg.hashsalt": "softcache", "font.size": 9}):
        figure, panels = pyplot.subplots(2, 2, figsize=(9, 6.5), layout="constrained")
        _ratios(panels[0, 0], series["teacher_pass"], "teacher-targets / bare loop")
        _ratios(panels[0, 1], series["kd_epoch"], "distillation epoch / label-only epoch")
        _epochs(panels[1, 0], series["online"])
        _memory(panels[1, 1], series["memory"])
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def plot_storage(series: Mapping[str, Any], path: Path) -> None:
    """The speed of every way of reading, as SVG: ours, and others, over the baseline."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    ratios, ours = series["ratios"], set(series["ours"])
    names = sorted(ratios, key=lambda name: ratios[name])
    with mpl.rc_context({"svg.hashsalt": "softcache", "font.size": 8}):
        figure, panel = pyplot.subplots(figsize=(9, 0.19 * len(names) + 1), layout="constrained")
        colours = ["#4477aa" if name in ours else "#bbbbbb" for name in names]
        bars = panel.barh(names, [ratios[name] for name in names], color=colours)
        panel.bar_label(bars, fmt="%.3g", padding=2)
        panel.set_xscale("log")
        panel.set_xlim(right=2.5 * max(ratios.values()))
        panel.axvline(1.0, color="#cc3311", linestyle="--")
        panel.margins(y=0.01)
        panel.set_xlabel("rows a second, over those of a random gather from np.memmap (dashed); blue: target caches")
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def _ratios(panel: Any, found: Mapping[str, Any], title: str) -> None:
    bars = panel.barh(found["names"], found["ratios"], color="#4477aa", height=0.5)
    panel.bar_label(bars, fmt="%.3f", label_type="center", color="white")
    panel.axvline(found["limit"], color="#cc3311", linestyle="--", label=f"at most {found['limit']:g}")
    panel.set_xlim(0, 1.25 * max(*found["ratios"], found["limit"]))
    panel.set_title(title)
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False)


def _epochs(panel: Any, found: Mapping[str, Any]) -> None:
    epochs = list(range(11))
    cached = [found["making"] + epoch * found["cached"] for epoch in epochs]
    panel.plot(epochs, cached, color="#4477aa", marker="o", label="cached, with making the cache")
    panel.plot(
        epochs, [epoch * found["online"] for epoch in epochs], color="#cc3311", marker="s", label="teacher in the loop"
    )
    panel.set_xlabel("epochs of the student")
    panel.set_ylabel("seconds in all")
    panel.set_title("cached against online distillation")
    panel.legend()


def _memory(panel: Any, found: Mapping[str, Any]) -> None:
    thousands = [rows / 1000 for rows in found["rows"]]
    panel.plot(thousands, [peak / 1e6 for peak in found["peaks"]], color="#4477aa", marker="o", label="peak RssAnon")
    first, last = found["rows"]
    allowed = [found["peaks"][0] / 1e6, (found["peaks"][0] + 40 * (last - first)) / 1e6]
    panel.plot(thousands, allowed, color="#cc3311", linestyle="--", label="40 bytes for each row more")
    panel.set_xlabel("thousands of rows")
    panel.set_ylabel("MB")
    panel.set_ylim(bottom=0)
    panel.set_title("anonymous memory of a student's epoch")
    panel.legend(loc="lower right")
