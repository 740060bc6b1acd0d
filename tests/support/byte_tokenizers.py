"""Tokenizers with a token for each byte, and a model that writes given tokens of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stars_engine.backends.base import Draft, DraftRequest
from stars_engine.testing import TabularModel
from stars_engine.tokenization.codec import Codec

REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class ByteTokenizer:
    """A tokenizer with a token for each byte.

    Attributes:
        codec: Over it.
        first_byte: Id of the token for byte 0; the others follow.
        control: Id of a control token.
    """

    codec: Codec
    first_byte: int
    control: int

    def ids(self, data: bytes) -> list[int]:
        return [self.first_byte + byte for byte in data]


@cache
def byte_fallback() -> ByteTokenizer:
    """Llama's kind: tokens for bytes, and tokens of text."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "a", "b", "▁a", REPLACEMENT]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    strip = decoders.Strip(" ", 1, 0)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    return ByteTokenizer(Codec(tokenizer), first_byte=3, control=2)


@cache
def byte_level() -> ByteTokenizer:
    """GPT-2's kind: every token is bytes; some hold part of a character and another one."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    letters = {byte: chr(byte) for byte in own}
    letters |= {byte: chr(256 + index) for index, byte in enumerate(others)}
    assert set(letters.values()) == set(pre_tokenizers.ByteLevel.alphabet())
    pieces = [letters[byte] for byte in range(256)]
    pieces += ["".join(letters[byte] for byte in piece) for piece in (b"a\xf0\x9f", b"\x99\x82b")]
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    return ByteTokenizer(Codec(tokenizer), first_byte=0, control=258)


BYTE_TOKENIZERS = pytest.mark.parametrize("make", [byte_fallback, byte_level])


class FixedOutputModel(TabularModel):
    """Writes given ids, which a codec decodes."""

    def __init__(self, codec: Codec, ids: Sequence[int]) -> None:
        super().__init__([""] * codec.tokenizer.vocab_size, lambda _: [])
        self.ids = ids
        self.completion_text = codec.completion_text
        self.encode_continuation = codec.encode_continuation

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        """Say the next ones."""
        return [
            Draft(tuple(self.ids[request.num_completion_tokens :][: len(request.uniforms)]))
            for request in requests
        ]
