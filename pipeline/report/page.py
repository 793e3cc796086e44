"""Pages: a template filled with contents, as one HTML text that needs nothing else."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from pipeline.report.drawing import Plot
from pipeline.report.numbers import Cell, shortened
from pipeline.report.tables import Table


def render(template: str, contents: dict[str, Any]) -> str:
    """The page of a template ("report.html" or "compare.html").

    Names of classes, recipes and files are untrusted text: everything is escaped but our own SVG and style sheet.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    folder = files(__package__ or "pipeline.report")
    environment = Environment(
        loader=FunctionLoader(lambda name: folder.joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["plot"] = lambda value: isinstance(value, Plot)
    environment.filters["drawn"] = lambda plot: Markup(plot.svg)
    environment.filters["as_table"] = as_table
    environment.filters["shortened"] = shortened
    style = Markup(folder.joinpath("style.css").read_text("utf-8"))
    return environment.get_template(template).render(**contents, style=style)


def as_table(plot: Plot) -> Table | None:
    """The numbers of a plot as a table, where it has any."""
    return Table(plot.caption, plot.header, [[Cell(text) for text in row] for row in plot.rows]) if plot.rows else None
