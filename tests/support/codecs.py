"""A codec over bytes with control tokens and a chat template."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from stars_engine.chat.template import encode_rendered, render
from stars_engine.messages import Message, Tool
from stars_engine.tokenization.codec import Codec

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_codec(chat_template: str | None = CHATML, *, bos: bool = True) -> Codec:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(CONTROL)
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A <|im_end|>",  # also an end, which must not be kept
            special_tokens=[(c, backend.token_to_id(c)) for c in ("<|endoftext|>", "<|im_end|>")],
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|endoftext|>" if bos else None
    )
    tokenizer.chat_template = chat_template
    return Codec(tokenizer)


def encode_chat(codec: Codec, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
    """Render messages with a generation prompt, and encode them."""
    return encode_rendered(codec, render(codec, messages, tools, add_generation_prompt=True))
