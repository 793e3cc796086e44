"""What a user's estimator function declares of itself, read from its source: nothing is imported for it."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.errors import TeacherAbsentError, UserError

HOW_TO_DECLARE = (
    'Below the function, write {function}.version = 1 (raised when its meaning changes) and {function}.files = ["model.joblib"] '
    "(what it reads, starting at the data folder; [] for nothing): the teacher is known by them."
)


def declared(estimator: str, data_folder: Path) -> tuple[int, list[Path]]:
    """The `version` and `files` that "package.module:function" declares as literals in its module.

    Raises TeacherAbsentError when the module or a file is not there, UserError when the declaration is missing or wrong.
    """
    module, _, function = estimator.partition(":")
    source = _source_of(module)
    if source is None:
        raise TeacherAbsentError(f"teacher.estimator = {estimator!r}: there is no module {module!r} here or installed.")
    found = _assigned(source, function)
    version, files = found.get("version"), found.get("files")
    how = HOW_TO_DECLARE.format(function=function)
    if type(version) is not int or not isinstance(files, list | tuple) or not all(type(name) is str for name in files):
        raise UserError(
            f"teacher.estimator = {estimator!r} declares version = {version!r} and files = {files!r} in {source}; an integer "
            f"and a list of texts, written out, are needed. {how}"
        )
    paths = [data_folder / name for name in files]
    for path in paths:
        if not path.is_file():
            raise TeacherAbsentError(f"{path}: no such file, but {estimator} declares it in its `files`.")
    return version, paths


def _source_of(module: str) -> Path | None:
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return None
    path = Path(spec.origin) if spec is not None and spec.origin is not None else None
    return path if path is not None and path.suffix == ".py" and path.is_file() else None


def _assigned(source: Path, function: str) -> dict[str, Any]:
    """Literal values of `function.name = ...` at the top level of a module. Raises UserError when it is no Python."""
    found: dict[str, Any] = {}
    try:
        statements = ast.parse(source.read_bytes(), str(source)).body
    except (SyntaxError, ValueError) as problem:  # ValueError: null bytes
        line = f", line {problem.lineno}" if isinstance(problem, SyntaxError) and problem.lineno else ""
        reason = problem.msg if isinstance(problem, SyntaxError) else str(problem)
        raise UserError(f"{source}{line} is no valid Python ({reason}); teacher.estimator is declared there.") from None
    for node in statements:
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            if isinstance(target, ast.Attribute) and getattr(target.value, "id", None) == function:
                try:
                    found[target.attr] = ast.literal_eval(node.value)
                except ValueError:
                    found[target.attr] = ast.unparse(node.value)
    return found
