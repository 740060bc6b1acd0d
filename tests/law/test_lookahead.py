"""Candidates scored with their greedy continuation: rewards, kept tokens, counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from stars_engine import (
    AlignParams,
    ConstantSchedule,
    GenerationError,
    NoSchedule,
    SamplingParams,
    StarsEngine,
)
from stars_engine.algorithm.noise import CounterNoise
from stars_engine.backends.base import Draft, DraftRequest
from stars_engine.backends.shared import SharedPrefixDecoder
from stars_engine.backends.transformers import TransformersBackend
from stars_engine.backends.uncached import UncachedDecoder
from stars_engine.core.offline import best_of_n, stars, vanilla
from stars_engine.testing import TabularModel, check_backend
from stars_engine.trace import transcript
from stars_engine.types import RewardInput, StarsResult
from tests.support.recording import RecordingReward
from tests.support.rollouts import make_rollout

PIECES = ["a", "b", "\n", ""]
END = 3
PLAIN = {"temperature": 1.0, "top_k": None}


def along(*ids: int) -> TabularModel:
    """A model that is certain of one text."""

    def next_probs(completion: tuple[int, ...]) -> list[float]:
        wanted = ids[len(completion)] if len(completion) < len(ids) else 0
        return [float(token == wanted) for token in range(len(PIECES))]

    return TabularModel(PIECES, next_probs, end_id=END)


def run(
    model: TabularModel, lookahead: int, reward: object, segment_len: int = 2, **more: object
) -> StarsResult:
    align = AlignParams(
        schedule=NoSchedule(), segment_len=segment_len, lookahead=lookahead, num_candidates=1
    )
    rollout = make_rollout(align=align, sampling=SamplingParams(**PLAIN, **more))
    *_, last = stars([rollout], model, reward)
    assert last.result is not None
    return last.result


def read_by(reward: RecordingReward) -> list[tuple[str, tuple[int, ...], bool]]:
    return [(item.text, item.token_ids, item.finished) for item in reward.inputs]


def test_the_reward_reads_the_lookahead_and_nothing_of_it_is_kept() -> None:
    reward = RecordingReward()
    result = run(along(0, 1, 0, 1, 1, 1, 1), 3, reward, max_tokens=7)
    assert read_by(reward) == [
        ("ababb", (0, 1, 0, 1, 1), False),
        ("ababbbb", (0, 1, 0, 1, 1, 1, 1), False),
        ("ababbbb", (0, 1, 0, 1, 1, 1, 1), False),  # one token up to max_tokens
        ("ababbbb", (0, 1, 0, 1, 1, 1, 1), False),  # ends the answer itself: no lookahead
    ]
    assert [segment.text for segment in result.segments] == ["ab", "ab", "bb", "b"]
    usage = result.usage
    assert (usage.num_drafted_tokens, usage.num_lookahead_tokens) == (7, 3 + 3 + 1)
    assert usage.num_surplus_tokens == 0
    assert "7 tokens kept of 7 drafted (+7 read ahead, 0 surplus)" in transcript(result)


def test_an_end_of_text_in_the_lookahead_makes_a_finished_answer() -> None:
    reward = RecordingReward()
    result = run(along(0, 1, 0, END), 5, reward, segment_len=1, max_tokens=9)
    assert read_by(reward) == [("aba", (0, 1, 0), True)] * 4
    assert (result.text, result.finish_reason) == ("aba", "stop")
    assert result.usage.num_lookahead_tokens == 3 + 2 + 1


def test_a_stop_string_in_the_lookahead_cuts_it() -> None:
    reward = RecordingReward()
    model = along(0, 2, 2, 1, 1, 1)
    result = run(model, 4, reward, segment_len=1, max_tokens=9, stop="\n\n")
    assert read_by(reward) == [("a", (0,), True)] * 3
    assert (result.text, result.finish_reason) == ("a", "stop")
    # The first candidate's lookahead is read up to the stop string, 2 tokens of 4; the last one
    # ends with it, and its lookahead of 4 is of no use.
    assert result.usage.num_lookahead_tokens == 2 + 1 + 0
    assert result.usage.num_surplus_tokens == 2 + 3 + 4
    assert result.usage.num_generated_tokens == 3 * (1 + 4)


def test_the_lookahead_takes_the_first_of_the_likeliest_tokens() -> None:
    model = TabularModel(PIECES, lambda _: [0.1, 0.4, 0.4, 0.1], end_id=END)
    [draft] = model.draft([DraftRequest([0], 1, [0.99], SamplingParams(**PLAIN), lookahead=2)])
    assert draft == Draft((END,))
    [draft] = model.draft([DraftRequest([0], 1, [0.0], SamplingParams(**PLAIN), lookahead=2)])
    assert draft == Draft((0,), (1, 1))


def test_baselines_draft_no_lookahead() -> None:
    class Counting(TabularModel):
        asked: list[int] = []  # noqa: RUF012

        def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
            self.asked += [request.lookahead for request in requests]
            return super().draft(requests)

    model = Counting(PIECES, lambda _: [0.5, 0.5, 0.0, 0.0])
    align = AlignParams(schedule=NoSchedule(), segment_len=2, lookahead=4)
    for decode in (vanilla, lambda *args: best_of_n(*args, n=3)):
        rollout = make_rollout(align=align, sampling=SamplingParams(max_tokens=6, **PLAIN))
        *_, last = decode([rollout], model, RecordingReward())
        assert last.result.usage.num_lookahead_tokens == 0
    assert set(model.asked) == {0}


# --- the local backend ---


class Spied:
    """The embedded reward, and what it was asked."""

    def __init__(self, engine: StarsEngine) -> None:
        self._reward = engine.reward
        self.inputs: list[RewardInput] = []

    def score(self, inputs: Sequence[RewardInput]) -> object:
        self.inputs += inputs
        return self._reward.score(inputs)


def test_a_real_model_continues_greedily(engine: StarsEngine) -> None:
    align = AlignParams(schedule=NoSchedule(), segment_len=8, lookahead=8, num_candidates=1)
    reward = Spied(engine)
    own = StarsEngine(engine.config.replace(align=align), model=engine.model, reward=reward)
    sampling = SamplingParams(seed=3, max_tokens=40, repetition_penalty=1.3)
    [result] = own.generate("The plot", sampling=sampling)
    prompt = engine.model.codec.encode_prompt("The plot")
    kept = list(result.token_ids)
    assert len(reward.inputs) == len(result.segments) > 3
    num_read = 0
    for index, item in enumerate(reward.inputs[:-1]):
        done = 8 * (index + 1)
        room = min(8, 40 - done)
        greedy = sampling.replace(temperature=0)
        prefix = [*prompt, *kept[:done]]
        [draft] = engine.model.draft([DraftRequest(prefix, len(prompt), [0.5] * room, greedy)])
        ends = engine.model.is_end(draft.token_ids[-1], sampling)
        body = draft.token_ids[:-1] if ends else draft.token_ids
        assert list(item.token_ids) == [*kept[:done], *body]
        assert item.finished == ends
        num_read += len(draft.token_ids)
    assert result.usage.num_lookahead_tokens == num_read
    assert result.reward == pytest.approx(
        engine.reward.score([replace(reward.inputs[-1])])[0].value, abs=1e-4
    )


def test_rows_with_and_without_lookahead_share_a_batch(engine: StarsEngine) -> None:
    model = engine.model
    prompts = [[1, 40, 50], [1, 9], [1, 80, 81, 82, 83, 84]]
    samplings = [
        SamplingParams(),
        SamplingParams(frequency_penalty=0.5),
        SamplingParams(min_tokens=12),
    ]
    noise = CounterNoise(seed=2, prompt_ids=[1], sample_index=0)
    requests = [
        DraftRequest(
            prompt,
            len(prompt),
            noise.token_uniforms(position=0, attempt=attempt, count=3 + 2 * attempt),
            sampling,
            lookahead=4 * attempt,
        )
        for prompt, sampling in zip(prompts, samplings, strict=True)
        for attempt in range(3)
    ]
    together = model.draft(requests)
    assert together == [model.draft([request])[0] for request in requests]
    assert {len(draft.lookahead_ids) for draft in together} >= {0, 4, 8}
    plain = model.draft([replace(request, lookahead=0) for request in requests])
    assert [draft.token_ids for draft in plain] == [draft.token_ids for draft in together]


def test_cached_and_uncached_lookahead_are_equal(engine: StarsEngine) -> None:
    model = engine.model
    assert isinstance(model.decoder, SharedPrefixDecoder)
    noise = CounterNoise(seed=4, prompt_ids=[1], sample_index=0)
    prompts = [[1, 40, 50], [1, 9, 8, 7, 100]]
    drafts = []
    for decoder in (model.decoder, UncachedDecoder(model.model, model.context_len)):
        other = TransformersBackend.__new__(TransformersBackend)
        other.__dict__ |= model.__dict__ | {"decoder": decoder}
        uniforms = noise.token_uniforms(position=0, attempt=0, count=6)
        drafts.append(
            other.draft([DraftRequest(p, len(p), uniforms, SamplingParams(), 10) for p in prompts])
        )
    assert drafts[0] == drafts[1]
    assert any(draft.lookahead_ids for draft in drafts[0])


def test_the_lookahead_ends_where_no_token_can_be_drawn(engine: StarsEngine) -> None:
    """A candidate is not lost by what cannot be read behind it."""
    model = engine.model
    prompt = [1, 40]
    others = {token: -float("inf") for token in range(model.vocab_size) if token != 70}
    # Twice drawn, the only token is infinitely unlikely.
    sampling = SamplingParams(logit_bias=others, frequency_penalty=1e308, top_k=None)
    short = DraftRequest(prompt, 2, [0.5], sampling, lookahead=3)
    assert model.draft([short]) == [Draft((70,), (70,))]
    [error] = model.draft([DraftRequest(prompt, 2, [0.5] * 3, sampling)])
    assert isinstance(error, GenerationError)


# --- the contract ---


class Broken(TabularModel):
    def __init__(self, how: str) -> None:
        super().__init__(PIECES, lambda _: [0.3, 0.4, 0.3, 0.0])
        self._how = how

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        drafts = super().draft(requests)
        if self._how == "ignored":
            return [Draft(draft.token_ids) for draft in drafts]
        if self._how == "drawn":
            return [
                Draft(draft.token_ids, tuple((token + 1) % 3 for token in draft.lookahead_ids))
                for draft in drafts
            ]
        if self._how == "mixed":
            return [
                Draft(draft.lookahead_ids[:1] + draft.token_ids[1:], draft.lookahead_ids)
                if draft.lookahead_ids
                else draft
                for draft in drafts
            ]
        return drafts


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("ignored", "another length"),
        ("drawn", "not the greedy continuation"),
        ("mixed", "changes its candidate"),
    ],
)
def test_check_backend_sees_a_wrong_lookahead(how: str, words: str) -> None:
    check_backend(Broken(""))
    with pytest.raises(AssertionError, match=words):
        check_backend(Broken(how))


def test_a_lookahead_changes_what_is_accepted() -> None:
    """Both letters have equal rewards; what follows them does not."""

    def next_probs(completion: tuple[int, ...]) -> list[float]:
        if not completion:
            return [0.5, 0.5, 0.0, 0.0]
        return [0.0, 1.0, 0.0, 0.0] if completion[0] == 1 else [1.0, 0.0, 0.0, 0.0]

    class CountsB:
        def score(self, inputs: Sequence[RewardInput]) -> list[float]:
            return [float(item.text.count("b") >= 2) for item in inputs]

    model = TabularModel(PIECES, next_probs)
    firsts = set()
    for seed in range(30):
        align = AlignParams(schedule=ConstantSchedule(value=1.0), segment_len=1, lookahead=1)
        rollout = make_rollout(align=align, sampling=SamplingParams(max_tokens=2), seed=seed)
        *_, last = stars([rollout], model, CountsB())
        firsts.add(last.result.text)
    assert firsts == {"bb"}
