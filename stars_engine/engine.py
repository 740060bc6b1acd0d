"""The engine: prompts in, aligned answers out, over models that are loaded once."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, overload

from stars_engine.backends.base import LanguageModel
from stars_engine.baselines import best_of_n, vanilla
from stars_engine.chat.prompts import ResolvedPrompt, as_prompt_list, resolve_prompt
from stars_engine.config import AlignParams, ClassifierReward, SamplingParams, StarsConfig
from stars_engine.errors import (
    ConfigError,
    ContextOverflowError,
    EngineClosedError,
    Problem,
    PromptError,
    StarsError,
    needs_extra,
)
from stars_engine.loop import stars
from stars_engine.noise import CounterNoise, fresh_seed
from stars_engine.rewards.base import RewardModel
from stars_engine.rollout import Rollout
from stars_engine.types import Chat, Prompt, SegmentEvent, StarsResult

if TYPE_CHECKING:
    from stars_engine.codec import Codec

Decoding = Callable[[Sequence[Rollout], LanguageModel, RewardModel], Iterator[SegmentEvent]]
Prompts = Prompt | Sequence[Prompt]
RewardPrompts = str | Chat | Sequence[str | Chat | None] | None
Outcome = StarsResult | Exception


class PromptedModel(LanguageModel, Protocol):
    """A language model that can also read prompts."""

    @property
    def codec(self) -> Codec:
        """Its tokenizer."""
        ...

    def default_sampling(self) -> SamplingParams:
        """Sampling settings the model came with."""
        ...


class StarsEngine:
    """Aligns text while it is generated.

    Models are loaded at the first call, or by `load`. An engine may be called from several
    threads; calls take turns, streams round by round.

    Args:
        config: Models, thresholds and sampling; the default is the embedded pair.
        model: A language model of your own in place of `config.model`.
        reward: A reward model of your own in place of `config.reward`.

    Example:
        >>> engine = StarsEngine()
        >>> [result] = engine.generate("This movie", sampling=SamplingParams(seed=7))
    """

    def __init__(
        self,
        config: StarsConfig | None = None,
        *,
        model: PromptedModel | None = None,
        reward: RewardModel | None = None,
    ) -> None:
        self.config = StarsConfig() if config is None else config
        if (model is not None or reward is not None) and (
            "align" not in self.config.model_fields_set
        ):
            raise ConfigError(
                "StarsEngine",
                [
                    Problem(
                        "config.align",
                        "is required beside a model or reward of your own: thresholds belong to "
                        "one pair of models. For example config=StarsConfig(align=AlignParams("
                        "schedule=ConstantSchedule(value=1.0)))",
                    )
                ],
            )
        self._model = model
        self._reward = reward
        self._closed = False
        self._lock = threading.RLock()

    # --- generating ---

    @overload
    def generate(
        self,
        prompts: Prompts,
        *,
        sampling: SamplingParams | None = None,
        align: AlignParams | None = None,
        reward_prompt: RewardPrompts = None,
        return_exceptions: Literal[False] = False,
    ) -> list[StarsResult]: ...

    @overload
    def generate(
        self,
        prompts: Prompts,
        *,
        sampling: SamplingParams | None = None,
        align: AlignParams | None = None,
        reward_prompt: RewardPrompts = None,
        return_exceptions: Literal[True],
    ) -> list[Outcome]: ...

    def generate(
        self,
        prompts: Prompts,
        *,
        sampling: SamplingParams | None = None,
        align: AlignParams | None = None,
        reward_prompt: RewardPrompts = None,
        return_exceptions: bool = False,
    ) -> Any:
        """Return aligned answers, prompt by prompt, `sampling.n` for each.

        Args:
            prompts: One prompt or a sequence of them.
            sampling: In place of the config's.
            align: In place of the config's.
            reward_prompt: What the reward model reads instead of the prompt, such as the question
                without its documents; one for all prompts, or one each.
            return_exceptions: Put the error of a failed request in its place, instead of raising
                the first one when all have ended.

        Raises:
            PromptError: A prompt cannot be used; nothing has been generated.
            ContextOverflowError: A prompt and `max_tokens` exceed the context; likewise.
            RequestError: A request failed; its `result` holds what was accepted.
        """
        prepared = self._prepare(prompts, sampling, align, reward_prompt)
        return self._run(stars, prepared, return_exceptions)

    def stream(
        self,
        prompts: Prompts,
        *,
        sampling: SamplingParams | None = None,
        align: AlignParams | None = None,
        reward_prompt: RewardPrompts = None,
    ) -> Iterator[SegmentEvent]:
        """Yield accepted segments as they come; texts add up to each result's text.

        Nothing emitted is ever taken back. Closing the iterator ends the work. Arguments and errors
        are those of `generate`; prompts are checked at once, and the error of a failed request is
        raised when the other answers have ended.
        """
        rollouts = _all_ready(self._prepare(prompts, sampling, align, reward_prompt))
        return self._events(stars, rollouts)

    def vanilla(
        self,
        prompts: Prompts,
        *,
        sampling: SamplingParams | None = None,
        reward_prompt: RewardPrompts = None,
    ) -> list[StarsResult]:
        """Sample plainly, by the noise of `generate`; the final text's reward is reported."""
        prepared = self._prepare(prompts, sampling, None, reward_prompt)
        results: list[StarsResult] = self._run(vanilla, prepared, return_exceptions=False)
        return results

    def best_of_n(
        self,
        prompts: Prompts,
        n: int,
        *,
        sampling: SamplingParams | None = None,
        reward_prompt: RewardPrompts = None,
    ) -> list[StarsResult]:
        """Sample `n` whole answers per prompt and return the one of highest reward."""
        if n < 1:
            raise ValueError(f"n={n}: Best-of-N needs at least 1 sample; for example n=16")
        prepared = self._prepare(prompts, sampling, None, reward_prompt)
        decoding = partial(best_of_n, n=n)
        results: list[StarsResult] = self._run(decoding, prepared, return_exceptions=False)
        return results

    # --- models ---

    def load(self) -> Self:
        """Load both models now; later calls return at once."""
        _ = self.model, self.reward
        return self

    @property
    def model(self) -> PromptedModel:
        """The language model, loaded on first use."""
        with self._lock:
            self._check_open()
            if self._model is None:
                with needs_extra("local"):
                    from stars_engine.backends.transformers import TransformersBackend
                self._model = TransformersBackend(self.config.model)
            return self._model

    @property
    def sampling(self) -> SamplingParams:
        """Sampling where a call gives none: the config's, or the model's own."""
        if self.config.sampling == "model":
            return self.model.default_sampling()
        return self.config.sampling

    @property
    def reward(self) -> RewardModel:
        """The reward model, loaded on first use."""
        with self._lock:
            self._check_open()
            if self._reward is None:
                self._reward = self._load_reward()
            return self._reward

    def close(self) -> None:
        """Let go of the models; further calls raise `EngineClosedError`."""
        with self._lock:
            self._closed = True
            self._model = self._reward = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _load_reward(self) -> RewardModel:
        config = self.config.reward
        if isinstance(config, ClassifierReward):
            with needs_extra("local"):
                from stars_engine.rewards.classifier import ClassifierRewardModel
            return ClassifierRewardModel(config, self.model.codec.fingerprint())
        from stars_engine.rewards.function import FunctionRewardModel

        return FunctionRewardModel(config)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError("this engine is closed. Cure: make a new StarsEngine(config)")

    # --- requests ---

    def _prepare(
        self,
        prompts: Prompts,
        sampling: SamplingParams | None,
        align: AlignParams | None,
        reward_prompt: RewardPrompts,
    ) -> list[Rollout | StarsError]:
        """Turn prompts into rollouts, or into the error that each would meet."""
        with self._lock:  # tokenizers are not made for several threads
            sampling = self.sampling if sampling is None else sampling
            align = self.config.align_or_embedded(align)
            prompt_list = as_prompt_list(prompts)
            reward_prompts = _one_each(reward_prompt, len(prompt_list))
            self.load()
            self._check_token_ids(sampling)
            prepared: list[Rollout | StarsError] = []
            for index, (prompt, shown) in enumerate(zip(prompt_list, reward_prompts, strict=True)):
                try:
                    resolved = resolve_prompt(
                        prompt,
                        self.model.codec,
                        prompt_format=self.config.prompt_format,
                        reward_prompt=shown,
                    )
                    fitted = self._fit(resolved, sampling)
                except PromptError as error:
                    prepared += [error] * sampling.n
                    continue
                seed = fresh_seed() if sampling.seed is None else sampling.seed
                prepared += [
                    Rollout(
                        prompt_ids=resolved.token_ids,
                        reward_prompt=resolved.for_reward,
                        sampling=fitted,
                        align=align,
                        noise=CounterNoise(
                            seed=seed, prompt_ids=resolved.token_ids, sample_index=sample_index
                        ),
                        seed=seed,
                        prompt_index=index,
                        sample_index=sample_index,
                    )
                    for sample_index in range(sampling.n)
                ]
            return prepared

    def _fit(self, prompt: ResolvedPrompt, sampling: SamplingParams) -> SamplingParams:
        """Check prompt ids and length; lower `max_tokens` where `on_overflow` says so."""
        vocab_size, limit = self.model.vocab_size, self.model.context_len
        if max(prompt.token_ids) >= vocab_size:
            raise PromptError(
                f"token id {max(prompt.token_ids)} is outside the vocabulary of {vocab_size}. "
                "Cure: encode with this model's tokenizer"
            )
        if limit is None or len(prompt.token_ids) + sampling.max_tokens <= limit:
            return sampling
        room = limit - len(prompt.token_ids)
        if room >= 1 and sampling.on_overflow == "clamp":
            min_tokens = min(sampling.min_tokens, room)
            return sampling.replace(max_tokens=room, min_tokens=min_tokens)
        cure = "shorten the prompt"
        if room >= 1:
            cure += f", set max_tokens to at most {room}, or on_overflow='clamp'"
        raise ContextOverflowError(
            f"the prompt has {len(prompt.token_ids)} tokens and max_tokens is "
            f"{sampling.max_tokens}; the model reads {limit} in all. Cure: {cure}"
        )

    def _check_token_ids(self, sampling: SamplingParams) -> None:
        vocab_size = self.model.vocab_size
        for name in ("logit_bias", "stop_token_ids"):
            for token in getattr(sampling, name) or ():
                if not 0 <= token < vocab_size:
                    message = f"token id {token} is outside the vocabulary, 0 to {vocab_size - 1}"
                    raise ConfigError("SamplingParams", [Problem(name, message)])
        bias = sampling.logit_bias or {}
        if sum(value == -math.inf for value in bias.values()) >= vocab_size:
            message = "-inf on every token leaves none to draw; leave at least one token out"
            raise ConfigError("SamplingParams", [Problem("logit_bias", message)])

    # --- running ---

    def _run(
        self,
        decoding: Decoding,
        prepared: Sequence[Rollout | StarsError],
        return_exceptions: bool,
    ) -> Any:
        if not return_exceptions:
            _all_ready(prepared)
        rollouts = [item for item in prepared if isinstance(item, Rollout)]
        with self._lock:
            for _ in decoding(rollouts, self.model, self.reward):
                pass
        outcomes = [
            (item.error or item.result()) if isinstance(item, Rollout) else item
            for item in prepared
        ]
        if not return_exceptions:
            _raise_first(outcomes)
        return outcomes

    def _events(self, decoding: Decoding, rollouts: Sequence[Rollout]) -> Iterator[SegmentEvent]:
        events = decoding(rollouts, self.model, self.reward)
        while True:
            with self._lock:  # released between rounds, so that a slow reader blocks nobody
                event = next(events, None)
            if event is None:
                break
            yield event
        _raise_first([rollout.error for rollout in rollouts])


def _all_ready(prepared: Sequence[Rollout | StarsError]) -> list[Rollout]:
    """Return the rollouts, or raise the first error before any work is done."""
    for item in prepared:
        if isinstance(item, StarsError):
            raise item
    return [item for item in prepared if isinstance(item, Rollout)]


def _raise_first(outcomes: Sequence[object]) -> None:
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    if errors:
        if len(outcomes) > 1:
            errors[0].add_note(
                f"{len(errors)} of {len(outcomes)} requests failed; return_exceptions=True gives "
                "the others' results"
            )
        raise errors[0]


def _one_each(reward_prompt: RewardPrompts, count: int) -> Sequence[str | Chat | None]:
    if reward_prompt is None or isinstance(reward_prompt, str | Chat):
        return [reward_prompt] * count
    if len(reward_prompt) != count:
        raise PromptError(
            f"{len(reward_prompt)} reward prompts for {count} prompts. Cure: give one for all, or "
            "a list with one for each (None where the prompt itself is meant)"
        )
    return reward_prompt
