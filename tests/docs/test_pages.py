"""Python code in README.md, docs/ and docstrings runs as shown."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import llama_index.core
import pytest

import langchain_stars
import llamaindex_stars
from tests.support.pages import PAGES, blocks


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    # A page sets it for the whole process.
    monkeypatch.setattr(llama_index.core, "global_tokenizer", llama_index.core.global_tokenizer)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for line, block in blocks(page, "python"):
        # Blank lines before it, so that a traceback points into the page.
        exec(compile("\n" * line + block, str(page), "exec", dont_inherit=True), namespace)


@pytest.mark.slow
@pytest.mark.parametrize(
    "adapter",
    [langchain_stars.ChatStars, langchain_stars.StarsLLM, llamaindex_stars.StarsLLM],
    ids=["chat", "llm", "index"],
)
def test_examples_of_adapters_run(adapter: type, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    text = inspect.getdoc(adapter) or ""
    examples = re.findall(r"^( *)```python\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    for _, example in examples:
        exec(compile(textwrap.dedent(example), adapter.__name__, "exec"), namespace)
    assert examples
    assert capsys.readouterr().out
