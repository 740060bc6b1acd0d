"""Tokens that consist of bytes: where characters end, and how invalid bytes are decoded.

Two kinds of tokenizers split characters. *Byte-level* tokenizers, like GPT-2's, write every byte of
a text as a letter of a special alphabet. *Byte-fallback* tokenizers, like SentencePiece's, have
tokens `<0x00>` to `<0xFF>` for text that no other token covers. Their decoders replace a whole run
of such tokens if one byte is invalid, so that a text could change with what follows it. Here, only
the invalid byte is replaced, as in all UTF-8 decoders, and the decoded text never depends on later
tokens or on where it was split.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, Protocol

REPLACEMENT = "\ufffd"  # what decoders write for invalid bytes
_SPACE = "\u2581"  # the space of SentencePiece
_FALLBACK = [f"<0x{byte:02X}>" for byte in range(256)]  # names of SentencePiece's byte tokens
_MAX_WAITING = 3  # a character has at most four bytes, so at most three tokens await its end


class TokenBytes(Protocol):
    """The bytes of a tokenizer's tokens."""

    def num_waiting(self, ids: Sequence[int]) -> int:
        """Return the number of final ids that belong to an incomplete character."""

    def readable(self, ids: Sequence[int]) -> list[int]:
        """Return ids that the tokenizer decodes to the correct text of the given ids."""

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """Return the bytes that each token adds to a text; none for tokens that are omitted."""


def bytes_of_tokens(
    tokenizer: Any,
    decode: Callable[[list[int]], str],
    *,
    left_out: frozenset[int],
    words: dict[int, str],
) -> TokenBytes:
    """Detect the kind of a tokenizer.

    Args:
        tokenizer: A transformers tokenizer.
        decode: Decodes with it, without control tokens.
        left_out: The ids that decoding omits.
        words: Added tokens that decode to their names, by id.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if "ByteLevel" in _decoder_kinds(backend):
        return ByteLevel(tokenizer, left_out, words)
    ids = _fallback_ids(tokenizer)
    is_read = 0x41 in ids and decode([ids[0x41]]) == "A"
    if is_read and ids.keys() >= set(REPLACEMENT.encode()):
        return ByteFallback(tokenizer, ids, left_out, words)
    return Opaque(decode) if backend is None else Whole(decode)


class ByteLevel:
    """Every token is bytes, except added tokens, which are text.

    Args:
        tokenizer: A transformers tokenizer.
        left_out: The ids that decoding omits.
        words: Added tokens by id.
    """

    def __init__(self, tokenizer: Any, left_out: frozenset[int], words: dict[int, str]) -> None:
        self._tokenizer = tokenizer
        self._pieces = {token: text.encode() for token, text in words.items()}
        self._pieces |= dict.fromkeys(left_out, b"")
        spelt = {token: _bytes_spelt(text) for token, text in words.items()}
        misread = [token for token, own in spelt.items() if own not in (None, self._pieces[token])]
        self._readable = _in_bytes(tokenizer, misread, self._pieces, _LETTERS)

    def num_waiting(self, ids: Sequence[int]) -> int:
        """See `TokenBytes`."""
        return _num_waiting(ids, self._piece)

    def readable(self, ids: Sequence[int]) -> list[int]:
        """Replace added tokens that would decode as letters of bytes with tokens for bytes."""
        return [part for token in ids for part in self._readable.get(token, (token,))]

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """See `TokenBytes`."""
        return [self._piece(token) for token in ids]

    def _piece(self, token: int) -> bytes:
        if token not in self._pieces:
            letters = self._tokenizer.convert_ids_to_tokens(token) or ""
            spelt = _bytes_spelt(letters)
            self._pieces[token] = letters.encode() if spelt is None else spelt
        return self._pieces[token]


class ByteFallback:
    """Some tokens are one byte each; the others are text.

    Args:
        tokenizer: A transformers tokenizer.
        ids: The ids of byte tokens by byte, including the bytes of U+FFFD.
        left_out: The ids that decoding omits.
        words: Added tokens that decode to their names, by id.
    """

    def __init__(
        self,
        tokenizer: Any,
        ids: dict[int, int],
        left_out: frozenset[int],
        words: dict[int, str],
    ) -> None:
        self._tokenizer = tokenizer
        self._left_out = left_out
        self._ids = ids
        self._bytes = {token: byte for byte, token in ids.items()}
        self._added = {token: text.encode() for token, text in words.items()}
        misread = [token for token, text in words.items() if _SPACE in text]
        self._readable = _in_bytes(tokenizer, misread, self._added, _FALLBACK)

    def num_waiting(self, ids: Sequence[int]) -> int:
        """See `TokenBytes`."""
        return _num_waiting(ids, self._piece)

    def readable(self, ids: Sequence[int]) -> list[int]:
        """Return ids in which every run of bytes is valid, with U+FFFD for invalid bytes."""
        kept = (token for token in ids if token not in self._left_out)
        readable: list[int] = []
        for are_bytes, run in groupby(kept, key=self._bytes.__contains__):
            if are_bytes:
                text = bytes(self._bytes[token] for token in run).decode(errors="replace")
                readable += (self._ids[byte] for byte in text.encode())
            else:
                readable += (part for token in run for part in self._readable.get(token, (token,)))
        return readable

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """See `TokenBytes`."""
        names = self._tokenizer.convert_ids_to_tokens(list(ids))
        own = map(self._piece, ids)
        return [
            (name or "").replace(_SPACE, " ").encode() if piece is None else piece
            for name, piece in zip(names, own, strict=True)
        ]

    def _piece(self, token: int) -> bytes | None:
        if token in self._left_out:
            return b""
        if token in self._bytes:
            return bytes([self._bytes[token]])
        return self._added.get(token)


class Whole:
    """No token is a part of a character."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode

    def num_waiting(self, ids: Sequence[int]) -> int:
        """See `TokenBytes`."""
        return 0

    def readable(self, ids: Sequence[int]) -> list[int]:
        """See `TokenBytes`."""
        return list(ids)

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """See `TokenBytes`."""
        return _pieces_by_decoding(ids, self._decode)


