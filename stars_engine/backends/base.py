"""What the loop asks of a language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any, Protocol

from stars_engine.config import SamplingParams
from stars_engine.errors import GenerationError

if TYPE_CHECKING:
    from stars_engine.codec import Codec


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """One candidate to be drafted.

    Attributes:
        slot: The prefix to continue, from `prefill`.
        uniforms: One uniform in [0, 1) per token to draft; their number is the candidate's length
            unless the model ends the text before.
        sampling: Filters and penalties.
        lookahead: Tokens by which the candidate is continued for the reward model to read.
    """

    slot: Any
    uniforms: Sequence[float]
    sampling: SamplingParams
    lookahead: int = 0


@dataclass(frozen=True, slots=True)
class Draft:
    """What a model drafted for one request.

    Attributes:
        token_ids: The candidate; shorter than its uniforms only if it ends in a token of `is_end`.
        lookahead_ids: Its greedy continuation, as temperature 0 would draw it (the likeliest token
            under penalties and biases, the lowest id on ties): `lookahead` tokens, fewer up to and
            including a token of `is_end`, or where no token can be drawn. Empty for a candidate
            that ends the text.
    """

    token_ids: tuple[int, ...]
    lookahead_ids: tuple[int, ...] = ()


def checked_draft(
    draft: Draft | GenerationError, request: DraftRequest, model: LanguageModel
) -> Draft | GenerationError:
    """Return a draft with its ids as tuples of integers, or what is wrong with it.

    Language models are also other people's code: what one of them returns is not taken for text
    before it has the form that `draft` promises.

    Args:
        draft: What `model` returned in answer to the request.
        request: The request.
        model: The language model.
    """
    if isinstance(draft, GenerationError):
        return draft
    try:
        checked = Draft(_plain_ids(draft.token_ids), _plain_ids(draft.lookahead_ids))
        problem = _problem_of(checked, request, model)
    except (AttributeError, TypeError) as error:
        problem = f"is no Draft of token ids ({error})"
    if problem is None:
        return checked
    return GenerationError(
        f"the language model {type(model).__name__} returned a draft that {problem}. The request "
        "ends here; others are not affected. Cure: correct its `draft` method; "
        "stars_engine.testing.check_backend checks a language model"
    )


def _plain_ids(ids: Sequence[int]) -> tuple[int, ...]:
    if type(ids) is tuple and all(type(token) is int for token in ids):
        return ids
    return tuple(index(token) for token in ids)


def _problem_of(draft: Draft, request: DraftRequest, model: LanguageModel) -> str | None:
    ids, ahead, asked = draft.token_ids, draft.lookahead_ids, len(request.uniforms)
    whole = (*ids, *ahead)
    ends = (at for at, token in enumerate(whole) if model.is_end(token, request.sampling))
    if not 0 < len(ids) <= asked:
        problem = f"has {len(ids)} tokens where 1 to {asked} were asked for"
    elif len(ahead) > request.lookahead:
        problem = f"has {len(ahead)} tokens of lookahead where {request.lookahead} were asked for"
    elif min(whole) < 0 or max(whole) >= model.vocab_size:
        foreign = next(token for token in whole if not 0 <= token < model.vocab_size)
        problem = f"has the token id {foreign}, outside its vocabulary of {model.vocab_size}"
    elif (end := next(ends, len(whole) - 1)) < len(whole) - 1:
        problem = f"goes on after the end of text, its token {end}"
    elif len(ids) < asked and not model.is_end(whole[-1], request.sampling):
        problem = f"has {len(ids)} of {asked} tokens and does not end the text"
    else:
        return None
    return problem


class LanguageModel(Protocol):
    """A model that drafts candidates after committed prefixes.

    A *slot* is the model's own record of one prefix. `draft` never changes it, so rejecting a
    candidate is doing nothing; only `commit` moves it on.
    """

    @property
    def context_len(self) -> int | None:
        """Tokens of prompt and completion at most; None if there is no limit."""
        ...

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        ...

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[Any]:
        """Read prompts, of at least one token each, and return a slot for each."""
        ...

    def draft(self, requests: Sequence[DraftRequest]) -> Sequence[Draft | GenerationError]:
        """Draft all candidates together.

        Returns:
            A draft for each request, in order. In place of a candidate that could not be drafted,
            the error: it ends the candidate's request if no candidate before it is kept, and no
            other. Each has an instance of its own. An error *raised* ends all requests in progress.
        """
        ...

    def commit(self, kept: Sequence[tuple[Any, Sequence[int]]]) -> None:
        """Append an accepted segment's ids to each slot."""
        ...

    def check_grammar(self, sampling: SamplingParams) -> None:
        """Do nothing if the settings have no grammar, or one that drafts will keep to.

        Raises:
            ConfigError: It is none, or cannot be kept to.
            MissingExtraError: What it is read with is not installed.
        """
        ...

    def is_end(self, token: int, sampling: SamplingParams) -> bool:
        """Return whether the token ends the text."""
        ...

    def completion_text(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> tuple[str, int]:
        """Decode a completion up to its last whole character; see `Codec.completion_text`."""
        ...

    def encode_continuation(self, text: str) -> list[int]:
        """Encode text that goes on from other text."""
        ...


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What callers need to know of a language model before they ask it for text.

    Attributes:
        context_len: Tokens that it can read, prompt and completion together; None for no limit.
        has_chat_template: Whether it brings a chat template.
        default_sampling: Returns the sampling settings it came with.
    """

    context_len: int | None
    has_chat_template: bool
    default_sampling: Callable[[], SamplingParams]


class PromptedModel(LanguageModel, Protocol):
    """A language model that can also read prompts.

    If it has a method `interrupt()`, the end of the process calls it from another thread, and the
    draft in progress is to give up with `Interrupted`.
    """

    @property
    def codec(self) -> Codec:
        """Its tokenizer."""
        ...

    def default_sampling(self) -> SamplingParams:
        """Sampling settings the model came with."""
        ...
