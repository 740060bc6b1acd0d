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
from concurrent.futures import Future
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stars_engine.config import Grammar
from stars_engine.errors import ConfigError, Problem, needs_extra
from stars_engine.json_schema import SPACED, Layout
from stars_engine.json_schema.compiling import OPTIONS, Vocabulary, json_rules, short_reason
from stars_engine.threads.background_threads import BackgroundThreads

_MAX_KEPT = 64  # compiled grammars
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
        vocabulary = Vocabulary([*pieces, b"<end>"], [*control_ids, len(pieces)])
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(vocabulary), eos_token=len(pieces)
        )
        # Rows are computed in parallel; the default leaves a fifth of the processors idle.
        self._threads = llguidance.LLExecutor(num_threads=min(os.cpu_count() or 1, 32))
        self._background = BackgroundThreads("grammar")
        self._compiled: OrderedDict[str, GrammarState] = OrderedDict()
        self._known: OrderedDict[int, tuple[Grammar, GrammarState]] = OrderedDict()  # by identity
        self._lock = Lock()

    def start(self, grammar: Grammar) -> GrammarState:
        """Return the state of an empty text. May be called from any thread.

        Raises:
            ConfigError: The grammar is invalid, or uses an unsupported feature.
        """
        known = self._find(grammar)
        if known is None:
            key = grammar.content_hash()
            known = self._compiled.get(key) or self._compile(grammar)
            with self._lock:
                _keep(self._compiled, key, known)
                _keep(self._known, id(grammar), (grammar, known))
        return known.fork()

    def is_compiled(self, grammar: Grammar) -> bool:
        """Return whether `start` has been called with this object."""
        return self._find(grammar) is not None

    def _find(self, grammar: Grammar) -> GrammarState | None:
        """Find an object that was seen before, without hashing its content, which may be large."""
        seen = self._known.get(id(grammar))
        return seen[1] if seen is not None and seen[0] is grammar else None

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
        return self._background.submit(partial(self.allowed, states, stop_token_ids))

    def _compile(self, grammar: Grammar) -> GrammarState:
        try:
            source = self._rules(grammar) + OPTIONS
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
                layout = Layout() if grammar.compact else SPACED
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


def _keep(kept: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    """Add to a bounded dictionary, the newest last."""
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > _MAX_KEPT:
        kept.popitem(last=False)


def _unusable(grammar: Grammar, reason: str) -> ConfigError:
    reason = short_reason(reason)
    if grammar.kind != "ebnf":
        reason = re.sub(r"^at \d+\(\d+\): ", "", reason)
    what = "schema" if grammar.kind == "json" else "grammar"
    message = (
        f"the {grammar.kind} grammar cannot be used: {reason[:400]}. Hint: change the {what} there"
    )
    return ConfigError("SamplingParams", [Problem("grammar", message)])
