"""Log-probabilities of the next token, and scores of each token, from vLLM servers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from stars_engine.errors import ModelLoadError, ServerError
from stars_engine.remote.client import ServerClient
from stars_engine.remote.endpoints import Session
from stars_engine.remote.failures import MalformedAnswerError, RefusedError, load_error_of
from stars_engine.remote.server_facts import RemoteModel, check_tokenizers, find_served
from stars_engine.tokenization.codec import Codec

_GENERATE, _COMPLETIONS = "/inference/v1/generate", "/v1/completions"


class LabelLogprobs:
    """Log-probabilities of chosen tokens as the next one.

    vLLM's generate endpoint returns them for any token. Elsewhere, each token is appended to the
    input, and the server returns the log-probability of what it reads.

    Args:
        client: Calls the servers.
        labels: The tokens.

    Attributes:
        served: What the servers say of themselves; after `probe`.
        path: The endpoint that is used; after `probe`.
    """

    def __init__(self, client: ServerClient, labels: Sequence[int]) -> None:
        self._client, self._labels = client, list(labels)
        self.served = RemoteModel(None, "unknown")
        self.path = _GENERATE

    async def probe(self, codec: Codec) -> None:
        """Find the endpoint, and check that it returns log-probabilities.

        Raises:
            ModelLoadError: A server cannot be used; the message says why and what to do.
        """
        ids = codec.encode_prompt("Is the sky blue? Answer:") or codec.empty_prompt()
        try:
            for server in self._client.endpoints.all:
                self.served = await find_served(self._client, server)
            await check_tokenizers(self._client, self.served.name, codec, has_chat=False)
            try:
                await self._generate(ids, Session())
            except ServerError as error:
                if isinstance(error, RefusedError) and error.status not in (400, 404, 405, 501):
                    raise
                self.path = _COMPLETIONS
                await self._echo(ids, Session())
        except ServerError as error:
            raise load_error_of(
                error,
                "log-probabilities of tokens cannot be read: ",
                "; a judge needs a vLLM server of a language model, not of a classifier",
            ) from None

    async def __call__(self, ids: Sequence[int]) -> list[float]:
        """Return the log-probabilities of the labels after an input.

        Raises:
            ServerError: No server answered.
        """
        session = Session()
        try:
            ask = self._generate if self.path == _GENERATE else self._echo
            return await ask(ids, session)
        finally:
            session.release()

    async def _generate(self, ids: Sequence[int], session: Session) -> list[float]:
        params = {
            "n": 1,
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": len(self._labels),
            "logprob_token_ids": self._labels,
            "detokenize": False,
        }
        body = {"model": self.served.name, "token_ids": list(ids), "sampling_params": params}
        return await self._client.call(_GENERATE, body, self._read, session=session, prefix=ids)

    def _read(self, answer: Any) -> list[float]:
        [choice] = answer["choices"]
        [entry] = choice["logprobs"]["content"]
        known = {each["token_id"]: float(each["logprob"]) for each in entry["top_logprobs"]}
        known.setdefault(entry["token_id"], float(entry["logprob"]))
        if not set(self._labels) <= known.keys():
            raise MalformedAnswerError("the log-probabilities are those of other tokens")
        return [known[label] for label in self._labels]

    async def _echo(self, ids: Sequence[int], session: Session) -> list[float]:
        found = []
        for label in self._labels:
            body = {
                "model": self.served.name,
                "prompt": [*ids, label],
                "max_tokens": 0,
                "echo": True,
                "logprobs": 0,
                "temperature": 0.0,
            }
            size = len(ids) + 1
            found.append(
                await self._client.call(
                    _COMPLETIONS,
                    body,
                    partial(_last_logprob, size=size),
                    session=session,
                    prefix=ids,
                )
            )
        return found


class TokenScores:
    """Scores of each token of an input, by a classifier's head.

    Args:
        client: Calls the servers.

    Attributes:
        served: What the servers say of themselves; after `probe`.
        path: The endpoint that is used.
    """

    path = "/pooling"

    def __init__(self, client: ServerClient) -> None:
        self._client = client
        self.served = RemoteModel(None, "unknown")

    async def probe(self, codec: Codec, marker: int) -> int:
        """Check that the servers return raw scores for each token; return the number of labels.

        Raises:
            ModelLoadError: A server cannot be used; the message says why and what to do.
        """
        ids = [*codec.encode_prompt("One step. And another."), marker]
        try:
            for server in self._client.endpoints.all:
                self.served = await find_served(self._client, server)
            await check_tokenizers(self._client, self.served.name, codec, has_chat=False)
            [raw] = await self([ids])
            [probabilities] = await self([ids], raw=False)
        except ServerError as error:
            raise load_error_of(
                error,
                "scores of tokens cannot be read: ",
                "; serve a process reward model with `vllm serve MODEL --runner pooling`",
            ) from None
        values = [value for scores in raw for value in scores]
        if raw == probabilities and all(0 <= value <= 1 for value in values):
            raise ModelLoadError(
                "the server returns probabilities where raw scores are asked for "
                "(use_activation=false). Hint: start vLLM with "
                "--pooler-config '{\"use_activation\": false}', or update the server"
            )
        return len(raw[-1])

    async def __call__(
        self, rows: Sequence[Sequence[int]], *, raw: bool = True
    ) -> list[list[list[float]]]:
        """Return the scores of each token of each input.

        Raises:
            ServerError: No server answered.
        """
        body = {
            "model": self.served.name,
            "input": [list(row) for row in rows],
            "task": "token_classify",
            "use_activation": not raw,
        }
        return await self._client.call(
            self.path, body, lambda answer: _token_scores(answer, rows), prefix=rows[0]
        )


def _last_logprob(answer: Any, *, size: int) -> float:
    [choice] = answer["choices"]
    values = choice["logprobs"]["token_logprobs"]
    if len(values) != size:
        raise MalformedAnswerError(f"{len(values)} log-probabilities for {size} tokens")
    return float(values[-1])


def _token_scores(answer: Any, rows: Sequence[Sequence[int]]) -> list[list[list[float]]]:
    items = sorted(answer["data"], key=lambda item: item["index"])
    found = [[[float(value) for value in token] for token in item["data"]] for item in items]
    if [len(scores) for scores in found] != [len(row) for row in rows]:
        raise MalformedAnswerError("the scores are not one for each token")
    return found
