"""Contract tests that every reward model and backend must pass. Call them from your tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from stars_engine.algorithm.candidate import Draft
from stars_engine.algorithm.noise import CounterNoise
from stars_engine.backends.base import DraftRequest, LanguageModel, PrefixHandle
from stars_engine.config import SamplingParams
from stars_engine.errors import GenerationError
from stars_engine.messages import Message
from stars_engine.rewards.base import RewardModel, as_number
from stars_engine.types import RewardInput, RewardPrompt, Score

_LEN = 6  # tokens per draft in `check_backend`


def check_reward_model(
    reward: RewardModel,
    inputs: Sequence[RewardInput] | None = None,
    *,
    tolerance: float = 1e-4,
) -> None:
    """Check that a reward model scores an input equally alone, in a batch, and repeatedly.

    It must return one number for each input; nan and infinities reject a candidate. The number must
    depend only on the value of the input: not on the identity of the object, nor on earlier inputs.

    Args:
        reward: The model to check.
        inputs: Completions to score. The default is a few texts, including an empty one, several
            lines, other scripts, a conversation and a finished answer. Reward models that read
            token ids need inputs with ids.
        tolerance: Largest difference accepted as rounding.

    Raises:
        AssertionError: The reward model breaks the contract; the message says how.
    """
    inputs = _default_inputs() if inputs is None else list(inputs)
    together = _values(reward, inputs)
    _assert_close(together, _values(reward, inputs), tolerance, "a second call changes rewards")
    alone = [_values(reward, [item])[0] for item in inputs]
    _assert_close(together, alone, tolerance, "a reward depends on batch composition")
    backwards = _values(reward, inputs[::-1])[::-1]
    _assert_close(together, backwards, tolerance, "a reward depends on the order of the batch")
    copies = _values(reward, [replace(item) for item in inputs for _ in range(2)])
    message = "equal inputs have different rewards"
    _assert_close(together, copies[::2], tolerance, message)
    _assert_close(together, copies[1::2], tolerance, message)
    assert len(reward.score([])) == 0, "no inputs must give no rewards"


def check_backend(model: LanguageModel, prompts: Sequence[Sequence[int]] | None = None) -> None:
    """Check that drafting keeps no state and does not depend on batch composition.

    Also check that a lookahead is the greedy continuation of its candidate and does not change it,
    and that tokens which a draft is to begin with stand for drawn ones.

    Args:
        model: The language model to check.
        prompts: Prompts of different lengths as token ids; the default uses low ids.

    Raises:
        AssertionError: The backend breaks the contract; the message says how.
    """
    prompts = [[1], [1, 2, 3, 1, 2], [2, 1, 3]] if prompts is None else prompts
    sampling = SamplingParams(top_k=None, temperature=1.0)

    def request(index: int, kept: Sequence[int], attempt: int) -> DraftRequest:
        prompt = prompts[index]
        noise = CounterNoise(seed=1, prompt_ids=prompt, sample_index=0)
        uniforms = noise.token_uniforms(position=len(kept), attempt=attempt, count=_LEN)
        handle = handles[index]
        ids, lookahead = [*prompt, *kept], 2 * attempt  # attempt 0 has no lookahead
        return DraftRequest(
            ids, len(prompt), uniforms, sampling, lookahead=lookahead, handle=handle
        )

    handles = [PrefixHandle() for _ in prompts]
    asked = [request(index, (), attempt) for index in range(len(prompts)) for attempt in range(3)]
    together = _drafts(model, asked)
    for one, draft in zip(asked, together, strict=True):
        _check_form(model, one, draft)
        message = "a draft depends on batch composition or on earlier drafts"
        assert _drafts(model, [one]) == [draft], message
        [plain] = _drafts(model, [replace(one, lookahead=0)])
        assert plain == Draft(draft.token_ids), "the lookahead changes its candidate"
    _check_lookahead(model, asked, together)
    for one in asked:
        _check_forced(model, one)
    for index in range(len(prompts)):
        kept = together[3 * index].token_ids
        if model.is_end(kept[-1], sampling):
            continue
        [cached] = _drafts(model, [request(index, kept, 1)])
        handles[index].release()
        [again] = _drafts(model, [request(index, kept, 1)])
        [fresh] = _drafts(model, [replace(request(index, kept, 1), handle=PrefixHandle())])
        assert cached == again == fresh, "a draft depends on whether its prefix is cached"
        handles[index] = handles[index - 1]
        [stale] = _drafts(model, [request(index, kept, 1)])
        assert stale == fresh, "a handle of another prefix changes a draft"


def _check_form(model: LanguageModel, request: DraftRequest, draft: Draft) -> None:
    """Check the lengths, ends and ids of one draft."""
    whole = (*draft.token_ids, *draft.lookahead_ids)
    ends = [model.is_end(token, request.sampling) for token in whole]
    assert not any(ends[:-1]), "a draft continues after the end of text"
    assert ends[-1] or len(draft.token_ids) == _LEN, "a draft is short without an end of text"
    assert len(draft.token_ids) <= _LEN, "a draft is longer than its uniforms"
    full = len(draft.lookahead_ids) == request.lookahead
    assert ends[-1] or full, "a lookahead has another length than requested"
    assert all(0 <= token < model.vocab_size for token in whole), "a token id has no logit"


def _check_lookahead(
    model: LanguageModel, requests: Sequence[DraftRequest], drafts: Sequence[Draft]
) -> None:
    """Check that each lookahead equals what temperature 0 draws after its candidate."""
    for request, draft in zip(requests, drafts, strict=True):
        if draft.lookahead_ids:
            greedy = replace(
                request,
                token_ids=[*request.token_ids, *draft.token_ids],
                uniforms=[0.5] * request.lookahead,
                sampling=request.sampling.replace(temperature=0),
                lookahead=0,
                handle=PrefixHandle(),
            )
            [alone] = _drafts(model, [greedy])
            message = "a lookahead is not the greedy continuation of its candidate"
            assert alone.token_ids == draft.lookahead_ids, message


def _check_forced(model: LanguageModel, request: DraftRequest) -> None:
    """Check that a draft begins with forced tokens, and goes on as after accepted ones."""
    token = next(id_ for id_ in range(1, 4) if not model.is_end(id_, request.sampling))
    forced = replace(request, forced=(token,), lookahead=0)
    [draft] = _drafts(model, [forced])
    assert draft.token_ids[:1] == (token,), "a draft does not begin with its forced tokens"
    after = replace(
        forced,
        token_ids=[*request.token_ids, token],
        uniforms=request.uniforms[1:],
        forced=(),
        handle=PrefixHandle(),
    )
    [rest] = _drafts(model, [after])
    assert draft.token_ids[1:] == rest.token_ids, "forced tokens change the tokens after them"


def _drafts(model: LanguageModel, requests: Sequence[DraftRequest]) -> list[Draft]:
    drafts = []
    for draft in model.draft(requests):
        assert not isinstance(draft, GenerationError), f"a candidate could not be drafted: {draft}"
        drafts.append(draft)
    return drafts


def _values(reward: RewardModel, inputs: Sequence[RewardInput]) -> list[float]:
    before = list(inputs)
    scores = reward.score(inputs)
    assert len(scores) == len(inputs), f"{len(scores)} rewards for {len(inputs)} inputs"
    assert list(inputs) == before, "scoring changes the list of inputs"
    for score in scores:
        if isinstance(score, Score):
            assert score.num_tokens >= 0, f"{score.num_tokens} tokens read"
            assert not (score.failed and score.eligible), "a failed reward may be accepted"
    return [as_number(s.value if isinstance(s, Score) else s) for s in scores]


def _assert_close(a: Sequence[float], b: Sequence[float], tolerance: float, message: str) -> None:
    for x, y in zip(a, b, strict=True):
        same = (math.isnan(x) and math.isnan(y)) or x == y or abs(x - y) <= tolerance
        assert same, f"{message}: {x} and {y}"


def _default_inputs() -> list[RewardInput]:
    prompt = RewardPrompt("What a day", token_ids=(1, 2, 3))
    chat = RewardPrompt("Hi", (1, 2), (Message(role="user", content="Hi"),))
    texts = ["", " it was", " it was a very long and pleasant one.", " \U0001f642", " no"]
    texts += ["One.\n\nTwo.\n", "Größe, размер, 大きさ", "   "]
    items = [
        RewardInput(prompt, text, tuple(1 + i % 3 for i in range(len(text) // 3))) for text in texts
    ]
    return [*items, replace(items[2], finished=True), replace(items[1], prompt=chat)]
