"""Drafts over HTTP: the contract of language models, in every dialect, and equality with local."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from stars_engine import OpenAIServerModel, SamplingParams, StarsEngine
from stars_engine.backends.base import DraftRequest
from stars_engine.backends.server import ServerBackend
from stars_engine.remote.dialects import CompletionRequest, dialect_named
from stars_engine.testing import check_backend
from tests.support.model_servers import TestServer
from tests.support.server_faults import Served
from tests.support.serving import serving

DIALECTS = ["vllm", "completions", "sglang", "llama.cpp"]


@pytest.fixture(scope="module", params=DIALECTS)
def server(request: pytest.FixtureRequest, engine: StarsEngine) -> Iterator[TestServer]:
    backend = engine.model
    with serving(Served(backend, codec=backend.codec, dialect=request.param)) as running:
        yield running


@pytest.fixture(scope="module")
def remote(server: TestServer) -> Iterator[ServerBackend]:
    config = OpenAIServerModel(base_url=server.url, tokenizer_name_or_path="stars:embedded-lm")
    backend = ServerBackend(config)
    yield backend
    backend.close()


@pytest.mark.slow
def test_contract_of_language_models(server: TestServer, remote: ServerBackend) -> None:
    assert remote.probed.dialect.name == server.served.dialect
    check_backend(remote)


def test_facts_equal_those_of_the_local_model(remote: ServerBackend, engine: StarsEngine) -> None:
    local = engine.model
    assert remote.vocab_size == local.vocab_size
    assert remote.end_ids == local.end_ids
    assert remote.codec.fingerprint() == local.codec.fingerprint()
    assert remote.context_len == 512
    assert remote.default_sampling() == local.default_sampling()


def test_greedy_drafts_equal_local_ones(remote: ServerBackend, engine: StarsEngine) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=24)
    prompts = [engine.model.codec.encode_prompt(text) for text in ("This movie", "I never", "The")]
    requests = [DraftRequest(ids, len(ids), [0.5] * 24, greedy) for ids in prompts]
    assert remote.draft(requests) == engine.model.draft(requests)


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.3},
        {"min_tokens": 20},
        {"stop_token_ids": (20,)},
        {"logit_bias": {20: -math.inf, 5: 1.0}},
    ],
    ids=str,
)
def test_settings_hold_across_segments(
    server: TestServer, remote: ServerBackend, engine: StarsEngine, settings: dict[str, Any]
) -> None:
    """Greedy drafts of the second segment equal local ones."""
    if server.served.dialect == "sglang" and settings.keys() & {"repetition_penalty", "logit_bias"}:
        pytest.skip("the test server of this dialect has no penalties and biases")
    greedy = SamplingParams(temperature=0, max_tokens=24, **settings)
    prompt = engine.model.codec.encode_prompt("This movie")
    first = engine.model.draft([DraftRequest(prompt, len(prompt), [0.5] * 8, greedy)])[0]
    prefix = [*prompt, *first.token_ids]
    request = DraftRequest(prefix, len(prompt), [0.5] * 16, greedy)
    assert remote.draft([request]) == engine.model.draft([request])


def test_llama_server_gets_every_setting_that_its_command_line_could_change() -> None:
    """A server started with `--mirostat 2` or `--presence-penalty 1` would use these instead."""
    request = CompletionRequest((1, 2, 3), 8, temperature=0.5, logit_bias={7: -math.inf, 8: 2.0})
    body = dialect_named("llama.cpp").body(request, "served")
    neutral = {"mirostat": 0, "dynatemp_range": 0, "min_keep": 0, "ignore_eos": False}
    neutral |= {"presence_penalty": 0, "frequency_penalty": 0, "repeat_last_n": 0}
    assert neutral.items() <= body.items()
    assert body["model"] == "served"  # a router asks for it
    assert body["logit_bias"] == [[7, False], [8, 2.0]]
    order = body["samplers"]
    assert order.index("penalties") < order.index("temperature") < order.index("top_k")
    assert order.index("top_k") < order.index("top_p") < order.index("min_p")
