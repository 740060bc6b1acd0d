"""OpenTelemetry spans of requests, in the conventions for generative AI. Never their texts.

The names follow version 1.37 of the semantic conventions, in which those for generative AI are
still in development. What they have no name for is under `stars.*`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

from stars_engine.errors import needs_extra
from stars_engine.server.facts import RequestFacts

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
}


class Tracing:
    """Makes one span for each request for text.

    Args:
        provider: The provider of OpenTelemetry; by default, the global one.

    Raises:
        MissingExtraError: OpenTelemetry is not installed.
    """

    def __init__(self, provider: Any = None) -> None:
        with needs_extra("otel"):
            from opentelemetry import propagate, trace
        self._trace, self._propagate = trace, propagate
        name, release = "stars_engine.server", version("stars-engine")
        self._tracer = trace.get_tracer(name, release, tracer_provider=provider)

    @contextmanager
    def span(self, scope: Scope, facts: RequestFacts) -> Iterator[None]:
        """Open the span of a request; its attributes are set when it has ended."""
        operation = _OPERATIONS.get(scope["path"])
        if operation is None:
            yield
            return
        parent = self._propagate.extract(dict(Headers(scope=scope)))
        kind = self._trace.SpanKind.SERVER
        with self._tracer.start_as_current_span(operation, context=parent, kind=kind) as span:
            try:
                yield
            finally:
                if facts.model is not None:
                    span.update_name(f"{operation} {facts.model}")
                for name, value in _attributes(operation, facts).items():
                    if value is not None:
                        span.set_attribute(name, value)
                if facts.error is not None:
                    span.set_status(self._trace.StatusCode.ERROR)


def export_spans() -> None:
    """Send spans to the collector that the variables `OTEL_EXPORTER_OTLP_*` name.

    Raises:
        MissingExtraError: OpenTelemetry is not installed.
    """
    with needs_extra("otel"):
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    # `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` take precedence.
    provider = TracerProvider(resource=Resource.create({"service.name": "stars-serve"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def _attributes(operation: str, facts: RequestFacts) -> dict[str, Any]:
    settings, tokens = facts.settings, facts.tokens
    values: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "stars",
        "gen_ai.request.model": facts.model,
        "error.type": facts.error,
        "stars.request.id": facts.request_id,
        "stars.stream": facts.streamed,
    }
    for name in ("max_tokens", "temperature", "top_p", "top_k", "seed"):
        values[f"gen_ai.request.{name}"] = settings.get(name)
    values["gen_ai.request.choice.count"] = settings.get("n")
    if facts.num_choices:
        values |= {
            "gen_ai.response.id": facts.answer_id,
            "gen_ai.response.model": facts.model,
            "gen_ai.response.finish_reasons": list(facts.finish_reasons.elements()),
            "gen_ai.usage.input_tokens": tokens["prompt"],
            "gen_ai.usage.output_tokens": tokens["completion"],
            "stars.usage.drafted_tokens": tokens["drafted"],
            "stars.usage.rejected_tokens": tokens["rejected"],
            "stars.usage.surplus_tokens": tokens["surplus"],
            "stars.attempts": facts.num_attempts,
            "stars.segment.rewards": facts.rewards,
            "stars.segment.attempts": facts.attempts,
            "stars.reward": facts.reward,
            "stars.seed": facts.seed,
            "stars.first_segment_s": facts.first_segment_s,
        }
        values |= {f"stars.segments.{name}": count for name, count in facts.verdicts.items()}
    return values
