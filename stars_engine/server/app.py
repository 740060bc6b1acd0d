"""The application: endpoints, errors and what surrounds them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from stars_engine.config import StarsConfig
from stars_engine.errors import StarsError
from stars_engine.server import chat, completions, health, page, score
from stars_engine.server.delivery import ClientDisconnectedError, report
from stars_engine.server.errors import ApiError, response_of
from stars_engine.server.facts import facts_of
from stars_engine.server.fields import hints_of
from stars_engine.server.key_limits import KeyLimits
from stars_engine.server.metrics import Metrics
from stars_engine.server.middleware import Limited, Observed
from stars_engine.server.models import ServedModels
from stars_engine.server.openapi import describe
from stars_engine.server.requests import ChatBody, CompletionBody, ScoreBody
from stars_engine.server.responses import endpoint
from stars_engine.server.responses.bodies import ResponsesBody
from stars_engine.server.settings import ApiKeys, ServerParams
from stars_engine.server.state import State
from stars_engine.server.telemetry import Tracing
from stars_engine.server.validation import http_error_of, validation_error_of

_UNSUPPORTED = {
    "/v1/chat/completions": hints_of(ChatBody),
    "/v1/completions": hints_of(CompletionBody),
    "/v1/responses": hints_of(ResponsesBody),
    "/v1/score": hints_of(ScoreBody),
}


def create_app(
    configs: Mapping[str, StarsConfig],
    params: ServerParams | None = None,
    keys: ApiKeys | None = None,
    *,
    on_loaded: Callable[[ServedModels], None] = lambda _: None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """Return an ASGI application that serves models by name.

    The models load in the background when the application starts. Until a model is ready, requests
    for it get status 503.

    Args:
        configs: The configuration of each model, by the name that clients use.
        params: Settings of the server.
        keys: The API keys; by default, no key is needed.
        on_loaded: Called when all models are ready or have failed.
        tracing: Makes spans if `params.tracing`; by default with OpenTelemetry's global provider.
    """
    params = params or ServerParams()
    models = ServedModels(configs)
    state = State(models, params, Metrics(models), KeyLimits(params))

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async def load() -> None:
            await models.load()
            on_loaded(models)

        loading = asyncio.create_task(load())
        try:
            yield
        finally:
            loading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await loading
            await asyncio.to_thread(models.close)

    app = FastAPI(
        title="stars serve",
        version=version("stars-engine"),
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        # Since 0.165, FastAPI records paths and messages of errors itself; `Tracing` has no texts.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.server = state
    for module in (page, health, chat, completions, endpoint, score):
        app.include_router(module.router)
    _handle_errors(app)
    describe(app)
    app.add_middleware(Limited, get_state=lambda: state, keys=keys or ApiKeys())
    if params.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(params.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # clients of OpenAI add headers about themselves
            expose_headers=["retry-after", "x-request-id"],
        )
    tracing = (tracing or Tracing()) if params.tracing else None
    app.add_middleware(Observed, get_state=lambda: state, tracing=tracing)
    return app


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        unsupported = _UNSUPPORTED.get(request.url.path, {})
        return _respond(request, validation_error_of(error.errors(), error.body, unsupported))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        return _respond(request, http_error_of(error))

    @app.exception_handler(ClientDisconnectedError)
    async def disconnected(_: Request, __: ClientDisconnectedError) -> Response:
        return Response(status_code=499)

    @app.exception_handler(ApiError)
    @app.exception_handler(StarsError)
    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return _respond(request, report(facts_of(request), error))


def _respond(request: Request, error: ApiError) -> Response:
    facts_of(request).error = error.code
    return response_of(error)
