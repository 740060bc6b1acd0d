"""Engines whose drafts and rewards come from servers: texts, counts, cancellation and failures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Event
from typing import Any

import pytest

from stars_engine import (
    AlignParams,
    Alternative,
    CalibratedSchedule,
    ConfigError,
    ConstantSchedule,
    EngineParams,
    GenerationError,
    JsonGrammar,
    NoSchedule,
    OpenAIServerModel,
    RewardError,
    SamplingParams,
    ServerError,
    ServerReward,
    StarsConfig,
    StarsEngine,
)
from stars_engine.backends.base import DraftRequest
from stars_engine.core.request import Request
from stars_engine.schedules import DrawLimit, Line
from tests.support.engines import idle, wait_until
from tests.support.model_servers import TestServer
from tests.support.server_faults import Faults, Served
from tests.support.serving import classifier_scores, serving

ALIGN = AlignParams(
    schedule=ConstantSchedule(value=0.5),
    beta=0.5,
    segment_len=8,
    max_attempts=4,
    num_candidates=2,
)
LIMITED = AlignParams(  # two draws where the reward so far is low
    schedule=CalibratedSchedule(
        stages=(Line(intercept=0.5, slope=0, offset=0, sigma=1),),
        draw_limits=(DrawLimit(high=0.6, max_attempts=2),),
        segment_len=8,
        beta=0.5,
        max_attempts=4,
    )
)
SAMPLING = SamplingParams(max_tokens=32, seed=5)
SHORT = SAMPLING.replace(max_tokens=16)  # two segments
PROMPTS = ["This movie", "The plot", "I never", "An actor who"]


@pytest.fixture
def models(engine: StarsEngine) -> Iterator[list[TestServer]]:
    served = Served(engine.model, codec=engine.model.codec)
    with serving(served) as one, serving(served) as two:
        yield [one, two]


@pytest.fixture
def rewards(engine: StarsEngine) -> Iterator[TestServer]:
    reward = engine.reward
    scores = classifier_scores(reward._model)
    with serving(Served(rewards=scores, codec=reward._codec, max_model_len=384)) as running:
        yield running


@pytest.fixture
def new_engine(
    models: list[TestServer], rewards: TestServer
) -> Iterator[Callable[..., StarsEngine]]:
    made: list[StarsEngine] = []

    def make(
        count: int = 1, align: AlignParams = ALIGN, draft_ahead: str = "auto", **fields: Any
    ) -> StarsEngine:
        lm = OpenAIServerModel(
            base_url=[server.url for server in models[:count]],
            tokenizer_name_or_path="stars:embedded-lm",
            **{"timeout_s": 30.0, **fields},
        )
        rm = ServerReward(
            base_url=rewards.url, tokenizer_name_or_path="stars:embedded-reward", http_retries=1
        )
        params = EngineParams(draft_ahead=draft_ahead)
        config = StarsConfig(model=lm, reward=rm, align=align, sampling=SAMPLING, engine=params)
        made.append(StarsEngine(config).load())
        return made[-1]

    yield make
    for each in made:
        each.close()


def new_local(engine: StarsEngine) -> StarsEngine:
    config = StarsConfig(
        model="stars:embedded-lm", reward="stars:embedded-reward", align=ALIGN, sampling=SAMPLING
    )
    return StarsEngine(config, model=engine.model, reward=engine.reward)


@pytest.mark.slow
def test_greedy_text_equals_the_local_text(
    new_engine: Callable[..., StarsEngine], engine: StarsEngine
) -> None:
    remote, greedy = new_engine(), SAMPLING.replace(temperature=0)
    with new_local(engine) as local:
        ours = remote.vanilla(PROMPTS, sampling=greedy)
        theirs = local.vanilla(PROMPTS, sampling=greedy)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.token_ids == other.token_ids
        assert mine.text == other.text
        assert mine.reward == pytest.approx(other.reward, abs=1e-4)


@pytest.mark.slow
def test_seeded_text_is_repeatable_alone_and_under_load(
    new_engine: Callable[..., StarsEngine],
) -> None:
    remote = new_engine()
    together = remote.generate(PROMPTS, sampling=SHORT)
    alone = [remote.generate(prompt, sampling=SHORT)[0] for prompt in PROMPTS]
    one_by_one = ALIGN.replace(num_candidates=1)
    again = remote.generate(PROMPTS, sampling=SHORT, align=one_by_one)
    assert [item.token_ids for item in together] == [item.token_ids for item in alone]
    assert [item.token_ids for item in together] == [item.token_ids for item in again]
    assert len({item.token_ids for item in together}) == len(PROMPTS)


@pytest.mark.slow
def test_an_error_before_drafting_is_not_blamed_on_the_model(
    new_engine: Callable[..., StarsEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = new_engine()
    original = Request.draft_requests

    def draft_requests(self: Request, count: int) -> list[DraftRequest]:
        if self.rollout.prompt_index == 1:
            raise ZeroDivisionError("no noise")
        return original(self, count)

    monkeypatch.setattr(Request, "draft_requests", draft_requests)
    results = remote.generate(PROMPTS, sampling=SHORT, return_exceptions=True)
    assert isinstance(results[1], GenerationError)
    assert "the noise or the decoding strategy failed: ZeroDivisionError" in str(results[1])
    assert not any(isinstance(item, Exception) for item in [results[0], *results[2:]])


@pytest.mark.slow
@pytest.mark.parametrize("num_candidates", [1, 2])
@pytest.mark.parametrize("settings", [ALIGN, LIMITED], ids=["constant", "limited"])
def test_drafting_ahead_changes_no_text(
    new_engine: Callable[..., StarsEngine],
    models: list[TestServer],
    settings: AlignParams,
    num_candidates: int,
) -> None:
    align = settings.replace(num_candidates=num_candidates)
    remote = new_engine(align=align, draft_ahead="never")
    expected = remote.generate(PROMPTS, sampling=SHORT)
    assert remote.stats().num_speculative_tokens == 0
    num_before = models[0].count("/inference/v1/generate")
    results = new_engine(align=align, draft_ahead="always").generate(PROMPTS, sampling=SHORT)
    assert [item.token_ids for item in results] == [item.token_ids for item in expected]
    num_asked = models[0].count("/inference/v1/generate") - num_before
    num_steps = sum(
        -(-segment.num_attempts // num_candidates) for item in results for segment in item.segments
    )
    assert num_asked > num_steps * num_candidates  # some were dropped
    assert sum(item.usage.num_speculative_tokens for item in results) > 0
    for item in results:
        assert item.usage.num_speculative_tokens <= item.usage.num_surplus_tokens


@pytest.mark.slow
@pytest.mark.parametrize("draft_ahead", ["never", "always"])
def test_alternatives_at_servers(new_engine: Callable[..., StarsEngine], draft_ahead: str) -> None:
    """Prompts and openings are token ids, so servers need to know nothing of them."""
    alternatives = [
        Alternative(preface="What a film. ", share=0.4),
        Alternative(opening=" is a film that I have seen", share=0.3),
    ]
    align = ALIGN.replace(alternatives=alternatives)
    remote = new_engine(align=align, draft_ahead=draft_ahead)
    together = remote.generate(PROMPTS, sampling=SHORT)
    one_by_one = align.replace(num_candidates=1)
    again = remote.generate(PROMPTS, sampling=SHORT, align=one_by_one)
    alone = [remote.generate(prompt, sampling=SHORT)[0] for prompt in PROMPTS]
    for run in (again, alone):
        assert [item.token_ids for item in run] == [item.token_ids for item in together]
    used = [[a.alternative for s in item.segments for a in s.attempts] for item in together]
    assert used == [[a.alternative for s in i.segments for a in s.attempts] for i in again]
    assert {each for item in used for each in item} == {None, 0, 1}
    always = align.replace(alternatives=[alternatives[1].replace(share=1.0)])
    [opened] = remote.generate("This movie", sampling=SHORT, align=always)
    assert opened.text.startswith(" is a film that I have seen")


@pytest.mark.slow
def test_counts(
    new_engine: Callable[..., StarsEngine], models: list[TestServer], rewards: TestServer
) -> None:
    remote = new_engine(draft_ahead="never")
    num_drafts = models[0].count("/inference/v1/generate")
    num_calls, num_sessions = rewards.count("/classify"), len(models[0].sessions)
    result = remote.generate(PROMPTS[0], sampling=SAMPLING.replace(max_tokens=48))[0]
    steps = [-(-segment.num_attempts // 2) for segment in result.segments]
    bodies = models[0].bodies("/inference/v1/generate")[num_drafts:]
    assert len(bodies) == 2 * sum(steps)  # two candidates each, one request each
    assert all(body["sampling_params"]["n"] == 1 for body in bodies)
    assert len({body["sampling_params"]["seed"] for body in bodies}) == len(bodies)
    scored = rewards.bodies("/classify")[num_calls:]
    assert len(scored) == sum(steps)  # one call for the candidates of a step
    assert all(len(body["input"]) == 2 and not body["use_activation"] for body in scored)
    assert len(set(models[0].sessions[num_sessions:])) == 1  # one session for one answer


@pytest.mark.slow
def test_long_prompts_come_from_the_prefix_cache(
    new_engine: Callable[..., StarsEngine],
) -> None:
    remote = new_engine()
    before = remote.stats()
    remote.generate("This movie was long and dull. " * 24)
    stats = remote.stats()
    num_prompt = stats.num_server_prompt_tokens - before.num_server_prompt_tokens
    num_cached = stats.num_server_cached_tokens - before.num_server_cached_tokens
    assert num_cached >= 0.7 * num_prompt > 0
    assert 0 < stats.cache_hit_rate < 1


@pytest.mark.slow
def test_a_slow_row_holds_nobody(
    new_engine: Callable[..., StarsEngine], models: list[TestServer]
) -> None:
    remote = new_engine()
    slow = remote.model.codec.encode_prompt(PROMPTS[0])
    models[0].holds = lambda ids: ids[: len(slow)] == slow
    models[0].held = Event()
    waiting = remote.submit(PROMPTS[0])
    assert len(remote.generate(PROMPTS[1:])) == 3
    assert not waiting.done()
    models[0].held.set()
    assert waiting.result(30)[0].finish_reason in ("stop", "length")


@pytest.mark.slow
def test_cancelled_rows_leave_the_server(
    new_engine: Callable[..., StarsEngine], models: list[TestServer]
) -> None:
    remote = new_engine()
    models[0].held = Event()
    future = remote.submit(PROMPTS)
    wait_until(lambda: models[0].num_running == 2 * len(PROMPTS))
    future.cancel()
    wait_until(lambda: models[0].num_aborted == 2 * len(PROMPTS))
    wait_until(lambda: idle(remote))


@pytest.mark.slow
def test_a_deadline_ends_a_draft(
    new_engine: Callable[..., StarsEngine], models: list[TestServer]
) -> None:
    remote = new_engine()
    models[0].held = Event()
    [result] = remote.generate(PROMPTS[0], align=ALIGN.replace(deadline_s=0.3))
    assert result.finish_reason == "deadline"
    wait_until(lambda: models[0].num_aborted == 2)


@pytest.mark.slow
def test_one_of_two_servers_dies_amid_32_requests(
    new_engine: Callable[..., StarsEngine], models: list[TestServer]
) -> None:
    prompts = [f"{prompt} {number}" for prompt in PROMPTS for number in range(8)]
    expected = new_engine(timeout_s=300.0).generate(prompts, sampling=SHORT)
    remote = new_engine(2, timeout_s=300.0)
    num_before = models[1].count("/inference/v1/generate")
    future = remote.submit(prompts, sampling=SHORT)
    wait_until(lambda: models[1].count("/inference/v1/generate") > num_before + 20)
    models[1].kill()
    results = future.result(300)
    assert [result.token_ids for result in results] == [item.token_ids for item in expected]
    assert remote.stats().num_server_failovers > 0


@pytest.mark.slow
def test_no_server_left(
    new_engine: Callable[..., StarsEngine], models: list[TestServer], rewards: TestServer
) -> None:
    prompts = [f"{prompt} {number}" for prompt in PROMPTS for number in range(8)]
    remote = new_engine(2, timeout_s=300.0, http_retries=2)
    num_before = rewards.count("/classify")
    sampling = SAMPLING.replace(max_tokens=200, min_tokens=200)
    future = remote.submit(prompts, sampling=sampling, return_exceptions=True)
    wait_until(lambda: rewards.count("/classify") > num_before + 8, timeout_s=120)
    for server in models:
        server.kill()
    errors = future.result(120)
    assert len(errors) == 32
    for error in errors:
        assert isinstance(error, ServerError)
        assert error.result is not None
        assert error.result.finish_reason == "error"
        assert "did not answer" in str(error)
        assert error.hint
    kept = [error.result for error in errors if error.result.segments]
    assert kept  # some had accepted segments, all of them scored
    assert all(segment.reward is not None for result in kept for segment in result.segments)


@pytest.fixture(scope="module")
def faultless() -> dict[int, tuple[int, ...]]:
    """Token ids of answers from servers without faults, made by the first test that needs them."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults",
    [
        Faults(status=500),
        Faults(status=429, retry_after="60"),
        Faults(malformed=True),
        Faults(cuts=True),
        Faults(no_ids=True),
        Faults(num_choices=2),
    ],
    ids=["500", "429", "malformed", "cut", "no ids", "two choices"],
)
def test_requests_of_a_faulty_server_go_on_at_the_other(
    new_engine: Callable[..., StarsEngine],
    models: list[TestServer],
    faults: Faults,
    faultless: dict[int, tuple[int, ...]],
) -> None:
    if not faultless:
        answers = new_engine().generate(PROMPTS, sampling=SHORT)
        faultless.update({item.prompt_index: item.token_ids for item in answers})
    remote = new_engine(2)
    models[1].faults, num_before = faults, models[1].count("/inference/v1/generate")
    results = remote.generate(PROMPTS, sampling=SHORT)
    assert {item.prompt_index: item.token_ids for item in results} == faultless
    assert remote.stats().num_server_failovers > 0 or num_before == models[1].count(
        "/inference/v1/generate"
    )


