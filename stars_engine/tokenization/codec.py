"""Between text and token ids: control tokens stay text, half characters stay back.

Holds a transformers tokenizer but imports nothing of it.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

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

_ANCHOR_LEN = 8  # prompt tokens decoded along with a completion, so that its first space survives


class Codec:
    """Encoding and decoding for one tokenizer, language model's or reward model's.

    Attributes:
        tokenizer: The tokenizer.
        control_tokens: Special tokens: decoding leaves them out. Longest first.
        reserved_tokens: All tokens that only a template or `encode_rendered` writes: the control
            tokens, and added tokens such as `<tool_call>` that have a text. Longest first.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
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
        """Encode text without adding anything; reserved tokens in it are plain characters."""
        return self._encode_parts([(text, False)])

    def encode_prompt(self, text: str) -> list[int]:
        """Encode text with what the tokenizer puts before it (often one begin-of-text token).

        What some tokenizers put *after* a text, end of text, is left out: it would end the answer
        before it began.
        """
        return [*self._prefix_ids, *self.encode(text)]

    def encode_rendered(self, text: str, *, add_prefix: bool = False) -> list[int]:
        """Encode rendered text: reserved tokens are parsed.

        Args:
            text: The text, from a source that is trusted.
            add_prefix: Put before it what the tokenizer puts before a text, unless it is there.
        """
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        prefix = self._prefix_ids if add_prefix else []
        return ids if ids[: len(prefix)] == prefix else [*prefix, *ids]

    def encode_pieces(self, pieces: Sequence[tuple[str, bool]]) -> list[int]:
        """Encode pieces of one text, each with True if it is a template's.

        Reserved tokens are parsed in the template's pieces and nowhere else, also where two pieces
        would make one up together. Nothing is added.
        """
        parts: list[tuple[str, bool]] = []
        for piece, is_template in pieces:
            parts += self.split_reserved_tokens(piece) if is_template else [(piece, False)]
        return self._encode_parts(parts)

    def encode_marked(self, text: str, mark: str) -> list[int]:
        """Encode text in which a mark keeps reserved tokens apart that are not to be parsed.

        Args:
            text: Rendered text, from which the mark is taken out.
            mark: One character, within each reserved token that is text.
        """
        parts = self.split_reserved_tokens(text)
        followed = [*(part.startswith(mark) for part, _ in parts[1:]), False]
        return self._encode_parts(
            [
                # Within a single character there is no cut for a mark, so it stands behind it.
                (part.replace(mark, ""), meant and not (len(part) == 1 and is_marked))
                for (part, meant), is_marked in zip(parts, followed, strict=True)
            ]
        )

    def encode_continuation(self, text: str, *, parse: bool = False) -> list[int]:
        """Encode text that goes on from other text: no space is put before its first word.

        Args:
            text: The text.
            parse: Whether reserved tokens in it are parsed.
        """
        encode = self.encode_rendered if parse else self.encode
        anchor = encode("\n")
        ids = encode("\n" + text)
        return ids[len(anchor) :] if ids[: len(anchor)] == anchor else encode(text)

    def split_control_tokens(self, text: str) -> list[tuple[str, bool]]:
        """Cut text into pieces, each with True if it is a control token."""
        return _split(text, self._control_pattern)

    def split_reserved_tokens(self, text: str) -> list[tuple[str, bool]]:
        """Cut text into pieces, each with True if it is a reserved token."""
        return _split(text, self._reserved_pattern)

    # --- decoding ---

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids; control tokens are left out, spaces are left alone."""
        return self._decode_as_it_is(self._bytes.readable(ids))

    def completion_text(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> tuple[str, int]:
        """Decode a completion as it reads after its prompt.

        Of the same prompt, a longer completion's text goes on from a shorter one's.

        Returns:
            The text up to the last whole character, and the number of ids it stands for: the
            others are the beginning of a character.
        """
        anchor = list(prompt_ids[-_ANCHOR_LEN:])
        num_waiting = self._bytes.num_waiting([*anchor, *ids])
        num_ids = max(0, len(ids) - num_waiting)
        whole = self.decode([*anchor, *ids[:num_ids]])
        # A prompt may end in half a character, which the completion's first bytes make whole.
        shown = self.decode(anchor)
        befores = shown, shown.removesuffix(REPLACEMENT)
        before = next((start for start in befores if whole.startswith(start)), None)
        return self.decode(ids[:num_ids]) if before is None else whole[len(before) :], num_ids

    def vocabulary(self, size: int) -> tuple[list[bytes], list[int]]:
        """Return what each token id below `size` stands for, and which are control tokens.

        Of a control token the bytes are its name; of an id without a token, nothing. Ids may have
        holes between them, and go beyond the number of tokens.
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
        """Return a hash that two tokenizers share if and only if they encode alike."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None and hasattr(backend, "to_str"):
            identity = backend.to_str()
        else:
            identity = repr(sorted(self.tokenizer.get_vocab().items())) + repr(self.tokenizer)
        return hashlib.sha256(identity.encode()).hexdigest()

    def empty_prompt(self) -> list[int]:
        """Return the one token that stands for an empty prompt: begin of text, or end of text."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return [token]
        return []

    def _encode_parts(self, parts: Sequence[tuple[str, bool]]) -> list[int]:
        """Encode parts of one text, each with True if it is a reserved token that is meant."""
        if self._marked_encoder is not None:
            ids = self._marked_encoder.encode(parts)
            if ids is not None:
                return ids
        found: list[int] = []
        plain = ""
        for part, is_meant in parts:
            if is_meant:
                found += [*self._encode_plainly(plain), self._ids[part]]
            plain = "" if is_meant else plain + part
        return [*found, *self._encode_plainly(plain)]

    def _encode_plainly(self, text: str) -> list[int]:
        """Encode text without any added token.

        Some vocabularies hold a reserved token as an ordinary piece: each is cut in two.
        """
        if not text:
            return []
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        if self._reserved_ids.isdisjoint(ids):
            return ids
        cuts = [match.start() + 1 for match in self._reserved_pattern.finditer(text)]
        # Where normalisation makes one up, it is somewhere: in one of the halves.
        cuts = cuts or [len(text) // 2]
        borders = [0, *(cut for cut in cuts if 0 < cut < len(text)), len(text)]
        if len(borders) == 2:
            return ids  # a single character, which is what it is
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
        # A letter that stands for a byte in the vocabulary itself: typed, it is another text.
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
        logger.debug("text is encoded in pieces around a template's tokens: %s", error)
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
