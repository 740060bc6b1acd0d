"""An HTTP server of small models, in the dialects of real ones, with every fault."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Event, Lock
from typing import Any

import numpy as np
import torch

from stars_engine.backends.base import DraftRequest
from stars_engine.config import SamplingParams
from tests.support.asgi import reply
from tests.support.server_faults import Faults, Served

BLOCK_LEN = 16  # of the simulated prefix cache


@dataclass
class TestServer:
    """A running server.

    Attributes:
        url: Its base URL.
        faults: What it does wrong from now on.
        asked: Bodies of requests, by path.
        sessions: Session ids of completions, in order.
        held: If set, completions wait until the event is set.
        holds: Which prefixes wait.
        num_aborted: Requests whose client went away before the answer.
        num_hanging: Requests that wait for their client to go away.
        killed: Whether it has ended.
    """

    __test__ = False

    served: Served
    url: str = ""
    faults: Faults = field(default_factory=Faults)
    asked: dict[str, list[Any]] = field(default_factory=dict)
    sessions: list[str | None] = field(default_factory=list)
    held: Event | None = None
    holds: Callable[[Sequence[int]], bool] = lambda _: True
    num_aborted: int = 0
    num_running: int = 0
    num_hanging: int = 0
    killed: bool = False
    kill: Callable[[], None] = lambda: None
    _draws: int = 0
    _blocks: set[tuple[int, ...]] = field(default_factory=set)
    _lock: Lock = field(default_factory=Lock)

    def count(self, path: str) -> int:
        return len(self.asked.get(path, ()))

    def bodies(self, path: str) -> list[Any]:
        return self.asked.get(path, [])

    # --- ASGI ---

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        raw = b""
        while True:
            message = await receive()
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        path, body = scope["path"], json.loads(raw) if raw else None
        with self._lock:
            self.asked.setdefault(path, []).append(body)
        key = self.served.api_key
        if key is not None and headers.get("authorization") != f"Bearer {key}":
            return await reply(send, 401, {"error": {"message": "unauthorized"}})
        if scope["method"] == "POST" and path != "/tokenize":
            if await self._fail(send, receive):
                return None
            self.sessions.append(headers.get("x-session-id"))
        self.num_running += 1
        answering = asyncio.ensure_future(asyncio.to_thread(self._answer, path, body))
        leaving = asyncio.ensure_future(receive())
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                self.num_aborted += 1
                return None
            leaving.cancel()
            status, answer = answering.result()
        finally:
            self.num_running -= 1
        if self.faults.malformed and scope["method"] == "POST" and path != "/tokenize":
            return await reply(send, 200, None, raw=b'{"choices": [')
        return await reply(send, status, answer)

    async def _fail(self, send: Any, receive: Any) -> bool:
        faults = self.faults
        if faults.hangs:
            self.num_hanging += 1
            while (await receive())["type"] != "http.disconnect":
                pass
            self.num_hanging -= 1
            self.num_aborted += 1
            return True
        if faults.cuts:
            headers = [(b"content-type", b"application/json"), (b"content-length", b"1000")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"{", "more_body": False})
            return True
        with self._lock:
            fails = faults.status is not None and faults.num_failures != 0
            if fails and faults.num_answers:
                faults.num_answers -= 1
                return False
            if fails and faults.num_failures is not None:
                faults.num_failures -= 1
        if not fails:
            return False
        more = [] if faults.retry_after is None else [(b"retry-after", faults.retry_after.encode())]
        await reply(send, faults.status or 500, {"error": {"message": "planted"}}, more=more)
        return True

    # --- endpoints ---

    def _answer(self, path: str, body: Any) -> tuple[int, Any]:
        route = self._routes().get(path)
        return (404, {"detail": "Not Found"}) if route is None else route(body)

    def _routes(self) -> dict[str, Callable[[Any], tuple[int, Any]]]:
        served, dialect = self.served, self.served.dialect
        limit: dict[str, int] = {}
        if dialect != "llama.cpp":
            limit["max_model_len"] = served.max_model_len
        routes: dict[str, Callable[[Any], tuple[int, Any]]] = {
            "/v1/models": lambda _: (200, {"data": [{"id": "served", **limit}]}),
            "/metrics": lambda _: (200, "vllm:prefix_cache_queries_total 1.0\n"),
        }
        about: dict[str, tuple[str, Any]] = {
            "vllm": ("/version", {"version": "0.0.test"}),
            "completions": ("/version", {"version": "0.0.test"}),
            "sglang": ("/get_server_info", {"version": "0.0.test"}),
            "llama.cpp": (
                "/props",
                {"default_generation_settings": {"n_ctx": served.max_model_len}},
            ),
        }
        path, answer = about[dialect]
        routes[path] = lambda _: (200, answer)
        if served.codec is not None:
            routes["/tokenize"] = self._tokenize
        if served.token_scores is not None:
            routes["/pooling"] = self._token_scores
        if served.logprobs is not None:
            routes["/v1/completions"] = self._echo
            if dialect == "vllm":
                routes["/inference/v1/generate"] = self._labels
        if served.rewards is not None:
            routes |= {name: partial(self._rewards, name) for name in ("/classify", "/pooling")}
        if served.model is not None:
            completions = {"/v1/completions": lambda body: self._vllm(body["prompt"], body)}
            generate = {
                "/inference/v1/generate": lambda body: self._vllm(
                    body["token_ids"], body["sampling_params"]
                )
            }
            routes |= {
                "vllm": {**completions, **generate},
                "completions": completions,
                "sglang": {"/generate": self._sglang},
                "llama.cpp": {"/completion": self._llama},
            }[dialect]
        return routes

    def _tokenize(self, body: Any) -> tuple[int, Any]:
        codec, faults = self.served.codec, self.faults
        if "messages" in body:
            ids = [1, 2, 3] if faults.other_template else [1, 2]
        else:
            ids = codec.encode(body.get("prompt", body.get("content")))
            ids = [token + 1 for token in ids] if faults.other_tokenizer else ids
        return 200, {"tokens": ids, "count": len(ids)}

    def _vllm(self, ids: list[int], params: Any) -> tuple[int, Any]:
        if len(ids) > self.served.max_model_len:
            return 400, {"error": {"message": "the prompt is longer than the context"}}
        drawn = self._draw(
            ids,
            params["max_tokens"],
            params["seed"],
            SamplingParams(
                max_tokens=max(params["max_tokens"], params["min_tokens"]),
                temperature=params["temperature"],
                top_k=params["top_k"] or None,
                top_p=params["top_p"],
                min_p=params["min_p"],
                repetition_penalty=params["repetition_penalty"],
                presence_penalty=params["presence_penalty"],
                frequency_penalty=params["frequency_penalty"],
                logit_bias={int(k): v for k, v in params.get("logit_bias", {}).items()} or None,
                min_tokens=params["min_tokens"],
                stop_token_ids=params["stop_token_ids"],
            ),
        )
        choice = {"index": 0, "finish_reason": "stop" if drawn.ended else "length"}
        choice |= {"text": "?"} if self.faults.no_ids else {"token_ids": list(drawn.ids)}
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(drawn.ids)}
        usage["prompt_tokens_details"] = {"cached_tokens": drawn.num_cached}
        return 200, {"choices": [choice] * self.faults.num_choices, "usage": usage}

    def _sglang(self, body: Any) -> tuple[int, Any]:
        ids, params = body["input_ids"], body["sampling_params"]
        drawn = self._draw(
            ids,
            params["max_new_tokens"],
            params["sampling_seed"],
            SamplingParams(
                max_tokens=params["max_new_tokens"],
                temperature=params["temperature"],
                top_k=params["top_k"] if params["top_k"] > 0 else None,
                top_p=params["top_p"],
                min_tokens=params["min_new_tokens"],
                stop_token_ids=params["stop_token_ids"],
            ),
        )
        reason: dict[str, Any] = {"type": "length", "length": len(drawn.ids)}
        given = list(drawn.ids)
        if drawn.ended:  # as some versions do, without the token that ended the text
            reason = {"type": "stop", "matched": given.pop()}
        meta = {"finish_reason": reason, "prompt_tokens": len(ids)}
        meta["cached_tokens"] = drawn.num_cached
        holder = {} if self.faults.no_ids else {"output_ids": given}
        return 200, {"text": "?", **holder, "meta_info": meta}

    def _llama(self, body: Any) -> tuple[int, Any]:
        last_n = body["repeat_last_n"]
        if last_n < 0:
            return 400, {"error": {"message": "Field 'repeat_last_n': Value must be between 0"}}
        bias = {
            token: -math.inf if value is False else value for token, value in body["logit_bias"]
        }
        is_penalized = "penalties" in body["samplers"] and last_n >= len(body["prompt"])
        drawn = self._draw(
            body["prompt"],
            body["n_predict"],
            body["seed"],
            SamplingParams(
                max_tokens=body["n_predict"],
                temperature=body["temperature"],
                top_k=body["top_k"] or None,
                top_p=body["top_p"],
                min_p=body["min_p"],
                repetition_penalty=body["repeat_penalty"] if is_penalized else 1.0,
                logit_bias=bias or None,
            ),
        )
        holder = {} if self.faults.no_ids else {"tokens": list(drawn.ids)}
        timings = {
            "cache_n": drawn.num_cached,
            "prompt_n": len(body["prompt"]) - drawn.num_cached,
        }
        stop_type = "eos" if drawn.ended else "limit"
        return 200, {"content": "?", **holder, "stop_type": stop_type, "timings": timings}

    def _draw(self, ids: list[int], count: int, seed: int, sampling: SamplingParams) -> _Drawn:
        held = self.held
        if held is not None and self.holds(ids):
            held.wait(30)
        model = self.served.model
        assert model is not None
        limit = self.faults.shrinks_to or self.served.max_model_len
        count = max(1, min(count, limit - len(ids)))
        with self._lock:
            self._draws += 1
            seed = self._draws if self.faults.ignores_seed else seed
            seed = 0 if self.faults.one_seed else seed
            uniforms = np.random.Generator(np.random.Philox(seed)).random(count).tolist()
            prompt_len = self.served.prompt_len or len(ids)
            request = DraftRequest(ids, prompt_len, uniforms, sampling)
            [draft] = model.draft([request])
            num_cached = self._cache(ids)
        ended = model.is_end(draft.token_ids[-1], sampling)
        return _Drawn(tuple(draft.token_ids), ended, num_cached)

    def _rewards(self, path: str, body: Any) -> tuple[int, Any]:
        faults = self.faults
        rows = body["input_ids"] if "input_ids" in body else body["input"]
        if any(len(row) > self.served.max_model_len for row in rows):
            return 400, {"error": {"message": "the input is longer than the context"}}
        assert self.served.rewards is not None
        with self._lock:
            found = self.served.rewards(rows)
            salt = hash(body.get("cache_salt"))
            for row, scores in zip(rows, found, strict=True):
                num_cached = self._cache([salt, *row])
                if faults.chunk_len is not None and len(row) - num_cached > faults.chunk_len:
                    scores[0] += 0.05
        if faults.sigmoid or body.get("use_activation", True):
            found = [[1 / (1 + math.exp(-score)) for score in scores] for scores in found]
        if faults.hidden_states:
            found = [[*scores, *[0.1] * 15] for scores in found]
        if self.served.dialect == "sglang":
            return 200, [{"embedding": scores} for scores in found]
        name = "probs" if path == "/classify" else "data"
        return 200, {"data": [{"index": i, name: scores} for i, scores in enumerate(found)]}

    def _labels(self, body: Any) -> tuple[int, Any]:
        assert self.served.logprobs is not None
        labels = body["sampling_params"]["logprob_token_ids"]
        found = self.served.logprobs(body["token_ids"])
        drawn = int(found.argmax())
        top = [{"token_id": label, "logprob": float(found[label])} for label in labels]
        entry = {"token_id": drawn, "logprob": float(found[drawn]), "top_logprobs": top}
        choice = {"token_ids": [drawn], "finish_reason": "length", "logprobs": {"content": [entry]}}
        return 200, {"choices": [choice]}

    def _echo(self, body: Any) -> tuple[int, Any]:
        assert self.served.logprobs is not None
        ids = body["prompt"]
        last = float(self.served.logprobs(ids[:-1])[ids[-1]])
        values = [None, *[-1.0] * (len(ids) - 2), last]
        return 200, {"choices": [{"logprobs": {"token_logprobs": values}}]}

    def _token_scores(self, body: Any) -> tuple[int, Any]:
        assert self.served.token_scores is not None
        found = [self.served.token_scores(row) for row in body["input"]]
        if self.faults.sigmoid or body.get("use_activation", True):
            found = [torch.tensor(scores).softmax(-1).tolist() for scores in found]
        return 200, {"data": [{"index": i, "data": scores} for i, scores in enumerate(found)]}

    def _cache(self, ids: Sequence[int]) -> int:
        """Note the blocks of a prefix; return how many of its tokens were noted before."""
        ends = range(BLOCK_LEN, len(ids), BLOCK_LEN)
        blocks = [tuple(ids[:end]) for end in ends]
        cached = sum(block in self._blocks for block in blocks)
        self._blocks.update(blocks)
        return cached * BLOCK_LEN


@dataclass
class _Drawn:
    ids: tuple[int, ...]
    ended: bool
    num_cached: int