class Opaque:
    """A tokenizer with unknown structure.

    A replacement character at the end may be a part of another character, so it always waits for
    the next token.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode

    def num_waiting(self, ids: Sequence[int]) -> int:
        """See `TokenBytes`."""
        longest = min(_MAX_WAITING, len(ids))
        for count in range(longest):
            if not self._decode(list(ids[: len(ids) - count])).endswith(REPLACEMENT):
                return count
        return longest

    def readable(self, ids: Sequence[int]) -> list[int]:
        """See `TokenBytes`."""
        return list(ids)

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """See `TokenBytes`."""
        return _pieces_by_decoding(ids, self._decode)


def _num_waiting(ids: Sequence[int], piece: Callable[[int], bytes | None]) -> int:
    """Count the final tokens from the beginning of an incomplete character."""
    tail, sizes = b"", []
    for token in reversed(ids):
        part = piece(token)
        if part is None or len(tail) > _MAX_WAITING:
            break
        tail = part + tail
        sizes.append(len(part))
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(tail)  # it may begin inside a character; such bytes are invalid and do not wait
    pending = decoder.getstate()[0]
    if pending[:1] == b"\xed" and pending[1:] >= b"\xa0":
        return 0  # a lone surrogate: Python waits for more bytes, but none complete it
    waiting, count = len(pending), 0
    while waiting > 0:
        waiting -= sizes[count]
        count += 1
    return count


def _pieces_by_decoding(ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[bytes]:
    """Return the bytes that each token adds to the text of a preceding token."""
    anchor = next((token for token in ids if decode([token]).strip().isalpha()), None)
    if anchor is None:
        return [decode([token]).encode() for token in ids]
    before = decode([anchor])
    return [decode([anchor, token]).removeprefix(before).encode() for token in ids]


def _decoder_kinds(backend: Any) -> set[str]:
    """Return the names of the decoders in a fast tokenizer."""
    try:
        state: bytes = backend.decoder.__getstate__()
        return set(re.findall(r'"type":"(\w+)"', state.decode()))
    except Exception:  # noqa: BLE001 - there is no decoder, or it is written in Python
        return set()


def _fallback_ids(tokenizer: Any) -> dict[int, int]:
    """Return the ids of the existing tokens `<0x00>` to `<0xFF>`, by byte."""
    names = _FALLBACK
    ids = tokenizer.convert_tokens_to_ids(names)
    found = ((byte, token) for byte, token in enumerate(ids) if token is not None)
    return {
        byte: token
        for byte, token in found
        if tokenizer.convert_ids_to_tokens(token) == names[byte]  # not the unknown token
    }


def _in_bytes(
    tokenizer: Any, tokens: Sequence[int], texts: dict[int, bytes], names: Sequence[str]
) -> dict[int, list[int]]:
    """Return, for tokens that a decoder would misread, the ids of their bytes, if they all exist.

    Args:
        tokenizer: A transformers tokenizer.
        tokens: Added tokens.
        texts: The bytes of the added tokens by id.
        names: The names of the tokens for the bytes 0 to 255.
    """
    if not tokens:
        return {}
    ids = tokenizer.convert_tokens_to_ids(list(names))
    found = tokenizer.convert_ids_to_tokens([token or 0 for token in ids])
    known = [token for token, name, own in zip(ids, found, names, strict=True) if name == own]
    if len(known) < len(names):  # some byte has no token
        return {}
    return {token: [known[byte] for byte in texts[token]] for token in tokens}


def _bytes_spelt(letters: str) -> bytes | None:
    """Return the bytes for byte-level letters; None if there are other letters."""
    if any(letter not in _BYTE_OF_LETTER for letter in letters):
        return None
    return bytes(_BYTE_OF_LETTER[letter] for letter in letters)


def _byte_alphabet() -> dict[str, int]:
    """Return byte-level letters by byte; visible Latin-1 characters stand for themselves."""
    spare = iter(range(256, 512))
    visible = (chr(byte).isprintable() and byte != ord(" ") for byte in range(256))
    return {chr(byte if own else next(spare)): byte for byte, own in enumerate(visible)}


_BYTE_OF_LETTER = _byte_alphabet()
_LETTERS = [letter for letter, _ in sorted(_BYTE_OF_LETTER.items(), key=lambda pair: pair[1])]
