"""Rewards over HTTP: the contract of reward models, and equality with local ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast, Qwen2ForTokenClassification

from stars_engine import (
    ConfigError,
    ModelLoadError,
    ProcessReward,
    ServerProcessReward,
    ServerReward,
    ServerYesNoReward,
    StarsEngine,
    YesNoReward,
)
from stars_engine.rewards.loading import load_reward
from stars_engine.rewards.server import ServerRewardModel
from stars_engine.testing import check_reward_model
from stars_engine.types import RewardInput
from tests.support.model_servers import TestServer
from tests.support.server_faults import Faults, Served
from tests.support.serving import classifier_scores, next_logprobs, scores_of_tokens, serving


@pytest.fixture(scope="module", params=["vllm", "sglang"])
def server(request: pytest.FixtureRequest, engine: StarsEngine) -> Iterator[TestServer]:
    reward = engine.reward
    scores = classifier_scores(reward._model)
    served = Served(rewards=scores, codec=reward._codec, dialect=request.param)
    with serving(served) as running:
        yield running


@pytest.fixture(scope="module")
def remote(server: TestServer, engine: StarsEngine) -> Iterator[ServerRewardModel]:
    config = ServerReward(base_url=server.url, tokenizer_name_or_path="stars:embedded-reward")
    reward = ServerRewardModel(config, engine.model.codec.fingerprint())
    yield reward
    reward.end_calls()


def test_contract_of_reward_models(remote: ServerRewardModel) -> None:
    check_reward_model(remote)


@pytest.mark.slow
def test_rewards_equal_local_ones(
    remote: ServerRewardModel,
    server: TestServer,
    engine: StarsEngine,
    borders: list[RewardInput],
) -> None:
    assert remote.reads_ids == engine.reward.reads_ids
    before = server.count("/classify")
    found = remote.score(borders[:40])
    assert server.count("/classify") == before + 1  # one call for all
    for ours, local in zip(found, engine.reward.score(borders[:40]), strict=True):
        assert ours.value == pytest.approx(local.value, abs=1e-4)
        assert ours.num_tokens == local.num_tokens


JUDGING = {"template": "{prompt}{completion} It was", "positive": " good", "negative": " bad"}


@pytest.mark.parametrize("dialect", [pytest.param("vllm", marks=pytest.mark.slow), "completions"])
def test_judges_equal_local_ones(
    engine: StarsEngine, borders: list[RewardInput], dialect: str
) -> None:
    local = load_reward(YesNoReward(name_or_path="stars:embedded-lm", **JUDGING))
    codec, logprobs = engine.model.codec, next_logprobs(engine.model.model)
    with serving(Served(logprobs=logprobs, codec=codec, dialect=dialect)) as running:
        remote = load_reward(
            ServerYesNoReward(
                base_url=running.url, tokenizer_name_or_path="stars:embedded-lm", **JUDGING
            )
        )
        ours = [score.value for score in remote.score(borders[:6])]
        assert ours == pytest.approx([score.value for score in local.score(borders[:6])], abs=1e-4)
        used = "/inference/v1/generate" if dialect == "vllm" else "/v1/completions"
        assert remote.about()["endpoint"] == used
        remote.end_calls()


def test_a_classifier_is_no_judge(server: TestServer) -> None:
    with pytest.raises(ModelLoadError, match=r"log-probabilities of tokens cannot be read"):
        load_reward(
            ServerYesNoReward(
                base_url=server.url,
                tokenizer_name_or_path="stars:embedded-reward",
                http_retries=0,
                **JUDGING,
            )
        )


def test_process_rewards_equal_local_ones(
    qwen: Qwen2ForTokenClassification,
    qwen_tokenizer: PreTrainedTokenizerFast,
    borders: list[RewardInput],
    tmp_path: Path,
) -> None:
    qwen.save_pretrained(tmp_path)
    qwen_tokenizer.save_pretrained(tmp_path)
    settings = {"convention": "qwen2.5-math-prm", "aggregate": "mean", "step_separator": "."}
    local = load_reward(ProcessReward(name_or_path=str(tmp_path), **settings))
    with serving(Served(token_scores=scores_of_tokens(qwen))) as running:
        where = {"base_url": running.url, "tokenizer_name_or_path": str(tmp_path)}
        remote = load_reward(ServerProcessReward(**where, **settings))
        before = running.count("/pooling")
        found = remote.score(borders[:8])
        assert running.count("/pooling") == before + 1
        for ours, theirs in zip(found, local.score(borders[:8]), strict=True):
            assert ours.value == pytest.approx(theirs.value, abs=1e-4)
            assert ours.num_tokens == theirs.num_tokens
        remote.end_calls()
        running.faults = Faults(sigmoid=True)
        with pytest.raises(ModelLoadError, match=r"probabilities where raw scores"):
            load_reward(ServerProcessReward(**where, **settings))


def test_next_token_process_rewards_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"head='tokens' reads the probabilities"):
        ServerProcessReward(
            base_url="http://a", tokenizer_name_or_path="b", convention="math-shepherd"
        )
