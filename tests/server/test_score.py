"""`/v1/score`: rewards of given answers."""

from __future__ import annotations

import pytest

from stars_engine import FunctionReward, SamplingParams, StarsConfig
from tests.support.servers import HELLO, RunningServer, random_chat, serving


@pytest.mark.slow
def test_scores_are_the_rewards_of_the_engine(server: RunningServer) -> None:
    engine = server.model("embedded").engine
    [result] = engine.generate("This movie", sampling=SamplingParams(seed=1, max_tokens=24))
    texts = [result.text, " was awful. I hated it."]
    body = {"model": "embedded", "prompt": "This movie", "input": texts, "segments": True}
    with server.http() as client:
        answer = client.post("/v1/score", json=body)
        assert answer.status_code == 200, answer.text
        first, second = answer.json()["data"]
    assert first["reward"] == pytest.approx(result.reward, abs=1e-3)
    assert second["reward"] < first["reward"]
    assert "".join(segment["text"] for segment in first["segments"]) == result.text
    assert first["segments"][-1]["reward"] == first["reward"]
    assert first["segments"][0]["reward"] == pytest.approx(result.segments[0].reward, abs=1e-3)


def test_many_texts_and_a_reward_that_fails() -> None:
    def reward(prompt: str, completion: str) -> float:
        if completion == "bad":
            raise ValueError("secret text of the failure")
        return float(len(completion))

    with serving({"chat": random_chat(reward)}) as running, running.http() as client:
        body = {"model": "chat", "messages": HELLO, "input": ["a" * i for i in range(40)]}
        found = client.post("/v1/score", json=body).json()
        assert [item["reward"] for item in found["data"]] == list(range(40))
        answer = client.post("/v1/score", json={**body, "input": "bad"})
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "reward_failed"
        assert "secret" not in answer.text
        answer = client.post("/v1/score", json={**body, "prompt": "x"})
        assert answer.status_code == 400


def test_a_prompt_is_required(server: RunningServer) -> None:
    with server.http() as client:
        both_missing = client.post("/v1/score", json={"model": "chat", "input": "x"})
    assert both_missing.status_code == 400
    assert "prompt or messages" in both_missing.json()["error"]["message"]


def test_parts_of_a_composite_reward() -> None:
    config = random_chat()
    reward = {
        "kind": "composite",
        "parts": {
            "length": {"weight": 1.0, "reward": FunctionReward(function=lambda _, text: len(text))},
            "spaces": {
                "weight": 2.0,
                "reward": FunctionReward(function=lambda _, text: text.count(" ")),
            },
        },
    }
    config = StarsConfig(
        model=config.model, reward=reward, align=config.align, sampling=config.sampling
    )
    with serving({"chat": config}) as running, running.http() as client:
        body = {"model": "chat", "messages": HELLO, "input": "a b c"}
        [found] = client.post("/v1/score", json=body).json()["data"]
    assert found["parts"] == {"length": 5.0, "spaces": 2.0}
