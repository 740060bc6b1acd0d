"""Untrusted config files: what in them is code, and how it is kept from running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from langchain_stars import ChatStars
from langchain_stars import StarsLLM as LangChainLLM
from llamaindex_stars import StarsLLM
from stars_engine import (
    CalibratedSchedule,
    ClassifierReward,
    ConfigError,
    ModelLoadError,
    ProcessReward,
    StarsConfig,
    TransformersModel,
    YesNoReward,
)
from stars_engine.loading.hub_code import check_kernels

COMMAND = [sys.executable, "-c", "from stars_engine.cli import main; main()"]
ROOT = Path(__file__).parents[2]
KINDS: list[tuple[type, dict[str, Any]]] = [
    (TransformersModel, {}),
    (ClassifierReward, {}),
    (ProcessReward, {"convention": "math-shepherd"}),
    (YesNoReward, {"preset": "llama-guard"}),
]
CODE: list[dict[str, Any]] = [
    {"attn_implementation": "org/kernel"},
    {"attn_implementation": "org/kernel@v1.2"},
    {"attn_implementation": "org/kernel:forward"},
    {"attn_implementation": "org/kernel@main:forward"},
    {"attn_implementation": "paged|org/kernel"},
    {"attn_implementation": "kernels-community/flash-attn2"},
    {"attn_implementation": {"": "sdpa", "text_config": "org/kernel"}},
    {"attn_implementation": ["sdpa", "org/kernel"]},
    {"_attn_implementation": "org/kernel"},
    {"text_config": {"attn_implementation": "org/kernel"}},
    {"vision_config": {"inner": {"_attn_implementation": "org/kernel"}}},
    {"config": SimpleNamespace(_attn_implementation="org/kernel")},
    {"use_kernels": True},
    {"allow_all_kernels": True},
    {"kernel_config": {"RMSNorm": "org/kernel:RMSNorm"}},
    {"experts_implementation": "deepgemm"},
    {"experts_implementation": {"": "eager", "text_config": "sonicmoe"}},
]
PICKLES: list[dict[str, Any]] = [
    {"weights_only": False},
    {"use_safetensors": False},
    {"custom_generate": "org/generate"},
    {"trust_remote_code": True},
]


@pytest.mark.parametrize("keywords", CODE, ids=repr)
@pytest.mark.parametrize(("kind", "fields"), KINDS)
def test_no_keyword_loads_remote_code_by_itself(
    kind: type, fields: dict[str, Any], keywords: dict[str, Any]
) -> None:
    with pytest.raises(
        ConfigError, match=r"loads code from the hub, but trust_remote_code is False"
    ):
        kind(name_or_path="a/b", model_kwargs=keywords, **fields)
    kind(name_or_path="a/b", model_kwargs=keywords, trust_remote_code=True, **fields)


@pytest.mark.parametrize("keywords", PICKLES, ids=repr)
@pytest.mark.parametrize("trusted", [True, False])
def test_no_keyword_loads_pickles(keywords: dict[str, Any], trusted: bool) -> None:
    [name] = keywords
    with pytest.raises(ConfigError, match=f"'{name}' cannot be given here"):
        TransformersModel(name_or_path="a/b", model_kwargs=keywords, trust_remote_code=trusted)


@pytest.mark.parametrize(
    "keywords",
    [
        {"attn_implementation": "sdpa"},
        {"attn_implementation": "flash_attention_2"},
        {"attn_implementation": {"": "eager", "vision_config": "sdpa"}},
        {"attn_implementation": None, "use_kernels": False, "kernel_config": None},
        {"experts_implementation": "grouped_mm"},
        {"quantization_config": {"load_in_8bit": True}, "max_memory": {0: "1GB", "cpu": "2GB"}},
    ],
)
def test_other_keywords_are_unchanged(keywords: dict[str, Any]) -> None:
    assert TransformersModel(name_or_path="a/b", model_kwargs=keywords).model_kwargs == keywords


def declared(**attention: Any) -> SimpleNamespace:
    parts = {name: SimpleNamespace(_attn_implementation=attention[name]) for name in attention}
    own = parts.pop("own", SimpleNamespace(_attn_implementation=None))
    return SimpleNamespace(**vars(own), **parts, sub_configs=dict.fromkeys(parts))


def test_a_checkpoint_cannot_ask_for_code_by_its_config() -> None:
    config = TransformersModel(name_or_path="a/b")
    check_kernels(config, lambda: declared(own="sdpa"))
    for asks in ({"own": "org/kernel"}, {"text_config": "org/kernel@x"}):
        with pytest.raises(ModelLoadError, match=r"'a/b': attention 'org/kernel.*is code from"):
            check_kernels(config, lambda asks=asks: declared(**asks))
    kwargs = {"attn_implementation": {"": "sdpa", "vision_config": "eager"}}
    partly = TransformersModel(name_or_path="a/b", model_kwargs=kwargs)
    check_kernels(partly, lambda: declared(own="org/kernel", vision_config="org/kernel"))
    with pytest.raises(ModelLoadError, match="attention 'org/kernel' is code from"):
        check_kernels(partly, lambda: declared(text_config="org/kernel"))
    settled = TransformersModel(name_or_path="a/b", model_kwargs={"attn_implementation": "sdpa"})
    check_kernels(settled, lambda: pytest.fail("what is settled is not asked"))


def test_a_config_file_that_asks_for_code(tmp_path: Path) -> None:
    """As transformers reads it: `attn_implementation` in config.json is taken for the model's."""
    import shutil

    from stars_engine.backends.transformers import TransformersBackend
    from stars_engine.loading.sources import resolve_source

    folder = tmp_path / "lm"
    shutil.copytree(resolve_source("stars:embedded-lm"), folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "attn_implementation": "org/kernel"}))
    with pytest.raises(ModelLoadError, match="attention 'org/kernel' is code from the hub"):
        TransformersBackend(TransformersModel(name_or_path=str(folder)))


