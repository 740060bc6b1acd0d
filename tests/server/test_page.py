"""The page at `/`, and the page of a trace, in a real browser if one is installed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stars_engine import SamplingParams
from stars_engine.cli.view import view_command
from stars_engine.display.results import results_page
from stars_engine.server.settings import ApiKeys
from stars_engine.trace import write_jsonl
from tests.support.browsers import chromium
from tests.support.servers import RunningServer, random_chat, serving


def test_the_page_is_strict(server: RunningServer) -> None:
    with server.http() as client:
        for path, kind in (("/", "html"), ("/page.js", "javascript"), ("/page.css", "css")):
            answer = client.get(path)
            assert answer.status_code == 200
            assert kind in answer.headers["content-type"]
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
            assert "unsafe" not in policy
            # Nothing is loaded from elsewhere; only the namespace of SVG is an address.
            assert (
                re.findall(r"https?://[^\"\s]+", answer.text.replace("http://www.w3.org", "")) == []
            )
        assert "<script>" not in client.get("/").text
        assert "innerHTML" not in client.get("/page.js").text


def test_a_server_without_the_page() -> None:
    with serving({"chat": random_chat()}, page=False) as running, running.http() as client:
        for path in ("/", "/page.js", "/page.css"):
            assert client.get(path).status_code == 404


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_segments_arrive_in_a_browser(browser: Any, scheme: str, width: int) -> None:
    markup = "<img src=x onerror=alert(1)>"
    with serving({"chat": random_chat()}, show_rejected=True) as running:
        page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(dialog.message))
        page.goto(running.url)
        page.wait_for_selector("#model option", state="attached")
        page.fill("#prompt", markup)
        page.fill("#seed", "1")
        page.fill("#tokens", "24")
        page.click("#run")
        page.wait_for_selector("#run:not([disabled])")
        assert markup in page.inner_text("#answer")
        assert page.query_selector("#answer img") is None
        assert len(page.query_selector_all("#answer .segment")) == 6
        assert len(page.query_selector_all("#chart circle")) >= 6
        assert "24 tokens kept of" in page.inner_text("#status")
        overflow = page.query_selector("body").evaluate("body => body.scrollWidth")
        assert overflow <= width
        page.close()
        assert errors == []


@pytest.mark.slow
def test_a_key_is_asked_for(browser: Any) -> None:
    key = "sk-0123456789abcdef"
    with serving({"chat": random_chat()}, ApiKeys.read(key, "test")) as running:
        page = browser.new_page()
        page.goto(running.url)
        page.wait_for_selector("#key", state="visible")
        page.fill("#key", key)
        page.press("#key", "Tab")
        page.wait_for_selector("#model option", state="attached")
        page.close()


@pytest.mark.slow
def test_the_page_of_a_trace(browser: Any, server: RunningServer, tmp_path: Path) -> None:
    engine = server.model("embedded").engine
    results = engine.generate(
        "<script>alert(1)</script>", sampling=SamplingParams(seed=1, max_tokens=16)
    )
    file = tmp_path / "trace.html"
    page_of_trace = results_page(results, "<b>trace</b>")
    assert "Content-Security-Policy" in page_of_trace
    file.write_text(page_of_trace, encoding="utf-8")
    page = browser.new_page()
    errors: list[str] = []
    page.on("dialog", lambda dialog: errors.append(dialog.message))
    page.goto(file.as_uri())
    assert results[0].text.strip()[:20] in page.inner_text("body")
    assert "<b>trace</b>" in page.inner_text("h1")
    page.close()
    assert errors == []


def test_a_trace_is_viewed_in_the_browser(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = server.model("chat").engine
    results = engine.generate("Hello", sampling=engine.sampling.replace(seed=1))
    write_jsonl(results, tmp_path / "trace.jsonl")
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: bool(opened.append(url)) or True)
    view_command(tmp_path / "trace.jsonl")
    [url] = opened
    text = Path(url.removeprefix("file://")).read_text(encoding="utf-8")
    assert text == results_page(results, "trace.jsonl")