@pytest.mark.slow
def test_a_server_that_hangs_ends_requests_in_time(
    new_engine: Callable[..., StarsEngine], models: list[TestServer]
) -> None:
    remote = new_engine(timeout_s=3.0)
    models[0].faults = Faults(hangs=True)
    with pytest.raises(ServerError, match=r"no answer within 3 s"):
        remote.generate(PROMPTS[0])
    wait_until(lambda: models[0].num_aborted == 2)  # both candidates


@pytest.mark.slow
def test_a_busy_server_is_asked_again_when_it_says(
    new_engine: Callable[..., StarsEngine], models: list[TestServer]
) -> None:
    remote = new_engine()
    models[0].faults = Faults(status=429, retry_after="0", num_failures=2)
    assert remote.generate(PROMPTS[0])
    assert remote.stats().num_server_retries == 2


@pytest.mark.slow
def test_a_context_shorter_than_promised(
    new_engine: Callable[..., StarsEngine], models: list[TestServer]
) -> None:
    remote = new_engine()
    models[0].faults = Faults(shrinks_to=20)
    with pytest.raises(ServerError, match="shorter than the one it reports") as caught:
        remote.generate(PROMPTS[0], sampling=SAMPLING.replace(min_tokens=32))
    assert "context_len" in caught.value.hint
    assert len(caught.value.result.token_ids) == 16


