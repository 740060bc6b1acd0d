"""What the engine asks of a language model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from stars_engine.algorithm.candidate import Detokenizer, Draft
from stars_engine.config import SamplingParams
from stars_engine.errors import GenerationError
from stars_engine.protocols import has_members, read_optional

if TYPE_CHECKING:
    from stars_engine.tokenization.codec import Codec


class PrefixHandle:
    """What a language model keeps for one request from one draft to the next.

    It is a hint that makes the lookup fast. Drafts never depend on it: with an empty or outdated
    handle the model finds the prefix elsewhere in its cache, or computes it again.

    Attributes:
        cached: Keeps the request's prefix in the model's cache; None if nothing is kept.
        grammar: The state of the request's grammar; None if it has none, or before its first draft.
    """

    __slots__ = ("__weakref__", "cached", "grammar")

    def __init__(self) -> None:
        self.cached: Any = None
        self.grammar: Any = None

    def release(self) -> None:
        """Let the model reuse the memory of the prefix."""
        self.cached = None


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """One candidate to draft.

    Attributes:
        token_ids: The prefix to continue: the prompt and all accepted segments.
        num_prompt_tokens: How many of them are the prompt, at least one.
        uniforms: One uniform in [0, 1) per token to draft; their number is the candidate's length
            unless the model ends the text before.
        sampling: Filters and penalties.
        lookahead: Tokens by which the candidate is continued for the reward model to read.
        handle: Belongs to the request whose prefix it is; its candidates share it.
        probes: Probes whose features the draft is to carry; they are attached to the model.
        entropies: Whether the draft reports entropies; see `Draft`.
        forced: Tokens with which the draft begins instead of drawing them, at most as many as
            there are uniforms. Those after them use their own uniforms.
        alternative: See `Draft`; language models do not read it.
    """

    token_ids: Sequence[int]
    num_prompt_tokens: int
    uniforms: Sequence[float]
    sampling: SamplingParams
    lookahead: int = 0
    handle: PrefixHandle = field(default_factory=PrefixHandle, compare=False)
    probes: Sequence[Any] = ()
    entropies: bool = False
    forced: tuple[int, ...] = ()
    alternative: int | None = None

    @property
    def num_completion_tokens(self) -> int:
        """Tokens accepted so far."""
        return len(self.token_ids) - self.num_prompt_tokens


class LanguageModel(Detokenizer, Protocol):
    """A model that drafts candidates after prefixes.

    It is stateless: a request brings its whole prefix. What the model has computed of it before is
    cached, and changes how long a draft takes, never what is drafted.
    """

    @property
    def context_len(self) -> int | None:
        """Tokens of prompt and completion at most; None if there is no limit."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""

    def draft(self, requests: Sequence[DraftRequest]) -> Sequence[Draft | GenerationError]:
        """Draft all candidates together.

        Returns:
            A draft for each request, in order. In place of a candidate that could not be drafted,
            the error: it ends the candidate's request if no candidate before it is kept, and no
            other. Each has an instance of its own. If the call raises, the engine repeats it, then
            drafts in halves, so that only requests whose candidates fail end.
        """

    def check_grammar(self, sampling: SamplingParams) -> None:
        """Do nothing if the settings have no grammar, or one that drafts will follow.

        Raises:
            ConfigError: The grammar is invalid, or cannot be followed.
            MissingExtraError: The library for grammars is not installed.
        """


@dataclass(frozen=True, slots=True)
class Pause:
    """A point at which drafting may be paused.

    Attributes:
        num_left: Tokens that the longest row still drafts, at most.
        waits_for: What the next token needs from another thread, if anything.
    """

    num_left: int
    waits_for: Future[Any] | None = None


Parts = Generator[Pause, None, Sequence[Draft | GenerationError]]


class PausableLanguageModel(LanguageModel, Protocol):
    """A language model whose drafts can be paused, so that shorter ones do not wait for them.

    A class that overrides `draft` also overrides `draft_in_parts`, or its drafts are not paused.
    """

    def draft_in_parts(self, requests: Sequence[DraftRequest]) -> Parts:
        """Draft as `draft` does, and return the same.

        While it is paused, the model may draft for other requests. It may never be resumed, but
        closed.

        Yields:
            At each token, where it may be paused.
        """


def is_pausable(model: LanguageModel) -> TypeGuard[PausableLanguageModel]:
    """Return whether a language model implements `PausableLanguageModel`."""
    classes = {name: _class_with(model, name) for name in ("draft", "draft_in_parts")}
    is_replaced = "draft" in read_optional(model, "__dict__", {})
    return not is_replaced and None is not classes["draft"] is classes["draft_in_parts"]


def _class_with(model: object, name: str) -> type | None:
    """Return the class that defines a method of an object."""
    return next((each for each in type(model).__mro__ if name in vars(each)), None)


class AsyncLanguageModel(LanguageModel, Protocol):
    """A language model that runs elsewhere: each candidate is answered when it is ready."""

    def submit(
        self, request: DraftRequest, reply: Callable[[Draft | GenerationError], None]
    ) -> Callable[[], object]:
        """Ask for one candidate without waiting for it.

        Args:
            request: The candidate.
            reply: Called once with the draft or the error, on any thread; not called after the
                candidate was cancelled.

        Returns:
            Cancels the candidate; may be called at any time, on any thread.
        """


def is_asynchronous(model: LanguageModel) -> TypeGuard[AsyncLanguageModel]:
    """Return whether a language model implements `AsyncLanguageModel`."""
    return has_members(model, AsyncLanguageModel)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What callers need to know of a language model before they ask it for text.

    Attributes:
        context_len: Tokens that it can read, prompt and completion together; None for no limit.
        has_chat_template: Whether it brings a chat template.
        default_sampling: Returns the sampling settings it came with.
        template: The sources of its chat templates; empty if there are none.
    """

    context_len: int | None
    has_chat_template: bool
    default_sampling: Callable[[], SamplingParams]
    template: str = ""


class PromptedModel(LanguageModel, Protocol):
    """A language model that can also read prompts.

    If it has a method `interrupt()`, the end of the process calls it from another thread, and the
    draft in progress is to give up with `Interrupted`.
    """

    @property
    def codec(self) -> Codec:
        """Its tokenizer."""

    def default_sampling(self) -> SamplingParams:
        """Sampling settings the model came with."""
