"""Sort the added tokens of a tokenizer, and encode text without tokens that only templates write.

A tokenizer finds its added tokens anywhere in a text. Most of them structure a conversation:
`<|im_end|>` ends a message, `<tool_call>` begins a call. Whether such a token is *special* only
determines whether decoding omits it. Typed by a user or quoted in a document, it must be text in
either case. Other added tokens are ordinary vocabulary: words, characters, blanks.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_BRACKETED = re.compile(r"\s*(<.+>|\[.+\])\s*", re.DOTALL)
_BYTE = re.compile("<0x[0-9A-F]{2}>")  # the form of byte-fallback tokens
# Precedes a template's tokens during encoding. Noncharacters do not occur in ordinary text.
_MARK = "\ufdef\ufdee"


@dataclass(frozen=True, slots=True)
class AddedTokens:
    """The added tokens of a tokenizer, sorted by who may write them.

    Attributes:
        control: Tokens without text, which decoding omits, by id.
        reserved: Tokens that only templates write, including the control tokens, by id.
        everyday: Ids in `control` that also occur in ordinary text: unknown words, single bytes.
        words: Tokens added to the vocabulary that decode to their names, by id.
    """

    control: dict[int, str]
    reserved: dict[int, str]
    everyday: frozenset[int]
    words: dict[int, str]


def read_added_tokens(tokenizer: Any) -> AddedTokens:
    """Sort a tokenizer's added tokens.

    A special token is reserved, unless it is an ordinary piece of text that was made the padding
    token, or a single character. Any other added token is reserved if it is written in brackets, as
    `<tool_call>` and `[INST]` are, or if the chat template writes it and it is no mere word.
    Bracketed pieces that a model's own vocabulary holds (Gemma has one for each HTML tag) are text,
    unless the template writes them.

    Args:
        tokenizer: A tokenizer of transformers.
    """
    added = {token: info.content for token, info in added_tokens_of(tokenizer).items()}
    named = _named(tokenizer)
    marked = {token for token, info in added_tokens_of(tokenizer).items() if info.special}
    special = {**named, **{token: added[token] for token in marked}}
    roles, own = _roles(tokenizer), own_vocabulary(tokenizer)
    control = {
        token: name
        for token, name in special.items()
        if not (_is_ordinary(name, roles.get(name, set())) and _is_piece(tokenizer, name, own))
    }
    others = {token: name for token, name in added.items() if token not in special}
    sources = template_sources(tokenizer)
    written = _literal_text(sources)
    if any(not _is_reserved(name, written, own) and not _is_word(name) for name in others.values()):
        # A template may also build a token from pieces, which only rendering shows.
        written += [text for source in sources for text in _rendered(tokenizer, source)]
    reserved = {token: name for token, name in others.items() if _is_reserved(name, written, own)}
    everyday = {
        token
        for token, name in control.items()
        if roles.get(name) == {"unk_token"} or _BYTE.fullmatch(name)
    }
    words = {token: name for token, name in others.items() if name not in own}
    return AddedTokens(control, {**control, **reserved}, frozenset(everyday), words)


def added_tokens_of(tokenizer: Any) -> dict[int, Any]:
    """Return a tokenizer's added tokens by their ids, as transformers has them."""
    found: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    return found


def _named(tokenizer: Any) -> dict[int, str]:
    """Return the special tokens that have a role, by their ids."""
    names = list(dict.fromkeys(tokenizer.all_special_tokens))
    found = zip(tokenizer.convert_tokens_to_ids(names), names, strict=True)
    unknown = tokenizer.unk_token
    first: dict[int, str] = {}
    for token, name in found:
        # What is no token at all has the unknown token's id.
        if token is not None and (name == unknown or token not in first):
            first[token] = name
    return first


def _roles(tokenizer: Any) -> dict[str, set[str]]:
    """Return the roles of special tokens by their names."""
    roles: dict[str, set[str]] = {}
    for role, names in tokenizer.special_tokens_map.items():
        for name in [names] if isinstance(names, str) else names:
            roles.setdefault(str(name), set()).add(role)
    return roles


def _is_ordinary(name: str, roles: set[str]) -> bool:
    """Whether a special token can also be ordinary text: a character, or the padding token."""
    return not _BRACKETED.fullmatch(name) and (len(name) == 1 or roles == {"pad_token"})


