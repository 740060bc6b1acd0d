"""What language models answer with their tokenizer alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from stars_engine.config import SamplingParams
from stars_engine.tokenization.codec import Codec


class CodecModel:
    """The part of a `LanguageModel` that needs its tokenizer only.

    Attributes:
        codec: The tokenizer.
        end_ids: End-of-text tokens.
    """

    codec: Codec
    end_ids: frozenset[int]

    def is_end(self, token: int, sampling: SamplingParams) -> bool:
        """True for the model's own end-of-text ids and the request's `stop_token_ids`."""
        return token in self.end_ids or token in sampling.stop_token_ids

    def completion_text(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> tuple[str, int]:
        """See `Codec.completion_text`."""
        return self.codec.completion_text(prompt_ids, ids)

    def encode_continuation(self, text: str) -> list[int]:
        """See `Codec.encode_continuation`."""
        return self.codec.encode_continuation(text)


def with_chat_template(tokenizer: Any, template: str | None) -> Any:
    """Return a tokenizer with another chat template, if one is given; the caller's stays as is."""
    if template is None:
        return tokenizer
    changed = copy.copy(tokenizer)
    changed.chat_template = template
    return changed
