"""Alternatives in the engine: same text, prompts, memory, refusals, records."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from stars_engine import (
    AlignParams,
    Alternative,
    Chat,
    ChoiceGrammar,
    ConfigError,
    ConstantSchedule,
    ContextOverflowError,
    EngineParams,
    Message,
    NoSchedule,
    PromptError,
    RegexGrammar,
    RenderedPrompt,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    StarsResult,
    TokenIds,
    ValueReward,
    calibrate,
)
from stars_engine.algorithm.noise import CounterNoise
from stars_engine.backends.base import DraftRequest
from stars_engine.backends.transformers import TransformersBackend
from stars_engine.backends.uncached import UncachedDecoder
from stars_engine.calibration.settings import dependencies, differences
from stars_engine.chat.conversations import read_conversation
from stars_engine.testing import check_backend
from stars_engine.trace import transcript
from stars_engine.types import RewardInput, RewardPrompt
from tests.support.accounts import account
from tests.support.calibration import OPENINGS, QUICK
from tests.support.chat import SYSTEM, TOOLS, USER, engine_of
from tests.support.limited_memory import LimitedMemoryModel
from tests.support.recording import RecordingReward
from tests.support.value_heads import random_head

PROMPTS = ["This movie", "I", "The acting in this film was", "My wife and I went to see it"]
SAMPLING = SamplingParams(seed=5, max_tokens=24)
PREFACE = Alternative(preface="What a wonderful film it is. ", share=0.25)
OPENING = Alternative(opening=" is the best of all I have ever seen", share=0.25)
BOTH = Alternative(preface="Awful. ", opening=" was", share=0.125)
ALIGN = AlignParams(
    schedule=ConstantSchedule(value=1.5),
    beta=0.3,
    segment_len=6,
    max_attempts=5,
    num_candidates=1,
    alternatives=[PREFACE, OPENING, BOTH],
)


def accounts(results: Sequence[StarsResult]) -> list[dict[str, object]]:
    used = [[a.alternative for s in r.segments for a in s.attempts] for r in results]
    return [{**account(r), "used": own} for r, own in zip(results, used, strict=True)]


# --- the text ---


@pytest.mark.slow
def test_text_depends_neither_on_candidates_nor_on_the_batch(engine: StarsEngine) -> None:
    one = engine.generate(PROMPTS, sampling=SAMPLING, align=ALIGN)
    used = {a.alternative for r in one for s in r.segments for a in s.attempts}
    assert used == {None, 0, 1, 2}
    assert {s.alternative for r in one for s in r.segments} >= {None, 0}
    for m in (3, 8):
        several = engine.generate(PROMPTS, sampling=SAMPLING, align=ALIGN.replace(num_candidates=m))
        assert accounts(several) == accounts(one)
    alone = [engine.generate(prompt, sampling=SAMPLING, align=ALIGN)[0] for prompt in PROMPTS]
    assert accounts(alone) == accounts(one)
    streamed = [event.result for event in engine.stream(PROMPTS[0], sampling=SAMPLING, align=ALIGN)]
    assert accounts([streamed[-1]]) == accounts(one[:1])


@pytest.mark.slow
def test_cached_equals_uncached(engine: StarsEngine) -> None:
    model = engine.model
    other = TransformersBackend.__new__(TransformersBackend)
    other.__dict__ |= model.__dict__ | {"decoder": UncachedDecoder(model.model, model.context_len)}
    cached = engine.generate(PROMPTS, sampling=SAMPLING, align=ALIGN)
    with StarsEngine(engine.config, model=other, reward=engine.reward) as uncached:
        again = uncached.generate(PROMPTS, sampling=SAMPLING, align=ALIGN)
    assert accounts(again) == accounts(cached)


@pytest.mark.slow
def test_share_0_is_the_plain_prompt(engine: StarsEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> int:
        raise AssertionError("noise is drawn though there is nothing to choose")

    monkeypatch.setattr(CounterNoise, "proposal_index", never)
    off = [each.replace(share=0) for each in ALIGN.alternatives]
    plain = engine.generate(PROMPTS, sampling=SAMPLING, align=ALIGN.replace(alternatives=()))
    same = engine.generate(PROMPTS, sampling=SAMPLING, align=ALIGN.replace(alternatives=off))
    assert accounts(same) == accounts(plain)


@pytest.mark.slow
def test_an_opening_begins_the_answer_and_is_judged(engine: StarsEngine) -> None:
    align = ALIGN.replace(alternatives=[OPENING.replace(share=1.0)], schedule=NoSchedule())
    for result in engine.generate(PROMPTS, sampling=SAMPLING, align=align):
        assert result.text.startswith(OPENING.opening)
        assert [s.alternative for s in result.segments[:2]] == [0, 0]  # longer than a segment
        assert result.segments[-1].alternative is None
        assert all(s.reward is not None for s in result.segments)


@pytest.mark.slow
def test_sentences_and_entropies_and_lookahead_work_with_openings(engine: StarsEngine) -> None:
    opening = Alternative(opening=" is great. It", share=0.5)
    for options in (
        {"segment_end": "sentence", "segment_len": 12, "min_segment_len": 2},
        {"segment_end": "entropy", "segment_len": 12, "max_entropy": 5.0},
        {"segment_len": 6, "lookahead": 4},
    ):
        align = ALIGN.replace(**options, alternatives=[opening])
        one = engine.generate(PROMPTS, sampling=SAMPLING, align=align)
        assert {a.alternative for r in one for a in r.segments[0].attempts} == {None, 0}
        four = engine.generate(PROMPTS, sampling=SAMPLING, align=align.replace(num_candidates=4))
        assert accounts(four) == accounts(one)


@pytest.mark.slow
def test_penalties_count_forced_tokens(engine: StarsEngine) -> None:
    ids = tuple(engine.model.codec.encode_prompt("This movie"))
    sampling = SamplingParams(presence_penalty=1e9, temperature=0, top_k=None, min_tokens=9)
    forced = tuple(engine.model.codec.encode_continuation(" is the"))
    request = DraftRequest(ids, len(ids), [0.5] * 8, sampling, forced=forced)
    [draft] = engine.model.draft([request])
    assert draft.token_ids[: len(forced)] == forced
    assert len(set(draft.token_ids)) == 8
    check_backend(engine.model)


# --- what the models read ---


def test_the_reward_reads_the_plain_prompt(engine: StarsEngine) -> None:
    reward = RecordingReward()
    align = ALIGN.replace(schedule=NoSchedule())
    with StarsEngine(engine.config, model=engine.model, reward=reward) as mine:
        [result] = mine.generate("This movie", sampling=SAMPLING, align=align)
    assert {item.prompt.text for item in reward.inputs} == {"This movie"}
    assert {item.prompt.token_ids for item in reward.inputs} == {
        tuple(engine.model.codec.encode_prompt("This movie"))
    }
    assert reward.inputs[-1].text == result.text


class Asked:
    """Records the requests for drafts."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[DraftRequest] = []
        draft = model.draft

        def recorded(requests: Sequence[DraftRequest]) -> Any:
            self.requests += requests
            return draft(requests)

        monkeypatch.setattr(model, "draft", recorded)

    @property
    def prompts(self) -> set[tuple[int, ...]]:
        return {tuple(each.token_ids[: each.num_prompt_tokens]) for each in self.requests}


