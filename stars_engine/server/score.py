"""`/v1/score`: the rewards of given answers."""

from __future__ import annotations

import math
import uuid
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from stars_engine.engine.scores import TextScore
from stars_engine.integrations import ToolNames
from stars_engine.messages import Chat
from stars_engine.server.calls import naming_fields
from stars_engine.server.conversations import messages_of
from stars_engine.server.delivery import until_disconnect
from stars_engine.server.errors import JsonResponse
from stars_engine.server.facts import facts_of
from stars_engine.server.requests import ScoreBody
from stars_engine.server.state import state_of
from stars_engine.types import Prompt

router = APIRouter()


@router.post("/v1/score", response_model=None)
async def score(body: ScoreBody, request: Request) -> Response:
    """Return the reward of each answer, and if asked after each of its segments."""
    state = state_of(request)
    model = state.models.get(body.model)
    facts_of(request).model = model.name
    align = model.ready_align
    texts = [body.input] if isinstance(body.input, str) else body.input
    if body.messages is None:
        assert body.prompt is not None
        engine, prompt = model.raw_engine, body.prompt
        asked: Prompt = prompt
    else:
        engine, asked = model.engine, Chat(messages_of(body.messages, ToolNames()))
    work = engine.ascore(asked, texts, segment_len=align.segment_len if body.segments else None)
    fields = {"prompt": "prompt" if body.messages is None else "messages", "answer": "input"}
    with naming_fields(fields):
        scores = await until_disconnect(request, work)
    num_tokens = sum(found.num_reward_tokens for found in scores)
    facts_of(request).tokens["scored"] += num_tokens
    return JsonResponse(
        {
            "id": f"score-{uuid.uuid4().hex}",
            "object": "list",
            "model": model.name,
            "data": [_item(index, found, body) for index, found in enumerate(scores)],
            "usage": {"reward_tokens": num_tokens},
        }
    )


def _item(index: int, found: TextScore, body: ScoreBody) -> dict[str, Any]:
    item: dict[str, Any] = {"index": index, "object": "score", "reward": _finite(found.reward)}
    item["vetoed"] = found.vetoed
    if found.parts is not None:
        item["parts"] = {name: _finite(value) for name, value in found.parts.items()}
    if body.segments:
        item["segments"] = [
            {"text": part.text, "reward": _finite(part.reward), "vetoed": part.vetoed}
            for part in found.segments
        ]
    return item


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
