"""GGUF files and quantized checkpoints: what they need is said before anything is loaded."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from stars_engine import ModelLoadError, TransformersModel
from stars_engine.errors import ConfigError
from stars_engine.loading import formats
from stars_engine.loading.formats import check_formats
from stars_engine.loading.sources import check_model


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    names: set[str] = set()
    monkeypatch.setattr(formats, "_is_installed", lambda module: module in names)
    return names


def checkpoint(tmp_path: Path, method: str | None) -> TransformersModel:
    values = {} if method is None else {"quantization_config": {"quant_method": method}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    return TransformersModel(name_or_path=str(tmp_path))


@pytest.mark.parametrize(
    ("method", "package"),
    [("bitsandbytes", "bitsandbytes"), ("awq", "gptqmodel"), ("gptq", "gptqmodel"), ("hqq", "hqq")],
)
def test_a_missing_package_is_named(
    tmp_path: Path, installed: set[str], method: str, package: str
) -> None:
    config = checkpoint(tmp_path, method)
    with pytest.raises(ModelLoadError, match=f"quantized with {method}.*pip install {package}"):
        check_formats(config, str(tmp_path))
    installed.add(package)
    check_formats(config, str(tmp_path))


def test_other_checkpoints_need_nothing(tmp_path: Path, installed: set[str]) -> None:
    check_formats(checkpoint(tmp_path, None), str(tmp_path))
    check_formats(checkpoint(tmp_path, "fp8"), str(tmp_path))
    check_formats(checkpoint(tmp_path, None), "org/on-the-hub")


def test_a_quantization_config_of_the_caller(tmp_path: Path, installed: set[str]) -> None:
    config = checkpoint(tmp_path, None)
    for given in ({"quant_method": "torchao"}, SimpleNamespace(quant_method="torchao")):
        own = config.replace(model_kwargs={"quantization_config": given})
        with pytest.raises(ModelLoadError, match="pip install torchao"):
            check_formats(own, str(tmp_path))


def test_gguf_needs_its_package_and_its_file(tmp_path: Path, installed: set[str]) -> None:
    (tmp_path / "a.gguf").touch()
    config = TransformersModel(name_or_path=str(tmp_path), gguf_file="b.gguf")
    with pytest.raises(ModelLoadError, match="pip install gguf"):
        check_formats(config, str(tmp_path))
    installed.add("gguf")
    with pytest.raises(ModelLoadError, match=r"b\.gguf.*has no such file. Hint: it has a\.gguf"):
        check_formats(config, str(tmp_path))
    check_formats(config.replace(gguf_file="a.gguf"), str(tmp_path))
    check_model(config.replace(gguf_file="a.gguf"))  # without a config.json
    wrong = TransformersModel(name_or_path=str(tmp_path / "a.gguf"))
    with pytest.raises(ModelLoadError, match=r"is a file. Hint: .*gguf_file='a\.gguf'"):
        check_model(wrong)
    with pytest.raises(ConfigError, match="gguf_file"):
        TransformersModel(model=object(), tokenizer=object(), gguf_file="a.gguf")


def test_modules_are_looked_up_without_their_import() -> None:
    assert formats._is_installed("json.decoder")
    assert not formats._is_installed("nowhere.part")
    assert "nowhere" not in sys.modules
    assert importlib.util.find_spec("nowhere") is None
