"""Rewards over HTTP: the contract of reward models, and equality with local ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stars_engine import ServerReward, StarsEngine
from stars_engine.rewards.server import ServerRewardModel
from stars_engine.testing import check_reward_model
from stars_engine.types import RewardInput
from tests.support.servers import Served, TestServer, classifier_scores, serving


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
