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
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stars_engine.config import Grammar
from stars_engine.errors import ConfigError, Problem, needs_extra

_MAX_KEPT = 64  # compiled grammars
# Masks of all tokens that lead on: of a text that is sure to follow, not of one spelling only.
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'
# Were there no bound, small models would write no more.
_BLANKS = {"whitespace_pattern": r"\x20|\x0A[\x20\x09]{0,32}"}


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
        matcher = self._library.LLMatcher(self._tokenizer, source, log_level=0)
        if matcher.is_error():
            raise _unusable(grammar, matcher.get_error())
        return GrammarState(matcher)

    def _rules(self, grammar: Grammar) -> str:
        """Return a grammar in llguidance's variant of Lark's syntax."""
        match grammar.kind:
            case "json":
                blanks = {"whitespace_flexible": False} if grammar.compact else _BLANKS
                schema = grammar.json_schema
                return "start: " + json_rule(schema, blanks, closed=not grammar.extra_properties)
            case "regex":
                if len(grammar.pattern) - len(grammar.pattern.rstrip("\\")) & 1:
                    raise ValueError("the pattern ends in a backslash that escapes nothing")
                return f"start: /{self._library.regex_to_lark(grammar.pattern)}/"
            case "choice":
                return "start: " + " | ".join(json.dumps(choice) for choice in grammar.choices)
            case "ebnf":
                return str(self._to_lark(grammar.text))


def json_rule(schema: dict[str, Any], blanks: dict[str, Any], *, closed: bool = True) -> str:
    """Return what stands for JSON of a schema in a rule of llguidance's variant of Lark's syntax.

    Args:
        schema: The JSON schema.
        blanks: What may stand between the parts, in llguidance's words.
        closed: Whether objects have the properties that are named, and no others.
    """
    if closed:
        schema = _closed(schema, _refs_of_parts(schema))
    return f"%json {json.dumps({**schema, 'x-guidance': blanks})}"


class _Vocabulary:
    """What llguidance asks of a tokenizer. It is never to encode: no token is forced."""

    def __init__(self, tokens: list[bytes], special_token_ids: list[int]) -> None:
        self.tokens, self.special_token_ids = tokens, special_token_ids
        self.eos_token_id, self.bos_token_id = len(tokens) - 1, None

    def __call__(self, text: object) -> list[int]:
        return []


# Where a schema holds others: by name, in a list, or one. Elsewhere stand values, such as `const`.
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_IN_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SINGLE = ("items", "additionalProperties", "additionalItems", "contains", "not", "if", "then")


def _inner(schema: dict[str, Any]) -> Iterator[tuple[str, str | int | None, Any]]:
    """Yield the schemas right within a schema, each with where it stands."""
    for key in _BY_NAME:
        if isinstance(schema.get(key), dict):
            yield from ((key, name, value) for name, value in schema[key].items())
    for key in _IN_LISTS:
        if isinstance(schema.get(key), list):
            yield from ((key, index, value) for index, value in enumerate(schema[key]))
    for key in (*_SINGLE, "else"):
        if isinstance(schema.get(key), dict):
            yield key, None, schema[key]


def _in_parts(schema: dict[str, Any]) -> bool:
    """Whether an object is described in several places, where none may exclude the others'."""
    described = {"properties", "patternProperties", "required"} & schema.keys()
    beside = {"anyOf", "oneOf", "$ref", "if", "dependentSchemas"} & schema.keys()
    return "allOf" in schema or bool(described and beside)


def _is_part(key: str) -> bool:
    """Whether what stands there describes the same object as what is around it."""
    return key in ("allOf", "anyOf", "oneOf", "if", "then", "else", "not", "dependentSchemas")


def _refs_of_parts(root: Any) -> set[str]:
    """Return which definitions are parts of some object."""
    found: set[str] = set()

    def walk(schema: Any, *, is_part: bool) -> None:
        if not isinstance(schema, dict):
            return
        parted = is_part or _in_parts(schema)
        if parted and isinstance(schema.get("$ref"), str):
            found.add(schema["$ref"])
        for key, place, value in _inner(schema):
            named = f"#/{key}/{place}" in found
            walk(value, is_part=named or (parted and _is_part(key)))

    size = -1
    while size < len(found):  # a definition that is a part may refer to another
        size = len(found)
        walk(root, is_part="#" in found)
    return found


def _closed(schema: Any, refs: set[str], *, is_part: bool = False) -> Any:
    """Let objects have the properties that are named, and no others, where nothing is said.

    An object that is described in several places stays open, as do these places.
    """
    if not isinstance(schema, dict):
        return schema
    parted = is_part or "#" in refs or _in_parts(schema)
    closed = dict(schema)
    for key, place, value in _inner(schema):
        named = f"#/{key}/{place}" in refs
        inner = _closed(value, refs - {"#"}, is_part=named or (parted and _is_part(key)))
        if place is None:
            closed[key] = inner
            continue
        if closed[key] is schema[key]:
            closed[key] = schema[key].copy()
        closed[key][place] = inner
    if (
        isinstance(schema.get("properties"), dict)
        and "patternProperties" not in schema
        and not parted
    ):
        closed.setdefault("additionalProperties", False)
    return closed


def _unusable(grammar: Grammar, reason: str) -> ConfigError:
    told = re.split(r"\n\s*\d+ \| ", reason)[0]  # without lines of the source
    if grammar.kind != "ebnf":
        told = re.sub(r"^at \d+\(\d+\): ", "", told)
    told = " ".join(told.split())
    message = f"the {grammar.kind} grammar cannot be used: {told[:400]}. Cure: change it there"
    return ConfigError("SamplingParams", [Problem("grammar", message)])
