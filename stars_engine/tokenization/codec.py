"""Convert between text and token ids, without control tokens in user text or partial characters.

It holds a transformers tokenizer, but does not import transformers.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from threading import Lock
from typing import Any

from stars_engine.threads.give_way import give_way
from stars_engine.tokenization.added_tokens import (
    AddedTokens,
    MarkedEncoder,
    added_tokens_of,
    read_added_tokens,
)
from stars_engine.tokenization.token_bytes import (
    REPLACEMENT,
    ByteLevel,
    TokenBytes,
    bytes_of_tokens,
)

logger = logging.getLogger(__name__)

_ANCHOR_LEN = 8  # prompt tokens decoded with a completion, which preserves its leading space


class Codec:
    """Encodes and decodes with the tokenizer of a language model or reward model.

    Attributes:
        tokenizer: The tokenizer.
        control_tokens: Special tokens, which decoding omits, longest first.
        reserved_tokens: All tokens that only a template or `encode_rendered` writes: the control
            tokens, and added tokens with a text such as `<tool_call>`, longest first.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._calling = Lock()  # calls change the tokenizer's options
        added = read_added_tokens(tokenizer)
        self.control_tokens = _longest_first(added.control.values())
        self.reserved_tokens = _longest_first(added.reserved.values())
        self._ids = {name: token for token, name in added.reserved.items()}
        self._left_out = frozenset(added.control)
        self._control_ids = added.control.keys() - added.everyday
        self._reserved_ids = added.reserved.keys() - added.everyday
        self._control_pattern = _pattern(self.control_tokens)
        self._reserved_pattern = _pattern(self.reserved_tokens)
        self._bytes = bytes_of_tokens(
            tokenizer, self._decode_as_it_is, left_out=self._left_out, words=added.words
        )
        self._marked_encoder = _marked_encoder(tokenizer, added, self._bytes)
        self._prefix_ids = self._find_prefix()

    # --- encoding ---

    def encode(self, text: str) -> list[int]:
        """Encode text without added tokens; reserved tokens in it are plain characters."""
        return self._encode_parts([(text, False)])

    def encode_prompt(self, text: str) -> list[int]:
        """Encode text with the tokenizer's prefix, which is often one begin-of-text token.

        An end-of-text token that some tokenizers append is omitted, because it would end the answer
        before it begins.
        """
        return [*self._prefix_ids, *self.encode(text)]

    def encode_rendered(self, text: str, *, add_prefix: bool = False) -> list[int]:
        """Encode rendered text; reserved tokens in it are parsed.

        Args:
            text: The text, from a trusted source.
            add_prefix: Whether to add the tokenizer's prefix, unless the text begins with it.
        """
        with self._calling:
            ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        prefix = self._prefix_ids if add_prefix else []
        return ids if ids[: len(prefix)] == prefix else [*prefix, *ids]

    def encode_pieces(self, pieces: Sequence[tuple[str, bool]]) -> list[int]:
        """Encode pieces of one text, each with True if a template wrote it.

        Reserved tokens are parsed only in pieces of the template, not across pieces. No tokens are
        added.
        """
        parts: list[tuple[str, bool]] = []
        for piece, is_template in pieces:
            parts += self.split_reserved_tokens(piece) if is_template else [(piece, False)]
        return self._encode_parts(parts)

    def encode_continuation(self, text: str, *, parse: bool = False) -> list[int]:
        """Encode text that continues other text, without a space before its first word.

        Args:
            text: The text.
            parse: Whether to parse reserved tokens in it.
        """
        encode = self.encode_rendered if parse else self.encode
        anchor = encode("\n")
        ids = encode("\n" + text)
        return ids[len(anchor) :] if ids[: len(anchor)] == anchor else encode(text)

    def split_control_tokens(self, text: str) -> list[tuple[str, bool]]:
        """Split text into pieces, each with True if it is a control token."""
        return _split(text, self._control_pattern)

    def split_reserved_tokens(self, text: str) -> list[tuple[str, bool]]:
        """Split text into pieces, each with True if it is a reserved token."""
        return _split(text, self._reserved_pattern)

    # --- decoding ---

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids without control tokens and without changing spaces."""
        return self._decode_as_it_is(self._bytes.readable(ids))

    def completion_text(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> tuple[str, int]:
        """Decode a completion in the context of its prompt.

        The text of a longer completion continues the text of a shorter one with the same prompt.

        Returns:
            The text up to the last complete character, and the number of ids in it; further ids are
            the beginning of a character.
        """
        anchor = list(prompt_ids[-_ANCHOR_LEN:])
        num_waiting = self._bytes.num_waiting([*anchor, *ids])
        num_ids = max(0, len(ids) - num_waiting)
        whole = self.decode([*anchor, *ids[:num_ids]])
        # A prompt may end inside a character that the completion completes.
        shown = self.decode(anchor)
        befores = shown, shown.removesuffix(REPLACEMENT)
        before = next((start for start in befores if whole.startswith(start)), None)
        return self.decode(ids[:num_ids]) if before is None else whole[len(before) :], num_ids

    def vocabulary(self, size: int) -> tuple[list[bytes], list[int]]:
        """Return the bytes of each token id below `size`, and the control tokens.

        The bytes of a control token are its name; an id without a token has none. Ids may have gaps
        and exceed the number of tokens.
        """
        known = sorted({token for token in self.tokenizer.get_vocab().values() if token < size})
        pieces = [b""] * size
        for token, piece in zip(known, self._bytes.pieces(known), strict=True):
            pieces[token] = piece
        control = sorted(token for token in self._control_ids if token < size)
        names = self.tokenizer.convert_ids_to_tokens(control)
        for token, name in zip(control, names, strict=True):
            pieces[token] = name.encode()
        return pieces, control

    # --- identity ---

    def fingerprint(self) -> str:
        """Return a hash that is equal for two tokenizers if and only if they encode equally."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None and hasattr(backend, "to_str"):
            identity = backend.to_str()
        else:
            identity = repr(sorted(self.tokenizer.get_vocab().items())) + repr(self.tokenizer)
        return hashlib.sha256(identity.encode()).hexdigest()

    def empty_prompt(self) -> list[int]:
        """Return the token for an empty prompt: begin-of-text, or else end-of-text."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return [token]
        return []

    def _encode_parts(self, parts: Sequence[tuple[str, bool]]) -> list[int]:
        """Encode parts of one text, each with True if it is an intended reserved token."""
        if self._marked_encoder is not None:
            ids = self._marked_encoder.encode(parts)
            if ids is not None:
                return ids
        found: list[int] = []
        plain: list[str] = []
        for part, is_meant in parts:
            give_way()
            if is_meant:
                found += [*self._encode_plainly("".join(plain)), self._ids[part]]
                plain.clear()
            else:
                plain.append(part)
        return [*found, *self._encode_plainly("".join(plain))]

    def _encode_plainly(self, text: str) -> list[int]:
        """Encode text without any added token.

        Some vocabularies contain a reserved token as an ordinary piece; its text is split in two.
        """
        if not text:
            return []
        with self._calling:
            ids: list[int] = self.tokenizer(
                text, add_special_tokens=False, split_special_tokens=True
            )["input_ids"]
        if self._reserved_ids.isdisjoint(ids):
            return ids
        cuts = [match.start() + 1 for match in self._reserved_pattern.finditer(text)]
        # If normalization creates a reserved token, search for it by splitting the text in halves.
        cuts = cuts or [len(text) // 2]
        borders = [0, *(cut for cut in cuts if 0 < cut < len(text)), len(text)]
        if len(borders) == 2:
            return ids  # a single character cannot be split
        pieces = (text[start:end] for start, end in pairwise(borders))
        return [token for piece in pieces for token in self._encode_plainly(piece)]

    def _decode_as_it_is(self, ids: list[int]) -> str:
        kept = [token for token in ids if token not in self._left_out]
        text: str = self.tokenizer.decode(
            kept, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def _find_prefix(self) -> list[int]:
        probe = self._encode_plainly("a")
        framed: list[int] = self.tokenizer("a", split_special_tokens=True)["input_ids"]
        for start in range(len(framed) - len(probe) + 1):
            if framed[start : start + len(probe)] == probe:
                return framed[:start]
        return []


def _marked_encoder(
    tokenizer: Any, added: AddedTokens, token_bytes: TokenBytes
) -> MarkedEncoder | None:
    misread: list[str] = []
    if isinstance(token_bytes, ByteLevel):
        # Added tokens whose letters stand for bytes in the vocabulary; as user text they differ.
        others = {
            token: info.content
            for token, info in added_tokens_of(tokenizer).items()
            if token not in added.reserved
        }
        pieces = zip(others.values(), token_bytes.pieces(list(others)), strict=True)
        misread = [name for name, piece in pieces if name.encode() != piece]
    try:
        return MarkedEncoder(tokenizer, added, misread)
    except Exception as error:  # noqa: BLE001 - tokenizers of foreign code
        logger.debug("Encoding text in pieces around a template's tokens: %s", error)
        return None


def _longest_first(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names), key=lambda name: (-len(name), name)))


def _pattern(names: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, names)) or "(?!)")


def _split(text: str, pattern: re.Pattern[str]) -> list[tuple[str, bool]]:
    pieces: list[tuple[str, bool]] = []
    start = 0
    for match in pattern.finditer(text):
        pieces += [(text[start : match.start()], False), (match.group(), True)]
        start = match.end()
    pieces.append((text[start:], False))
    return [piece for piece in pieces if piece[0]]
