"""The project as a whole: map of the code, API reference, Makefile, CI, site."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from _pytest import hookspec

from tools import code_map, docs_site

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_wheel_weights_stay_small() -> None:
    weights = list((ROOT / "stars_engine" / "embedded").rglob("*.safetensors"))
    assert len(weights) == 3
    assert sum(path.stat().st_size for path in weights) <= 16_000_000


@pytest.mark.slow
def test_helpers_of_tests_are_in_support() -> None:
    """No test module imports another one or a conftest; a conftest has fixtures and hooks only."""
    for path in (ROOT / "tests").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for module in modules:
                name = module.split(".")[-1] if module.startswith("tests.") else ""
                assert not name.startswith(("test_", "conftest")), f"{path} imports {module}"
        if path.name == "conftest.py":
            for node in tree.body:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    marks = [ast.unparse(mark) for mark in node.decorator_list]
                    is_fixture = any(mark.startswith("pytest.fixture") for mark in marks)
                    assert is_fixture or hasattr(hookspec, node.name), node.name


@pytest.mark.slow
def test_code_map_describes_every_file() -> None:
    page = code_map.page()
    for folder in code_map.FOLDERS:
        files = [path for path in code_map.python_files(folder) if path.stat().st_size]
        assert files, folder
        section = page.split(f"\n## {folder}/\n")[1].split("\n## ")[0]
        for path in files:
            assert code_map.summary(path), f"{path} has no docstring"
            assert f"| `{path.relative_to(ROOT / folder).as_posix()}` | " in section


def test_code_map_has_every_folder_with_python() -> None:
    hidden = {"build", "dist"}  # not in the repository
    folders = {
        path.relative_to(ROOT).parts[0]
        for path in ROOT.glob("[!.]*/**/*.py")
        if path.relative_to(ROOT).parts[0] not in hidden
    }
    assert folders == set(code_map.FOLDERS)


def test_code_map_has_the_layers_of_the_engine() -> None:
    layers = [name for layer in code_map.layers() for name in layer]
    engine = ROOT / "stars_engine"
    modules = {path.stem for path in engine.glob("*.py")} | {
        path.parent.name for path in engine.glob("*/__init__.py")
    }
    assert sorted(layers) == sorted(modules - {"__init__"})


@pytest.mark.parametrize(
    "module", ["stars_engine", "langchain_stars", "llamaindex_stars", "stars_engine.testing"]
)
def test_api_reference_has_every_public_name_once(module: str) -> None:
    pages = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md")
    )
    names = re.findall(rf"^::: {re.escape(module)}\.(\w+)$", pages, re.MULTILINE)
    assert sorted(names) == sorted(importlib.import_module(module).__all__)


def makefile_targets() -> dict[str, str]:
    """Return the targets of the Makefile with their commands."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    target = r"^\.PHONY: (\S+)\n\1:.*\n((?:\t.*\n|ifdef.*\n|else\n|endif\n)*)"
    return dict(re.findall(target, text, re.MULTILINE))


