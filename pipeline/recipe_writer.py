"""Changing the [targets] table of a recipe file, so that its comments, order and formatting stay."""

from __future__ import annotations

import stat
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import InlineTable, Item, Table

from pipeline.durable import write_durably
from pipeline.errors import UserError
from pipeline.recipe import Targets
from pipeline.recipe_reader import read_recipe

Fields = Mapping[str, Any]  # values by name; None removes the field


def refuse_unwritable(path: Path) -> None:
    """Raises UserError when a recipe file may not be replaced, and RecipeError when it is wrong as it is."""
    read_recipe(path)
    path = path.resolve()
    try:
        path.open("r+b").close()
        tempfile.TemporaryFile(dir=path.parent).close()  # it is written beside, then renamed
    except OSError as problem:
        raise UserError(
            f"--write: {path} may not be written ({problem.strerror}). Copy it to a folder of your own and give that path, or "
            "leave out --write and set by hand what is printed."
        ) from None


def encoding_fields(parameters: dict[str, Any], targets: Targets) -> Fields:
    """What [targets] must say for an encoding, given what it says now; the fields of another encoding go."""
    if parameters["name"] == "dense":
        fields = {"dtype": parameters["dtype"], "k": None, "value_bits": None, "temperatures": None}
        return fields if targets.encoding == "dense" else {"encoding": "dense", **fields}
    fields = {"encoding": "top-k", **{name: parameters[name] for name in ("k", "value_bits")}, "dtype": None}
    listed = parameters["temperatures"]
    if set(listed) != {*targets.temperatures, targets.temperature}:
        fields["temperatures"] = [one for one in listed if one != targets.temperature] or None
    return fields


def write_targets(path: Path, fields: Fields) -> list[str]:
    """Give [targets] of a recipe file these fields; returns what changed, for people, or nothing where it was so.

    The file is replaced whole or not at all. Raises UserError, and leaves it as it was, when the result would not say just
    that, as a layout that tomlkit mistakes may do.
    """
    path = path.resolve()  # a link stays one
    text = path.read_bytes().decode("utf-8")
    unix = text.replace("\r\n", "\n")
    before = tomllib.loads(unix)
    changes = _changes(before.get("targets", {}), fields)
    if not changes:
        return []
    try:
        after = edited(unix, fields)
        right = tomllib.loads(after) == _expected(before, fields)
    except (TOMLKitError, tomllib.TOMLDecodeError):
        right = False
    if not right:
        raise UserError(
            f"{path}: its targets are laid out in a way that cannot be edited here; nothing was written. Set by hand: "
            f"{'; '.join(changes)}."
        )
    content = (after.replace("\n", "\r\n") if "\r\n" in text else after).encode()
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / path.name
        draft.write_bytes(content)
        read_recipe(draft)  # raises RecipeError while nothing is replaced yet
    mode = path.stat().st_mode
    write_durably(path, content)
    path.chmod(stat.S_IMODE(mode))
    read_recipe(path)
    return changes


def edited(text: str, fields: Fields) -> str:
    """The text of a recipe whose [targets] has these fields. Raises TOMLKitError for a text that tomlkit cannot take."""
    document = tomlkit.parse(text)
    if "targets" not in document:
        document["targets"] = {name: value for name, value in fields.items() if value is not None}
        return tomlkit.dumps(document)
    table: Any = document["targets"]
    wanted = {name: value for name, value in fields.items() if table.get(name) != value}
    if isinstance(table, InlineTable):
        document["targets"] = _inline_with(table, wanted)
    elif isinstance(table, Table) and not table.is_super_table():
        _edit_lines(table, wanted)
    else:  # dotted keys, targets.dtype = ...: looked up each time, since what tomlkit gives for them ages with each change
        for name in sorted(wanted, key=lambda name: wanted[name] is None):
            if wanted[name] is None:
                del cast(Table, document["targets"])[name]
            else:
                cast(Table, document["targets"])[name] = wanted[name]
    return tomlkit.dumps(document)


def _edit_lines(table: Table, wanted: Fields) -> None:
    """Change lines of a table where they are; new ones stand where the first one is removed, or after the last field.

    tomlkit would add them after the comment above the next table. The comment of a removed line stays, on its own.
    """
    body = table.value.body
    added = {name: value for name, value in wanted.items() if value is not None and name not in table}
    for name in wanted.keys() - added.keys():
        if wanted[name] is not None:
            table[name] = wanted[name]
    fields = {place: key.key for place, (key, _) in enumerate(body) if key is not None}
    removed = [place for place, name in fields.items() if name in wanted and wanted[name] is None]
    place = removed[0] if removed else max(fields, default=-1) + 1
    indent = body[min(fields)][1].trivia.indent if fields else ""
    later = body[place:]
    for key, _ in later:
        if key is not None:
            table.remove(key)
    del body[place:]
    for name, value in added.items():
        table.raw_append(name, _indented(tomlkit.item(value), indent))
    for offset, (key, item) in enumerate(later):
        if place + offset not in removed:
            table.raw_append(key, item)
        elif item.trivia.comment:
            table.raw_append(None, _indented(tomlkit.comment(item.trivia.comment.lstrip("# ")), indent))


def _indented(item: Any, indent: str) -> Any:
    item.trivia.indent = indent
    return item


def _inline_with(table: InlineTable, wanted: Fields) -> Any:
    """An inline table written anew: a field that is replaced keeps its place, new ones stand where the first is removed."""
    texts = {name: cast(Item, table.value.item(name)).as_string() for name in table}
    new = {name: tomlkit.item(value).as_string() for name, value in wanted.items() if value is not None}
    parts: list[str] = []
    for name, text in texts.items():
        if name in wanted and wanted[name] is None:
            parts += [f"{other} = {new.pop(other)}" for other in list(new) if other not in texts]
        else:
            parts.append(f"{name} = {new.pop(name, text)}")
    parts += [f"{name} = {text}" for name, text in new.items()]
    return tomlkit.value(f"{{ {', '.join(parts)} }}")


def _expected(before: dict[str, Any], fields: Fields) -> dict[str, Any]:
    targets = {**before.get("targets", {}), **fields}
    return {**before, "targets": {name: value for name, value in targets.items() if value is not None}}


def _changes(targets: dict[str, Any], fields: Fields) -> list[str]:
    shown = {name: tomlkit.item(value).as_string() for name, value in targets.items()}
    changes = []
    for name, value in fields.items():
        if value is None and name in targets:
            changes.append(f"targets.{name} = {shown[name]} removed")
        elif value is not None and targets.get(name) != value:
            earlier = f" (was {shown[name]})" if name in targets else ""
            changes.append(f"targets.{name} = {tomlkit.item(value).as_string()}{earlier}")
    return changes


def refuse_overrides(overrides: Sequence[str], tables: Sequence[str]) -> None:
    """Raises UserError when an override replaces what is about to be written, or what that follows from."""
    for text in overrides:
        key = text.partition("=")[0].strip()
        if any(f"{key}.".startswith(f"{table}.") or f"{table}.".startswith(f"{key}.") for table in tables):
            raise UserError(
                f"--write with --set {text} would write what the file does not say: the encoding is chosen by it. Change "
                f"{key} in the recipe file first, or leave out --write."
            )
