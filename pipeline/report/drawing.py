"""Drawing with matplotlib into SVG that lives inside a page: its colours, its fonts, a text alternative for each plot."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Each is a colour that nothing else uses; in the page it becomes a variable of the style sheet, so that one plot serves
# light, dark and paper.
INK, FAINT, GRID, PAPER = "#000001", "#000002", "#000003", "#000004"
TEACHER, STUDENT, BASELINE = "#000005", "#000006", "#000007"
RUNS = tuple(f"#0000{10 + place}" for place in range(8))
VARIABLES = {
    INK: "currentColor",
    FAINT: "var(--faint)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
    TEACHER: "var(--teacher)",
    STUDENT: "var(--student)",
    BASELINE: "var(--baseline)",
    **{colour: f"var(--run-{place})" for place, colour in enumerate(RUNS, 1)},
}
WIDTH = 4.7  # inches of 72 units: a phone's width, so that its text is as large there as it says here
FONT_SIZE = 11.5


@dataclass(frozen=True)
class Plot:
    """One plot: inline SVG, a caption, and its numbers as a table (a header and rows) where these are of use."""

    svg: str
    caption: str
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Mark:
    """How one line is drawn: never by colour alone."""

    name: str
    colour: str
    line: str
    marker: str


MARKS = {
    "teacher": Mark("teacher", TEACHER, ":", "^"),
    "student": Mark("student", STUDENT, "-", "s"),
    "baseline": Mark("label-only", BASELINE, "--", "o"),
}


@contextmanager
def drawing(name: str) -> Iterator[None]:
    """matplotlib set up for one plot; `name` keeps the ids of one plot apart from those of another on the same page."""
    import matplotlib as mpl

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "font.size": FONT_SIZE,
        "axes.titlesize": FONT_SIZE,
        "axes.labelsize": FONT_SIZE,
        "axes.titlelocation": "left",
        "legend.fontsize": FONT_SIZE,
        "legend.frameon": False,
        "xtick.labelsize": FONT_SIZE - 1,
        "ytick.labelsize": FONT_SIZE - 1,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "grid.color": GRID,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.unicode_minus": True,
        "lines.linewidth": 2.0,
        "lines.markersize": 5.0,
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        # The page's own fonts draw the text; that matplotlib's lacks a letter only makes its measure of it a guess.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def panels(rows: int, height: float, ratios: tuple[float, ...] | None = None) -> tuple[Figure, list[Axes]]:
    """A figure with `rows` axes above each other that share x; `height` in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    grid = figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=ratios)
    axes: list[Axes] = list(grid[:, 0])
    for one in axes:
        one.patch.set_alpha(0.0)
    return figure, axes


def inline_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an <svg> element with a title and a description for those who do not see it.

    The same figure gives the same text: there is no date in it, and its ids follow from `name`.
    """
    file = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    referred = set(re.findall(r'"(?:url\()?#([^")]+)', text))
    text = re.sub(r"<[^>]+>", lambda tag: _for_the_page(tag[0], referred), text)
    box = re.search(r'viewBox="[^"]+"', text)
    assert box is not None
    opening = (
        f'<svg {box[0]} role="img" aria-labelledby="{name}-title {name}-description" xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink"><title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-description">{escape(description)}</desc>'
    )
    return re.sub(r"<svg .*?>", lambda found: opening, text, count=1, flags=re.DOTALL).strip()


def _for_the_page(tag: str, referred: set[str]) -> str:
    """One tag of matplotlib's SVG without an id that nothing refers to, in the colours of the style sheet."""
    tag = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in referred else "", tag)
    return re.sub("#[0-9a-f]{6}", lambda found: VARIABLES.get(found[0], found[0]), tag)
