"""Every code block of README and docs runs, page by page."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = [
    line
    for block in re.findall(
        r"```bash\n(.*?)```", (ROOT / "docs/command-line.md").read_text(), re.DOTALL
    )
    for line in block.splitlines()
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page.name, "exec"), namespace)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands(line: str, tmp_path: Path) -> None:
    program, *args = shlex.split(line)
    assert program == "stars"
    command = [sys.executable, "-c", "from stars_engine.cli import main; main()", *args]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_readme_has_exactly_two_set_up_commands() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", PAGES[0].read_text(), re.DOTALL)
    assert len(blocks) == 2
    assert [block.strip().rsplit("bin/", 1)[1] for block in blocks] == [
        "stars demo",
        "python -m pytest",
    ]


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
