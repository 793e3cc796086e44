"""Writing a recipe's [targets]: the values that are asked for, and every other byte as it was."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.recipe import Targets
from pipeline.recipe_reader import read_recipe
from pipeline.recipe_writer import edited, encoding_fields, refuse_overrides, write_targets
from tests.stages.toy import RECIPE

SPARSE: dict[str, Any] = {"encoding": "top-k", "k": 8, "value_bits": 4, "temperatures": [2.0], "dtype": None}
DENSE: dict[str, Any] = {"encoding": "dense", "dtype": "log-uint8", "k": None, "value_bits": None, "temperatures": None}

HEADER = """\
name = "x"

[targets]   # head
temperature = 4.0    # T
dtype = "float16"   # half
batch_size = 3

# the student
[student]
a = 1  # one
"""


def after(text: str, fields: dict[str, Any]) -> dict[str, Any]:
    """What the edited text says, when it is what it said before and the fields."""
    values = tomllib.loads(text)
    targets = {**values.get("targets", {}), **fields}
    return {**values, "targets": {name: value for name, value in targets.items() if value is not None}}


def test_new_fields_stand_where_the_old_one_was_and_its_comment_stays() -> None:
    new = 'encoding = "top-k"\nk = 8\nvalue_bits = 4\ntemperatures = [2.0]\n# half\n'
    assert edited(HEADER, SPARSE) == HEADER.replace('dtype = "float16"   # half\n', new)


def test_a_changed_field_keeps_its_comment_and_an_added_one_stands_before_the_next_heading() -> None:
    changed = HEADER.replace('"float16"   #', '"log-uint8"   #')
    assert edited(HEADER, DENSE) == changed.replace("batch_size = 3\n", 'batch_size = 3\nencoding = "dense"\n')


def test_indentation_and_comments_between_fields_stay() -> None:
    text = (
        '[targets]\n  # few\n  encoding = "top-k"\n  k = 8 # eight\n  # bits\n  value_bits = 16\n  # end\n[a]\nb = 1\n'
    )
    wanted = (
        '[targets]\n  # few\n  encoding = "dense"\n  dtype = "log-uint8"\n  # eight\n  # bits\n  # end\n[a]\nb = 1\n'
    )
    assert edited(text, DENSE) == wanted


def test_an_inline_table_stays_one() -> None:
    text = 'targets = { temperature = 4.0, dtype = "float16", batch_size = 0x10 }  # c\nname = "x"\n'
    new = 'encoding = "top-k", k = 8, value_bits = 4, temperatures = [2.0]'
    assert edited(text, SPARSE) == text.replace('dtype = "float16"', new)


def test_dotted_keys_stay_dotted() -> None:
    text = (
        'targets.temperature = 4.0 # T\ndevice = "cpu"\ntargets.k = 3 # three\ntargets.encoding = "top-k"\n[a]\nb = 1\n'
    )
    text_of_values = edited(text, SPARSE)
    assert tomllib.loads(text_of_values) == after(text, SPARSE)
    assert [line for line in text_of_values.splitlines() if line.startswith("[")] == ["[a]"]
    assert "targets.k = 8 # three\n" in text_of_values


@pytest.mark.parametrize("end", ["", "\n", "\n\n# end\n", "\nstudent.a = 1\n"])
def test_a_recipe_without_targets_gets_a_table_at_its_end(end: str) -> None:
    text = f'name = "x"\n[data]\na = 1{end}'
    new = edited(text, SPARSE)
    assert new.startswith(text)
    assert new.endswith('[targets]\nencoding = "top-k"\nk = 8\nvalue_bits = 4\ntemperatures = [2.0]\n')
    assert tomllib.loads(new) == after(text, SPARSE)


LINES = {
    "temperature": "4.0",
    "dtype": '"float16"',
    "encoding": '"top-k"',
    "k": "1_000",
    "value_bits": "16",
    "temperatures": "[1.0,  2.0]",
    "batch_size": "7",
}


@st.composite
def recipes(draw: st.DrawFn) -> str:
    """A recipe's text, with [targets] in any of its layouts, some fields, comments and blank lines."""
    names = draw(st.lists(st.sampled_from(sorted(LINES)), unique=True))
    layout = draw(st.sampled_from(["header", "inline", "dotted"]))
    if layout == "inline":
        fields = draw(st.sampled_from([", ", ","])).join(f"{name} = {LINES[name]}" for name in names)
        return f'name = "x"\ntargets = {{{fields}}} # whole\n\n# rest\n[student]\na = 1\n'
    gaps = [draw(st.sampled_from(["", "\n", f"# before {name}\n", f"  # {name}\n\n"])) for name in names]
    comments = [draw(st.sampled_from(["", f"  # of {name}", f"# of {name}"])) for name in names]
    prefix, indent = ("targets.", "") if layout == "dotted" else ("", draw(st.sampled_from(["", "  "])))
    lines = [
        f"{gap}{indent}{prefix}{name} = {LINES[name]}{comment}\n"
        for name, gap, comment in zip(names, gaps, comments, strict=True)
    ]
    header = "" if layout == "dotted" else draw(st.sampled_from(["[targets]\n", "[targets] # head\n\n"]))
    end = draw(st.sampled_from(["", "\n# rest\n[student]\na = 1\n", "[student]\na = 1", "# rest"]))
    return f'name = "x"\n{header}{"".join(lines)}{end}'


