"""The common part of all reward models behind HTTP servers."""

from __future__ import annotations

from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar
from weakref import finalize

from stars_engine.config.rewards.server import ServedReward
from stars_engine.loading.server_tokenizer import load_served_tokenizer
from stars_engine.remote.client import ServerClient
from stars_engine.remote.server_facts import RemoteModel
from stars_engine.remote.stats import ServerStats
from stars_engine.rewards.encoding import InputReader
from stars_engine.rewards.event_loop import set_cancel
from stars_engine.rewards.failures import FailurePolicy, UnwantedError
from stars_engine.tokenization.codec import Codec

Found = TypeVar("Found")


class ServedRewardModel:
    """A reward model behind servers; an `OffloadedReward`.

    Prompts and answers are encoded here, with the reward model's tokenizer and chat template.

    Args:
        config: The servers.

    Attributes:
        name: The name of the reward, for messages.
        client: Calls the servers.
    """

    batched = True
    is_timed = True
    ends_overdue_calls = True  # the client has timeouts of its own
    _reader: InputReader  # constructors of subclasses set it

    def __init__(self, config: ServedReward) -> None:
        self.name = config.shown_name
        self.failures = FailurePolicy.of(config)
        self.max_concurrency, self.timeout_s = config.max_concurrency, config.timeout_s
        self._codec = Codec(load_served_tokenizer(config))
        self.client = ServerClient(config)
        finalize(self, self.client.close).atexit = False

    @property
    def server_stats(self) -> ServerStats:
        """Counts of the requests so far."""
        return self.client.stats

    def end_calls(self) -> None:
        """Cancel the calls in progress and close the connections; a next call opens new ones."""
        self.client.close()

    def _ask(self, call: Coroutine[Any, Any, Found]) -> Found:
        """Wait for what servers answer.

        Raises:
            UnwantedError: The result is not needed any more, and the call was cancelled.
        """
        answer: Future[Found] = self.client.submit(call)
        set_cancel.get()(answer.cancel)
        try:
            return answer.result()
        except CancelledError:
            raise UnwantedError("this reward is no longer needed") from None

    def _start(self, probe: Coroutine[Any, Any, Found]) -> Found:
        """Run the start probe; close the connections if it fails."""
        try:
            found: Found = self.client.run(probe)
        except BaseException:
            self.client.close()
            raise
        return found

    def _about(self, served: RemoteModel, how: str) -> dict[str, str]:
        return {
            "servers": ", ".join(each.url for each in self.client.endpoints.all),
            "kind": " ".join(filter(None, (served.kind, served.version))),
            "endpoint": how,
            "served model": served.name or "unnamed",
            "context": f"{self._reader.max_tokens or 'unlimited'} tokens",
            "reads": self._reader.about,
        }
