"""Reading a recipe: TOML, `--set` overrides, and messages that name the key at fault and what is allowed."""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticUndefined

from pipeline.errors import RecipeError
from pipeline.recipe import Recipe

BUNDLED_RECIPES = Path(__file__).resolve().parent.parent / "recipes"


KEYS_OF_CACHES = ("targets.use", "teacher.digest")  # whose values are hexadecimal, and so may look like a number


def find_recipe(name: str) -> Path:
    """The recipe file for a path, or for the name of a file in recipes/ (here, or as installed).

    Raises RecipeError listing the names there are.
    """
    if Path(name).is_file():
        return Path(name)
    folders = [Path("recipes"), BUNDLED_RECIPES]
    for folder in folders:
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    known = sorted({file.stem for folder in folders for file in folder.glob("*.toml")})
    close = difflib.get_close_matches(Path(name).stem, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise RecipeError(f"{name}: no such recipe, neither a file nor one of: {', '.join(known)}.{hint}")


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe, each override ("a.b=value") replacing one value.

    Raises RecipeError: file, dotted key, value, what is allowed, and the nearest valid key.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise RecipeError(f"{path} is not a TOML file: {problem}") from None
    except OSError as problem:
        raise RecipeError(f"{path} cannot be read: {problem.strerror}") from None
    for override in overrides:
        _apply(values, override)
    try:
        return Recipe.model_validate(_tuples(values))
    except ValidationError as problem:
        errors = problem.errors()
        # A list with a wrong element is also "too short" to pydantic; the element is what is wrong.
        inner = [error for error in errors if not any(_is_within(other, error) for other in errors)]
        lines = [_explained(error) for error in inner]
        raise RecipeError(f"{path}: " + "\n  ".join(lines)) from None


def explain_fields(table: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(dotted key, type, default, meaning) of every field, tables before their fields."""
    for name, info in table.model_fields.items():
        key = f"{prefix}{name}"
        inner = _table_in(info.annotation)
        if inner is not None:
            yield f"[{key}]", "", "", info.description or ""
            if name != "data" or not prefix:  # [teacher.data] has the fields of [data]
                yield from explain_fields(inner, f"{key}.")
            continue
        default = info.default if info.default_factory is None else info.default_factory()  # type: ignore[call-arg]
        shown = "required" if default is PydanticUndefined else _as_toml(default)
        yield key, _type_name(info.annotation), shown, info.description or ""


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {override!r} is not of the form key=value, such as student.labelled=50")
    *tables, last = key.strip().split(".")
    place: Any = values
    for table in tables:
        place = place.setdefault(table, {}) if isinstance(place, dict) else place
    if not isinstance(place, dict):
        raise RecipeError(f"--set {override!r}: {'.'.join(tables)} is a value, not a table")
    if text.strip() == "none":
        place.pop(last, None)
        return
    if key.strip() in KEYS_OF_CACHES and text.strip()[:1] not in ("'", '"'):
        place[last] = text.strip()  # TOML would take 24405517e120 for a number
        return
    try:
        place[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        place[last] = text  # a bare word is a string


def _tuples(value: Any) -> Any:
    """TOML arrays become tuples, and whole numbers stay whole: strict validation does the rest."""
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(_tuples(inner) for inner in value) if isinstance(value, list) else value


PLAIN_MESSAGES = {  # where pydantic speaks of Python instead of TOML
    "model_type": "input should be a table",
    "dict_type": "input should be a table",
    "tuple_type": "input should be a list",
    "too_short": "give at least {min_length}",
}


def _is_within(error: ErrorDetails, outer: ErrorDetails) -> bool:
    return len(error["loc"]) > len(outer["loc"]) and error["loc"][: len(outer["loc"])] == outer["loc"]


def _explained(error: ErrorDetails) -> str:
    parts = [str(part) for part in error["loc"]]
    key = ".".join(parts) or "recipe"
    if error["type"] == "extra_forbidden":
        valid = list(_table_at(parts[:-1]).model_fields)
        close = difflib.get_close_matches(parts[-1], valid, n=1)
        nearest = f" Did you mean {'.'.join([*parts[:-1], close[0]])}?" if close else ""
        return f"unknown key {key} = {_as_toml(error['input'])}.{nearest} Allowed here: {', '.join(valid)}."
    if error["type"] == "missing":
        return f"{key} is missing; it is required (see softcache recipe explain)."
    message = PLAIN_MESSAGES.get(error["type"], error["msg"]).removeprefix("Value error, ")
    message = message.format(**error.get("ctx", {})) if error["type"] in PLAIN_MESSAGES else message
    given = "" if isinstance(error["input"], dict) else f" = {_as_toml(error['input'])}"
    return f"{key}{given}: {message[0].lower()}{message[1:]}."


def _table_at(parts: Sequence[str]) -> type[BaseModel]:
    table: type[BaseModel] = Recipe
    for part in parts:
        info = table.model_fields.get(part)
        table = (_table_in(info.annotation) if info else None) or table
    return table


def _table_in(annotation: Any) -> type[BaseModel] | None:
    for choice in typing.get_args(annotation) or (annotation,):
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            return choice
    return None


def _type_name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " | ".join(_as_toml(choice) for choice in arguments)
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type_name(choice) for choice in arguments if choice is not type(None))
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    return {dict: "table"}.get(origin, getattr(annotation, "__name__", str(annotation)))


def _as_toml(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple | list):
        return f"[{', '.join(_as_toml(inner) for inner in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name} = {_as_toml(inner)}' for name, inner in value.items())}}}"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
