"""Requests to the hub and what is read from it, with a fake hub instead of a network."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import (
    EntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file

from stars_engine import ClassifierReward, ModelLoadError, StarsEngine, TransformersModel
from stars_engine.backends.transformers import TransformersBackend
from stars_engine.loading.sources import check_exists, resolve_source
from stars_engine.rewards.classifier import ClassifierRewardModel
from stars_engine.types import RewardInput, RewardPrompt


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Fake an unreachable hub; record requests to it."""
    urls: list[str] = []

    def ask(url: str, **_: object) -> None:
        urls.append(url)
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", ask)
    monkeypatch.setattr("stars_engine.loading.sources.HF_HUB_CACHE", str(tmp_path / "cache"))
    return urls


@pytest.mark.parametrize("kind", [TransformersModel, ClassifierReward])
def test_a_missing_relative_path_asks_the_hub_once(asked: list[str], kind: type) -> None:
    load = TransformersBackend if kind is TransformersModel else ClassifierRewardModel
    with pytest.raises(ModelLoadError) as caught:
        load(kind(name_or_path="models/x"))
    message = str(caught.value)
    assert message.startswith("name_or_path='models/x': no such directory, and the hub could not")
    assert "no route to host" in message
    assert "check the name, the revision and the network" in message
    assert len(asked) == 1


def answer(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)  # theirs want a response of the hub's
    error.args = ("no",)
    return error


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (RepositoryNotFoundError, "the hub has no such model"),
        (RevisionNotFoundError, "the hub has no such revision"),
        (OfflineModeIsEnabled, "HF_HUB_OFFLINE"),
        (EntryNotFoundError, None),  # a tokenizer alone has no config.json
    ],
)
def test_answers_of_the_hub(
    asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Exception],
    words: str | None,
) -> None:
    def ask(url: str, **_: object) -> None:
        asked.append(url)
        raise answer(kind)

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", ask)
    if words is None:
        check_exists("a/b", "tokenizer_name_or_path", "v9")
    else:
        with pytest.raises(ModelLoadError, match=f"^tokenizer_name_or_path='a/b'.*{words}"):
            check_exists("a/b", "tokenizer_name_or_path", "v9")
    assert asked == ["https://huggingface.co/a/b/resolve/v9/config.json"]


def test_cached_files_are_not_requested(asked: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache" / "models--a--b").mkdir(parents=True)
    check_exists("a/b", "name_or_path")
    with pytest.raises(ModelLoadError, match="it is not a valid hub name"):
        check_exists("a b", "name_or_path")
    assert asked == []


@pytest.mark.parametrize("content", ["{", "[1]", "\xff", "[" * 100_000])
def test_a_broken_config_file_is_named(tmp_path: Path, engine: StarsEngine, content: str) -> None:
    engine.model.codec.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelLoadError, match=r"name_or_path=.*its config\.json cannot be used"):
        TransformersBackend(TransformersModel(name_or_path=str(tmp_path)))


@pytest.fixture
def adapter(tmp_path: Path, engine: StarsEngine) -> Path:
    """A PEFT adapter of the embedded model, with its weights in both forms."""
    peft = pytest.importorskip("peft")
    base = TransformersBackend(TransformersModel(name_or_path="stars:embedded-lm")).model
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)
    weights = load_file(folder / "adapter_model.safetensors")
    torch.save(weights, folder / "adapter_model.bin")
    return folder


@pytest.mark.slow
def test_a_tilde_is_expanded(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = adapter.parent
    monkeypatch.setenv("HOME", str(home))
    shutil.copytree(resolve_source("stars:embedded-lm"), home / "lm")
    shutil.copytree(resolve_source("stars:embedded-reward"), home / "rewards" / "sentiment")
    there = TransformersModel(
        name_or_path="~/lm", tokenizer_name_or_path="~/lm", adapter_path="~/adapter"
    )
    assert "PeftModel" in type(TransformersBackend(there).model).__name__
    reward = ClassifierRewardModel(
        ClassifierReward(name_or_path="~/rewards/sentiment", tokenizer_name_or_path="~/lm")
    )
    assert reward.score([RewardInput(RewardPrompt("A film"), " of beauty", ())])[0].value


@pytest.mark.parametrize("field", ["name_or_path", "tokenizer_name_or_path", "adapter_path"])
def test_a_missing_directory_of_the_home_is_named_in_full(
    field: str, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = TransformersModel(**{"name_or_path": "stars:embedded-lm", field: "~/nothing"})
    with pytest.raises(ModelLoadError, match=f"^{field}='{tmp_path}/nothing': no such directory"):
        TransformersBackend(config)
    nobody = config.replace(**{field: "~nobody-of-this-name/x"})
    with pytest.raises(ModelLoadError, match=f"^{field}='~nobody-of-this-name/x': no such dir"):
        TransformersBackend(nobody)
    assert asked == []


def hub_with(folder: Path, into: Path) -> Callable[..., str]:
    """Fake `snapshot_download` of a repository with the files of a folder."""

    def download(name: str, *, allow_patterns: list[str]) -> str:
        into.mkdir()
        for path in folder.iterdir():
            if path.name in allow_patterns:
                shutil.copy(path, into)
        return str(into)

    return download


def test_adapters_from_the_hub_are_safetensors(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TransformersModel(name_or_path="stars:embedded-lm", adapter_path="a/b")
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url, **_: None)
    download = hub_with(adapter, tmp_path / "fetched")
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert "PeftModel" in type(TransformersBackend(config).model).__name__
    assert not (tmp_path / "fetched" / "adapter_model.bin").exists()
    (adapter / "adapter_model.safetensors").unlink()
    download = hub_with(adapter, tmp_path / "again")
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ModelLoadError, match=r"adapter_path='a/b'.*adapter_model\.safetensors"):
        TransformersBackend(config)


def test_a_missing_adapter(asked: list[str]) -> None:
    config = TransformersModel(name_or_path="stars:embedded-lm", adapter_path="adapters/x")
    with pytest.raises(ModelLoadError, match=r"^adapter_path='adapters/x': no such directory"):
        TransformersBackend(config)
    assert len(asked) == 1
