"""Drafts over HTTP: the contract of language models, in every dialect, and equality with local."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stars_engine import OpenAIServerModel, SamplingParams, StarsEngine
from stars_engine.backends.base import DraftRequest
from stars_engine.backends.server import ServerBackend
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
