"""What a server of small models serves, and what it does wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stars_engine.backends.base import LanguageModel


@dataclass
class Faults:
    """What a server does wrong.

    Attributes:
        no_ids: Completions hold text alone.
        num_choices: Completions have this many choices, whatever n is.
        ignores_seed: Every request draws anew.
        one_seed: Every request draws the same.
        shrinks_to: Prefix and completion have at most this many tokens together, silently.
        sigmoid: Rewards are probabilities, whatever `use_activation` is.
        hidden_states: Rewards are vectors.
        chunk_len: Rewards of longer inputs that are not cached are off by 0.05.
        status: Requests fail with it.
        retry_after: Sent with `status`.
        num_failures: How many requests fail with `status`; None for all.
        num_answers: How many requests are answered before the first of them.
        malformed: The body is no JSON.
        hangs: Requests are never answered.
        cuts: Connections are cut in the middle of the body.
        other_tokenizer: Tokens of texts have other ids.
        other_template: Tokens of conversations have other ids.
    """

    no_ids: bool = False
    num_choices: int = 1
    ignores_seed: bool = False
    one_seed: bool = False
    shrinks_to: int | None = None
    sigmoid: bool = False
    hidden_states: bool = False
    chunk_len: int | None = None
    status: int | None = None
    retry_after: str | None = None
    num_failures: int | None = None
    num_answers: int = 0
    malformed: bool = False
    hangs: bool = False
    cuts: bool = False
    other_tokenizer: bool = False
    other_template: bool = False


@dataclass
class Served:
    """What a server serves.

    Attributes:
        model: Drafts completions.
        rewards: Returns the scores of token ids; one list for each input.
        logprobs: Returns log-probabilities of the next token after token ids.
        token_scores: Returns the scores of each token of an input.
        codec: The tokenizer.
        dialect: "vllm", "completions", "sglang" or "llama.cpp".
        max_model_len: Tokens that it says it reads.
        prompt_len: Tokens of a prefix that are the prompt; None for all.
        api_key: The key that it asks for.
    """

    model: LanguageModel | None = None
    rewards: Callable[[Sequence[Sequence[int]]], list[list[float]]] | None = None
    logprobs: Callable[[Sequence[int]], torch.Tensor] | None = None
    token_scores: Callable[[Sequence[int]], list[list[float]]] | None = None
    codec: Any = None
    dialect: str = "vllm"
    max_model_len: int = 512
    prompt_len: int | None = None
    api_key: str | None = None
