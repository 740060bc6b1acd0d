"""The distributions under `packaging/`: they build, install, and import the adapters."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = ("langchain-stars", "llama-index-llms-stars")
CODE = """
import sys
import langchain_stars, llama_index.llms.stars, llamaindex_stars
from llama_index.core.llms import LLM
assert llama_index.llms.stars.StarsLLM is llamaindex_stars.StarsLLM
assert llama_index.llms.stars.__file__.startswith(sys.argv[1])
assert langchain_stars.__file__.startswith(sys.argv[1])
"""


def project(folder: Path) -> dict[str, object]:
    read: dict[str, object] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return read


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_versions_and_extras_agree(name: str) -> None:
    ours, thin = project(ROOT), project(ROOT / "packaging" / name)
    assert thin["name"] == name
    assert thin["version"] == ours["version"]
    [dependency] = thin["dependencies"]  # type: ignore[misc]
    extras, _, version = dependency.removeprefix("stars-engine[").partition("]==")
    assert version == ours["version"]
    assert set(extras.split(",")) <= ours["optional-dependencies"].keys()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_wheels_are_built_installed_and_imported(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="the build backend, from the extra dev")
    wheels, target = tmp_path / "wheels", tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    for folder in (ROOT, *(ROOT / "packaging" / name for name in DISTRIBUTIONS)):
        command = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels)]
        subprocess.run([*command, str(folder)], check=True, capture_output=True, cwd=tmp_path)
    built = sorted(wheels.glob("*.whl"))
    assert len(built) == 3
    for wheel in built:
        with ZipFile(wheel) as archive:
            [metadata] = [name for name in archive.namelist() if name.endswith("/METADATA")]
            about = Parser().parsestr(archive.read(metadata).decode())
            if about["Name"] in DISTRIBUTIONS:
                assert "stars-engine" in about["Requires-Dist"]
                kept = [name for name in archive.namelist() if ".dist-info/" not in name]
                assert all(name.startswith("llama_index/llms/stars/") for name in kept)
    command = [*pip, "install", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*command, *map(str, built)], check=True, capture_output=True)
    # LlamaIndex's own packages share the namespace only if they lie in the same folder or path.
    environment = {"PYTHONPATH": str(target), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(target)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
