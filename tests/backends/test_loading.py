"""Loading of checkpoints: what is refused, what is warned of, where models are put."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from benchmarks.tiny_models import SMALL
from stars_engine import (
    ModelLoadError,
    SamplingParams,
    StarsEngine,
    StarsWarning,
)
from stars_engine.backends.base import DraftRequest
from stars_engine.backends.transformers import TransformersBackend
from stars_engine.config import TransformersModel
from stars_engine.loading.models import load_model, load_tokenizer
from stars_engine.loading.sources import resolve_source
from stars_engine.tokenization.codec import Codec
from tests.support.chat_templates import random_llama
from tests.support.shared_files import shared_model


def test_checkpoints_that_cannot_be_used(tmp_path: Path, engine: StarsEngine) -> None:
    with pytest.raises(ModelLoadError, match="no such directory"):
        TransformersBackend(TransformersModel(name_or_path=str(tmp_path / "nowhere")))
    model = engine.model.model
    bare = tmp_path / "bare"
    model.save_pretrained(bare)
    with pytest.raises(ModelLoadError, match="tokenizer_name_or_path"):
        TransformersBackend(TransformersModel(name_or_path=str(bare)))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    model.config.save_pretrained(pickled)
    engine.model.codec.tokenizer.save_pretrained(pickled)
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match=r"pickled.*save_pretrained"):
        TransformersBackend(TransformersModel(name_or_path=str(pickled)))
    with pytest.raises(ModelLoadError, match="CUDA devices"):
        TransformersBackend(TransformersModel(name_or_path="stars:embedded-lm", device="cuda:7"))
    borrowed = TransformersModel(
        name_or_path=str(bare), tokenizer_name_or_path=shared_model("TinyStories-656K")
    )
    assert TransformersBackend(borrowed).vocab_size == 4096


def test_the_embedded_models_share_one_tokenizer_file() -> None:
    found = [Path(resolve_source(f"stars:embedded-{name}")) for name in ("lm", "reward")]
    assert [(folder / "tokenizer.json").is_file() for folder in found] == [True, False]
    names = ["stars:embedded-lm", "stars:embedded-reward", *map(str, found)]
    tokenizers = [load_tokenizer(TransformersModel(name_or_path=name)) for name in names]
    assert len({Codec(tokenizer).fingerprint() for tokenizer in tokenizers}) == 1
    assert [tokenizer.model_max_length for tokenizer in tokenizers] == [512, 1024] * 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"name_or_path": "stars:lm"},
            ["stars:lm", "stars:embedded-lm, stars:embedded-reward, stars:embedded-value"],
        ),
        ({"name_or_path": "{empty}"}, ["name_or_path=", "not a model", "config.json"]),
        (
            {"name_or_path": "stars:embedded-lm", "tokenizer_name_or_path": "{empty}/no/where"},
            ["tokenizer_name_or_path=", "no such directory"],
        ),
        ({"name_or_path": "nobody/nothing"}, ["network", "local directory"]),
        (
            {"name_or_path": "stars:embedded-lm", "tokenizer_name_or_path": "nobody/nothing"},
            ["nobody/nothing", "network", "local directory"],
        ),
    ],
)
def test_load_errors_name_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, str], words: list[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    named = {name: value.format(empty=tmp_path) for name, value in fields.items()}
    with pytest.raises(ModelLoadError) as caught:
        TransformersBackend(TransformersModel(**named))
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert ".." not in message


def test_a_callers_tokenizer_keeps_its_template(engine: StarsEngine, tokenizer: object) -> None:
    before = tokenizer.chat_template
    live = TransformersModel(model=engine.model.model, tokenizer=tokenizer, chat_template="hi")
    assert TransformersBackend(live).codec.tokenizer.chat_template == "hi"
    assert tokenizer.chat_template == before


def test_a_classifier_used_as_a_language_model_warns() -> None:
    with pytest.warns(StarsWarning, match=r"classifier head \(score\.weight\)"):
        TransformersBackend(TransformersModel(name_or_path=shared_model("rm-sentiment-656K")))


def test_missing_weights_are_an_error(tmp_path: Path, tokenizer: object) -> None:
    for tied in (True, False):
        config = CONFIG_MAPPING["llama"](**SMALL, tie_word_embeddings=tied)
        model = AutoModelForCausalLM.from_config(config)
        weights = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
        model.save_pretrained(tmp_path, state_dict=weights)
        tokenizer.save_pretrained(tmp_path)
        if tied:
            TransformersBackend(TransformersModel(name_or_path=str(tmp_path)))
    with pytest.raises(ModelLoadError, match=r"lacks weights.*lm_head\.weight"):
        TransformersBackend(TransformersModel(name_or_path=str(tmp_path)))


def test_a_peft_adapter_changes_the_model(tmp_path: Path, tokenizer: object) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**SMALL))
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    torch.nn.init.normal_(
        adapted.base_model.model.model.layers[0].self_attn.q_proj.lora_B.default.weight
    )
    adapted.save_pretrained(tmp_path / "adapter")
    name = str(tmp_path / "base")
    plain = TransformersBackend(TransformersModel(name_or_path=name))
    tuned = TransformersBackend(
        TransformersModel(name_or_path=name, adapter_path=str(tmp_path / "adapter"))
    )
    assert tuned.path == "shared prefix"
    sampling = SamplingParams(temperature=3.0, top_k=None, top_p=1.0)
    requests = [DraftRequest([3, 4], 2, [n / 200] * 8, sampling) for n in range(200)]
    assert plain.draft(requests) == plain.draft(requests) != tuned.draft(requests)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="adapter_path"):
        TransformersBackend(
            TransformersModel(name_or_path=name, adapter_path=str(tmp_path / "adapter"))
        )


@pytest.mark.parametrize(
    "place",
    ["cpu", {"": "cpu"}, {"model": "cpu", "lm_head": "cpu"}, {"": torch.device("cpu")}, "auto"],
)
def test_half_precision_becomes_float32_on_a_cpu(
    tmp_path: Path, tokenizer: Any, place: Any
) -> None:
    if place == "auto" and torch.accelerator.is_available():
        pytest.skip("an accelerator is here")
    made = random_llama(tokenizer).half()
    made.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for kind, dtype in (({}, torch.float32), ({"dtype": "float16"}, torch.float16)):
        config = TransformersModel(name_or_path=str(tmp_path), device_map=place, **kind)
        assert load_model(config, AutoModelForCausalLM).dtype == dtype
    plain = load_model(
        TransformersModel(name_or_path=str(tmp_path), device="cpu"), AutoModelForCausalLM
    )
    assert plain.dtype == torch.float32
