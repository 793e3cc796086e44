"""caches import and caches export: target caches from files of outputs, and files from caches."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from pipeline.canonical import short
from pipeline.errors import OutputsError, RecipeError
from pipeline.recipe_reader import find_recipe, read_recipe
from pipeline.targets.export import export
from pipeline.targets.reader import TargetCache
from stages.caches import shelf_of
from stages.chain import open_experiment, runner_of, say

# What a recipe says of another form of teacher makes way for the file.
OTHER_FORMS = ("model", "options", "version", "seed", "training", "weights", "trusted", "estimator", "data", "digest")


def import_outputs(
    recipe: str,
    file: Path,
    values: str | None,
    temperature: float | None,
    overrides: Sequence[str],
    workspace: Path,
    data_dir: Path | None,
) -> str:
    """Seal the caches of a recipe from a file of outputs: teacher-targets with [teacher.outputs] set to it.

    Returns how to train from them. Raises OutputsError when the file is missing or wrong; nothing is sealed then.
    """
    if not file.is_file():
        raise OutputsError(f"{file}: no such file.")
    outputs = {"path": json.dumps(str(file.resolve()), ensure_ascii=False)}
    if values is not None:
        outputs |= {"values": values, "temperature": "none"}  # a recipe's own temperature belonged to its own values
    if temperature is not None:
        outputs["temperature"] = repr(temperature)
    replaced = [f"teacher.{name}=none" for name in OTHER_FORMS]
    replaced += [f"teacher.outputs.{name}={value}" for name, value in outputs.items()]
    experiment = open_experiment(recipe, [*overrides, *replaced, "targets.use=none"], workspace, data_dir)
    if not runner_of(experiment).run("teacher-targets"):
        say("caches import: these outputs are sealed already; nothing ran")
    folder = experiment.cache_folder("training")
    assert folder is not None, "the runner sealed it"
    use = f"targets.use={short(folder.name)}"
    return f"to train students from it: {shlex.join(_words(recipe, overrides, use, workspace, data_dir))}"


def _words(recipe: str, overrides: Sequence[str], use: str, workspace: Path, data_dir: Path | None) -> list[str]:
    """The command that trains from the sealed cache: the cache's teacher counts then, so nothing is said of another one."""
    settings = [text for text in overrides if text.partition("=")[0].strip().partition(".")[0] != "teacher"]
    try:
        pinned = read_recipe(find_recipe(recipe), settings).teacher.digest is not None
    except RecipeError:  # the overrides of its teacher made the recipe whole
        settings, pinned = list(overrides), True
    settings += ["teacher.digest=none"] if pinned else []
    words = ["softcache", "student", recipe, *(word for text in [*settings, use] for word in ("--set", text))]
    if workspace != Path():
        words += ["--workspace", str(workspace)]
    return words if data_dir is None else [*words, "--data-dir", str(data_dir)]


def export_cache(workspace: Path, key: str, target: Path, temperature: float | None, replace: bool) -> str:
    """Write a cache to a .npz or Parquet file; returns one line for people."""
    cache = TargetCache(shelf_of(workspace).named(key))
    rows = export(cache, target, temperature, replace)
    at = cache.temperature if temperature is None else temperature
    return f"{short(cache.key)}: {rows:,} rows, probabilities of {len(cache.class_names)} classes at T = {at:g} -> {target}"
