"""The report of a recipe that was planned shows the plan beside what happened; of another, nothing of it."""

from __future__ import annotations

from pipeline.cache_contents import bytes_on_disk
from stages.plan import make_plan
from tests.stages.test_report_gaps import page_of, words_of
from tests.stages.toy import Toy


def test_without_a_plan_there_is_no_section_and_with_one_the_page_is_drawn_anew(finished: Toy) -> None:
    before = page_of(finished)
    assert 'id="plan"' not in before
    assert "Plan and actual" not in before
    make_plan(str(finished.recipe), [], finished.folder, finished.folder)
    assert "plan changed" in finished.status("report")["reason"]
    after = page_of(finished)
    assert 'href="#plan"' in after
    words = words_of(after)
    [record] = list(finished.experiment().records.of_stage("plan"))
    assert f"The plan was measured {record.provenance['measured'][:10]}" in words
    for split, rows in record.values["rows"].items():
        store = bytes_on_disk(finished.cache(split) / "targets.zarr")
        assert f"{split} {rows:,} {rows:,} {store:,} {store:,} 1.00" in words
    assert "The teacher's pass: what the plan says" in words
    assert "An epoch of the student from the cache" in words
    assert finished.run("report") == []


def test_a_plan_that_is_measured_anew_redraws_the_page(finished: Toy) -> None:
    make_plan(str(finished.recipe), [], finished.folder, finished.folder)
    assert finished.run("report") == ["report"]
    make_plan(str(finished.recipe), [], finished.folder, finished.folder, again=True)
    assert finished.run("report") == ["report"]
    assert finished.run("report") == []


def test_the_plan_of_another_recipe_is_not_shown(finished: Toy) -> None:
    make_plan(str(finished.recipe), ["targets.batch_size=64"], finished.folder, finished.folder)
    assert 'id="plan"' not in page_of(finished)