@pytest.mark.slow
def test_a_reward_server_that_fails(
    new_engine: Callable[..., StarsEngine], rewards: TestServer
) -> None:
    remote = new_engine()
    rewards.faults = Faults(status=500)
    with pytest.raises(RewardError, match=r"did not answer: status 500") as caught:
        remote.generate(PROMPTS[0])
    assert isinstance(caught.value.__cause__, ServerError)
    assert caught.value.result.segments == ()  # nothing is emitted unscored
    rewards.faults = Faults(status=503, num_failures=1)
    assert remote.generate(PROMPTS[0])


@pytest.mark.slow
def test_what_servers_cannot_do_is_refused_by_name(
    new_engine: Callable[..., StarsEngine],
) -> None:
    remote = new_engine()
    with pytest.raises(ConfigError, match=r"grammar: a server begins a grammar anew"):
        remote.generate(PROMPTS[0], sampling=SAMPLING.replace(grammar=JsonGrammar()))
    penalties = SAMPLING.replace(repetition_penalty=1.1, presence_penalty=0.5)
    with pytest.raises(ConfigError, match=r"repetition_penalty: .* with presence_penalty"):
        remote.generate(PROMPTS[0], sampling=penalties)
    with pytest.raises(ConfigError, match=r"logit_bias: \{3: 200\.0\}"):
        remote.generate(PROMPTS[0], sampling=SAMPLING.replace(logit_bias={3: 200.0}))
    with pytest.raises(ConfigError, match=r"temperature: 2\.5 is above 2"):
        remote.generate(PROMPTS[0], sampling=SAMPLING.replace(temperature=2.5))
    entropy = ALIGN.replace(segment_end="entropy", max_entropy=1.0)
    with pytest.raises(GenerationError, match=r"entrop"):
        remote.generate(PROMPTS[0], align=entropy)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"frequency_penalty": 0.7},
        {"presence_penalty": 1.5},
        {"presence_penalty": 0.8, "frequency_penalty": 0.4, "logit_bias": {5: 1.0, 9: -3.0}},
        {"repetition_penalty": 1.3},
        {"min_tokens": 30},
        {"stop_token_ids": [20]},
    ],
    ids=str,
)
def test_settings_hold_across_segments(
    new_engine: Callable[..., StarsEngine], engine: StarsEngine, settings: dict[str, Any]
) -> None:
    """Greedy text equals the local one, which counts over the whole completion."""
    greedy = SamplingParams(temperature=0, max_tokens=40, **settings)
    align = AlignParams(schedule=NoSchedule(), segment_len=8, num_candidates=1)
    remote = new_engine(align=align)
    with new_local(engine) as local:
        ours = remote.vanilla(PROMPTS[:2], sampling=greedy)
        theirs = local.vanilla(PROMPTS[:2], sampling=greedy)
    assert [item.token_ids for item in ours] == [item.token_ids for item in theirs]
