"""SmolLM2-135M-Instruct: a GGUF file, the example of guards, and an answer from documents."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import import_utils

from examples import guards
from stars_engine import AlignParams, SamplingParams, StarsConfig, StarsEngine, TransformersModel
from stars_engine.loading.models import load_model, load_tokenizer
from stars_engine.tokenization.codec import Codec
from tests.support.smollm2 import smollm2, smollm2_gguf

pytestmark = [pytest.mark.slow, pytest.mark.smollm2]


@pytest.fixture(scope="module")
def engine() -> Iterator[StarsEngine]:
    """As the example of guards makes it."""
    config = StarsConfig(
        model=TransformersModel(name_or_path=str(smollm2())),
        reward=guards.allowed,
        align=AlignParams(preset="guard", fallback_text=guards.FALLBACK, num_candidates=2),
        sampling=SamplingParams(max_tokens=40, temperature=0.6, seed=0),
    )
    with StarsEngine(config) as loaded:
        yield loaded


def test_it_knows_the_capital_of_france(engine: StarsEngine) -> None:
    assert engine.has_chat_template
    assert engine.load().model.path == "shared prefix"
    [plain] = engine.vanilla("What is the capital of France?", temperature=0.0, max_tokens=16)
    assert (plain.text, plain.finish_reason) == ("The capital of France is Paris.", "stop")


def test_an_answer_from_documents_in_its_own_words(engine: StarsEngine) -> None:
    """The facts of the answer are in the documents; the sentences are the model's."""
    [answer] = engine.generate(guards.asked(guards.QUESTIONS[0]))
    assert answer.text.strip()
    assert guards.allowed(guards.DOCUMENTS, answer.text) == 1
    assert set(guards.FACT.findall(answer.text)) <= set(re.findall(r"\w+", guards.DOCUMENTS))
    assert answer.text.strip() not in guards.DOCUMENTS


def test_a_guard_refuses_personal_data(engine: StarsEngine) -> None:
    [plain] = engine.vanilla(guards.asked(guards.QUESTIONS[1]))
    assert guards.PERSONAL.search(plain.text)
    [guarded] = engine.generate(guards.asked(guards.QUESTIONS[1]))
    assert guarded.finish_reason == "fallback"
    assert guarded.text.endswith(guards.FALLBACK)
    assert not guards.PERSONAL.search(guarded.text)
    assert guarded.usage.num_attempts > 10


@pytest.mark.skipif(
    os.environ.get("STARS_REAL_MODEL") != "all", reason="make test-real-model runs it"
)
def test_a_gguf_file_holds_the_same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenizer, chat template and weights, which are dequantized in both."""
    file = smollm2_gguf(monkeypatch)
    getattr(import_utils.is_gguf_available, "cache_clear", int)()  # it may have been missed before
    stored = TransformersModel(name_or_path=str(smollm2()))
    packed = TransformersModel(name_or_path=str(file.parent), gguf_file=file.name, dtype="bfloat16")
    tokenizers = [load_tokenizer(config) for config in (stored, packed)]
    assert Codec(tokenizers[0]).fingerprint() == Codec(tokenizers[1]).fingerprint()
    turns = [{"role": "user", "content": "Hi"}]
    first, second = (t.apply_chat_template(turns, tokenize=False) for t in tokenizers)
    assert first == second
    models = [load_model(config, AutoModelForCausalLM) for config in (stored, packed)]
    states = [model.state_dict() for model in models]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
