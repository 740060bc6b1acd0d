"""The start probe: each way to be silently wrong is refused, with a hint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stars_engine import (
    AlignParams,
    ConstantSchedule,
    ModelLoadError,
    OpenAIServerModel,
    ServerReward,
    StarsConfig,
    StarsEngine,
)
from stars_engine.backends.server import ServerBackend
from stars_engine.cli.doctor import doctor_command
from stars_engine.rewards.server import ServerRewardModel
from tests.support.marks import slow_but_first
from tests.support.model_servers import TestServer
from tests.support.server_faults import Faults, Served
from tests.support.serving import classifier_scores, serving


@pytest.fixture(scope="module")
def model_server(engine: StarsEngine) -> Iterator[TestServer]:
    with serving(Served(engine.model, codec=engine.model.codec)) as running:
        yield running


@pytest.fixture(scope="module")
def reward_server(engine: StarsEngine) -> Iterator[TestServer]:
    reward = engine.reward
    served = Served(rewards=classifier_scores(reward._model), codec=reward._codec)
    with serving(served) as running:
        yield running


@pytest.fixture
def new_model(model_server: TestServer) -> Iterator[Callable[..., ServerBackend]]:
    made = []

    def make(faults: Faults | None = None, **fields: Any) -> ServerBackend:
        model_server.faults = faults or Faults()
        fields = {"base_url": model_server.url, **fields}
        fields = {"tokenizer_name_or_path": "stars:embedded-lm", "http_retries": 0, **fields}
        made.append(ServerBackend(OpenAIServerModel(**fields)))
        return made[-1]

    yield make
    model_server.faults = Faults()
    for backend in made:
        backend.close()


@pytest.fixture
def new_reward(reward_server: TestServer) -> Iterator[Callable[..., ServerRewardModel]]:
    made = []

    def make(faults: Faults | None = None, **fields: Any) -> ServerRewardModel:
        reward_server.faults = faults or Faults()
        fields = {"base_url": reward_server.url, **fields}
        fields = {"tokenizer_name_or_path": "stars:embedded-reward", "http_retries": 0, **fields}
        made.append(ServerRewardModel(ServerReward(**fields)))
        return made[-1]

    yield make
    reward_server.faults = Faults()
    for reward in made:
        reward.end_calls()


@pytest.mark.parametrize(
    ("faults", "said", "hint"),
    slow_but_first(
        [
            (Faults(no_ids=True), "no usable token ids", "returns ids"),
            (Faults(num_choices=2), "2 choices where one was asked for", "dialect"),
            (Faults(one_seed=True), "draws the same tokens with 5 seeds", "fixed seed"),
            (Faults(ignores_seed=True), "when the same seed is sent again", "needs_seed=False"),
            (Faults(other_tokenizer=True), "has a different tokenizer", "tokenizer_name_or_path"),
            (Faults(malformed=True), "malformed answer", "check that the server runs"),
            (Faults(status=500), "status 500: ", "check that the server runs"),
        ]
    ),
)
def test_wrong_language_models(
    new_model: Callable[..., ServerBackend], faults: Faults, said: str, hint: str
) -> None:
    with pytest.raises(ModelLoadError) as caught:
        new_model(faults)
    assert said in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.slow
def test_a_context_shorter_than_configured(new_model: Callable[..., ServerBackend]) -> None:
    with pytest.raises(ModelLoadError, match=r"at most 512 tokens, but context_len=4096") as caught:
        new_model(context_len=4096)
    assert "--max-model-len 4096" in caught.value.hint
    assert new_model(context_len=100).context_len == 100


def test_another_name_of_the_model(new_model: Callable[..., ServerBackend]) -> None:
    with pytest.raises(ModelLoadError, match=r"does not serve 'other'; it serves served") as caught:
        new_model(served_model="other")
    assert "served_model" in caught.value.hint


@pytest.mark.slow
def test_seeds_without_effect_can_be_allowed(new_model: Callable[..., ServerBackend]) -> None:
    assert not new_model(Faults(ignores_seed=True), needs_seed=False).probed.seeded


def test_no_server(new_model: Callable[..., ServerBackend]) -> None:
    with pytest.raises(ModelLoadError, match=r"127\.0\.0\.1:9 did not answer"):
        new_model(base_url="http://127.0.0.1:9")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["other_template", "other_tokenizer"])
def test_two_servers_that_differ(
    new_model: Callable[..., ServerBackend],
    model_server: TestServer,
    engine: StarsEngine,
    fault: str,
) -> None:
    with serving(Served(engine.model, codec=engine.model.codec)) as other:
        other.faults = Faults(**{fault: True})
        with pytest.raises(ModelLoadError, match=r"different chat templates|a different tokenizer"):
            new_model(base_url=[model_server.url, other.url])


@pytest.mark.parametrize(
    ("faults", "said", "hint"),
    slow_but_first(
        [
            (Faults(sigmoid=True), "returns probabilities", "use_activation"),
            (Faults(hidden_states=True), "returns 16 numbers for each text", "hidden states"),
            (Faults(chunk_len=200), "chunked prefill changes rewards", "--max-num-batched-tokens"),
            (Faults(other_tokenizer=True), "has a different tokenizer", "tokenizer_name_or_path"),
        ]
    ),
)
def test_wrong_rewards(
    new_reward: Callable[..., ServerRewardModel], faults: Faults, said: str, hint: str
) -> None:
    with pytest.raises(ModelLoadError) as caught:
        new_reward(faults)
    assert said in str(caught.value)
    assert hint in caught.value.hint


def test_a_wider_tolerance(new_reward: Callable[..., ServerRewardModel]) -> None:
    assert new_reward(Faults(chunk_len=200), tolerance=0.1).probed.num_labels == 1


def test_a_label_that_the_model_lacks(new_reward: Callable[..., ServerRewardModel]) -> None:
    with pytest.raises(ModelLoadError, match=r"label=1"):
        new_reward(label=1)


@pytest.mark.slow
def test_the_key_is_sent_and_never_shown(engine: StarsEngine, monkeypatch: Any) -> None:
    key = "sk-Secret0123456789"
    served = Served(engine.model, codec=engine.model.codec, api_key=key)
    with serving(served) as running:
        fields = {"base_url": running.url, "tokenizer_name_or_path": "stars:embedded-lm"}
        with pytest.raises(ModelLoadError, match=r"status 401") as caught:
            ServerBackend(OpenAIServerModel(**fields, api_key="sk-Wrong0123456789"))
        assert "sk-" not in str(caught.value)
        assert "api_key" in caught.value.hint
        with pytest.raises(ModelLoadError, match=r"LM_KEY.*not set"):
            ServerBackend(OpenAIServerModel(**fields, api_key_env="LM_KEY"))
        monkeypatch.setenv("LM_KEY", key)
        backend = ServerBackend(OpenAIServerModel(**fields, api_key_env="LM_KEY"))
        assert key not in repr(backend.config)
        backend.close()


@pytest.mark.slow
def test_doctor_names_dialect_and_endpoint(
    model_server: TestServer,
    reward_server: TestServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = StarsConfig(
        model={"base_url": model_server.url, "tokenizer_name_or_path": "stars:embedded-lm"},
        reward=ServerReward(
            base_url=reward_server.url, tokenizer_name_or_path="stars:embedded-reward"
        ),
        align=AlignParams(schedule=ConstantSchedule(value=0.0)),
    )
    config.to_file(tmp_path / "stars.yaml")
    doctor_command(config=tmp_path / "stars.yaml")
    shown = " ".join(capsys.readouterr().out.split())
    assert "dialect vllm (/inference/v1/generate)" in shown
    assert "endpoint classify (/classify)" in shown
    assert model_server.url in shown
