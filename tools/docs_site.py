"""Build the documentation site, or serve it while you write.

Usage: python tools/docs_site.py [build | serve]

The site consists of docs/, of files that readers of the repository expect elsewhere (README.md, the
benchmarks, the model card, ...), and of generated pages. All of them are put into build/docs, with
their links rewritten, and zensical makes build/site from there. What would lead nowhere fails the
build: a link, an anchor, a page that is not in the navigation, a name without documentation.
"""

from __future__ import annotations

import argparse
import posixpath
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parent))

import code_map

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "mkdocs.yml"
STAGED = ROOT / "build" / "docs"
SITE = ROOT / "build" / "site"

PAGES = {  # files of the repository, and the pages that show them
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "LICENSE": "license.md",
    "benchmarks/README.md": "benchmarks.md",
    "stars_engine/embedded/MODEL_CARD.md": "model-card.md",
}
FENCE = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


class SiteError(Exception):
    """The site cannot be built from what the repository holds."""


def pages() -> Iterator[tuple[str, str | bytes]]:
    """Yield every file that the site is made from: its path, and what it holds.

    Raises:
        SiteError: A page links to a file that is no page.
    """
    for path in sorted((ROOT / "docs").rglob("*")):
        if path.is_file():
            page = path.relative_to(ROOT / "docs").as_posix()
            is_text = path.suffix == ".md"
            yield page, rewritten(path.read_text("utf-8"), page) if is_text else path.read_bytes()
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if not source.endswith(".md"):
            text = f"# {source.capitalize()}\n\n```text\n{text}```\n"
        yield page, rewritten(text, page)
    yield "code-map.md", code_map.page()
    yield "examples.md", examples_page()


def rewritten(markdown: str, page: str) -> str:
    """Return a page whose links between files of the repository lead to pages of the site.

    Args:
        markdown: The page as the repository has it.
        page: Its path in the site's sources.

    Raises:
        SiteError: A link leads to a file that is no page.
    """
    sources = {page: source for source, page in PAGES.items()}
    folder = posixpath.dirname(sources.get(page, f"docs/{page}"))

    def lead(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        if target.startswith("examples/") and (ROOT / target).is_file():
            return posixpath.relpath("examples.md", posixpath.dirname(page) or ".")
        in_docs = target.startswith("docs/") and (ROOT / target).is_file()
        if target not in PAGES and not in_docs:
            raise SiteError(
                f"{sources.get(page, f'docs/{page}')} links to {match[1]}, which is no page of the "
                f"site. Add {target} to PAGES in tools/docs_site.py, or name it without a link."
            )
        target = PAGES.get(target, target.removeprefix("docs/"))
        return posixpath.relpath(target, posixpath.dirname(page) or ".")

    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(lead, part) for part in parts[::2]]
    return "".join(parts)


def examples_page() -> str:
    """Return the scripts of examples/ as one page."""
    lines = [
        "# Examples",
        "",
        "These scripts run offline, on small models. Run one from the root of a clone, for example",
        "`python examples/quickstart_langchain.py`.",
    ]
    for path in code_map.python_files("examples"):
        text = path.read_text(encoding="utf-8").rstrip("\n")
        lines += ["", f"## {path.name}", "", code_map.summary(path), "", f"```python\n{text}\n```"]
    return "\n".join(lines) + "\n"


def stage() -> None:
    """Put all pages into build/docs; files that have not changed are left alone.

    Raises:
        SiteError: A link leads to a file that is no page, or the navigation and the pages differ.
    """
    wanted = {STAGED / page: content for page, content in pages()}
    listed = set(navigation(yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["nav"]))
    found = {path.relative_to(STAGED).as_posix() for path in wanted if path.suffix == ".md"}
    if listed != found:
        raise SiteError(
            f"the navigation of {CONFIG.name} lacks {sorted(found - listed)} and names "
            f"{sorted(listed - found)}, which are not there. Make it list every page once."
        )
    for path in STAGED.rglob("*"):
        if path.is_file() and path not in wanted:
            path.unlink()
    for path, content in wanted.items():
        data = content.encode() if isinstance(content, str) else content
        if not path.exists() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def navigation(entries: list[dict[str, object]]) -> Iterator[str]:
    """Yield the pages that a navigation lists."""
    for entry in entries:
        for target in entry.values():
            if isinstance(target, list):
                yield from navigation(target)
            else:
                yield str(target)


def build() -> int:
    """Build the site, with warnings as errors; return the exit status."""
    shutil.rmtree(SITE, ignore_errors=True)
    stage()
    return subprocess.run([*zensical("build"), "--strict", "--clean"], check=False).returncode


def serve() -> int:
    """Serve the site, and build it anew when its sources change; return the exit status."""
    stage()
    server = subprocess.Popen(zensical("serve"))
    try:
        while server.poll() is None:
            time.sleep(1)
            try:
                stage()
            except SiteError as error:
                print(error, file=sys.stderr)
    except KeyboardInterrupt:
        pass
    finally:
        server.terminate()
    return server.wait()


def zensical(command: str) -> list[str]:
    """Return a command of zensical for this site."""
    return [sys.executable, "-m", "zensical", command, "--config-file", str(CONFIG)]


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", nargs="?", choices=["build", "serve"], default="build")
    try:
        return build() if parser.parse_args().command == "build" else serve()
    except SiteError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
