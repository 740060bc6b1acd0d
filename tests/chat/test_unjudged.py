"""Unscored spans: reasoning, tool calls, JSON from a grammar."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest

from stars_engine import (
    AlignmentError,
    AlignParams,
    AutoSchedule,
    Chat,
    ConstantSchedule,
    JsonGrammar,
    RegexGrammar,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    TransformersModel,
    calibrate,
)
from stars_engine.chat.formats import HERMES
from stars_engine.chat.replies import ReplyReader
from stars_engine.core.offline import stars
from stars_engine.testing import TableReward, TabularModel, enumerate_law
from stars_engine.testing.enumerator import TreeNoise
from tests.support.chat import CLOCK, USER
from tests.support.chat_templates import random_llama, tokenizer_of
from tests.support.rollouts import make_rollout

PIECES = ("<think>", "</think>", "a", "b", "")
END = 4
REWARDS = {"a": 0.4, "b": -0.3, "ab": 1.0, "ba": 0.2, "aa": -1.0, "<think>": -2.0}
TAU, BETA, ATTEMPTS, MAX_TOKENS = 0.3, 0.5, 2, 4


class PlainReader(ReplyReader):
    """Reads the toy's text, which has no tokenizer."""

    def marked(self, prompt_ids: Sequence[int], ids: Sequence[int], text: str) -> str:
        return text

    def _seen(self, marker: str) -> str:
        return marker

    def _text(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
        return "".join(PIECES[token] for token in ids)


def next_probs(completion: tuple[int, ...]) -> tuple[float, ...]:
    """Reasoning of one or two tokens, or without an end; answers without reasoning."""
    return (
        (0.75, 0.0, 0.25, 0.0, 0.0),
        (0.0, 0.5, 0.25, 0.0, 0.25),
        (0.0, 0.25, 0.0, 0.5, 0.25),
        (0.0, 0.0, 0.5, 0.5, 0.0),
    )[len(completion)]


def prose_of(text: str) -> str | None:
    """Return what follows the reasoning; None where it has not ended."""
    if not text.startswith("<think>"):
        return text
    _, closed, rest = text.partition("</think>")
    return rest if closed else None


def expected_law() -> dict[tuple[str, str], float]:
    """By the formula for rejection with a bounded number of attempts, token by token."""
    law: defaultdict[tuple[str, str], float] = defaultdict(float)

    def acceptance(ids: tuple[int, ...]) -> float:
        before = "".join(PIECES[token] for token in ids[:-1])
        text = "".join(PIECES[token] for token in ids)
        prose = prose_of(text)
        if ids[-1] != END and (prose is None or prose == (prose_of(before) or "")):
            return 1.0  # reasoning, or the end of it
        return min(1.0, math.exp((REWARDS.get(prose or "", 0.0) - TAU) / BETA))

    def go(ids: tuple[int, ...], weight: float) -> None:
        chances = [p * acceptance((*ids, t)) if p else 0.0 for t, p in enumerate(next_probs(ids))]
        left = (1 - sum(chances)) ** ATTEMPTS
        share = sum((1 - sum(chances)) ** k for k in range(ATTEMPTS))
        text = "".join(PIECES[token] for token in ids)
        if left > 1e-15:
            law[text, "rejected"] += weight * left
        for token, chance in enumerate(chances):
            if not chance:
                continue
            if token == END:
                law[text, "stop"] += weight * chance * share
            elif len(ids) + 1 == MAX_TOKENS:
                law[text + PIECES[token], "length"] += weight * chance * share
            else:
                go((*ids, token), weight * chance * share)

    go((), 1.0)
    return dict(law)


@pytest.mark.slow
@pytest.mark.parametrize("num_candidates", [1, 2])
def test_the_law_with_unscored_reasoning(num_candidates: int) -> None:
    """The real loop, enumerated, against the closed formula."""
    align = AlignParams(
        schedule=ConstantSchedule(value=TAU),
        beta=BETA,
        segment_len=1,
        max_attempts=ATTEMPTS,
        num_candidates=num_candidates,
        on_exhausted="stop",
    )
    sampling = SamplingParams(max_tokens=MAX_TOKENS, temperature=1.0, top_k=None)
    model = TabularModel(PIECES, next_probs, end_id=END)

    def run(noise: TreeNoise) -> tuple[str, str]:
        rollout = make_rollout(align=align, sampling=sampling, noise=noise)
        rollout.spans = PlainReader(None, HERMES, (), "may")  # type: ignore[arg-type]
        for _ in stars([rollout], model, TableReward(REWARDS)):
            pass
        return rollout.result().text, rollout.result().finish_reason

    got, expected = enumerate_law(run), expected_law()
    assert sum(expected.values()) == pytest.approx(1.0)
    assert got.keys() == expected.keys()
    for outcome, probability in expected.items():
        assert got[outcome] == pytest.approx(probability, abs=1e-12), outcome


# --- a real backend ---


def engine_of(read: list[str], **align: Any) -> StarsEngine:
    tokenizer = tokenizer_of("thinking")

    def reward(_: str, completion: str) -> float:
        read.append(completion)
        return float(len(completion) % 3)

    fields = {"schedule": ConstantSchedule(value=1.0), "segment_len": 4, "on_exhausted": "best"}
    return StarsEngine(
        StarsConfig(
            model=TransformersModel(model=random_llama(tokenizer), tokenizer=tokenizer),
            reward=reward,
            align=AlignParams(**{**fields, **align}),
            sampling=SamplingParams(max_tokens=200, seed=0, temperature=1.0, top_k=None),
        )
    )


REASONING = RegexGrammar(pattern="<think>\n[a-z ]{20}\n</think>\n\n[A-Z]{16}")
CALL = RegexGrammar(
    pattern=r'[A-Z]{12}<tool_call>\n\{"name": "clock", "arguments": \{\}\}\n</tool_call>'
)


def test_reasoning_is_kept_unjudged_and_the_reward_does_not_read_it() -> None:
    read: list[str] = []
    with engine_of(read) as engine:
        sampling = engine.sampling.replace(grammar=REASONING)
        [result] = engine.generate(Chat([USER]), sampling=sampling)
    verdicts = [segment.verdict for segment in result.segments]
    assert verdicts.count("unjudged") >= 5
    assert verdicts[0] == "unjudged"
    assert "unjudged" not in verdicts[verdicts.index("accepted") :]
    assert all(s.reward is None for s in result.segments if s.verdict == "unjudged")
    assert read
    assert all(completion == completion.upper() for completion in read)  # prose alone
    assert result.message is not None
    assert result.message.content in read
    assert result.usage.num_drafted_tokens >= result.usage.num_kept_tokens
    assert result.usage.num_attempts == sum(s.num_attempts for s in result.segments)


def test_calls_are_kept_unjudged() -> None:
    read: list[str] = []
    with engine_of(read) as engine:
        chat = Chat([USER], tools=[CLOCK], constrain_tools=False)
        [result] = engine.generate(chat, sampling=engine.sampling.replace(grammar=CALL))
    assert result.finish_reason == "tool_calls"
    assert read
    assert all("<tool" not in completion for completion in read)
    assert [segment.verdict for segment in result.segments][-3:] == ["unjudged"] * 3
    assert result.message is not None
    assert result.message.content in read


def test_judge_all_scores_every_segment() -> None:
    read: list[str] = []
    with engine_of(read, judge="all") as engine:
        sampling = engine.sampling.replace(grammar=REASONING)
        [result] = engine.generate(Chat([USER]), sampling=sampling)
    assert all(segment.verdict != "unjudged" for segment in result.segments)
    assert result.text in read


@pytest.mark.slow
def test_texts_are_the_same_however_many_are_drafted_at_once() -> None:
    texts = set()
    for count in (1, 4):
        with engine_of([], num_candidates=count) as engine:
            sampling = engine.sampling.replace(grammar=REASONING)
            results = engine.generate([Chat([USER])] * 3, sampling=sampling)
            texts.add(tuple(result.text for result in results))
    assert len(texts) == 1


def test_json_from_a_grammar_is_unscored() -> None:
    read: list[str] = []
    impossible = {"schedule": ConstantSchedule(value=1e9), "on_exhausted": "raise"}
    grammar = JsonGrammar(
        json_schema={"type": "array", "items": {"type": "boolean"}, "maxItems": 3}, compact=True
    )
    with engine_of(read, **impossible) as engine:
        sampling = engine.sampling.replace(grammar=grammar)
        [result] = engine.generate("A list:", sampling=sampling)
        assert result.reward is None
        assert result.usage.num_surplus_tokens == 0  # nothing is drafted in vain
        unknown = engine.config.align.replace(schedule=AutoSchedule())  # nothing is calibrated
        engine.generate("A list:", sampling=sampling, align=unknown)
        assert not read
        with pytest.raises(AlignmentError):
            engine.generate(
                "A list:", sampling=sampling, align=engine.config.align.replace(judge="all")
            )
    assert read


@pytest.mark.slow
def test_calibration_of_answers_with_reasoning_ends() -> None:
    """All drafts have a reward: those within reasoning have that of an empty text."""
    with engine_of([], schedule=AutoSchedule()) as engine:
        sampling = engine.sampling.replace(grammar=REASONING, max_tokens=48)
        chats = [Chat([USER, {"role": "user", "content": str(n)}]) for n in range(8)]
        found = calibrate(
            engine, chats, target_acceptance=0.5, segment_len=8, sampling=sampling, seed=0
        )
        align = engine.config.align.replace(schedule=found, segment_len=8, beta=found.beta)
        [result] = engine.generate(Chat([USER]), sampling=sampling, align=align)
    assert result.segments[0].verdict == "unjudged"


def test_an_empty_answer_is_scored() -> None:
    read: list[str] = []
    with engine_of(read) as engine:
        end = engine.model.codec.tokenizer.eos_token_id
        sampling = engine.sampling.replace(logit_bias={end: 100.0})
        [result] = engine.generate(Chat([USER]), sampling=sampling)
    assert result.text == ""
    assert read[0] == ""
    assert result.segments[0].verdict != "unjudged"
