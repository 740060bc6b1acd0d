"""The page at `/`: type a prompt, and watch segments arrive. It loads nothing from elsewhere."""

from __future__ import annotations

from functools import cache
from importlib import resources

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from stars_engine.server.state import state_of

router = APIRouter()

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


@router.get("/", response_model=None)
async def page(request: Request) -> Response:
    """Return the page."""
    return _file(request, "page.html")


@router.get("/page.js", response_model=None, include_in_schema=False)
async def script(request: Request) -> Response:
    """Return the script of the page."""
    return _file(request, "page.js")


@router.get("/page.css", response_model=None, include_in_schema=False)
async def style(request: Request) -> Response:
    """Return the style of the page."""
    return _file(request, "page.css")


@router.get("/favicon.ico", response_model=None, include_in_schema=False)
async def icon(request: Request) -> Response:
    """Return the icon of the page."""
    return _file(request, "icon.svg")


def _file(request: Request, name: str) -> Response:
    params = state_of(request).params
    if not params.page:
        raise HTTPException(404)
    text = _text(name)
    if name == "page.html":
        text = text.replace("{show_rejected}", str(params.show_rejected).lower())
    media_type = _TYPES[name.rpartition(".")[2]]
    return Response(text, headers=_HEADERS, media_type=media_type)


@cache
def _text(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
