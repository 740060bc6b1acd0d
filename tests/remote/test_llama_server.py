"""A real llama-server on loopback.

`STARS_TEST_LLAMA_SERVER` is the program, `STARS_TEST_GGUF` a small instruct model in float32 as
GGUF, and `STARS_TEST_LM` a directory with the same weights for transformers.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from threading import Event
from typing import Any

import pytest
import torch

from stars_engine import (
    AlignParams,
    Chat,
    ConstantSchedule,
    FunctionReward,
    OpenAIServerModel,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    TransformersModel,
)
from stars_engine.backends.base import DraftRequest
from stars_engine.backends.server import ServerBackend
from stars_engine.chat.prompts import resolve_prompt
from stars_engine.sampling import propose
from stars_engine.testing import check_backend
from tests.support.engines import wait_until
from tests.support.ties import assert_equal_up_to_a_tie

_NAMES = ("STARS_TEST_LLAMA_SERVER", "STARS_TEST_GGUF", "STARS_TEST_LM")
pytestmark = [
    pytest.mark.servers,
    pytest.mark.skipif(not all(map(os.environ.get, _NAMES)), reason="no llama-server"),
]

PROMPTS = ["Name three colours.", "Why is the sky blue?", "Write a line about rain.", "Hi!"]
CHATS = [Chat([{"role": "user", "content": prompt}]) for prompt in PROMPTS]
ALIGN = AlignParams(
    schedule=ConstantSchedule(value=0.5),
    beta=0.2,
    segment_len=16,
    max_attempts=4,
    num_candidates=2,
)
SAMPLING = SamplingParams(max_tokens=48, seed=3)


def share_of_e(prompt: str, completion: str) -> float:
    return min(1.0, 8 * completion.count("e") / max(1, len(completion)))


REWARD = FunctionReward(function=share_of_e)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [os.environ["STARS_TEST_LLAMA_SERVER"], "-m", os.environ["STARS_TEST_GGUF"]]
    command += ["--host", "127.0.0.1", "--port", str(port), "-c", "16384", "-np", "8"]
    command += ["--kv-unified", "-ctk", "f32", "-ctv", "f32", "-fa", "off", "-t", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: server.poll() is not None or is_healthy(port), timeout_s=300)
            assert server.poll() is None, "llama-server ended"
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def is_healthy(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def server(url: str) -> OpenAIServerModel:
    return OpenAIServerModel(base_url=url, tokenizer_name_or_path=os.environ["STARS_TEST_LM"])


@pytest.fixture(scope="module")
def remote(server: OpenAIServerModel) -> Iterator[StarsEngine]:
    config = StarsConfig(model=server, reward=REWARD, align=ALIGN, sampling=SAMPLING)
    with StarsEngine(config) as engine:
        yield engine


@pytest.fixture(scope="module")
def local() -> Iterator[StarsEngine]:
    model = TransformersModel(name_or_path=os.environ["STARS_TEST_LM"], dtype="float32")
    config = StarsConfig(model=model, reward=REWARD, align=ALIGN, sampling=SAMPLING)
    with StarsEngine(config) as engine:
        yield engine


def ids_of(engine: StarsEngine, chat: Chat) -> list[int]:
    return list(resolve_prompt(chat, engine.model.codec, prompt_format="auto").token_ids)


def test_contract_of_language_models(server: OpenAIServerModel) -> None:
    backend = ServerBackend(server)
    assert backend.probed.dialect.name == "llama.cpp"
    assert backend.probed.seeded
    assert backend.context_len == 8192
    check_backend(backend, [[1], [504, 33059, 260], [2, 1, 3, 40]])
    backend.close()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"repetition_penalty": 1.3},
        {"min_tokens": 40},
        {"logit_bias": {2: -math.inf, 28: 2.0}},
        {"stop_token_ids": [28]},
    ],
    ids=str,
)
def test_greedy_text_equals_the_local_text_up_to_ties(
    remote: StarsEngine, local: StarsEngine, settings: dict[str, Any]
) -> None:
    greedy = SAMPLING.replace(temperature=0, **settings)
    ours, theirs = remote.vanilla(CHATS, sampling=greedy), local.vanilla(CHATS, sampling=greedy)
    for chat, mine, other in zip(CHATS, ours, theirs, strict=True):
        if settings:
            assert mine.token_ids == other.token_ids
        else:
            model, ids = local.model.model, ids_of(local, chat)
            assert_equal_up_to_a_tie(model, ids, mine.token_ids, other.token_ids)


def test_seeded_text_is_repeatable_alone_and_under_load(remote: StarsEngine) -> None:
    together = remote.generate(CHATS)
    alone = [remote.generate(chat)[0] for chat in CHATS]
    more = remote.generate(CHATS, align=ALIGN.replace(num_candidates=4))
    assert [item.token_ids for item in together] == [item.token_ids for item in alone]
    assert [item.token_ids for item in together] == [item.token_ids for item in more]
    assert any(segment.num_attempts > 1 for item in together for segment in item.segments)


@pytest.mark.parametrize("settings", [{"top_p": 0.6}, {"min_p": 0.2}, {"top_k": 3}], ids=str)
def test_cuts_apply_to_the_distribution_at_its_temperature(
    remote: StarsEngine, local: StarsEngine, settings: dict[str, Any]
) -> None:
    ids = ids_of(local, CHATS[2])
    sampling = SAMPLING.replace(temperature=1.7, **settings)
    uniforms = [(i + 0.5) / 200 for i in range(200)]
    requests = [DraftRequest(ids, len(ids), [u], sampling) for u in uniforms]
    drawn = {draft.token_ids[0] for draft in remote.model.draft(requests)}
    with torch.inference_mode():
        logits = local.model.model(torch.tensor([ids])).logits[:, -1]
    kept = propose(logits, sampling)
    allowed = kept.ids[0] if kept.ids is not None else torch.arange(logits.shape[1])
    likely = {int(i) for i, p in zip(allowed, kept.probs[0], strict=True) if p > 0.05}
    allowed_ids = {int(i) for i, p in zip(allowed, kept.probs[0], strict=True) if p > 0}
    assert likely <= drawn <= allowed_ids


def test_cached_tokens_are_counted(remote: StarsEngine) -> None:
    before = remote.stats()
    remote.generate("Tell me about the sea. " * 60, sampling=SAMPLING.replace(max_tokens=96))
    stats = remote.stats()
    num_prompt = stats.num_server_prompt_tokens - before.num_server_prompt_tokens
    num_cached = stats.num_server_cached_tokens - before.num_server_cached_tokens
    assert 0.5 * num_prompt <= num_cached < num_prompt


def test_cancelled_drafts_leave_the_server(remote: StarsEngine, url: str) -> None:
    ids, answered = ids_of(remote, CHATS[0]), Event()
    endless = SamplingParams(max_tokens=4000, logit_bias={2: -math.inf})
    request = DraftRequest(ids, len(ids), [0.5] * 4000, endless)
    cancel = remote.model.submit(request, lambda _: answered.set())
    wait_until(lambda: is_drafting(url))
    cancel()
    wait_until(lambda: not is_drafting(url))
    assert not answered.is_set()


def is_drafting(url: str) -> bool:
    with urllib.request.urlopen(f"{url}/slots", timeout=30) as answer:
        return any(slot["is_processing"] for slot in json.load(answer))