def _is_piece(tokenizer: Any, name: str, own: frozenset[str]) -> bool:
    """Whether ordinary text is encoded to this token without the added token."""
    if name in own:
        return True
    plain = tokenizer(name, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return bool(plain == tokenizer.convert_tokens_to_ids([name]))


def _is_reserved(name: str, written: Sequence[str], own: frozenset[str]) -> bool:
    """Whether only templates write an added token that is not special."""
    is_written = any(name in text for text in written)
    if _BRACKETED.fullmatch(name):
        return is_written or name not in own
    return is_written and not _is_word(name)


def _is_word(name: str) -> bool:
    """Whether a token is a blank, a character or words, which users also write."""
    stripped = name.strip()
    return len(stripped) < 2 or all(letter.isalnum() or letter in "_ \t\n" for letter in stripped)


def own_vocabulary(tokenizer: Any) -> frozenset[str]:
    """Return the vocabulary of a tokenizer without its added tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return frozenset(backend.get_vocab(with_added_tokens=False))
    size = getattr(tokenizer, "vocab_size", 0)
    vocabulary = tokenizer.get_vocab() if size else {}
    return frozenset(name for name, token in vocabulary.items() if token < size)


def template_sources(tokenizer: Any) -> list[str]:
    """Return the sources of a tokenizer's chat templates; there may be one per task."""
    template = getattr(tokenizer, "chat_template", None) or ""
    return list(filter(None, template.values() if isinstance(template, dict) else [template]))


def _literal_text(sources: Sequence[str]) -> list[str]:
    """Return the literal text in chat templates, without their logic."""
    return [
        value
        for source in sources
        for kind, value in template_words(source)
        if kind in ("data", "string")
    ]


def _rendered(tokenizer: Any, source: str) -> list[str]:
    """Return what a template makes of short conversations; of those that it accepts."""
    user, assistant = {"role": "user", "content": ""}, {"role": "assistant", "content": ""}
    call = {"id": "000000000", "type": "function", "function": {"name": "f", "arguments": {}}}
    calling = {**assistant, "tool_calls": [call]}
    result = {"role": "tool", "name": "f", "tool_call_id": "000000000", "content": ""}
    thinking = {**assistant, "reasoning_content": "0", "thinking": "0"}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    texts = []
    for messages, options in (
        ([user], {}),
        ([user], {"enable_thinking": False}),
        ([{"role": "system", "content": ""}, user, assistant, user], {}),
        ([user, thinking, user], {}),
        ([user, calling, result], {"tools": tools}),
        ([user], {"tools": tools}),
    ):
        try:
            text = tokenizer.apply_chat_template(
                messages,
                chat_template=source,
                tokenize=False,
                add_generation_prompt=True,
                **options,
            )
        except Exception:  # noqa: BLE001 - templates refuse roles in many ways
            continue
        texts.append(str(text))
    return texts


def template_words(source: str) -> list[tuple[str, str]]:
    """Return the tokens of a Jinja template with their kinds, and strings unquoted.

    If the template is invalid, all of it counts as text.
    """
    try:
        from jinja2 import Environment  # noqa: PLC0415 - transformers requires it for templates

        found = [(kind, value) for _, kind, value in Environment().lex(source)]
    except Exception:  # noqa: BLE001 - rendering reports the error
        return [("data", source)]
    return [(kind, _unquoted(value) if kind == "string" else value) for kind, value in found]


def _unquoted(literal: str) -> str:
    """Return the value of a string literal of a template."""
    inner = literal[1:-1]
    try:
        return inner.encode("ascii", "backslashreplace").decode("unicode_escape")
    except UnicodeDecodeError:
        return inner


# --- encoding ---


class MarkedEncoder:
    """Encodes text in which only a template can write reserved tokens.

    It is a copy of the tokenizer in which each reserved token has a name with a mark before it
    instead of its own. Text of a template is encoded as before, together with the surrounding text;
    the same characters in user text stay text.

    Args:
        tokenizer: A tokenizer of transformers.
        added: Its added tokens.
        misread: Names of further added tokens that user text must not become.

    Raises:
        ValueError: The tokenizer does not support such a copy, or the copy encodes differently.
    """

    def __init__(self, tokenizer: Any, added: AddedTokens, misread: Sequence[str] = ()) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or not hasattr(backend, "to_str"):
            raise ValueError("a tokenizer in Python")
        self._encoder = _copy_without(backend, [*added.reserved.values(), *misread])
        taken = set(self._encoder.get_vocab(with_added_tokens=True).values())
        self._meant = _add_marked(self._encoder, added.reserved, added_tokens_of(tokenizer))
        if not taken.isdisjoint(self._meant):
            raise ValueError("a vocabulary with holes, where new tokens take the ids of others")
        self._forbidden = added.reserved.keys() - added.everyday
        self._check(tokenizer, added)

    def encode(self, parts: Sequence[tuple[str, bool]]) -> list[int] | None:
        """Encode parts of one text, each with True if it is an intended reserved token.

        Returns:
            The ids, without added tokens; None if they would contain an unintended reserved token.
        """
        if any(_MARK in part for part, _ in parts):
            return None
        text = "".join(_MARK + part if is_meant else part for part, is_meant in parts)
        # Unlike `encode`, this lets other threads run.
        [encoding] = self._encoder.encode_batch([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        if not self._forbidden.isdisjoint(ids):
            return None
        return [self._meant.get(token, token) for token in ids]

    def _check(self, tokenizer: Any, added: AddedTokens) -> None:
        """Check, on a text with all reserved tokens, that the copy encodes like the original."""
        parts: list[tuple[str, bool]] = [("A text", False)]
        for name in added.reserved.values():
            parts += [(name, True), (" of words\nand 1 x", False), (name, True), ("y", False)]
        text = "".join(part for part, _ in parts)
        if (
            self.encode(parts)
            != tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        ):
            raise ValueError("a tokenizer whose copy encodes differently")


def _copy_without(backend: Any, names: Sequence[str]) -> Any:
    """Return a copy of a fast tokenizer that does not find tokens with these names."""
    from tokenizers import AddedToken  # noqa: PLC0415 - installed if there is a fast tokenizer

    copied = copy.deepcopy(backend)
    copied.no_truncation()
    copied.no_padding()
    # The copy does not look for special tokens.
    copied.add_special_tokens([AddedToken(name, special=True) for name in names])
    copied.encode_special_tokens = True
    return copied


def _add_marked(encoder: Any, reserved: dict[int, str], added: dict[int, Any]) -> dict[int, int]:
    """Add reserved tokens with a mark before them; return their original ids by new id."""
    from tokenizers import AddedToken  # noqa: PLC0415 - installed if there is a fast tokenizer

    names = [_MARK + name for name in reserved.values()]
    encoder.add_tokens(
        [
            AddedToken(
                name,
                single_word=getattr(added.get(token), "single_word", False),
                lstrip=getattr(added.get(token), "lstrip", False),
                rstrip=getattr(added.get(token), "rstrip", False),
                normalized=getattr(added.get(token), "normalized", False),
            )
            for name, token in zip(names, reserved, strict=True)
        ]
    )
    return dict(zip(map(encoder.token_to_id, names), reserved, strict=True))
