"""Pages and pictures in a real browser: nothing is wider than a phone, light or dark."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stars_engine import SamplingParams, StarsEngine, trust_report
from stars_engine.calibration.report_page import write_report
from stars_engine.display.results import results_page
from stars_engine.evaluation import (
    BestOfNArm,
    PromptSet,
    Recipe,
    VanillaArm,
    evaluate,
    write_reports,
)
from tests.support.browsers import chromium

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def pages(engine: StarsEngine, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pages")
    sampling = SamplingParams(max_tokens=8)
    report = trust_report(engine, ["a"] * 4, sampling=sampling, num_answers=4, remedies=False)
    write_report(folder / "trust.html", report)
    align = engine.config.align.replace(keep_rejected_text=True)
    [result] = engine.generate("The plot", align=align, max_tokens=24, seed=3)
    long = result.replace(prompt="https://example.org/" + "a" * 300, id="b" * 200)
    page = results_page([result, long], "trace-" + "c" * 100 + ".jsonl")
    (folder / "trace.html").write_text(page.replace("<details>", "<details open>"))
    recipe = Recipe(
        name="small",
        prompts=PromptSet(tuning=0, fresh=8),
        sampling=sampling,
        arms={"vanilla": VanillaArm(), "best of 2": BestOfNArm(n=2)},
        perplexity=False,
    )
    write_reports(evaluate(recipe, folder / "compare"), folder / "compare")
    return sorted(folder.glob("**/*.html"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_pages_fit_and_can_be_read(
    browser: Any, pages: list[Path], width: int, scheme: str
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True
    )
    for path in pages:
        page = context.new_page()
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width, path.name
        ground = page.evaluate("getComputedStyle(document.documentElement).colorScheme")
        assert "dark" in ground
        text = page.evaluate("getComputedStyle(document.body).color")
        assert text == {"light": "rgb(0, 0, 0)", "dark": "rgb(255, 255, 255)"}[scheme]
        for plot in page.query_selector_all("svg"):
            labels = plot.query_selector_all("text")
            assert min(label.bounding_box()["height"] for label in labels) >= 8  # pixels
            fills = {label.evaluate("e => getComputedStyle(e).fill") for label in labels}
            assert all(is_light(fill) == (scheme == "dark") for fill in fills), (path.name, fills)
    context.close()


def is_light(color: str) -> bool:
    return sum(map(int, re.findall(r"\d+", color)[:3])) > 3 * 128


@pytest.mark.parametrize("path", [*(DOCS / "plots").glob("*.svg"), DOCS / "request.svg"], ids=str)
def test_pictures_of_the_docs_follow_the_scheme(browser: Any, path: Path) -> None:
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto(path.as_uri())
        ground = page.query_selector(".bg") or page.query_selector("path")
        assert is_light(ground.evaluate("e => getComputedStyle(e).fill")) == (scheme == "light")
        for label in page.query_selector_all("text"):
            fill = label.evaluate("e => getComputedStyle(e).fill")
            assert is_light(fill) == (scheme == "dark"), fill
        page.close()
