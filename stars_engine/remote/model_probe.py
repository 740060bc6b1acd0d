"""The start probe of language model servers: how to ask them, and whether they do as asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from stars_engine.config.servers import OpenAIServerModel
from stars_engine.errors import ModelLoadError, ServerError
from stars_engine.remote.client import ServerClient
from stars_engine.remote.dialects import CompletionRequest, Dialect, dialect_named
from stars_engine.remote.endpoints import Endpoint
from stars_engine.remote.failures import RefusedError, load_error_of
from stars_engine.remote.server_facts import RemoteModel, check_tokenizers, find_served
from stars_engine.tokenization.codec import Codec

_NUM_TOKENS = 16  # of a draft of the probe
_NUM_COMPARED = 4  # tokens of two drafts with one seed: later ones may differ by rounding
_TEMPERATURE = 2.0  # the highest one that vLLM allows: two seeds hardly draw the same tokens
_SEEDS = (1, 1, 2, 3, 4, 5)


@dataclass(frozen=True, slots=True)
class ModelFindings:
    """What the probe found.

    Attributes:
        dialect: How the servers are asked.
        served: The name of the model, and its limits.
        seeded: Whether seeds have an effect.
    """

    dialect: Dialect
    served: RemoteModel
    seeded: bool


class ModelProbe:
    """Checks every server of a language model.

    Args:
        client: Calls the servers.
        config: The servers.
        codec: The local tokenizer.
    """

    def __init__(self, client: ServerClient, config: OpenAIServerModel, codec: Codec) -> None:
        self._client, self._config, self._codec = client, config, codec

    async def run(self) -> ModelFindings:
        """Return what all servers have in common.

        Raises:
            ModelLoadError: A server cannot be used; the message says why and what to do.
        """
        all_servers = self._client.endpoints.all
        try:
            each = [await self._probe(server) for server in all_servers]
        except ServerError as error:
            raise load_error_of(error) from None
        first = each[0]
        for server, other in zip(all_servers, each, strict=True):
            if other.dialect.name != first.dialect.name:
                raise ModelLoadError(
                    f"{all_servers[0].url} is asked as {first.dialect.name!r}, and {server.url} as "
                    f"{other.dialect.name!r}; servers of one model must be of one kind. Hint: set "
                    "dialect=..., or start all servers with the same options"
                )
        await check_tokenizers(self._client, first.served.name, self._codec, has_chat=True)
        limits = [one.served.context_len for one in each if one.served.context_len is not None]
        served = replace(first.served, context_len=min(limits, default=None))
        return ModelFindings(first.dialect, served, all(one.seeded for one in each))

    async def _probe(self, server: Endpoint) -> ModelFindings:
        served = await find_served(self._client, server)
        prompt = self._prompt(served.context_len)
        dialect = await self._find_dialect(server, served, prompt)
        asked = _Asked(server, dialect, served, prompt)
        await self._check_ids(asked)
        return ModelFindings(dialect, served, await self._check_seed(asked))

    def _prompt(self, context_len: int | None) -> tuple[int, ...]:
        ids = self._codec.encode_prompt("A short text, to ask a server what it draws after it.")
        ids = ids or self._codec.empty_prompt() or [0]
        room = len(ids) if context_len is None else max(1, context_len // 2)
        return tuple(ids[:room])

    async def _find_dialect(
        self, server: Endpoint, served: RemoteModel, prompt: tuple[int, ...]
    ) -> Dialect:
        """Return the configured dialect, or the one that the server understands."""
        if self._config.dialect != "auto":
            return dialect_named(self._config.dialect)
        if served.kind in ("sglang", "llama.cpp"):
            return dialect_named(served.kind)
        vllm = dialect_named("vllm")
        try:
            await self._ask(_Asked(server, vllm, served, prompt), CompletionRequest(prompt, 1))
        except RefusedError as error:
            if error.status in (404, 405, 501):  # not started with this endpoint
                return dialect_named("completions")
            raise
        return vllm

    async def _check_ids(self, asked: _Asked) -> None:
        """Check that a draft comes as one list of token ids."""
        url = asked.server.url + asked.dialect.path
        answer = await self._ask(asked, CompletionRequest(asked.prompt, 1))
        try:
            completion = asked.dialect.parse(answer)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ModelLoadError(
                f"{url} returns no usable token ids ({error}), and text cannot be used in their "
                "place: it does not always encode to the same tokens. Hint: use a server that "
                "returns ids, such as vLLM 0.10.2 or later, SGLang or llama-server, and check "
                "`dialect`"
            ) from None
        if len(completion.token_ids) != 1 and not completion.ended:
            raise ModelLoadError(
                f"{url} returned {len(completion.token_ids)} token ids for a draft of one token. "
                "Hint: update the server, or check `dialect`"
            )

    async def _check_seed(self, asked: _Asked) -> bool:
        """Check that equal seeds give equal drafts, and other seeds other drafts."""
        limit, url = asked.served.context_len, asked.server.url
        room = _NUM_TOKENS if limit is None else max(1, limit - len(asked.prompt))
        count = min(_NUM_TOKENS, room)
        request = CompletionRequest(asked.prompt, count, temperature=_TEMPERATURE, min_tokens=count)
        drafts: list[tuple[int, ...]] = []
        for seed in _SEEDS:  # one after the other: company may change the rounding
            answer = await self._ask(asked, replace(request, seed=seed))
            drafts.append(asked.dialect.parse(answer).token_ids)
        if len(set(drafts)) == 1:
            raise ModelLoadError(
                f"{url} draws the same tokens with {len(set(_SEEDS))} seeds at temperature "
                f"{_TEMPERATURE:g}, so all candidates of a segment would be equal: "
                "it ignores seed or temperature. Hint: start it without a fixed seed, or update it"
            )
        if drafts[0][:_NUM_COMPARED] == drafts[1][:_NUM_COMPARED]:
            return True
        if self._config.needs_seed:
            raise ModelLoadError(
                f"{url} draws other tokens when the same seed is sent again, so texts would not be "
                "repeatable. Hint: start SGLang with --enable-deterministic-inference, or set "
                "needs_seed=False, which does not change the distribution of texts"
            )
        return False

    async def _ask(self, asked: _Asked, request: CompletionRequest) -> Any:
        dialect = asked.dialect
        body = dialect.body(request, asked.served.name)
        return await self._client.call(
            dialect.path, body, lambda answer: answer, endpoint=asked.server
        )


class _Asked(NamedTuple):
    """What the probe asks: a server, how, for which model, and after which tokens."""

    server: Endpoint
    dialect: Dialect
    served: RemoteModel
    prompt: tuple[int, ...]