def test_the_accepted_segment_continues_every_prompt(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(engine.model, monkeypatch)
    often = [each.replace(share=0.3) for each in ALIGN.alternatives]
    align = ALIGN.replace(alternatives=often)
    [result] = engine.generate("This movie", sampling=SAMPLING, align=align)
    encode = engine.model.codec.encode_prompt
    plain, preface, both = (
        tuple(encode(text + "This movie")) for text in ("", PREFACE.preface, BOTH.preface)
    )
    assert asked.prompts == {plain, preface, both}
    for each in asked.requests:
        answer = tuple(each.token_ids[each.num_prompt_tokens :])
        assert answer == result.token_ids[: len(answer)]


def test_a_system_message_precedes_the_callers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    align = AlignParams(
        schedule=NoSchedule(),
        segment_len=4,
        num_candidates=1,
        alternatives=[Alternative(system="Be careful.", share=0.5)],
    )
    engine = engine_of("llama")
    sampling = SamplingParams(max_tokens=24, seed=0, temperature=1.0, top_k=None, min_tokens=24)
    codec = engine.model.codec
    own = engine.model.codec.decode
    for chat, expected in (
        (Chat([USER]), [Message(role="system", content="Be careful."), USER]),
        (
            Chat([SYSTEM, USER]),
            [SYSTEM.replace(content=f"Be careful.\n\n{SYSTEM.content}"), USER],
        ),
    ):
        with monkeypatch.context() as patch:
            asked = Asked(engine.model, patch)
            [result] = engine.generate([chat], sampling=sampling, align=align)
        wanted = {
            read_conversation(each, codec).token_ids for each in (chat, Chat(tuple(expected)))
        }
        assert asked.prompts == wanted, [own(ids) for ids in asked.prompts]
        assert {s.alternative for s in result.segments} == {None, 0}
        # A rendered prompt with its messages is the same conversation.
        turns = [{"role": each.role, "content": each.content} for each in chat.messages]
        text = codec.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        rendered = RenderedPrompt(text, messages=chat.messages)
        [again] = engine.generate([rendered], sampling=sampling, align=align)
        assert again.token_ids == result.token_ids
    engine.close()


@pytest.mark.slow
def test_value_rewards_judge_the_answer_to_the_plain_prompt(engine: StarsEngine) -> None:
    head = random_head(engine.model)
    reward = ValueReward(head=head)
    align = ALIGN.replace(schedule=ConstantSchedule(value=0.2), alternatives=[PREFACE, OPENING])
    with StarsEngine(
        StarsConfig(model="stars:embedded-lm", reward=reward, align=align), model=engine.model
    ) as mine:
        one = mine.generate(PROMPTS, sampling=SAMPLING)
        used = {s.alternative for r in one for s in r.segments}
        assert {None, 0} <= used
        for result, prompt in zip(one, PROMPTS, strict=True):
            ids = tuple(engine.model.codec.encode_prompt(prompt))
            assert result.finish_reason == "length"
            plain = RewardInput(RewardPrompt(prompt, ids), result.text, result.token_ids)
            [score] = mine.reward.score([plain])
            assert result.reward == pytest.approx(score.value, abs=1e-3)


# --- memory ---


@pytest.mark.slow
def test_prefixes_are_cached_once_and_released(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(engine.model, monkeypatch)
    engine.generate("This movie", sampling=SAMPLING, align=ALIGN.replace(num_candidates=5))
    handles = {
        (id(each.handle), each.token_ids[: each.num_prompt_tokens]) for each in asked.requests
    }
    assert len(handles) == len(asked.prompts) == 3
    assert all(each.handle.cached is None for each in asked.requests)
    events = engine.stream("This movie", sampling=SAMPLING, align=ALIGN)
    next(events)
    events.close()
    engine.generate("I", sampling=SAMPLING)  # the stream has ended before
    assert all(each.handle.cached is None for each in asked.requests)


@pytest.mark.slow
@pytest.mark.parametrize(
    "limits", [{"num_rows": 3}, {"num_prefixes": 2}, {"num_prefixes": 1}, {"failing": range(2, 9)}]
)
def test_out_of_memory_changes_no_text(engine: StarsEngine, limits: dict[str, Any]) -> None:
    align = ALIGN.replace(num_candidates=4)
    wanted = engine.generate(PROMPTS, sampling=SAMPLING, align=align)
    limited = LimitedMemoryModel(engine.model, **limits)
    with StarsEngine(engine.config, model=limited, reward=engine.reward) as mine:
        assert accounts(mine.generate(PROMPTS, sampling=SAMPLING, align=align)) == accounts(wanted)


@pytest.mark.slow
def test_budgets_count_every_prompt(engine: StarsEngine) -> None:
    sizes = [
        len(engine.model.codec.encode_prompt(text + "This movie"))
        for text in ("", PREFACE.preface, BOTH.preface)
    ]
    total = sum(size + SAMPLING.max_tokens for size in sizes)
    for limit, fits in ((total, True), (total - 1, False)):
        config = engine.config.replace(engine=EngineParams(max_prefix_tokens=limit))
        with StarsEngine(config, model=engine.model, reward=engine.reward) as mine:
            [found] = mine.generate(
                ["This movie"], sampling=SAMPLING, align=ALIGN, return_exceptions=True
            )
        assert isinstance(found, StarsResult) if fits else "2 alternatives" in str(found)
    context = engine.model.context_len
    longest = SAMPLING.replace(max_tokens=context - max(sizes) + 1)
    with pytest.raises(ContextOverflowError, match="longest of its alternatives"):
        engine.generate("This movie", sampling=longest, align=ALIGN)
    fitting = longest.replace(on_overflow="clamp", seed=1)
    assert engine.generate("This movie", sampling=fitting, align=ALIGN)[0].token_ids


# --- what does not apply ---


def refused(engine: StarsEngine, prompt: Any, alternative: Alternative, **more: Any) -> str:
    align = AlignParams(schedule=NoSchedule(), num_candidates=1, alternatives=[alternative])
    with pytest.raises(PromptError) as caught:
        engine.generate([prompt], sampling=SAMPLING.replace(**more), align=align)
    assert caught.value.hint
    return str(caught.value)


SYSTEM_ONE = Alternative(system="Be careful.", share=0.5)


def test_alternatives_that_do_not_apply_are_refused(engine: StarsEngine) -> None:
    for prompt in ("This movie", TokenIds([1, 2]), RenderedPrompt("Hi")):
        assert "alternatives[0].system" in refused(engine, prompt, SYSTEM_ONE)
    odd = RenderedPrompt("Hi", messages=[Message(role="user", content="Bye")])
    assert "give the messages as a Chat" in refused(engine, odd, SYSTEM_ONE)
    for prompt in (TokenIds([1, 2]), RenderedPrompt("Hi"), Chat([USER])):
        assert "alternatives[0].preface" in refused(engine, prompt, PREFACE)
    token = engine.model.codec.encode_continuation(OPENING.opening)[0]
    assert str(token) in refused(engine, "I", OPENING, stop_token_ids=[token])
    grammar = ChoiceGrammar(choices=["yes", "no"])
    assert "does not allow it" in refused(engine, "I", OPENING, grammar=grammar)


@pytest.mark.slow
def test_an_opening_that_a_grammar_allows(engine: StarsEngine) -> None:
    pattern = "( not| very)( bad| good){4}"
    sampling = SAMPLING.replace(grammar=RegexGrammar(pattern=pattern))
    opening = Alternative(opening=" not bad", share=0.5)
    align = ALIGN.replace(alternatives=[opening, PREFACE], segment_len=3)
    for m in (1, 4):
        results = engine.generate(PROMPTS, sampling=sampling, align=align.replace(num_candidates=m))
        assert all(re.fullmatch(pattern, result.text) for result in results)
        used = {a.alternative for r in results for s in r.segments for a in s.attempts}
        assert used == {None, 0, 1}


@pytest.mark.slow
def test_openings_with_tools() -> None:
    """Answers in prose may be opened; an answer that must be a call is not scored."""
    opening = Alternative(opening="I cannot", share=1.0)
    sampling = SamplingParams(max_tokens=160, seed=0, temperature=1.0, top_k=None)
    align = AlignParams(
        schedule=NoSchedule(), segment_len=4, num_candidates=1, alternatives=[opening]
    )
    with engine_of("hermes") as engine:
        for choice, opens in (("auto", True), ("required", False)):
            chat = Chat([USER], tools=TOOLS, tool_choice=choice)
            [result] = engine.generate([chat], sampling=sampling, align=align)
            assert result.text.startswith("I cannot") == opens


def test_an_opening_cannot_begin_inside_reasoning() -> None:
    with engine_of("thinking") as engine:
        tokenizer = engine.config.model.tokenizer
        begin = "<|im_start|>assistant\\n"
        assert begin in tokenizer.chat_template
        tokenizer.chat_template = tokenizer.chat_template.replace(begin, f"{begin}<think>\\n")
        assert "enable_thinking" in refused(engine, Chat([USER]), OPENING)


def test_unscored_spans_continue_the_plain_prompt(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is selected there, so an alternative would only change the answer."""
    asked = Asked(engine.model, monkeypatch)
    grammar = {"kind": "json", "json_schema": {"type": "integer", "minimum": 0, "maximum": 99}}
    sampling = SamplingParams(seed=1, max_tokens=8, grammar=grammar)
    align = ALIGN.replace(alternatives=[PREFACE.replace(share=1.0)])
    engine.generate("A number: ", sampling=sampling, align=align)
    assert asked.prompts == {tuple(engine.model.codec.encode_prompt("A number: "))}
    engine.generate("A number: ", sampling=sampling, align=align.replace(judge="all"))
    assert len(asked.prompts) == 2


# --- configuration, records ---


def test_the_embedded_pair_uses_its_ramp_with_alternatives() -> None:
    """Its calibrated thresholds were measured without any."""
    shipped = StarsConfig().with_thresholds()
    for share, is_shipped in ((0.0, True), (0.5, False)):
        align = AlignParams(alternatives=[OPENING.replace(share=share)])
        found = StarsConfig(align=align).with_thresholds()
        assert (found.schedule == shipped.schedule) == is_shipped
        assert found.alternatives == align.alternatives


def test_configs_round_trip(tmp_path: Any) -> None:
    config = StarsConfig(model="m", reward="r", align=ALIGN)
    for name in ("stars.yaml", "stars.json"):
        config.to_file(tmp_path / name)
        assert StarsConfig.from_file(tmp_path / name) == config
    assert AlignParams(alternatives=[{"system": "s", "share": 0.5}]).alternatives == (
        Alternative(system="s", share=0.5),
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Alternative(share=0.5), ["system", "opening", "Hint"]),
        (lambda: Alternative(system="s", preface="p", share=0.5), ["system", "preface", "Hint"]),
        (lambda: Alternative(opening="", share=0.5), ["opening"]),
        (lambda: Alternative(opening="s", share=1.5), ["share", "1.5", "<= 1"]),
        (lambda: Alternative(opening="s"), ["share", "required"]),
        (
            lambda: AlignParams(alternatives=[Alternative(opening="s", share=0.6)] * 2),
            ["1.2", "at most 1", "Hint"],
        ),
        (
            lambda: AlignParams(lookahead=8, alternatives=[SYSTEM_ONE]),
            ["lookahead=8", "alternatives", "Hint"],
        ),
    ],
)
def test_errors_name_the_field(make: Callable[[], object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    for word in words:
        assert word in str(caught.value)


def test_records_say_what_proposed_each_segment(engine: StarsEngine) -> None:
    [result] = engine.generate("This movie", sampling=SAMPLING, align=ALIGN)
    again = StarsResult.model_validate_json(result.model_dump_json())
    assert again == result
    used = [segment.alternative for segment in result.segments]
    for shown in (transcript(result), result._repr_html_()):
        assert [f"alternative {n}" in shown for n in (0, 1, 2)] == [n in used for n in (0, 1, 2)]


# --- calibration ---


def test_calibrations_depend_on_the_alternatives(engine: StarsEngine) -> None:
    config = StarsConfig()
    plain = dependencies(config, AlignParams(), SAMPLING)
    assert "alternatives" not in plain["align"]  # as in older files
    off = AlignParams(alternatives=[SYSTEM_ONE.replace(share=0)])
    assert dependencies(config, off, SAMPLING) == plain
    now = dependencies(config, AlignParams(alternatives=[SYSTEM_ONE]), SAMPLING)
    json.dumps(now)
    assert any("align.alternatives" in each for each in differences(plain, now))
    half = AlignParams(alternatives=[SYSTEM_ONE.replace(share=0.4)])
    assert dependencies(config, half, SAMPLING) != now


@pytest.mark.slow
def test_pilots_draw_from_the_mixture(engine: StarsEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(engine.model, monkeypatch)
    align = AlignParams(alternatives=[PREFACE], num_candidates=4)
    options = {**QUICK, "align": align}
    schedule = calibrate(engine, OPENINGS, target_acceptance=0.4, seed=4, **options)
    share = sum(each.alternative == 0 for each in asked.requests) / len(asked.requests)
    assert share == pytest.approx(PREFACE.share, abs=0.08)
    assert schedule.made_for["align"]["alternatives"] == [
        {"share": 0.25, "preface": PREFACE.preface}
    ]
