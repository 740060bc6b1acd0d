"""GGUF files and quantized checkpoints: what they need is said before anything is loaded."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig

from stars_engine import (
    ModelLoadError,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    TransformersModel,
)
from stars_engine.errors import ConfigError
from stars_engine.loading import formats
from stars_engine.loading.formats import check_formats
from stars_engine.loading.models import load_model
from stars_engine.loading.sources import check_model
from tests.support.shared_files import shared_model


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


def test_an_error_of_a_quantized_checkpoint_names_its_method(tmp_path: Path) -> None:
    shutil.copytree(shared_model("stories260K"), tmp_path, dirs_exist_ok=True)
    values = json.loads((tmp_path / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "vptq"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = TransformersModel(name_or_path=str(tmp_path))
    with pytest.raises(ModelLoadError, match=r"quantized with vptq; install the package"):
        load_model(config, AutoModelForCausalLM)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="quantized with vptq"):
        load_model(config, AutoModelForCausalLM)


def test_int8_weights_of_torchao(tmp_path: Path) -> None:
    """Stored as int8, computed as int8, with shared prefixes; new weights empty the cache."""
    pytest.importorskip("torchao", reason="torchao is not installed")
    from torchao.quantization import Int8WeightOnlyConfig

    source = shared_model("stories260K")
    int8 = TorchAoConfig(quant_type=Int8WeightOnlyConfig())
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=int8)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path)
    sampling = SamplingParams(max_tokens=24, seed=3)
    loaded = {
        "stored": TransformersModel(name_or_path=str(tmp_path)),
        "asked for": TransformersModel(
            name_or_path=source, model_kwargs={"quantization_config": int8}
        ),
    }
    texts = {}
    for name, config in loaded.items():
        with StarsEngine(StarsConfig(model=config, reward=len_of_answer)) as engine:
            backend = engine.load().model
            assert backend.path == "shared prefix"
            weight = backend.model.model.layers[0].mlp.up_proj.weight
            assert type(weight).__name__ == "Int8Tensor"
            [result] = engine.vanilla("Once upon a time", sampling=sampling)
            texts[name] = result.text
            weight.qdata.neg_()
            [other] = engine.vanilla("Once upon a time", sampling=sampling)
            assert other.text != result.text
    assert texts["stored"] == texts["asked for"]


def len_of_answer(prompt: str, answer: str) -> float:
    return float(len(answer))
