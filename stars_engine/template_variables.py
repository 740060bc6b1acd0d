"""Variables that a caller passes to a chat template."""

from __future__ import annotations

import re
from typing import Any

from stars_engine.nesting import is_json

# Keywords that rendering itself passes to the template or to transformers.
_OWN_KEYWORDS = frozenset(
    {
        *("messages", "conversation", "tools", "chat_template", "add_generation_prompt"),
        *("continue_final_message", "tokenize", "tokenizer_kwargs", "processor_kwargs"),
        *("padding", "truncation", "max_length", "return_tensors", "return_dict"),
        "return_assistant_tokens_mask",
    }
)
_SPECIAL_TOKEN = re.compile("(bos|eos|unk|sep|pad|cls|mask)_token|additional_special_tokens")


def check_template_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the variables for a chat template if they are JSON and not reserved.

    Raises:
        ValueError: A variable is reserved, or is not JSON.
    """
    for name in kwargs:
        if name in _OWN_KEYWORDS:
            raise ValueError(
                f"{name!r} is set when a conversation is rendered. Hint: leave it out; messages, "
                "tools and similar settings are fields of Chat, and the template is "
                "TransformersModel(chat_template=...)"
            )
        if _SPECIAL_TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is set by the tokenizer. Hint: leave it out")
    checked: dict[str, Any] = is_json(kwargs, "chat_template_kwargs")
    return checked
