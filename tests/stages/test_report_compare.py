"""Runs side by side: of one cache and one test split only, with what differs between them."""

from __future__ import annotations

import json
import re

import pytest

from pipeline.targets.manifest import read_manifest
from tests.stages.conftest import Command
from tests.stages.test_report import TITLE, Open, browser, metrics_of, opened
from tests.stages.toy import RECIPE, Toy, toy_arrays, write_npz

__all__ = ["browser", "opened"]  # fixtures

HALF = "student.distillation.coefficient=0.5"


def run_of(toy: Toy, *settings: str) -> str:
    """The key of a comparison, made now."""
    toy.run("evaluate", *settings)
    return toy.records("evaluate", *settings)[0].key


def place(toy: Toy) -> tuple[str, ...]:
    return ("--workspace", str(toy.folder), "--output", str(toy.folder / "out" / "compare.html"))


def test_runs_of_one_cache_are_put_side_by_side(finished: Toy, softcache: Command, opened: Open) -> None:
    keys = [run_of(finished), run_of(finished, HALF), run_of(finished, "student.options.hidden=[5]")]
    folder = finished.folder / "runs" / "evaluate" / keys[1]
    said = softcache("report", "--compare", keys[0], str(folder), keys[2][:10], *place(finished))
    written = finished.folder / "out" / "compare.html"
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("3 runs, ")
    assert said.out.endswith(f" -> {written}\n")
    metrics = [metrics_of(finished, *settings) for settings in ([], [HALF], ["student.options.hidden=[5]"])]
    for width in (1280, 360):
        with opened(written, width) as page:
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            first = page.locator("table.results tbody tr").first.locator("td data").all()
            assert [float(cell.get_attribute("value") or "") for cell in first] == [
                one["student"]["accuracy"]["mean"] for one in metrics
            ]
            rows = [row.locator("th, td").all_inner_texts() for row in page.locator("table.settings tbody tr").all()]
            assert rows == [
                ["student.distillation.coefficient", "0.9", "0.5", "0.9"],
                ["student.options.hidden", "4", "4", "5"],
            ]
            assert page.locator("svg[role=img]").count() == 2
            for key in keys:
                assert key in page.locator("#provenance").inner_text()


def test_runs_of_different_caches_are_refused_with_both_row_keys(finished: Toy, softcache: Command) -> None:
    keys = [run_of(finished), run_of(finished, "targets.temperature=2.0")]
    said = softcache("report", "--compare", *keys, *place(finished))
    assert said.code == 3
    row_keys = [
        read_manifest(finished.cache("test", *settings)).row_key for settings in ([], ["targets.temperature=2.0"])
    ]
    assert f"row_key of the cache is {row_keys[0]} in one and {row_keys[1]} in the other" in said.err
    assert not (finished.folder / "out").exists()


def test_runs_on_different_test_data_are_refused(fixed_teacher: Toy, softcache: Command) -> None:
    first = run_of(fixed_teacher)
    write_npz(fixed_teacher.folder / "more.npz", toy_arrays(samples=240))
    second = run_of(fixed_teacher, "data.path=more.npz")
    said = softcache("report", "--compare", first, second, *place(fixed_teacher))
    assert said.code == 3
    assert "samples of the test split is" in said.err


def test_runs_of_different_classes_are_refused(finished: Toy, softcache: Command) -> None:
    keys = [run_of(finished), run_of(finished, "student.classes=['cat', 'ant']")]
    said = softcache("report", "--compare", *keys, *place(finished))
    assert said.code == 3
    assert "classes is ant, bee, cat in one and cat, ant in the other" in said.err


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([], "takes 2 to 8 runs; 0 given"),
        (["KEY"], "takes 2 to 8 runs; 1 given"),
        (["KEY", "KEY"], "is given twice"),
        (["KEY", "f00"], "no result of evaluate 'f00'"),
        (["KEY", ""], "The results here are: "),
    ],
)
def test_runs_that_cannot_be_put_side_by_side_are_named(
    finished: Toy, softcache: Command, runs: list[str], said: str
) -> None:
    key = run_of(finished)
    ended = softcache("report", "--compare", *[name.replace("KEY", key) for name in runs], *place(finished))
    assert ended.code == 1
    assert said in ended.err


def test_divergences_at_different_temperatures_are_told_apart(finished: Toy, softcache: Command) -> None:
    keys = [run_of(finished), run_of(finished, "student.distillation.temperature=2.0")]
    assert softcache("report", "--compare", *keys, *place(finished)).code == 0
    page = (finished.folder / "out" / "compare.html").read_text()
    assert re.search(
        r"KL from the teacher, nats</th><td><data [^>]*>[^<]* at T = 4</data></td><td><data [^>]*>[^<]* at T = 2<", page
    )
    assert "KLs at different T cannot be compared" in page


@pytest.mark.parametrize("ignored", [("--set", HALF), ("--data-dir", "here")])
def test_options_of_a_recipe_are_refused_beside_compare(softcache: Command, ignored: tuple[str, str]) -> None:
    said = softcache("report", "--compare", "a", "b", *ignored)
    assert said.code == 1
    assert f"{' '.join(ignored)} goes with a recipe; --compare shows runs as they were made" in said.err


def test_a_folder_is_refused_as_a_run_without_result_and_as_a_page(finished: Toy, softcache: Command) -> None:
    keys = [run_of(finished), run_of(finished, HALF)]
    empty = softcache("report", "--compare", keys[0], str(finished.folder), *place(finished))
    output = softcache("report", "--compare", *keys, "--workspace", str(finished.folder), "-o", str(finished.folder))
    assert (empty.code, output.code) == (1, 1)
    assert f"{finished.folder} is a folder without result.json" in empty.err
    assert f"--output {finished.folder} is a folder; give the file to write" in output.err
    recipe = str(finished.recipe)
    replaced = softcache("report", "--compare", *keys, "--workspace", str(finished.folder), "-o", recipe)
    assert (replaced.code, finished.recipe.read_text()) == (1, RECIPE)
    assert f"--output {recipe}: the file to write must end in .html" in replaced.err


def test_a_run_of_an_older_softcache_is_refused_with_what_to_do(finished: Toy, softcache: Command) -> None:
    keys = [run_of(finished), run_of(finished, HALF)]
    path = finished.folder / "runs" / "evaluate" / keys[1] / "metrics.json"
    metrics = json.loads(path.read_text())
    del metrics["units"]
    path.write_text(json.dumps(metrics))
    said = softcache("report", "--compare", *keys, *place(finished))
    assert said.code == 1
    assert "Run evaluate again" in said.err


def test_what_only_goes_with_compare_is_refused_without_it(softcache: Command) -> None:
    several, output = softcache("report", "digits", "digits"), softcache("report", "digits", "-o", "page.html")
    assert (several.code, output.code) == (1, 1)
    assert "2 given. To put runs side by side, add --compare" in several.err
    assert "--output page.html goes with --compare" in output.err


def test_names_that_look_like_markup_stay_text_in_a_comparison(finished: Toy, softcache: Command, opened: Open) -> None:
    name = f"name='{TITLE}'"
    keys = [run_of(finished, "student.seeds=[0]", name), run_of(finished, "student.seeds=[1]", name)]
    assert softcache("report", "--compare", *keys, *place(finished)).code == 0
    with opened(finished.folder / "out" / "compare.html") as page:
        assert page.locator("script, img[src=x]").count() == 0
        assert page.title() == f"softcache: {TITLE} {keys[0][:6]}, {TITLE} {keys[1][:6]}"
