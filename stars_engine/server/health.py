"""`/v1/models`, and what operators ask: health, readiness, metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from openai.types import Model
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from stars_engine.server.errors import JsonResponse
from stars_engine.server.models import ServedModel
from stars_engine.server.state import state_of

router = APIRouter()


@router.get("/v1/models", response_model=None)
async def list_models(request: Request) -> Response:
    """List the models."""
    models = [_model_of(model) for model in state_of(request).models]
    return JsonResponse({"object": "list", "data": models})


@router.get("/v1/models/{name:path}", response_model=None, responses={200: {"model": Model}})
async def get_model(name: str, request: Request) -> Response:
    """Describe one model."""
    return JsonResponse(_model_of(state_of(request).models.get(name)))


@router.get("/healthz", response_model=None)
async def is_alive() -> Response:
    """Tell that the process serves requests."""
    return JsonResponse({"status": "ok"})


@router.get("/readyz", response_model=None)
async def is_ready(request: Request) -> Response:
    """Tell whether all models are ready, their servers answer, and this one is not stopping."""
    state = state_of(request)
    await state.models.check()
    states = {model.name: model.state for model in state.models}
    ready = not state.draining and set(states.values()) == {"ready"}
    status = "stopping" if state.draining else "ready" if ready else "not ready"
    return JsonResponse({"status": status, "models": states}, 200 if ready else 503)


@router.get("/metrics", response_model=None)
async def read_metrics(request: Request) -> Response:
    """Return metrics in Prometheus' text format."""
    state = state_of(request)
    await state.models.check()
    text = state.metrics.text()
    return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})


def _model_of(model: ServedModel) -> dict[str, Any]:
    values: dict[str, Any] = Model(
        id=model.name, created=model.created, object="model", owned_by="stars"
    ).model_dump(exclude_unset=True)
    return {**values, "stars": {"state": model.state}}
