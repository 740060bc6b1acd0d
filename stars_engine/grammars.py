"""Which tokens a grammar allows after those so far: one state per prefix, forked per candidate.

A grammar masks the proposal: tokens that lead nowhere have probability 0, the others keep their
ratios (before temperature and truncation, so that these never leave nothing). The text may end
exactly where the grammar is complete. llguidance computes the masks (Geng et al. 2025,
arXiv 2501.10868).
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
from stars_engine.json_schema import Layout, Rules, read_schema

_MAX_KEPT = 64  # compiled grammars
# Masks of all tokens that lead on: of a text that is sure to follow, not of one spelling only.
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'
# Were there no bound, small models would write no more.
_SPACED = Layout(blank=r"\x20|\x0A[\x20\x09]{0,32}")
# Beginnings of all names that may come next stand side by side: the library's own 2,000 are few.
_MAX_ITEMS = 50_000


class GrammarState:
    """Where in its grammar a text is. Forks are independent of each other."""

    def __init__(self, matcher: Any) -> None:
        self.matcher = matcher

    def fork(self) -> GrammarState:
        """Return a state of the same text, which goes its own way."""
        return GrammarState(self.matcher.deep_copy())

    def consume(self, tokens: Sequence[int]) -> None:
        """Append tokens to the text; those that the grammar does not allow leave it in error."""
        self.matcher.consume_tokens(list(tokens))

    @property
    def error(self) -> str:
        """What went wrong: a token that was not allowed, or a text too complex; else empty."""
        return str(self.matcher.get_error()).partition("\n<state>")[0].strip()


class Grammars:
    """Grammars over one vocabulary, compiled once.

    Args:
        pieces: Bytes of each token, of control tokens their names.
        control_ids: The control tokens: allowed where a grammar names them, and nowhere else.
        end_ids: What ends a text, allowed exactly where its grammar is complete.

    Raises:
        MissingExtraError: llguidance is not installed.
    """

    def __init__(
        self, pieces: Sequence[bytes], control_ids: Sequence[int], end_ids: Iterable[int]
    ) -> None:
        with needs_extra("grammar"):
            import llguidance  # noqa: PLC0415 - an extra of its own
            from llguidance.gbnf_to_lark import any_to_lark  # noqa: PLC0415

        self._library, self._to_lark = llguidance, any_to_lark
        self._end_ids = list(end_ids)
        self._num_tokens = len(pieces)
        # One token that does not exist stands for the end: a model may have several, or none.
        vocabulary = _Vocabulary([*pieces, b"<end>"], [*control_ids, len(pieces)])
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(vocabulary), eos_token=len(pieces)
        )
        # Rows side by side; by itself it would leave a fifth of the processors alone.
        self._threads = llguidance.LLExecutor(num_threads=min(os.cpu_count() or 1, 32))
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="stars-grammar")
        self._compiled: OrderedDict[str, GrammarState] = OrderedDict()

    def start(self, grammar: Grammar) -> GrammarState:
        """Return the state of an empty text.

        Raises:
            ConfigError: The grammar is none, or uses what is not supported.
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
        """Return which tokens may come next: `(len(states), num_tokens)`; all where there is none.

        Args:
            states: Where each text is.
            stop_token_ids: More tokens that end a text.
        """
        bits = np.full((len(states), self._num_tokens // 32 + 1), -1, dtype=np.int32)
        held = [(row, state) for row, state in enumerate(states) if state is not None]
        if held:  # it refuses an empty list
            states_of_rows = [(state.matcher, row) for row, state in held]
            self._threads.unsafe_compute_mask_ptr(
                states_of_rows, bits.ctypes.data, bits.strides[0], len(bits)
            )
        flags = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little").view(np.bool_)
        ends = [*self._end_ids, *stop_token_ids]
        for row, state in held:
            flags[row, ends] = flags[row, self._num_tokens]
            if state.error:  # where it would end the text as if it were complete
                flags[row] = False
        return flags[:, : self._num_tokens]

    def allows(self, state: GrammarState, token: int, stop_token_ids: Sequence[int] = ()) -> bool:
        """Return whether one token may come next: what `allowed` says of it, for a few of them."""
        if token in self._end_ids or token in stop_token_ids:
            return not state.error and bool(state.matcher.is_accepting())
        return bool(state.matcher.validate_tokens([token]) == 1)

    def allowed_soon(
        self, states: Sequence[GrammarState | None], stop_token_ids: Sequence[int] = ()
    ) -> Future[NDArray[np.bool_]]:
        """Have `allowed` found beside other work; the states are not to be changed before."""
        return self._beside.submit(self.allowed, states, stop_token_ids)

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
def json_rules(name: str, schema: str, layout: Layout = _SPACED, *, closed: bool = True) -> str:
    """Return rules for JSON of a schema, in llguidance's variant of Lark's syntax.

    Args:
        name: Name of the first rule, in lower case; the names of all others begin with it.
        schema: The JSON schema, as JSON.
        layout: What stands between the parts.
        closed: Whether objects have the properties that are named, and no others.

    Raises:
        ValueError: No value is in the schema, or it asks for what no grammar holds; the message
            names each keyword, and where it stands.
    """
    held = read_schema(json.loads(schema), closed=closed)
    if held.unheld:
        told = [str(unheld) for unheld in held.unheld]
        raise ValueError("; ".join(told[:4] + ["..."] * (len(told) > 4)))
    return "\n".join(Rules(held, name, layout, _matches_nothing).write())


@lru_cache(maxsize=4096)
def _matches_nothing(terminal: str) -> bool:
    """Return whether what stands in a terminal matches no text at all.

    Raises:
        ValueError: It cannot be told.
    """
    library, tokenizer = _of_bytes()
    source = f"start: T\nT: {terminal}{_OPTIONS}"
    matcher = library.LLMatcher(tokenizer, source, log_level=0)
    if not matcher.is_error():
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        if np.unpackbits(bits, bitorder="little")[:256].any() or matcher.is_accepting():
            return False
        if _told(matcher.get_error()) == "NoExtensionBias":
            return True
    raise ValueError(f"`pattern`: it is too complex for a grammar ({_told(matcher.get_error())})")


@cache
def _of_bytes() -> tuple[Any, Any]:
    with needs_extra("grammar"):
        import llguidance  # noqa: PLC0415 - an extra of its own
    vocabulary = _Vocabulary([*(bytes([byte]) for byte in range(256)), b"<end>"], [256])
    wrapped = llguidance.TokenizerWrapper(vocabulary)
    return llguidance, llguidance.LLTokenizer(wrapped, eos_token=256)


class _Vocabulary:
    """What llguidance asks of a tokenizer. It is never to encode: no token is forced."""

    def __init__(self, tokens: list[bytes], special_token_ids: list[int]) -> None:
        self.tokens, self.special_token_ids = tokens, special_token_ids
        self.eos_token_id, self.bos_token_id = len(tokens) - 1, None

    def __call__(self, text: object) -> list[int]:
        return []


def _told(reason: str) -> str:
    """Return an error of the library without lines of the source."""
    if reason.startswith("panic"):
        return "it has too many parts"
    return " ".join(re.split(r"\n\s*\d+ \| |\n<state>", reason)[0].split())


def _unusable(grammar: Grammar, reason: str) -> ConfigError:
    told = _told(reason)
    if grammar.kind != "ebnf":
        told = re.sub(r"^at \d+\(\d+\): ", "", told)
    message = f"the {grammar.kind} grammar cannot be used: {told[:400]}. Hint: change it there"
    return ConfigError("SamplingParams", [Problem("grammar", message)])