def make(*arguments: str) -> str:
    """Return what make prints; also where make runs this test."""
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFL"))
    }
    run = subprocess.run(
        ["make", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    return run.stdout


def test_makefile_lists_all_its_targets() -> None:
    listed = [line.split()[0] for line in make().splitlines()]
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert listed == list(makefile_targets()) == re.findall(r"^([a-z0-9-]+):", text, re.MULTILINE)


def test_makefile_runs_the_test_command_of_the_readme() -> None:
    command = make("--dry-run", "test-all", "PYTHON=python").strip()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f".venv/bin/{command}\n```" in readme


def test_the_cpu_build_of_torch_has_the_version_of_the_constraints() -> None:
    """Another version would be replaced by pip's default build, with CUDA."""
    [version] = re.findall(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"pip install {version} --index-url" in readme
    assert '"$(grep ^torch== constraints.txt)" --index-url' in (ROOT / "Dockerfile").read_text()


def dockerfile() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, each with its arguments."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.partition(" ")[2]) for line in lines]


def test_the_dockerfile_has_the_stages_of_the_readme() -> None:
    stages = [found.split(" AS ")[1] for name, found in dockerfile() if name == "FROM"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"--target (\w+)", readme)) == set(stages) - {"base"} == {"cpu", "cuda"}


def test_the_dockerfile_copies_what_an_installation_needs() -> None:
    copied = [path for name, found in dockerfile() if name == "COPY" for path in found.split()[:-1]]
    assert all((ROOT / path).exists() for path in copied)
    project, wheel = PYPROJECT["project"], PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", "constraints.txt", project["readme"], *project["license-files"]}
    assert needed | set(wheel["packages"]) == set(copied)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert not set(ignored) & set(copied)


def test_the_dockerfile_installs_extras_that_exist_with_the_constraints() -> None:
    instructions = dockerfile()
    [extras] = [found.removeprefix("EXTRAS=") for name, found in instructions if name == "ARG"]
    assert set(extras.split(",")) <= set(PYPROJECT["project"]["optional-dependencies"])
    installs = [found for name, found in instructions if "pip install -c" in found]
    assert len(installs) == 2
    assert all('pip install -c constraints.txt ".[${EXTRAS}]"' in found for found in installs)


def test_the_dockerfile_installs_packages_before_it_copies_the_source() -> None:
    """A change of the source would otherwise download torch again."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    base, *stages = text.split("\nFROM ")
    assert "COPY stars_engine" not in base
    assert len(stages) == 3
    for stage in stages[1:]:
        steps = ["pip install -c", "COPY README.md", "COPY stars_engine", "install --no-deps"]
        assert sorted(steps, key=stage.index) == steps


def workflow() -> dict[str, Any]:
    path = ROOT / ".github" / "workflows" / "ci.yml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_ci_runs_on_every_python_of_the_classifiers() -> None:
    prefix = "Programming Language :: Python :: "
    claimed = [
        entry.removeprefix(prefix)
        for entry in PYPROJECT["project"]["classifiers"]
        if entry.startswith(prefix)
    ]
    assert workflow()["jobs"]["test"]["strategy"]["matrix"]["python"] == claimed
    assert PYPROJECT["project"]["requires-python"] == f">={claimed[0]}"


def test_ci_pins_actions_and_has_the_least_permissions() -> None:
    config = workflow()
    assert config["permissions"] == {}
    for name, job in config["jobs"].items():
        assert job["permissions"] == {"contents": "read"}, name
        assert job["timeout-minutes"] <= 60, name
        for step in job["steps"]:
            assert re.search(r"@[0-9a-f]{40}$", step.get("uses", "@" + "0" * 40)), step


def test_ci_runs_targets_of_the_makefile() -> None:
    steps = [step for job in workflow()["jobs"].values() for step in job["steps"]]
    ran = {name for step in steps for name in re.findall(r"\bmake ([a-z-]+)", step.get("run", ""))}
    assert {"lint", "typecheck", "imports", "test", "docs"} <= ran <= set(makefile_targets())


def test_pre_commit_hooks_are_checks_of_the_makefile() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    entries = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    targets = makefile_targets()
    checks = targets["lint"] + targets["typecheck"] + targets["imports"]
    for entry in entries:
        command = entry.removesuffix(" --force-exclude").removeprefix("python ")
        assert command in checks, entry


def test_links_of_the_site_lead_to_its_pages() -> None:
    text = "[a](chat.md#x) [b](../README.md) [c](#d) [e](https://x.org)\n```\n[f](g.md)\n```\n"
    assert docs_site.rewritten(text, "engine.md") == text.replace("../README.md", "index.md")
    text = "[a](docs/chat.md) [b](LICENSE)"
    assert docs_site.rewritten(text, "index.md") == "[a](chat.md) [b](license.md)"
    assert docs_site.rewritten("[a](../engine.md)", "reference/x.md") == "[a](../engine.md)"
    with pytest.raises(docs_site.SiteError, match=r"docs/chat\.md links to \.\./setup\.py"):
        docs_site.rewritten("[a](../setup.py)", "chat.md")
    with pytest.raises(docs_site.SiteError, match=r"none\.svg"):
        docs_site.rewritten("![a](none.svg)", "chat.md")