def test_flash_attention_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TransformersModel(
        name_or_path="a/b", model_kwargs={"attn_implementation": "flash_attention_2"}
    )
    installed = {"kernels"}
    monkeypatch.setattr(
        "stars_engine.loading.hub_code.find_spec", lambda name: name if name in installed else None
    )
    with pytest.raises(ModelLoadError, match="'flash_attention_2' is code from the hub"):
        check_kernels(config, declared)
    by_itself = TransformersModel(name_or_path="a/b")
    for own in ({"own": "flash_attention_3"}, {"text_config": "flash_attention_2"}):
        with pytest.raises(ModelLoadError, match=r"'flash_attention_.' is code from the hub"):
            check_kernels(by_itself, lambda own=own: declared(**own))
    installed.add("flash_attn")
    check_kernels(config, declared)
    check_kernels(by_itself, lambda: declared(own="flash_attention_2"))
    installed.clear()  # transformers says itself that it is not installed
    check_kernels(config, declared)
    check_kernels(by_itself, lambda: declared(own="flash_attention_2"))


# --- imports ---

MODULE = "import pathlib\npathlib.Path('RAN').touch()\n\ndef f(*_):\n    return 1.0\n"
PAIR = {"model": "stars:embedded-lm"}
FILES: dict[str, dict[str, Any]] = {
    "reward": {**PAIR, "reward": "other_module:f"},
    "reward.function": {**PAIR, "reward": {"kind": "function", "function": "other_module:f"}},
    "reward.parts.a.reward.function": {
        **PAIR,
        "reward": {"kind": "composite", "parts": {"a": "other_module:f", "b": "a/b"}},
    },
    "align.schedule.function": {
        "align": {"schedule": {"kind": "function", "function": "other_module:f"}}
    },
    "model.trust_remote_code": {
        "model": {"name_or_path": "a/b", "trust_remote_code": True},
        "reward": "a/b",
    },
    "reward.trust_remote_code": {
        "model": "a/b",
        "reward": {"kind": "process", "name_or_path": "a/b", "trust_remote_code": True}
        | {"convention": "math-shepherd"},
    },
    **{
        f"model.engine_kwargs.{name}": {
            "model": {"kind": "vllm", "name_or_path": "a/b", "engine_kwargs": {name: value}},
            "reward": "a/b",
        }
        for name, value in {
            "trust_remote_code": True,
            "worker_cls": "other_module.f",
            "scheduler-cls": "other_module.f",
            "logits_processors": ["other_module:f"],
            "distributed_executor_backend": "other_module.f",
        }.items()
    },
    **{
        f"model.engine_kwargs.{part}.{name}": {
            "model": {
                "kind": "vllm",
                "name_or_path": "a/b",
                "engine_kwargs": {part: {name: value}},
            },
            "reward": "a/b",
        }
        for part, name, value in [
            ("compilation_config", "backend", "other_module.f"),
            ("compilation_config", "inductor_passes", {"a": "other_module.f"}),
            ("kv_transfer_config", "kv_connector_module_path", "other_module"),
        ]
    },
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "other_module.py").write_text(MODULE.replace("RAN", str(tmp_path / "RAN")))
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("field", FILES)
@pytest.mark.parametrize("suffix", [".yaml", ".json"])
@pytest.mark.parametrize("reader", [StarsConfig, ChatStars, LangChainLLM, StarsLLM])
def test_files_that_name_code_are_refused(
    folder: Path, field: str, suffix: str, reader: Any
) -> None:
    path = folder / f"stars{suffix}"
    path.write_text(json.dumps(FILES[field]))
    with pytest.raises(ConfigError) as caught:
        reader.from_file(path, allow_imports=False)
    where = "reward.function" if field == "reward" else field
    assert where in [problem.field for problem in caught.value.problems]
    assert str(path) in str(caught.value)
    assert "imports are not allowed here" in str(caught.value)
    assert not (folder / "RAN").exists()
    assert "other_module" not in sys.modules
    reader.from_file(path)  # as before, and nothing is imported by reading


