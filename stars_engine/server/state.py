"""What all endpoints share: the models and the settings of the server."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import HTTPConnection

from stars_engine.server.key_limits import KeyLimits
from stars_engine.server.metrics import Metrics
from stars_engine.server.models import ServedModels
from stars_engine.server.settings import ServerParams


@dataclass(slots=True)
class State:
    """The state of a server.

    Attributes:
        models: The models.
        params: The settings.
        metrics: The metrics.
        key_limits: The limits of each key.
        num_requests: Requests in progress.
        draining: Whether the server is stopping.
    """

    models: ServedModels
    params: ServerParams
    metrics: Metrics
    key_limits: KeyLimits
    num_requests: int = 0
    draining: bool = False


def state_of(request: HTTPConnection) -> State:
    """Return the state of the server of a request."""
    found: State = request.app.state.server
    return found
