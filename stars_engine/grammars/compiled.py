"""Compiled grammars, and the tokens that they allow next."""

from __future__ import annotations

import re
import time
import weakref
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
from stars_engine.grammars.sources import key_of, source_of
from stars_engine.grammars.states import CompiledGrammar, GrammarState, Readers, read
from stars_engine.json_schema.compiling import Vocabulary, short_reason
from stars_engine.threads.background_threads import BackgroundThreads

_MAX_KEPT = 64  # compiled grammars that no request uses
# The parser tracks the beginnings of all possible names at once, and the default of 2,000 is low.
_MAX_ITEMS = 50_000
# One mask takes about this share of the time to compile a grammar, until it is known.
_SHARE = 0.1


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
        # Slow grammars have threads of their own, so that masks of others do not wait for theirs.
        self._quick, self._slow = (
            _Lane(name, Readers(llguidance, self._tokenizer))
            for name in ("grammar", "slow-grammar")
        )
        self._compiled: OrderedDict[str, GrammarState] = OrderedDict()
        self._known: dict[int, tuple[weakref.ref[Any], GrammarState]] = {}  # by identity
        self._lock = Lock()

    def start(self, grammar: Grammar) -> GrammarState:
        """Return the state of an empty text. May be called from any thread.

        Raises:
            ConfigError: The grammar is invalid, or uses an unsupported feature.
        """
        known = self._find(grammar)
        if known is None:
            key = key_of(grammar)
            known = self._compiled.get(key) or self._compile(grammar)
            with self._lock:
                _keep(self._compiled, key, known)
            self._remember(grammar, known)
        return known.fork()

    def is_compiled(self, grammar: Grammar) -> bool:
        """Return whether `start` has been called with this object."""
        return self._find(grammar) is not None

    def _find(self, grammar: Grammar) -> GrammarState | None:
        """Find an object that was seen before, without hashing its content, which may be large."""
        seen = self._known.get(id(grammar))
        return seen[1] if seen is not None and seen[0]() is grammar else None

    def _remember(self, grammar: Grammar, known: GrammarState) -> None:
        """Keep a compiled grammar as long as the object, whose next draft must not compile it."""
        key = id(grammar)
        forget = partial(_forget, self._known, key)
        self._known[key] = weakref.ref(grammar, forget), known

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
            started_s = time.perf_counter()
            readers = self._lane(states).readers
            read([state for _, state in held], readers.read)
            states_of_rows = [(state.matcher, row) for row, state in held]
            readers.executor.unsafe_compute_mask_ptr(
                states_of_rows, bits.ctypes.data, bits.strides[0], len(bits)
            )
            num_at_once = min(len(held), readers.num_threads)
            seconds = (time.perf_counter() - started_s) * num_at_once / len(held)
            for grammar in {state.grammar for _, state in held}:
                grammar.note_mask(seconds)
        flags = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little").view(np.bool_)
        ends = [*self._end_ids, *stop_token_ids]
        for row, state in held:
            flags[row, ends] = flags[row, self._num_tokens]
            if state.error:  # otherwise the text could end as if it were complete
                flags[row] = False
        return flags[:, : self._num_tokens]

    def allows(self, state: GrammarState, token: int, stop_token_ids: Sequence[int] = ()) -> bool:
        """Return whether one token may come next; faster than `allowed` for few tokens.

        Other threads wait meanwhile, so it is not for slow grammars.
        """
        if token in self._end_ids or token in stop_token_ids:
            return not state.error and bool(state.matcher.is_accepting())
        started_s = time.perf_counter()
        is_allowed = state.matcher.validate_tokens([token]) == 1
        state.grammar.note(time.perf_counter() - started_s)
        return bool(is_allowed)

    def allowed_soon(
        self, states: Sequence[GrammarState | None], stop_token_ids: Sequence[int] = ()
    ) -> Future[NDArray[np.bool_]]:
        """Compute `allowed` in the background; do not change the states until it is done."""
        thread = self._lane(states).thread
        return thread.submit(partial(self.allowed, states, stop_token_ids))

    def _lane(self, states: Sequence[GrammarState | None]) -> _Lane:
        """Return the threads for the masks of some states."""
        is_slow = any(state is not None and state.grammar.is_slow for state in states)
        return self._slow if is_slow else self._quick

    def _compile(self, grammar: Grammar) -> GrammarState:
        try:
            source = source_of(grammar, self._library.regex_to_lark, self._to_lark)
        except Exception as error:  # noqa: BLE001 - of a parser with exceptions of its own
            raise _unusable(grammar, str(error)) from None
        limits = self._library.LLParserLimits(max_items_in_row=_MAX_ITEMS)
        started_s = time.perf_counter()
        matcher = self._library.LLMatcher(self._tokenizer, source, log_level=0, limits=limits)
        if matcher.is_error():
            raise _unusable(grammar, matcher.get_error())
        seconds = _SHARE * (time.perf_counter() - started_s)
        return GrammarState(CompiledGrammar(self._quick.readers, seconds), matcher)


class _Lane:
    """Threads that compute masks: one that takes one batch after the other, and its readers."""

    def __init__(self, name: str, readers: Readers) -> None:
        self.thread, self.readers = BackgroundThreads(name), readers


def _forget(known: dict[int, Any], key: int, _: object) -> None:
    known.pop(key, None)


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
