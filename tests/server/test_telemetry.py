"""Spans of requests in OpenTelemetry's conventions for generative AI."""

from __future__ import annotations

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from stars_engine.server.app import create_app
from stars_engine.server.settings import ServerParams
from stars_engine.server.telemetry import Tracing
from tests.support.servers import random_chat

SECRET = "a private question"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


async def test_the_framework_makes_no_spans(
    exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the provider of the process, as `--tracing` sets it."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
    app = create_app({"chat": random_chat()}, ServerParams(tracing=True))
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        await client.get(f"/v1/models/{SECRET}")
        await client.post("/v1/completions", json={"model": "chat", "prompt": SECRET, "n": 999})
    app.state.server.models.close()
    assert [span.name for span in exporter.get_finished_spans()] == ["text_completion"]


async def test_spans(exporter: InMemorySpanExporter) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = create_app({"chat": random_chat()}, ServerParams(tracing=True), tracing=Tracing(provider))
    model = app.state.server.models.get("chat")
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://test"
    ) as client:
        await model.load()
        body = {"model": "chat", "messages": [{"role": "user", "content": SECRET}], "seed": 3}
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        answer = await client.post(
            "/v1/chat/completions", json=body, headers={"traceparent": parent}
        )
        await client.get("/healthz")
        await client.post("/v1/completions", json={"model": "chat", "prompt": SECRET, "n": 999})
    model.close()
    chat, refused = exporter.get_finished_spans()
    usage = answer.json()["usage"]
    found = dict(chat.attributes or {})
    assert chat.name == "chat chat"
    assert f"{chat.context.trace_id:032x}" == parent.split("-")[1]
    assert found["gen_ai.operation.name"] == "chat"
    assert found["gen_ai.request.model"] == found["gen_ai.response.model"] == "chat"
    assert found["gen_ai.request.seed"] == found["stars.seed"] == 3
    assert found["gen_ai.response.id"] == answer.json()["id"]
    assert found["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert found["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    drafted = usage["completion_tokens_details"]["drafted_tokens"]
    assert found["stars.usage.drafted_tokens"] == drafted
    assert len(found["stars.segment.rewards"]) == found["stars.segments.accepted"]
    assert chat.status.status_code is StatusCode.UNSET
    text = answer.json()["choices"][0]["message"]["content"]
    assert SECRET not in str(found)
    assert text not in map(str, found.values())
    assert refused.name == "text_completion"
    assert refused.status.status_code is StatusCode.ERROR
    assert (refused.attributes or {})["error.type"] == "invalid_value"
