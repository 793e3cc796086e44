"""README, docs and Makefile say what is true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import SoftcacheError
from pipeline.recipe_reader import read_recipe
from pipeline.targets.block_table import ENTRY
from pipeline.targets.manifest import Manifest
from stages.chain import STAGES, open_experiment, runner_of
from tests.targets.tiny import Tiny

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
CACHE_FORMAT = (ROOT / "docs/CACHE_FORMAT.md").read_text("utf-8")
QUICK = ["teacher.training.steps=60", "teacher.training.validate_every=30"]


def fields_of_section(title: str) -> list[str]:
    """The backticked names in the first column of the table of one section of CACHE_FORMAT.md."""
    section = CACHE_FORMAT.split(f"## {title}\n")[1].split("\n## ")[0]
    first_cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    return [name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)]


def test_the_readme_loop_trains_a_model_from_a_real_cache_in_another_project(tmp_path: Path) -> None:
    experiment = open_experiment("digits", QUICK, tmp_path, None)
    runner_of(experiment, report=lambda line: None).run("teacher-targets")
    cache = experiment.cache_folder("training")
    block = README.split("<!-- the loop of one's own -->")[1].split("<!-- end of the loop -->")[0]
    code = re.fullmatch(r"\s*```python\n(.*?)```\s*", block, re.DOTALL)
    assert code is not None
    elsewhere = tmp_path / "another project"
    elsewhere.mkdir()
    (elsewhere / "loop.py").write_text(code[1], "utf-8")
    command = [sys.executable, "loop.py", str(cache)]
    ran = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    agreement = float(ran.stdout.removeprefix("agreement with the teacher: "))
    assert agreement > 0.9
    assert len([line for line in code[1].splitlines() if line.strip() and "import" not in line]) <= 20


def test_the_guides_loader_serves_a_dataset_by_content(tmp_path: Path) -> None:
    tiny = Tiny(rows=600)
    guide = (ROOT / "docs/GUIDE.md").read_text("utf-8")
    code = guide.split("<!-- the loader -->\n```python\n")[1].split("```")[0]
    samples = [sample for sample in range(599, -1, -1) if tiny.views()[sample] == 0]
    digests = tiny.digests()[samples]
    said: dict[str, Any] = {"folder": tiny.make(tmp_path).folder, "digests": digests}
    exec(compile(code, "GUIDE.md", "exec"), said)
    assert said["state"]["batch"] == len(said["loader"]) == 3
    batch = said["batch"]
    expected = tiny.exact(2.0)[samples][batch.positions]
    np.testing.assert_allclose(batch.soft_targets, expected, rtol=0, atol=4e-3)


def test_cache_format_lists_exactly_the_fields_of_a_manifest() -> None:
    assert sorted(fields_of_section("manifest.json")) == sorted(Manifest.model_fields)


def test_cache_format_lists_exactly_the_columns_of_the_block_table() -> None:
    assert fields_of_section("Block table") == list(ENTRY.names or ())


def test_every_relative_link_and_every_file_of_the_tree_exists() -> None:
    for document in ("README.md", "docs/GUIDE.md", "docs/CACHE_FORMAT.md"):
        text = (ROOT / document).read_text("utf-8")
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / document).parent.joinpath(link).exists(), f"{document} links to {link}"
    tree = README.split("## The tree")[1].split("```")[1]
    folder = ROOT
    for line in tree.strip().splitlines():
        name = line.split()[0]
        if line.startswith("runs/"):
            continue  # made by a run
        folder = folder if line.startswith(" ") else ROOT / name
        path = folder / name if line.startswith(" ") else folder
        assert path.exists(), f"README's tree names {name}"


def test_make_help_lists_every_target_with_a_meaning() -> None:
    shown = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    wanted = ["help", "setup", "status", "test", "check", "clean", *(set(STAGES) - {"baseline-search"})]
    for target in wanted:
        assert re.search(rf"^  make {target} +\S", shown, re.MULTILINE), target


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_is_valid(recipe: Path) -> None:
    assert read_recipe(recipe).name == recipe.stem


def test_the_guide_gives_every_exit_code() -> None:
    def all_below(error: type[SoftcacheError]) -> list[type[SoftcacheError]]:
        return [error, *(found for below in error.__subclasses__() for found in all_below(below))]

    codes = {error.exit_code for error in all_below(SoftcacheError)}
    section = (ROOT / "docs/GUIDE.md").read_text("utf-8").split("## Exit codes")[1]
    assert codes | {0, 2} == {int(code) for code in re.findall(r"(?<![\w.])(\d+) [a-z]", section)}