def test_files_that_name_no_code_are_read(tmp_path: Path) -> None:
    path = tmp_path / "stars.yaml"
    StarsConfig().to_file(path)
    assert StarsConfig.from_file(path, allow_imports=False) == StarsConfig()
    schedule = CalibratedSchedule(
        stages=[{"intercept": 0, "slope": 1, "offset": 0, "sigma": 1}], segment_len=8
    )
    schedule.to_file(path)
    assert CalibratedSchedule.from_file(path, allow_imports=False) == schedule
    here = ChatStars.from_file  # what code itself gives is no file
    StarsConfig().to_file(path)
    chat = here(path, allow_imports=False, reward=lambda p, c: 1.0, model="stars:embedded-lm")
    assert chat.settings().reward.is_live


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["generate", "A film", "--config", "stars.yaml"],
        ["calibrate", "--config", "stars.yaml"],
        ["doctor", "--config", "stars.yaml"],
        "generate Film --model stars:embedded-lm --reward other_module:f --threshold 0".split(),
        ["doctor", "--model", "stars:embedded-lm", "--reward", "other_module:f"],
        ["calibrate", "--report", "r.html", "--judge", "other_module:f"],
    ],
    ids=lambda command: " ".join(command[:3]),
)
def test_the_command_line_refuses_files_that_name_code(folder: Path, command: list[str]) -> None:
    pytest.importorskip("matplotlib")
    (folder / "stars.yaml").write_text(json.dumps(FILES["reward"]))
    run = subprocess.run(
        [*COMMAND, *command, "--no-imports"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 2, run.stderr
    assert "other_module:f" in run.stderr
    assert "imports are not allowed here" in run.stderr
    assert not (folder / "RAN").exists()
