"""A language model behind HTTP servers: token ids out, token ids in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any
from weakref import WeakKeyDictionary, finalize

from stars_engine.algorithm.candidate import Draft
from stars_engine.backends.base import DraftRequest, PrefixHandle
from stars_engine.backends.codec_model import CodecModel, with_chat_template
from stars_engine.backends.facts import read_served_facts
from stars_engine.backends.server_requests import (
    DraftInParts,
    ShortCompletionError,
    check_supported,
    refuse_entropies,
)
from stars_engine.config import SamplingParams
from stars_engine.config.servers import OpenAIServerModel
from stars_engine.errors import GenerationError, Interrupted, ServerError
from stars_engine.loading.server_tokenizer import load_served_tokenizer, tokenizer_source
from stars_engine.remote.client import ServerClient
from stars_engine.remote.dialects import Completion, CompletionRequest
from stars_engine.remote.endpoints import Session
from stars_engine.remote.model_probe import ModelProbe
from stars_engine.remote.stats import ServerStats
from stars_engine.tokenization.codec import Codec


class ServerBackend(CodecModel):
    """A `LanguageModel` over one or more HTTP servers.

    Each candidate is a request of its own with its own seed, so candidates are answered one by one
    and can be cancelled one by one. Requests with the same `PrefixHandle` stay at one server.

    Args:
        config: The servers.

    Raises:
        ModelLoadError: A server cannot be used; the start probe says why.
    """

    def __init__(self, config: OpenAIServerModel) -> None:
        tokenizer = with_chat_template(load_served_tokenizer(config), config.chat_template)
        self.config = config
        self.codec = Codec(tokenizer)
        facts = read_served_facts(tokenizer_source(config), tokenizer)
        self.vocab_size, self.end_ids = facts.vocab_size, facts.end_ids
        self.default_sampling = facts.default_sampling
        self.client = ServerClient(config)
        finalize(self, self.client.close).atexit = False
        try:
            self.probed = self.client.run(ModelProbe(self.client, config, self.codec).run())
        except BaseException:
            self.client.close()
            raise
        self.context_len = self.probed.served.context_len or facts.context_len
        self._sessions: WeakKeyDictionary[PrefixHandle, Session] = WeakKeyDictionary()
        self._pending: set[Future[Any]] = set()
        self._interrupted = False

    # --- LanguageModel ---

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft | GenerationError]:
        """Ask for all candidates at once, and wait for the last one."""
        return [_outcome(future) for future in [self._submit(request) for request in requests]]

    def submit(
        self, request: DraftRequest, reply: Callable[[Draft | GenerationError], None]
    ) -> Callable[[], object]:
        """See `AsyncLanguageModel`."""
        future = self._submit(request)

        def answer(done: Future[Draft]) -> None:
            if not done.cancelled():
                reply(_outcome(done))

        future.add_done_callback(answer)
        return future.cancel

    def check_grammar(self, sampling: SamplingParams) -> None:
        """Refuse every setting that the servers cannot follow across segments, not only grammars.

        Raises:
            ConfigError: The servers cannot follow a setting.
        """
        check_supported(sampling, self.probed.dialect)

    def interrupt(self) -> None:
        """Give up drafting for good; may be called from any thread."""
        self._interrupted = True
        for future in tuple(self._pending):
            future.cancel()

    def close(self) -> None:
        """Cancel all requests and close the connections; the next draft opens new ones."""
        self.client.close()

    # --- about ---

    @property
    def server_stats(self) -> ServerStats:
        """Counts of the requests so far."""
        return self.client.stats

    def about(self) -> dict[str, str]:
        """Return a readable description."""
        served, dialect = self.probed.served, self.probed.dialect
        return {
            "servers": ", ".join(each.url for each in self.client.endpoints.all),
            "kind": " ".join(filter(None, (served.kind, served.version))),
            "dialect": f"{dialect.name} ({dialect.path})",
            "served model": served.name or "unnamed",
            "seeds": "repeatable" if self.probed.seeded else "without effect",
            "tokenizer": self.config.tokenizer_name_or_path,
        }

    # --- inside ---

    def _submit(self, request: DraftRequest) -> Future[Draft]:
        if self._interrupted:
            raise Interrupted
        future: Future[Draft] = self.client.submit(self._draft(request))
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        return future

    async def _draft(self, request: DraftRequest) -> Draft:
        refuse_entropies(request)
        session = self._session_of(request.handle)
        parts = DraftInParts(
            request,
            {*self.end_ids, *request.sampling.stop_token_ids},
            has_min_tokens=self.probed.dialect.has_min_tokens,
        )
        while (asked := parts.next_request()) is not None:
            try:
                parts.add(asked, await self._complete(asked, session))
            except ShortCompletionError as error:
                raise self._short(error.asked, error.completion) from None
        return parts.draft

    async def _complete(self, asked: CompletionRequest, session: Session) -> Completion:
        dialect, stats = self.probed.dialect, self.client.stats
        found: Completion = await self.client.call(
            dialect.path,
            dialect.body(asked, self.probed.served.name),
            dialect.parse,
            session=session,
            prefix=asked.token_ids,
        )
        stats.num_prompt_tokens += found.num_prompt_tokens or len(asked.token_ids)
        stats.num_cached_tokens += found.num_cached_tokens
        return found

    def _short(self, asked: CompletionRequest, found: Completion) -> ServerError:
        count, urls = len(found.token_ids), ", ".join(self.config.base_url)
        if found.ended:
            name = f"an end-of-text token of {self.config.tokenizer_name_or_path!r}"
            last = (
                f"the last, {found.token_ids[-1]}, is not {name}"
                if found.token_ids
                else f"the answer lacks {name}"
            )
            return ServerError(
                f"{urls} ended the text after {count} of {asked.max_tokens} tokens, but {last}. "
                "Hint: set stop_token_ids to the server's end-of-text tokens, or "
                "tokenizer_name_or_path to the directory of the served model with its "
                "generation_config.json"
            )
        return ServerError(
            f"{urls} drew {count} of {asked.max_tokens} tokens after a prefix of "
            f"{len(asked.token_ids)} tokens and stopped: its context is shorter than the one it "
            "reports. Hint: set context_len to what the server can hold, or raise its "
            "--max-model-len"
        )

    def _session_of(self, handle: PrefixHandle) -> Session:
        session = self._sessions.get(handle)
        if session is None:
            session = self._sessions[handle] = Session()
            finalize(handle, session.release).atexit = False
        return session


def _outcome(future: Future[Draft]) -> Draft | GenerationError:
    try:
        return future.result()
    except GenerationError as error:
        return error
    except CancelledError:
        raise Interrupted from None
