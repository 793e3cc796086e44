"""The report: in a real browser, against metrics.json, with hostile names, and where something was not measured."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from pipeline.report.numbers import shortened
from pipeline.report.tables import METRICS
from tests.stages.conftest import Command
from tests.stages.toy import ENVIRONMENT, RECIPE, Toy, new_toy, toy_arrays, write_npz

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync"
)
SCRIPT = "<script>alert(1)</script>"
TITLE = "<img src=x onerror=alert(3)>"  # a recipe's name holds no slash
HOSTILE = (SCRIPT, '"><img src=x onerror=alert(2)>', "$\\frac{ & 'c'")
WIDTHS = (1280, 360)


def as_images(arrays: dict[str, Any]) -> dict[str, Any]:
    """The toy's samples as images of 2 x 3 pixels, with class names that try to become markup, and 12 wrong labels."""
    labels = arrays["y"].copy()
    labels[::17] = (labels[::17] + 1) % 3
    return {"x": arrays["x"].reshape(-1, 1, 2, 3), "y": labels, "class_names": np.array(HOSTILE)}


def page_of(toy: Toy, *settings: str) -> Path:
    """Run the report; the path of its page."""
    toy.run("report", *settings)
    return toy.output("report", 0, *settings, name="report.html")


def metrics_of(toy: Toy, *settings: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(toy.output("evaluate", 0, *settings, name="metrics.json").read_text())
    return found


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A finished report on images whose classes and whose recipe have names that try to become markup."""
    toy = new_toy(tmp_path_factory.mktemp("hostile"), RECIPE.replace('"toy"', f"'{TITLE}'", 1))
    write_npz(toy.folder / "toy.npz", as_images(toy_arrays()))
    page_of(toy)
    return toy


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(CHROMIUMS)} is installed")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=FLAGS.split())
        yield opened
        opened.close()


Open = Callable[..., Any]


@pytest.fixture
def opened(browser: Browser) -> Open:
    """Opens a page, and refuses it when it says anything on the console or asks for anything but itself."""

    @contextmanager
    def open_page(path: Path, width: int = 1280, scripts: bool = True) -> Iterator[Page]:
        context = browser.new_context(viewport={"width": width, "height": 800}, java_script_enabled=scripts)
        page, said, asked = context.new_page(), [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        yield page
        context.close()
        assert said == []
        assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]

    return open_page


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_the_screen_and_asks_for_nothing(hostile: Toy, opened: Open, width: int, scripts: bool) -> None:
    with opened(page_of(hostile), width, scripts) as page:
        for details in page.locator("details").all():
            details.locator("summary").first.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        boxes = [plot.bounding_box() for plot in page.locator("svg, img").all()]
        assert len(boxes) > 8
        for box in boxes:
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
        smallest = page.evaluate(
            "Math.min(...[...document.querySelectorAll('svg text')].map(text => text.getBoundingClientRect().height))"
        )
        assert smallest >= 9  # pixels from the lowest to the highest of a line of letters


def test_the_numbers_of_the_page_are_those_of_metrics_json(hostile: Toy, opened: Open) -> None:
    metrics = metrics_of(hostile)
    titles = {title: (name, form) for title, name, form in METRICS}
    with opened(page_of(hostile)) as page:
        rows = [
            [row.locator("th").inner_text(), *row.locator("td").all()]
            for row in page.locator("table.results tbody tr").all()
        ]
        assert [title for title, *_ in rows] == list(titles)
        for title, *cells in rows:
            name, form = titles[title]
            for model, cell in zip(("teacher", "student", "baseline"), cells, strict=True):
                measured = metrics[model].get(name)
                if measured is None:
                    assert (model, cell.inner_text()) == ("teacher", "–")
                    continue
                mean = measured["mean"] if isinstance(measured, dict) else measured
                spread = f" ± {form(measured['sd'])}" if isinstance(measured, dict) else ""
                assert float(cell.locator("data").get_attribute("value")) == mean
                assert cell.inner_text().replace("\N{NO-BREAK SPACE}", " ") == form(mean) + spread
        gain = metrics["gain_points"]["mean"]
        assert f"{abs(gain):.2f}" in page.locator(".headline").inner_text()
        for model, table in zip(("teacher", "student", "baseline"), page.locator("table.matrix").all(), strict=True):
            shown = [
                [int(cell.inner_text().replace("·", "0")) for cell in row.locator("td").all()]
                for row in table.locator("tbody tr").all()
            ]
            assert shown == metrics[model]["confusion"]["matrix"]


def test_every_picture_has_a_text_alternative_and_the_page_an_outline(hostile: Toy, opened: Open) -> None:
    with opened(page_of(hostile)) as page:
        for plot in page.locator("svg").all():
            assert plot.get_attribute("role") == "img"
            title, description = (plot.get_attribute("aria-labelledby") or "").split()
            assert page.locator(f"[id='{title}']").text_content()
            assert re.search(r"\d", page.locator(f"[id='{description}']").text_content() or "")
        pictures = page.locator("img").all()
        assert len(pictures) == len(metrics_of(hostile)["contradictions"]) > 0
        for picture in pictures:
            assert "teacher says" in (picture.get_attribute("alt") or "")
            assert picture.evaluate("image => image.naturalWidth") == 3
        levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(one => +one.tagName[1])")
        assert levels[0] == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        assert page.locator("html").get_attribute("lang") == "en"
        assert page.title() == f"softcache report: {TITLE}"
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
        assert len(ids) == len(set(ids))
        for link in page.locator("nav a").all():
            assert (link.get_attribute("href") or "#")[1:] in ids
        assert page.locator("th:not([scope])").count() == 0


def test_names_that_look_like_markup_stay_text(hostile: Toy, opened: Open) -> None:
    with opened(page_of(hostile)) as page:
        assert page.locator("script").count() == 0
        assert page.locator("[onerror], img[src=x]").count() == 0
        headers = page.locator("table.matrix").first.locator("thead th").all_inner_texts()
        assert headers == [shortened(name) for name in HOSTILE]
        assert page.locator("h1").inner_text() == f"Report on {TITLE}"
        drawn = page.locator("svg[aria-labelledby^=classes] text").all_text_contents()
        assert {"$\\frac{ & 'c'", shortened(SCRIPT)} <= set(drawn)


def test_the_page_prints(hostile: Toy, opened: Open) -> None:
    with opened(page_of(hostile)) as page:
        assert page.pdf(format="A4").startswith(b"%PDF")
        page.set_viewport_size({"width": 718, "height": 1000})
        page.emulate_media(media="print")
        assert page.evaluate("document.documentElement.scrollWidth") <= 718
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"


def test_the_report_is_made_once_and_again_when_the_comparison_is(finished: Toy, softcache: Command) -> None:
    said = softcache(*finished.arguments("report"))
    path = finished.output("report", name="report.html")
    assert said.out.startswith("report: ")
    assert said.out.endswith(f" -> {path}\n")
    first = path.read_bytes()
    again = softcache(*finished.arguments("report"))
    assert (again.out, again.err) == (f"{path}\n", "report: up to date; nothing ran\n")
    path.unlink()
    assert finished.run("report") == ["report"]
    assert path.read_bytes() == first, "the same results give the same page"
    finished.output("evaluate", name="metrics.json").unlink()
    assert finished.run("evaluate") == ["evaluate"]
    assert finished.status("report")["reason"] == "the comparison was made again"
    assert finished.run("report") == ["report"]


def test_what_ran_is_shown_with_its_reason_its_device_and_its_key(finished: Toy) -> None:
    change = ["student.distillation.coefficient=0.5"]
    text = page_of(finished, *change).read_text()
    for record in finished.records("student", *change):
        assert record.provenance["why"] == "student.distillation.coefficient 0.9 -> 0.5"
        assert record.provenance["device"] in text
        assert record.key in text
    assert "student.distillation.coefficient 0.9 -&gt; 0.5" in text
    for split in ("training", "validation", "test"):
        assert finished.cache(split).name in text


def test_a_report_is_drawn_without_torch_and_nothing_is_imported_when_it_is_there(finished: Toy) -> None:
    code = (
        "import sys; from stages import cli\n"
        f"sys.argv = {['softcache', *finished.arguments('report')]!r}\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'sklearn', 'matplotlib', 'PIL', 'jinja2'} & set(sys.modules)))"
    )
    for imported in (["PIL", "jinja2", "matplotlib"], []):
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
        assert ran.stdout.splitlines()[-1] == str(imported)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["student.seeds=[0]", "baseline.search_seeds=1"], "One student seed and one teacher"),
        (["student.labelled=0", "student.distillation.coefficient=1.0"], "There is no label-only student"),
        (["targets.certify=[4.0]", "targets.temperature=3.0"], "no cache certifies a finite error at T = 1"),
        (["student.classes=['cat', 'ant']"], "student.classes cat, ant"),
    ],
    ids=["one seed", "no baseline", "no certificate at 1", "some classes"],
)
def test_recipes_of_every_kind_have_a_report(finished: Toy, opened: Open, settings: list[str], said: str) -> None:
    with opened(page_of(finished, *settings), 360) as page:
        page.locator("#provenance summary").click()
        assert said in " ".join(page.locator("main").inner_text().split())
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_test_split_without_labels_has_a_report(tmp_path: Path, opened: Open) -> None:
    toy, arrays = new_toy(tmp_path / "unlabelled"), toy_arrays()
    x, y = arrays["x"], arrays["y"]
    parts = {
        "x_training": x[:100],
        "y_training": y[:100],
        "x_validation": x[100:150],
        "y_validation": y[100:150] * 0 - 1,
    }
    write_npz(toy.folder / "toy.npz", {**parts, "x_test": x[150:], "y_test": y[150:] * 0 - 1})
    with opened(page_of(toy)) as page:
        text = page.locator("main").inner_text()
        assert "The test split has no labels" in page.locator(".headline").inner_text()
        assert "agreement with the teacher, %" in text
        assert "No temperature was fitted" not in text
        assert "errors in" not in text
        assert page.locator("table.matrix").count() == 0
        assert "test: no labels." in text


def test_without_the_teacher_its_latency_and_the_saving_are_not_measured(finished: Toy, opened: Open) -> None:
    shutil.rmtree(finished.folder / "runs" / "teacher")
    finished.output("evaluate", name="metrics.json").unlink()
    with opened(page_of(finished)) as page:
        text = page.locator("main").inner_text()
        assert "not measured: teacher absent" in text
        assert "The teacher's size and latency were not measured" in text


def test_many_classes_are_shown_by_those_that_matter(tmp_path: Path, opened: Open) -> None:
    toy, generator = new_toy(tmp_path / "many"), np.random.default_rng(3)
    labels = np.arange(900) % 150
    centres = generator.normal(size=(150, 6))
    values = (centres[labels] + 0.1 * generator.normal(size=(900, 6))).astype(np.float32)
    names = np.array([f"a class with a long name, number {place}" for place in range(150)])
    write_npz(toy.folder / "toy.npz", {"x": values, "y": labels, "class_names": names})
    path = page_of(toy, "student.labelled=none", "student.seeds=[0]")
    assert len(path.read_bytes()) < 500_000
    with opened(path, 1280) as page:
        page.locator("#classes summary").first.click()
        table = "document.querySelector('#classes table.numbers').closest('.scroll')"
        assert page.evaluate(f"{table}.scrollWidth <= {table}.clientWidth"), "every column is in sight"
    with opened(path, 360) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.locator("table.matrix").count() == 0
        assert "20 of 1" in page.locator("#classes figcaption").first.inner_text()
        assert page.locator(".samples code").count() == 24
