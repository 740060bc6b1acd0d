"""Answers of ASGI applications that tests write by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


async def reply(
    send: Any,
    status: int,
    answer: Any,
    *,
    raw: bytes | None = None,
    more: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Send a whole answer: an object as JSON, a text, or bytes as they are."""
    if raw is None:
        raw = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
    headers = [(b"content-type", b"application/json"), *more]
    headers.append((b"content-length", str(len(raw)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": raw})
