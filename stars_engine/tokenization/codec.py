"""Between text and token ids: control tokens stay text, half characters stay back.

Holds a transformers tokenizer but imports nothing of it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from stars_engine.tokenization.token_bytes import REPLACEMENT, bytes_of_tokens

_ANCHOR_LEN = 8  # prompt tokens decoded along with a completion, so that its first space survives


class Codec:
    """Encoding and decoding for one tokenizer, language model's or reward model's."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        control = {token.content for token in added if token.special}
        control |= set(tokenizer.all_special_tokens)
        self.control_tokens = tuple(sorted(control, key=lambda token: (-len(token), token)))
        if not _has_other_role(tokenizer, tokenizer.unk_token):
            control.discard(tokenizer.unk_token)  # ordinary text has unknown words too
        self._control_ids = set(tokenizer.convert_tokens_to_ids(list(control)))
        self._control_pattern = re.compile("|".join(map(re.escape, self.control_tokens)) or "(?!)")
        self._prefix_ids = self._find_prefix()
        self._bytes = bytes_of_tokens(tokenizer, self._decode_as_it_is)

    # --- encoding ---

    def encode(self, text: str) -> list[int]:
        """Encode text without adding anything; control tokens in it are plain characters."""
        ids = self._encode_plainly(text)
        if self._control_ids.isdisjoint(ids):
            return ids
        # Some vocabularies hold a control token as an ordinary piece: cut each one in two.
        pieces = []
        start = 0
        for match in self._control_pattern.finditer(text):
            pieces.append(text[start : match.start() + 1])
            start = match.start() + 1
        pieces.append(text[start:])
        return [token for piece in pieces for token in self._encode_plainly(piece)]

    def encode_prompt(self, text: str) -> list[int]:
        """Encode text with what the tokenizer puts before it (often one begin-of-text token).

        What some tokenizers put *after* a text, end of text, is left out: it would end the answer
        before it began.
        """
        return [*self._prefix_ids, *self.encode(text)]

    def encode_rendered(self, text: str) -> list[int]:
        """Encode rendered text: control tokens are parsed, nothing is added."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def encode_pieces(self, pieces: Sequence[tuple[str, bool]]) -> list[int]:
        """Encode pieces of one text, each with True if it is a template's.

        Control tokens are parsed in the template's pieces and nowhere else, also where two pieces
        would make one up together. Nothing is added.
        """
        text = "".join(piece for piece, _ in pieces)
        meant: list[tuple[int, int]] = []
        start = 0
        for piece, is_template in pieces:
            if is_template:
                found = self._control_pattern.finditer(piece)
                meant += [(start + match.start(), start + match.end()) for match in found]
            start += len(piece)
        if [match.span() for match in self._control_pattern.finditer(text)] == meant:
            return self.encode_rendered(text)
        ids: list[int] = []
        start = 0
        for begin, end in meant:
            ids += [*self.encode(text[start:begin]), *self.encode_rendered(text[begin:end])]
            start = end
        return [*ids, *self.encode(text[start:])]

    def encode_continuation(self, text: str) -> list[int]:
        """Encode text that goes on from other text: no space is put before its first word."""
        anchor = self.encode("\n")
        ids = self.encode("\n" + text)
        return ids[len(anchor) :] if ids[: len(anchor)] == anchor else self.encode(text)

    def split_control_tokens(self, text: str) -> list[tuple[str, bool]]:
        """Cut text into pieces, each with True if it is a control token."""
        pieces: list[tuple[str, bool]] = []
        start = 0
        for match in self._control_pattern.finditer(text):
            pieces += [(text[start : match.start()], False), (match.group(), True)]
            start = match.end()
        pieces.append((text[start:], False))
        return [piece for piece in pieces if piece[0]]

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

        Of a control token the bytes are its name; of an id without a token, nothing.
        """
        known = min(size, len(self.tokenizer))
        pieces = self._bytes.pieces(range(known))
        control = sorted(token for token in self._control_ids if token < known)
        names = self.tokenizer.convert_ids_to_tokens(control)
        for token, name in zip(control, names, strict=True):
            pieces[token] = name.encode()
        return [*pieces, *[b""] * (size - known)], control

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

    def _encode_plainly(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids

    def _decode_as_it_is(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _find_prefix(self) -> list[int]:
        probe = self._encode_plainly("a")
        framed: list[int] = self.tokenizer("a", split_special_tokens=True)["input_ids"]
        for start in range(len(framed) - len(probe) + 1):
            if framed[start : start + len(probe)] == probe:
                return framed[:start]
        return []


def _has_other_role(tokenizer: Any, unk_token: str | None) -> bool:
    """Whether the unknown token also is another: GPT-2 has one token for all its roles."""
    roles = tokenizer.special_tokens_map.items()
    named = {role: [tokens] if isinstance(tokens, str) else tokens for role, tokens in roles}
    return any(unk_token in tokens for role, tokens in named.items() if role != "unk_token")
