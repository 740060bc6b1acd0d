"""States of texts in their grammars, which read new tokens only when they are asked about.

A large grammar may need a third of a second for one token. So whoever adds tokens does not wait for
that; the thread that computes the next mask does, and it lets other threads run meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import Any

SLOW_S = 0.02  # per token and text
_DECAY = 0.98  # of the longest time, at each further mask

Unread = Sequence[tuple[Any, Sequence[int]]]  # matchers of the library, and tokens to read


class Readers:
    """A pool of threads on which matchers of the library work without the interpreter lock.

    Args:
        library: llguidance.
        tokenizer: Its tokenizer.
    """

    def __init__(self, library: Any, tokenizer: Any) -> None:
        # The library's default leaves a fifth of the processors idle.
        self.num_threads = min(os.cpu_count() or 1, 32)
        self.executor = library.LLExecutor(num_threads=self.num_threads)
        # The library holds the interpreter lock while a single matcher reads, so a second one that
        # is in error, and so does nothing, accompanies each.
        self._companion = library.LLMatcher(tokenizer, "", log_level=0)

    def read(self, unread: Unread) -> None:
        """Let matchers read their tokens, each in order."""
        companion = self._companion.deep_copy()
        for place in range(max((len(tokens) for _, tokens in unread), default=0)):
            step = [(matcher, tokens[place]) for matcher, tokens in unread if place < len(tokens)]
            self.executor.consume_token_par(step if len(step) > 1 else [*step, (companion, 0)])


class CompiledGrammar:
    """What all states of a grammar share.

    Args:
        readers: Threads for states that are asked about one by one.
        seconds: How long the grammar may need for a token and the mask after it.
    """

    def __init__(self, readers: Readers, seconds: float) -> None:
        self.readers = readers
        self.lock = Lock()  # of what several forks read together
        self._seconds = seconds

    @property
    def is_slow(self) -> bool:
        """Whether a token or a mask has lately taken long."""
        return self._seconds >= SLOW_S

    def note(self, seconds: float) -> None:
        """Note how long it took to check a token."""
        self._seconds = max(seconds, self._seconds)

    def note_mask(self, seconds: float) -> None:
        """Note how long it took to read a token and compute the mask after it."""
        self._seconds = max(seconds, _DECAY * self._seconds)


class GrammarState:
    """The state of a text in its grammar. Forks are independent of each other.

    A state is used by one thread at a time. Forks may be used by different threads.

    Args:
        grammar: The grammar.
        matcher: The library's state, which belongs to this one; None to copy that of `origin`.
        origin: What this one was forked from, if that has tokens to read; it does not change.

    Attributes:
        grammar: The grammar.
        own_matcher: The library's state, before the tokens to read.
        origin: See above.
        unread: The tokens to read.
    """

    def __init__(
        self, grammar: CompiledGrammar, matcher: Any, origin: GrammarState | None = None
    ) -> None:
        self.grammar = grammar
        self.own_matcher, self.origin = matcher, origin
        self.unread: list[int] = []

    def fork(self) -> GrammarState:
        """Return an independent copy of the state."""
        if self.unread:  # they are read once for all forks
            origin = GrammarState(self.grammar, self.own_matcher, self.origin)
            origin.unread = self.unread
            self.own_matcher, self.origin, self.unread = None, origin, []
        if self.origin is not None:
            return GrammarState(self.grammar, None, self.origin)
        return GrammarState(self.grammar, self.own_matcher.deep_copy())

    def consume(self, tokens: Sequence[int]) -> None:
        """Append tokens to the text; a token that the grammar forbids puts the state in error.

        They are read when the state is asked about.
        """
        self.unread += tokens

    @property
    def matcher(self) -> Any:
        """The library's state, after all tokens."""
        if self.unread or self.origin is not None:
            grammar = self.grammar
            read([self], grammar.readers.read if grammar.is_slow else read_quickly)
        return self.own_matcher

    @property
    def error(self) -> str:
        """The error, such as a token that was not allowed or a text too complex; else empty."""
        return str(self.matcher.get_error()).partition("\n<state>")[0].strip()


def read_quickly(unread: Unread) -> None:
    """Let matchers read their tokens; other threads wait, which is quicker for few tokens."""
    for matcher, tokens in unread:
        for token in tokens:
            matcher.consume_token(token)


def read(states: Iterable[GrammarState], read_tokens: Callable[[Unread], None]) -> None:
    """Let states read the tokens that were added to their texts, and their origins before.

    Args:
        states: The states.
        read_tokens: Lets matchers read.
    """
    by_grammar: dict[CompiledGrammar, list[GrammarState]] = {}
    for state in states:
        if state.unread or state.origin is not None:
            by_grammar.setdefault(state.grammar, []).append(state)
    for grammar, held in by_grammar.items():
        with grammar.lock:
            _read(held, read_tokens)


def _read(states: Iterable[GrammarState], read_tokens: Callable[[Unread], None]) -> None:
    levels = [list(dict.fromkeys(states))]
    while origins := [state.origin for state in levels[-1] if state.origin is not None]:
        levels.append(list(dict.fromkeys(origins)))
    for level in reversed(levels):
        for state in level:
            if state.origin is not None:
                state.own_matcher, state.origin = state.origin.own_matcher.deep_copy(), None
        read_tokens([(state.own_matcher, state.unread) for state in level if state.unread])
        for state in level:
            state.unread = []
