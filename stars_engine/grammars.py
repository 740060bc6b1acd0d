"""Grammar-constrained decoding: one state per prefix, forked per candidate.

A grammar masks the proposal: tokens that it does not allow have probability 0, and the others keep
their ratios. The mask is applied before temperature and truncation, so at least one token always
remains. The text may end exactly where the grammar is complete. llguidance computes the masks (Geng
et al. 2025, arXiv 2501.10868).
"""

from __future__ import annotations

import json
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stars_engine.config import Grammar
from stars_engine.errors import ConfigError, Problem, needs_extra
from stars_engine.json_schema import HeldSchema, Layout, Rules, read_schema

_MAX_KEPT = 64  # compiled grammars
# Without forcing, masks allow every tokenization of text that must follow, not only one.
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'
# The bound keeps small models from writing whitespace forever.
_SPACED = Layout(blank=r"\x20|\x0A[\x20\x09]{0,32}")
# The parser tracks the beginnings of all possible names at once, and the default of 2,000 is low.
_MAX_ITEMS = 50_000


class GrammarState:
    """The state of a text in its grammar. Forks are independent of each other."""

    def __init__(self, matcher: Any) -> None:
        self.matcher = matcher

    def fork(self) -> GrammarState:
        """Return an independent copy of the state."""
        return GrammarState(self.matcher.deep_copy())

    def consume(self, tokens: Sequence[int]) -> None:
        """Append tokens to the text; a token that the grammar forbids puts the state in error."""
        self.matcher.consume_tokens(list(tokens))

    @property
    def error(self) -> str:
        """The error, such as a token that was not allowed or a text too complex; else empty."""
        return str(self.matcher.get_error()).partition("\n<state>")[0].strip()


