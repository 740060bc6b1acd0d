"""The rows that the local backend drafts together: their tokens, and when all are complete."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from stars_engine.algorithm.candidate import Draft
from stars_engine.backends.base import DraftRequest
from stars_engine.config import SamplingParams
from stars_engine.errors import GenerationError, NothingToDrawError
from stars_engine.grammars import GrammarState
from stars_engine.sampling import NO_TOKEN


class DraftRow:
    """One candidate being drafted, then its lookahead.

    Attributes:
        request: What was requested.
        grammar: The state of its grammar, if it has one.
        done: Whether it has all its tokens. It runs on with the others; its tokens are dropped.
    """

    def __init__(self, request: DraftRequest, grammar: GrammarState | None) -> None:
        self.request = request
        self.grammar = None if grammar is None else grammar.fork()
        self.done = False
        self._ids: list[int] = []
        self._entropies: list[float] = []
        self._num_candidate = len(request.uniforms)

    @property
    def in_lookahead(self) -> bool:
        """Whether the candidate itself is complete."""
        return len(self._ids) >= self._num_candidate

    def append(self, token: int, *, is_end: bool, entropy: float | None = None) -> None:
        """Add the next token, and the entropy before it if the request wants it."""
        self._ids.append(token)
        if entropy is not None and self.request.entropies:
            self._entropies.append(entropy)
        self.done = is_end or len(self._ids) == self._num_candidate + self.request.lookahead
        if self.grammar is not None and not is_end:
            self.grammar.consume([token])

    @property
    def draft(self) -> Draft:
        """The draft."""
        cut = self._num_candidate
        return Draft(tuple(self._ids[:cut]), tuple(self._ids[cut:]), tuple(self._entropies[:cut]))


class _Drawn(NamedTuple):
    """What was drawn at one step.

    Attributes:
        tokens: `(rows,)`.
        logits: `(rows, vocab)`, or the largest of each row: `(rows, 1)`.
        entropies: `(rows,)`, in nats; None if no row wants them.
    """

    tokens: torch.Tensor
    logits: torch.Tensor
    entropies: torch.Tensor | None


class DraftBatch:
    """The rows of one batch.

    Tokens stay on their device for some steps; rows with a grammar need each token at once.

    Args:
        requests: The request of each row.
        grammars: The state of each request's grammar; None if it has none.
        is_end: Whether a token ends the text.
        device: Of the tokens.
    """

    def __init__(
        self,
        requests: Sequence[DraftRequest],
        grammars: Sequence[GrammarState | None],
        is_end: Callable[[int, SamplingParams], bool],
        device: torch.device,
    ) -> None:
        self.rows = [DraftRow(*item) for item in zip(requests, grammars, strict=True)]
        self._is_end = is_end
        self._wants_entropies = any(request.entropies for request in requests)
        at_once = any(row.grammar is not None for row in self.rows)
        self._max_unfetched = 1 if at_once else num_unfetched_steps(device)
        self._unfetched: list[_Drawn] = []
        self._failures: dict[int, GenerationError] = {}

    @property
    def done(self) -> bool:
        """Whether all rows are known to be complete."""
        return all(row.done for row in self.rows)

    def note(self, tokens: torch.Tensor, logits: torch.Tensor, *, is_last: bool) -> None:
        """Note tokens drawn, `(rows,)`, from `(rows, vocab)` logits; fetch them now and then."""
        entropies = entropy(logits) if self._wants_entropies else None
        if self._max_unfetched > 1:
            logits = logits.amax(-1, keepdim=True)  # nan where one is
        self._unfetched.append(_Drawn(tokens, logits, entropies))
        if is_last or len(self._unfetched) == self._max_unfetched:
            self._fetch()

    def drafts(self) -> list[Draft | GenerationError]:
        """Return the draft of each row, or why there is none."""
        return [self._failures.get(index, row.draft) for index, row in enumerate(self.rows)]

    def _fetch(self) -> None:
        steps = torch.stack([drawn.tokens for drawn in self._unfetched]).tolist()
        for tokens, drawn in zip(steps, self._unfetched, strict=True):
            values = None if drawn.entropies is None else drawn.entropies.tolist()
            for index, (row, token) in enumerate(zip(self.rows, tokens, strict=True)):
                if row.done:
                    continue
                if token != NO_TOKEN:
                    is_end = self._is_end(token, row.request.sampling)
                    own = None if values is None else values[index]
                    row.append(token, is_end=is_end, entropy=own)
                    continue
                row.done = True
                if not row.in_lookahead:  # a lookahead just ends there
                    self._failures[index] = _nothing_to_draw(drawn.logits[index], row)
        self._unfetched.clear()


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Return the entropy of each row's softmax, in nats: `(rows, vocab)` to `(rows,)`."""
    logprobs = logits.float().log_softmax(-1)
    values: torch.Tensor = torch.special.entr(logprobs.exp()).sum(-1)
    return values


def num_unfetched_steps(device: torch.device) -> int:
    """Return how many steps pass before tokens are fetched: fetching waits for a GPU."""
    return 1 if device.type == "cpu" else 8


def _nothing_to_draw(logits: torch.Tensor, row: DraftRow) -> GenerationError:
    request = row.request
    position = request.num_completion_tokens
    kind: type[GenerationError] = NothingToDrawError
    if not (logits < torch.inf).all():  # or nan; -inf is how models say never
        kind = GenerationError
        reason = (
            "the model's logits are nan or infinite. Hint: try dtype='float32', or another model"
        )
    elif row.grammar is not None:
        found = row.grammar.error or "no token that the other settings leave continues the text"
        reason = (
            f"the grammar leaves no token ({found}). Hint: check the grammar, logit_bias and "
            "min_tokens"
        )
    else:
        reason = (
            "the sampling settings leave no token. Hint: check logit_bias, min_tokens with "
            f"stop_token_ids, and temperature={request.sampling.temperature}"
        )
    return kind(
        f"nothing can be drawn in the segment that begins at token {position} of the answer: "
        f"{reason}. The request ends here; others are not affected"
    )
