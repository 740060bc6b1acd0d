"""The start probe of reward servers: whether they return raw scores, the same in every way."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from stars_engine.config.rewards.server import ServerReward
from stars_engine.errors import ModelLoadError, ServerError
from stars_engine.remote.client import ServerClient
from stars_engine.remote.endpoints import Endpoint
from stars_engine.remote.failures import RefusedError, load_error_of
from stars_engine.remote.scores import ScoreEndpoint, Scores, endpoint_named
from stars_engine.remote.server_facts import RemoteModel, check_tokenizers, find_served
from stars_engine.tokenization.codec import Codec

_TEXTS = ("I enjoyed every minute of it.", "What a waste of time!", "The sky is blue and")
_LONGEST = 2048  # tokens of the longest text of the probe


@dataclass(frozen=True, slots=True)
class RewardFindings:
    """What the probe found.

    Attributes:
        endpoint: How the servers are asked.
        served: The name of the model, and its limits.
        num_labels: Scores of each input.
    """

    endpoint: ScoreEndpoint
    served: RemoteModel
    num_labels: int


class RewardProbe:
    """Checks every server of a reward model.

    Args:
        client: Calls the servers.
        config: The reward.
        codec: The reward model's tokenizer.
        num_labels: Labels of the model as its files say; None if they do not.
    """

    def __init__(
        self,
        client: ServerClient,
        config: ServerReward,
        codec: Codec,
        num_labels: int | None = None,
    ) -> None:
        self._client, self._config, self._codec = client, config, codec
        self._num_labels = num_labels

    async def run(self) -> RewardFindings:
        """Return what all servers have in common.

        Raises:
            ModelLoadError: A server cannot be used; the message says why and what to do.
        """
        all_servers = self._client.endpoints.all
        try:
            each = [await self._probe(server) for server in all_servers]
        except ServerError as error:
            raise load_error_of(error) from None
        first, expected = each[0]
        for server, (_, scores) in zip(all_servers, each, strict=True):
            if not self._agree(scores, expected):
                raise ModelLoadError(
                    f"{all_servers[0].url} and {server.url} give the same texts the rewards "
                    f"{_shown(expected)} and {_shown(scores)}. Hint: give only servers of one "
                    "model as base_url, or raise `tolerance` if they differ by rounding alone"
                )
        await check_tokenizers(self._client, first.served.name, self._codec, has_chat=False)
        limits = [one.served.context_len for one, _ in each]
        known = [limit for limit in limits if limit is not None]
        served = replace(first.served, context_len=min(known, default=None))
        return replace(first, served=served)

    async def _probe(self, server: Endpoint) -> tuple[RewardFindings, Scores]:
        served = await find_served(self._client, server)
        rows = [self._row(text, served.context_len) for text in _TEXTS]
        endpoint = await self._find_endpoint(server, served, rows)
        raw = await self._ask(server, endpoint, served, rows)
        self._check_labels(server, endpoint, raw)
        probabilities = await self._ask(server, endpoint, served, rows, raw=False)
        self._check_raw(server, endpoint, raw, probabilities)
        await self._check_alone(server, endpoint, served, rows, raw)
        await self._check_chunks(server, endpoint, served)
        return RewardFindings(endpoint, served, len(raw[0])), raw

    def _row(self, text: str, context_len: int | None) -> list[int]:
        ids = self._codec.encode_prompt(text) or self._codec.empty_prompt() or [0]
        return ids[:context_len]

    async def _find_endpoint(
        self, server: Endpoint, served: RemoteModel, rows: Sequence[Sequence[int]]
    ) -> ScoreEndpoint:
        if self._config.endpoint != "auto":
            return endpoint_named(self._config.endpoint)
        if served.kind == "sglang":
            return endpoint_named("sglang")
        for name in ("classify", "pooling"):
            endpoint = endpoint_named(name)
            try:
                await self._ask(server, endpoint, served, rows[:1])
            except RefusedError as error:
                if error.status not in (400, 404, 405, 501):
                    raise
            else:
                return endpoint
        raise ModelLoadError(
            f"{server.url} has neither /classify nor /pooling with scores. Hint: serve a sequence "
            "classifier, with `vllm serve MODEL --runner pooling` or `sglang --is-embedding`"
        )

    async def _ask(
        self,
        server: Endpoint,
        endpoint: ScoreEndpoint,
        served: RemoteModel,
        rows: Sequence[Sequence[int]],
        *,
        raw: bool = True,
        salt: str | None = None,
    ) -> Scores:
        body = endpoint.body(rows, served.name, raw=raw, salt=salt)
        count = len(rows)
        return await self._client.call(
            endpoint.path, body, lambda answer: endpoint.parse(answer, count), endpoint=server
        )

    def _check_labels(self, server: Endpoint, endpoint: ScoreEndpoint, raw: Scores) -> None:
        label, count = self._config.label, len(raw[0])
        is_known = self._num_labels in (None, count)
        if count == 1 and is_known and label in (None, 0):
            return
        is_same = all(len(scores) == count for scores in raw)
        has_label = label is not None and not (isinstance(label, int) and label >= count)
        if is_known and is_same and has_label:
            return
        expected = "" if self._num_labels is None else f", and the model has {self._num_labels}"
        raise ModelLoadError(
            f"{server.url}{endpoint.path} returns {count} numbers for each text, where a reward is "
            f"one (label={label!r}){expected}. Hint: set label to the index of the label "
            "that is the reward; if the server returns hidden states, serve the model as a "
            "classifier (vllm serve --runner pooling --convert classify), or set "
            "endpoint='classify'"
        )

    def _check_raw(
        self, server: Endpoint, endpoint: ScoreEndpoint, raw: Scores, probabilities: Scores
    ) -> None:
        values = [value for scores in raw for value in scores]
        if raw == probabilities and all(0 <= value <= 1 for value in values):
            raise ModelLoadError(
                f"{server.url}{endpoint.path} returns probabilities ({_shown(raw)}) also where "
                "raw scores are asked for (use_activation=false); near 0 and 1 they cannot tell "
                "candidates apart. Hint: start vLLM with "
                "--pooler-config '{\"use_activation\": false}', or update the server"
            )
        if not all(map(math.isfinite, values)):
            raise ModelLoadError(
                f"{server.url}{endpoint.path} returns {_shown(raw)}, which are no finite scores. "
                "Hint: check the model, and its dtype, on the server"
            )

    async def _check_alone(
        self,
        server: Endpoint,
        endpoint: ScoreEndpoint,
        served: RemoteModel,
        rows: Sequence[Sequence[int]],
        together: Scores,
    ) -> None:
        alone = [(await self._ask(server, endpoint, served, [row]))[0] for row in rows]
        if not self._agree(alone, together):
            raise ModelLoadError(
                f"{server.url} gives texts alone the rewards {_shown(alone)}, and together "
                f"{_shown(together)}. Hint: raise `tolerance` if that is the rounding of a small "
                "dtype; otherwise update the server"
            )

    async def _check_chunks(
        self, server: Endpoint, endpoint: ScoreEndpoint, served: RemoteModel
    ) -> None:
        """Compare a long text that is computed at once with one that grows, as answers do."""
        size = min(served.context_len or _LONGEST, _LONGEST)
        text = self._row(" ".join(_TEXTS), None)
        long = (text * (size // len(text) + 1))[:size]
        whole, grown = secrets.token_hex(8), secrets.token_hex(8)
        [at_once] = await self._ask(server, endpoint, served, [long], salt=whole)
        parts = [size // 4, size // 2, 3 * size // 4]
        for end in filter(None, parts):
            await self._ask(server, endpoint, served, [long[:end]], salt=grown)
        [in_parts] = await self._ask(server, endpoint, served, [long], salt=grown)
        if not self._agree([at_once], [in_parts]):
            raise ModelLoadError(
                f"{server.url} gives a text of {size} tokens the reward {_shown([at_once])} at "
                f"once, and {_shown([in_parts])} after its beginnings: chunked prefill changes "
                f"rewards by more than tolerance={self._config.tolerance:g}. Hint: raise "
                "--max-num-batched-tokens above the context length, use "
                "--no-enable-chunked-prefill, or raise `tolerance`"
            )

    def _agree(self, left: Scores, right: Scores) -> bool:
        tolerance = self._config.tolerance
        return all(
            math.isclose(x, y, rel_tol=1e-6, abs_tol=tolerance)
            for one, other in zip(left, right, strict=True)
            for x, y in zip(one, other, strict=True)
        )


def _shown(scores: Scores) -> str:
    values = [f"{value:.4g}" for row in scores for value in row]
    return ", ".join(values[:4]) + (", ..." if len(values) > 4 else "")