class Grammars:
    """Compiled grammars over one vocabulary.

    Args:
        pieces: The bytes of each token; for control tokens, their names.
        control_ids: The control tokens, which are allowed only where a grammar names them.
        end_ids: The tokens that end a text, which are allowed only where its grammar is complete.

    Raises:
        MissingExtraError: llguidance is not installed.
    """

    def __init__(
        self, pieces: Sequence[bytes], control_ids: Sequence[int], end_ids: Iterable[int]
    ) -> None:
        with needs_extra("grammar"):
            import llguidance  # noqa: PLC0415 - an optional extra
            from llguidance.gbnf_to_lark import any_to_lark  # noqa: PLC0415

        self._library, self._to_lark = llguidance, any_to_lark
        self._end_ids = list(end_ids)
        self._num_tokens = len(pieces)
        # An additional token stands for the end, because a model may have several ends or none.
        vocabulary = _Vocabulary([*pieces, b"<end>"], [*control_ids, len(pieces)])
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(vocabulary), eos_token=len(pieces)
        )
        # Rows are computed in parallel; the default leaves a fifth of the processors idle.
        self._threads = llguidance.LLExecutor(num_threads=min(os.cpu_count() or 1, 32))
        self._background = ThreadPoolExecutor(1, thread_name_prefix="stars-grammar")
        self._compiled: OrderedDict[str, GrammarState] = OrderedDict()

    def start(self, grammar: Grammar) -> GrammarState:
        """Return the state of an empty text.

        Raises:
            ConfigError: The grammar is invalid, or uses an unsupported feature.
        """
        key = grammar.content_hash()
        if key not in self._compiled:
            self._compiled[key] = self._compile(grammar)
        self._compiled.move_to_end(key)
        while len(self._compiled) > _MAX_KEPT:
            self._compiled.popitem(last=False)
        return self._compiled[key].fork()

    def allowed(
        self, states: Sequence[GrammarState | None], stop_token_ids: Sequence[int] = ()
    ) -> NDArray[np.bool_]:
        """Return the tokens that may come next, `(len(states), num_tokens)`.

        Args:
            states: The state of each text; None allows all tokens.
            stop_token_ids: More tokens that end a text.
        """
        bits = np.full((len(states), self._num_tokens // 32 + 1), -1, dtype=np.int32)
        held = [(row, state) for row, state in enumerate(states) if state is not None]
        if held:  # the library refuses an empty list
            states_of_rows = [(state.matcher, row) for row, state in held]
            self._threads.unsafe_compute_mask_ptr(
                states_of_rows, bits.ctypes.data, bits.strides[0], len(bits)
            )
        flags = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little").view(np.bool_)
        ends = [*self._end_ids, *stop_token_ids]
        for row, state in held:
            flags[row, ends] = flags[row, self._num_tokens]
            if state.error:  # otherwise the text could end as if it were complete
                flags[row] = False
        return flags[:, : self._num_tokens]

    def allows(self, state: GrammarState, token: int, stop_token_ids: Sequence[int] = ()) -> bool:
        """Return whether one token may come next; faster than `allowed` for few tokens."""
        if token in self._end_ids or token in stop_token_ids:
            return not state.error and bool(state.matcher.is_accepting())
        return bool(state.matcher.validate_tokens([token]) == 1)

    def allowed_soon(
        self, states: Sequence[GrammarState | None], stop_token_ids: Sequence[int] = ()
    ) -> Future[NDArray[np.bool_]]:
        """Compute `allowed` in the background; do not change the states until it is done."""
        return self._background.submit(self.allowed, states, stop_token_ids)

    def _compile(self, grammar: Grammar) -> GrammarState:
        try:
            source = self._rules(grammar) + _OPTIONS
        except Exception as error:  # noqa: BLE001 - of a parser with exceptions of its own
            raise _unusable(grammar, str(error)) from None
        limits = self._library.LLParserLimits(max_items_in_row=_MAX_ITEMS)
        matcher = self._library.LLMatcher(self._tokenizer, source, log_level=0, limits=limits)
        if matcher.is_error():
            raise _unusable(grammar, matcher.get_error())
        return GrammarState(matcher)

    def _rules(self, grammar: Grammar) -> str:
        """Return a grammar in llguidance's variant of Lark's syntax."""
        match grammar.kind:
            case "json":
                layout = Layout() if grammar.compact else _SPACED
                schema = json.dumps(grammar.json_schema)
                return json_rules("start", schema, layout, closed=not grammar.extra_properties)
            case "regex":
                if len(grammar.pattern) - len(grammar.pattern.rstrip("\\")) & 1:
                    raise ValueError("the pattern ends in a backslash that escapes nothing")
                return f"start: /{self._library.regex_to_lark(grammar.pattern)}/"
            case "choice":
                # One terminal: as alternatives of a rule, thousands would stand side by side.
                choices = " | ".join(json.dumps(choice) for choice in grammar.choices)
                return f"start: CHOICE\nCHOICE: {choices}"
            case "ebnf":
                return str(self._to_lark(grammar.text))


@lru_cache(maxsize=256)
def json_rules(
    name: str,
    schema: str,
    layout: Layout = _SPACED,
    *,
    closed: bool = True,
    strict: bool = True,
) -> str:
    """Return rules for JSON of a schema, in llguidance's variant of Lark's syntax.

    Args:
        name: Name of the first rule, in lower case; the names of all others begin with it.
        schema: The JSON schema, as JSON.
        layout: What stands between the parts.
        closed: Whether objects have the properties that are named, and no others.
        strict: Whether to refuse a schema that a grammar cannot express as a whole. If false, the
            rules express the rest, or any object if nothing can be expressed.

    Raises:
        ValueError: No value satisfies the schema, or a grammar cannot express it; the message
            names each keyword and its location.
    """
    held = read_schema(json.loads(schema), closed=closed)
    if held.unheld and strict:
        raise ValueError(_listed(held))
    try:
        return "\n".join(Rules(held, name, layout, _matches_nothing).write())
    except ValueError:
        if strict:
            raise
        return json_rules(name, '{"type": "object"}', layout)


@lru_cache(maxsize=1024)
def unexpressed(schema: str) -> str:
    """Return what a grammar cannot express of a JSON schema, and where; empty if nothing.

    Args:
        schema: The JSON schema, as JSON.

    Raises:
        MissingExtraError: llguidance is not installed.
    """
    held = read_schema(json.loads(schema))
    if held.unheld:
        return _listed(held)
    try:
        Rules(held, "start", _SPACED, _matches_nothing).write()
    except ValueError as error:
        return str(error)
    return ""


def _listed(held: HeldSchema) -> str:
    reasons = [str(unheld) for unheld in held.unheld]
    return "; ".join(reasons[:4] + ["..."] * (len(reasons) > 4))


@lru_cache(maxsize=4096)
def _matches_nothing(terminal: str) -> bool:
    """Return whether a terminal matches no text at all.

    Raises:
        ValueError: The terminal is too complex to decide.
    """
    library, tokenizer = _of_bytes()
    source = f"start: T\nT: {terminal}{_OPTIONS}"
    matcher = library.LLMatcher(tokenizer, source, log_level=0)
    if not matcher.is_error():
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        if np.unpackbits(bits, bitorder="little")[:256].any() or matcher.is_accepting():
            return False
        if _reason(matcher.get_error()) == "NoExtensionBias":
            return True
    raise ValueError(f"`pattern` is too complex for a grammar ({_reason(matcher.get_error())})")


@cache
def _of_bytes() -> tuple[Any, Any]:
    with needs_extra("grammar"):
        import llguidance  # noqa: PLC0415 - an optional extra
    vocabulary = _Vocabulary([*(bytes([byte]) for byte in range(256)), b"<end>"], [256])
    wrapped = llguidance.TokenizerWrapper(vocabulary)
    return llguidance, llguidance.LLTokenizer(wrapped, eos_token=256)


class _Vocabulary:
    """The tokenizer interface of llguidance. It never encodes, because no token is forced."""

    def __init__(self, tokens: list[bytes], special_token_ids: list[int]) -> None:
        self.tokens, self.special_token_ids = tokens, special_token_ids
        self.eos_token_id, self.bos_token_id = len(tokens) - 1, None

    def __call__(self, text: object) -> list[int]:
        return []


def _reason(reason: str) -> str:
    """Return an error of the library without its source lines."""
    if reason.startswith("panic"):
        return "it has too many parts"
    return " ".join(re.split(r"\n\s*\d+ \| |\n<state>", reason)[0].split())


def _unusable(grammar: Grammar, reason: str) -> ConfigError:
    reason = _reason(reason)
    if grammar.kind != "ebnf":
        reason = re.sub(r"^at \d+\(\d+\): ", "", reason)
    message = (
        f"the {grammar.kind} grammar cannot be used: {reason[:400]}. Hint: change the grammar there"
    )
    return ConfigError("SamplingParams", [Problem("grammar", message)])
