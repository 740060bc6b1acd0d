"""Two real vLLM servers on loopback; see `make test-servers`.

`STARS_TEST_LM` and `STARS_TEST_REWARD` are directories with an instruct model and a classifier with
its tokenizer; `STARS_TEST_LM_URL` and `STARS_TEST_REWARD_URL` are vLLM servers of them, in float32.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from stars_engine import (
    AlignParams,
    Chat,
    ClassifierReward,
    ConstantSchedule,
    OpenAIServerModel,
    SamplingParams,
    ServerReward,
    ServerYesNoReward,
    StarsConfig,
    StarsEngine,
    TransformersModel,
    YesNoReward,
)
from stars_engine.backends.server import ServerBackend
from stars_engine.chat.prompts import resolve_prompt
from stars_engine.rewards.loading import load_reward
from stars_engine.rewards.server import ServerRewardModel
from stars_engine.testing import check_backend, check_reward_model
from stars_engine.types import RewardInput
from tests.support.ties import assert_equal_up_to_a_tie

_NAMES = ("STARS_TEST_LM", "STARS_TEST_REWARD", "STARS_TEST_LM_URL", "STARS_TEST_REWARD_URL")
pytestmark = [
    pytest.mark.servers,
    pytest.mark.skipif(not all(map(os.environ.get, _NAMES)), reason="no servers"),
]

PROMPTS = ["Name three colours.", "Why is the sky blue?", "Write a line about rain.", "Hi!"]
ALIGN = AlignParams(
    schedule=ConstantSchedule(value=0.0),
    beta=0.5,
    segment_len=16,
    max_attempts=4,
    num_candidates=2,
)
SAMPLING = SamplingParams(max_tokens=48, seed=3)


def lm(**fields: Any) -> OpenAIServerModel:
    where, url = os.environ["STARS_TEST_LM"], os.environ["STARS_TEST_LM_URL"]
    return OpenAIServerModel(base_url=url, tokenizer_name_or_path=where, **fields)


def rm(**fields: Any) -> ServerReward:
    where, url = os.environ["STARS_TEST_REWARD"], os.environ["STARS_TEST_REWARD_URL"]
    return ServerReward(base_url=url, tokenizer_name_or_path=where, **fields)


@pytest.fixture(scope="module")
def local() -> Iterator[StarsEngine]:
    config = StarsConfig(
        model=TransformersModel(name_or_path=os.environ["STARS_TEST_LM"], dtype="float32"),
        reward=ClassifierReward(name_or_path=os.environ["STARS_TEST_REWARD"], dtype="float32"),
        align=ALIGN,
        sampling=SAMPLING,
    )
    with StarsEngine(config) as engine:
        yield engine


@pytest.fixture(scope="module")
def remote() -> Iterator[StarsEngine]:
    config = StarsConfig(model=lm(), reward=rm(), align=ALIGN, sampling=SAMPLING)
    with StarsEngine(config) as engine:
        yield engine


@pytest.mark.parametrize("dialect", ["vllm", "completions"])
def test_contract_of_language_models(dialect: str) -> None:
    backend = ServerBackend(lm(dialect=dialect))
    check_backend(backend, [[1], [504, 33059, 260], [2, 1, 3, 40]])
    backend.close()


def test_contract_of_reward_models() -> None:
    reward = ServerRewardModel(rm())
    check_reward_model(reward)
    reward.end_calls()


def test_greedy_text_equals_the_local_text_up_to_ties(
    remote: StarsEngine, local: StarsEngine
) -> None:
    greedy = SAMPLING.replace(temperature=0)
    chats = [Chat([{"role": "user", "content": prompt}]) for prompt in PROMPTS]
    ours = remote.vanilla(chats, sampling=greedy)
    theirs = local.vanilla(chats, sampling=greedy)
    for chat, mine, other in zip(chats, ours, theirs, strict=True):
        ids = resolve_prompt(chat, local.model.codec, prompt_format="auto").token_ids
        assert_equal_up_to_a_tie(local.model.model, ids, mine.token_ids, other.token_ids)
        if mine.token_ids == other.token_ids:
            assert mine.reward == pytest.approx(other.reward, abs=1e-4)


def test_rewards_equal_local_ones(remote: StarsEngine, local: StarsEngine) -> None:
    results = remote.generate(PROMPTS)
    for prompt, result in zip(PROMPTS, results, strict=True):
        inputs = [RewardInput(_reward_prompt(local, prompt), result.text, result.token_ids)]
        [ours], [theirs] = remote.reward.score(inputs), local.reward.score(inputs)
        assert ours.value == pytest.approx(theirs.value, abs=1e-4)
        assert ours.num_tokens == theirs.num_tokens


def _reward_prompt(engine: StarsEngine, prompt: str) -> Any:
    return resolve_prompt(prompt, engine.model.codec, prompt_format="auto").for_reward


def test_seeded_text_is_repeatable_alone_and_under_load(remote: StarsEngine) -> None:
    together = remote.generate(PROMPTS)
    alone = [remote.generate(prompt)[0] for prompt in PROMPTS]
    more = remote.generate(PROMPTS, align=ALIGN.replace(num_candidates=4))
    assert [item.token_ids for item in together] == [item.token_ids for item in alone]
    assert [item.token_ids for item in together] == [item.token_ids for item in more]


def test_settings_hold_across_segments(remote: StarsEngine, local: StarsEngine) -> None:
    greedy = SAMPLING.replace(temperature=0, frequency_penalty=0.6, presence_penalty=0.9)
    prompt = Chat([{"role": "user", "content": PROMPTS[0]}])
    [ours] = remote.vanilla(prompt, sampling=greedy)
    [theirs] = local.vanilla(prompt, sampling=greedy)
    assert ours.token_ids == theirs.token_ids


def test_prefix_caches_are_warm(remote: StarsEngine) -> None:
    before = remote.stats()
    remote.generate("Tell me about the sea. " * 60, sampling=SAMPLING.replace(max_tokens=96))
    stats = remote.stats()
    num_prompt = stats.num_server_prompt_tokens - before.num_server_prompt_tokens
    num_cached = stats.num_server_cached_tokens - before.num_server_cached_tokens
    assert num_cached >= 0.7 * num_prompt


def test_judges_equal_local_ones(local: StarsEngine) -> None:
    instruction = "Question: {prompt}\nAnswer: {completion}\nIs the answer polite? Yes or No."
    where, url = os.environ["STARS_TEST_LM"], os.environ["STARS_TEST_LM_URL"]
    judge = load_reward(
        ServerYesNoReward(base_url=url, tokenizer_name_or_path=where, instruction=instruction)
    )
    inputs = [RewardInput(_reward_prompt(local, prompt), " Sure!", ()) for prompt in PROMPTS]
    ours = [score.value for score in judge.score(inputs)]
    own = load_reward(YesNoReward(name_or_path=where, dtype="float32", instruction=instruction))
    assert ours == pytest.approx([score.value for score in own.score(inputs)], abs=1e-3)
