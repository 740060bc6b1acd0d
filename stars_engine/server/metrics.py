"""Metrics of the server and its engines for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stars_engine.server.facts import RequestFacts
from stars_engine.server.models import ServedModel

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_OF_ENGINE = {
    "num_active": "Requests in progress",
    "num_waiting": "Requests in the queue",
    "num_in_line": "Requests that wait to enter the queue",
    "num_rows": "Candidates that the next steps draft",
}


class Metrics:
    """The metrics of one server; each server has its own registry.

    Args:
        models: The models, whose engines report their state when metrics are read.
    """

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter(
            "stars_requests", "Requests", ("endpoint", "model", "status")
        )
        self._disconnects = self._counter(
            "stars_disconnects", "Clients that disconnected before the end", ("endpoint", "model")
        )
        self._seconds = self._histogram(
            "stars_request_duration_seconds", "Seconds from the request to its end"
        )
        self._first_segment = self._histogram(
            "stars_first_segment_seconds", "Seconds from the request to its first accepted segment"
        )
        self._tokens = self._counter("stars_tokens", "Tokens", ("model", "kind"))
        self._answers = self._counter("stars_answers", "Answers", ("model", "finish_reason"))
        self._segments = self._counter("stars_segments", "Kept segments", ("model", "verdict"))
        self._attempts = self._counter("stars_attempts", "Judged drafts", ("model",))
        self.in_progress = Gauge(
            "stars_requests_in_progress", "Requests in progress", registry=self.registry
        )
        self.registry.register(_EngineCollector(models))

    def observe(self, facts: RequestFacts, status: int) -> None:
        """Count a request that has ended."""
        # Paths and names that the server does not know are not labels: clients invent them.
        endpoint, model = facts.endpoint or "other", facts.model or ""
        self._requests.labels(endpoint, model, str(status)).inc()
        self._seconds.labels(endpoint, model).observe(time.monotonic() - facts.started_s)
        if facts.streamed and not facts.completed and facts.error is None:
            self._disconnects.labels(endpoint, model).inc()
        if facts.first_segment_s is not None:
            self._first_segment.labels(endpoint, model).observe(facts.first_segment_s)
        for kind, count in facts.tokens.items():
            self._tokens.labels(model, kind).inc(count)
        for reason, count in facts.finish_reasons.items():
            self._answers.labels(model, reason).inc(count)
        for verdict, count in facts.verdicts.items():
            self._segments.labels(model, verdict).inc(count)
        if facts.num_attempts:
            self._attempts.labels(model).inc(facts.num_attempts)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, about: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, about, labels, registry=self.registry)

    def _histogram(self, name: str, about: str) -> Histogram:
        labels = ("endpoint", "model")
        return Histogram(name, about, labels, buckets=_SECONDS, registry=self.registry)


class _EngineCollector(Collector):
    """Reads the state of the engines when metrics are read."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """Yield one gauge for each figure, with a label for each model."""
        ready = GaugeMetricFamily(
            "stars_model_ready", "Whether the model is ready", labels=["model"]
        )
        for model in self._models:
            ready.add_metric([model.name], float(model.state == "ready"))
        yield ready
        loaded = [model for model in self._models if not model.engine.closed]
        stats = {model.name: model.engine.stats() for model in loaded}
        for name, about in _OF_ENGINE.items():
            family = GaugeMetricFamily(
                f"stars_engine_{name.removeprefix('num_')}", about, labels=["model"]
            )
            for model_name, values in stats.items():
                family.add_metric([model_name], getattr(values, name))
            yield family
        memory = GaugeMetricFamily(
            "stars_engine_memory_bytes", "Memory that stays, by holder", labels=["model", "holder"]
        )
        for model_name, values in stats.items():
            for holder, num_bytes in values.memory_bytes.items():
                memory.add_metric([model_name, holder], num_bytes)
        yield memory
