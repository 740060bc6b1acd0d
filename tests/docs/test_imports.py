"""The cost of imports, and the public names."""

from __future__ import annotations

import subprocess
import sys

import stars_engine


def test_importing_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, stars_engine; from stars_engine import *; StarsConfig(); "
        "StarsEngine(); assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_the_hint_for_a_missing_extra_installs_it() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from stars_engine import StarsEngine, MissingExtraError\n"
        "try:\n    StarsEngine().load()\n"
        "except MissingExtraError as error:\n    print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install -e '.[local]'" in run.stdout, run.stderr


def test_every_public_name_can_be_imported() -> None:
    assert sorted(stars_engine.__all__) == sorted(stars_engine._HOME_OF)
    for name in stars_engine.__all__:
        assert getattr(stars_engine, name).__name__ == name
    assert set(stars_engine.__all__) <= set(dir(stars_engine))