@given(text=recipes(), fields=st.sampled_from([SPARSE, DENSE, {**SPARSE, "temperatures": None}, {"dtype": "float32"}]))
def test_every_layout_says_what_is_asked_for_and_keeps_its_comments(text: str, fields: dict[str, Any]) -> None:
    new = edited(text, fields)
    assert tomllib.loads(new) == after(text, fields)
    assert edited(new, fields) == new
    if "targets." in text:  # the comment of a dotted line that is removed goes with it
        removed = [line for line in text.splitlines() for name in fields if line.startswith(f"targets.{name} ")]
        text = "\n".join(line for line in text.splitlines() if line not in removed)
    comments = [line[line.index("#") :] for line in text.splitlines() if "#" in line]
    assert [comment for comment in comments if comment not in new and comment.replace("#", "# ") not in new] == []


def test_equal_values_are_left_as_they_are_written() -> None:
    text = '[targets]\nencoding="top-k"\nk = 0x8\nvalue_bits =  4\ntemperatures = [ 2.0, ] # one\n'
    assert edited(text, SPARSE) == text


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "toy.toml"
    path.write_text(RECIPE)
    return path


def test_what_changed_is_said_and_nothing_else_is(recipe: Path) -> None:
    assert write_targets(recipe, SPARSE) == [
        'targets.encoding = "top-k"',
        "targets.k = 8",
        "targets.value_bits = 4",
        "targets.temperatures = [2.0]",
        'targets.dtype = "float16" removed',
    ]
    written = recipe.read_bytes()
    assert write_targets(recipe, SPARSE) == []
    assert recipe.read_bytes() == written
    assert write_targets(recipe, {"k": 9}) == ["targets.k = 9 (was 8)"]
    assert [path.name for path in recipe.parent.iterdir()] == ["toy.toml"]


def test_carriage_returns_and_links_stay(recipe: Path, tmp_path: Path) -> None:
    recipe.write_bytes(RECIPE.replace("\n", "\r\n").encode())
    link = tmp_path / "link.toml"
    link.symlink_to(recipe)
    write_targets(link, DENSE)
    assert link.is_symlink()
    content = recipe.read_bytes()
    assert content.count(b"\r\n") == content.count(b"\n")
    assert read_recipe(recipe).targets.dtype == "log-uint8"


def test_a_value_that_a_recipe_may_not_have_is_never_written(recipe: Path) -> None:
    with pytest.raises(UserError, match=r"targets\.value_bits"):
        write_targets(recipe, {**SPARSE, "value_bits": 5})
    assert recipe.read_text() == RECIPE


def test_a_layout_that_would_be_mistaken_is_refused_and_left(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.recipe_writer.edited", lambda text, fields: text.replace("[data]", "[datum]"))
    with pytest.raises(UserError, match=r"Set by hand: targets\.k = 9\."):
        write_targets(recipe, {"k": 9})
    assert recipe.read_text() == RECIPE


@pytest.mark.parametrize(
    ("targets", "parameters", "fields"),
    [
        ({}, {"name": "dense", "dtype": "float32"}, {**DENSE, "dtype": "float32", "encoding": ...}),
        ({"encoding": "top-k"}, {"name": "dense", "dtype": "float32"}, {**DENSE, "dtype": "float32"}),
        ({}, {"name": "top-k", "k": 8, "value_bits": 4, "temperatures": [2.0, 4.0]}, SPARSE),
        ({}, {"name": "top-k", "k": 8, "value_bits": 4, "temperatures": [4.0]}, {**SPARSE, "temperatures": ...}),
        (
            {"encoding": "top-k", "temperatures": (4.0, 2.0)},
            {"name": "top-k", "k": 8, "value_bits": 4, "temperatures": [2.0, 4.0]},
            {**SPARSE, "temperatures": ...},
        ),
    ],
)
def test_the_fields_of_an_encoding_are_those_that_must_change(
    targets: dict[str, Any], parameters: dict[str, Any], fields: dict[str, Any]
) -> None:
    wanted = {name: value for name, value in fields.items() if value is not ...}
    assert dict(encoding_fields(parameters, Targets(**targets))) == wanted


@pytest.mark.parametrize("override", ["targets.k=3", "targets={}", " targets.k = 3", "student={}"])
def test_overrides_of_what_is_written_are_refused(override: str) -> None:
    with pytest.raises(UserError, match="would write what the file does not say"):
        refuse_overrides([override], ("targets", "student.distillation.temperature"))


@pytest.mark.parametrize(
    "override", ["device=cpu", "student.seeds=[1]", "targetsx=1", "student.distillation.form=convex"]
)
def test_other_overrides_are_not(override: str) -> None:
    refuse_overrides([override], ("targets", "student.distillation.temperature"))
