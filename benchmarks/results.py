"""RESULTS.md and results.svg: what `make bench` found, with its date, commit and machine."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- make bench -->", "<!-- end of make bench -->"


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


def section(tables: list[str], circumstances: str) -> str:
    """The part of RESULTS.md that `make bench` writes."""
    head = (
        "## `make bench`\n\n"
        + circumstances
        + ". Ratios are medians over rounds in which both sides run one after the other."
    )
    plot = "![Ratios of each benchmark against their targets, and what the cache saves over epochs](results.svg)"
    return "\n\n".join([BEGIN, head, *tables, plot, END])


def written_into(text: str, made: str) -> str:
    """RESULTS.md with its part by `make bench` replaced, or appended where there was none."""
    if BEGIN not in text:
        return text.rstrip("\n") + "\n\n" + made + "\n"
    before, _, rest = text.partition(BEGIN)
    return before + made + rest.partition(END)[2]


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
