"""The teacher's batch size: given on the command line, or found by the machine; it is noted, and in no key."""

from __future__ import annotations

import json
import re

import pytest

from tests.stages.conftest import Command
from tests.stages.toy import Toy


def noted(toy: Toy, split: str = "training") -> int:
    """The batch size that a sealed cache says it was made with."""
    manifest = json.loads((toy.cache(split) / "manifest.json").read_text())
    return int(manifest["provenance"]["batch_size"])


def test_an_automatic_batch_size_is_found_for_each_split_and_printed(fresh: Toy, softcache: Command) -> None:
    said = softcache(*fresh.arguments("teacher-targets", then=["--batch-size", "auto"]))
    assert said.code == 0, said.err
    found = re.findall(r"^cache (\w{12}): batch size (\d+) \(auto: the fastest power of two\)$", said.err, re.MULTILINE)
    assert [int(size) for _, size in found] == [noted(fresh, split) for split in ("training", "validation", "test")]
    assert all(int(size) in (1, 2, 4, 8, 16, 32) for _, size in found)  # a block has 32 rows
    assert fresh.run("teacher-targets") == []
    assert fresh.run("teacher-targets", "targets.batch_size=auto") == []


def test_a_batch_size_on_the_command_line_replaces_that_of_the_recipe(fresh: Toy, softcache: Command) -> None:
    said = softcache(*fresh.arguments("teacher-targets", then=["--batch-size", "7"], settings=["targets.batch_size=5"]))
    assert said.code == 0, said.err
    assert noted(fresh) == 7


@pytest.mark.parametrize("given", ["0", "-3", "2.5", "many", "true"])
def test_a_batch_size_that_is_none_is_refused_with_what_is_allowed(fresh: Toy, softcache: Command, given: str) -> None:
    said = softcache(*fresh.arguments("teacher-targets", then=[f"--batch-size={given}"]))
    assert said.code == 1
    assert "targets.batch_size" in said.err
    assert 'a number of samples from 1, or "auto", is needed.' in said.err


def test_the_trial_of_encodings_and_the_plan_take_an_automatic_batch_size(fresh: Toy, softcache: Command) -> None:
    for command in ("encoding", "plan"):
        said = softcache(*fresh.arguments(command, settings=["targets.batch_size=auto"]))
        assert said.code == 0, said.err
