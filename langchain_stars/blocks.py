"""Read text from content blocks in the formats of several vendors."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

# Types of text blocks, in LangChain, OpenAI and Anthropic.
_TEXT = ("text", "output_text", "input_text")


def kind_of(part: Any) -> Any:
    """Return the type of a block; a string has the type "text"."""
    return part.get("type") if isinstance(part, Mapping) else "text"


def as_text(content: Any) -> Any:
    """Convert blocks that hold text to plain text blocks; other blocks stay unchanged.

    Plain-text documents are read if the block contains their text, as a string or base64. Documents
    that a block only refers to, by URL or file id, are not read.
    """
    if isinstance(content, str):
        return content
    return [_as_text(part) for part in content if not _is_cache_point(part)]


def _is_cache_point(part: Any) -> bool:
    """Whether a block only says up to where a provider caches the prompt."""
    return isinstance(part, Mapping) and ("cachePoint" in part or "cache_point" in part)


def _as_text(part: Any) -> Any:
    text = _text_of(part) if isinstance(part, Mapping) else None
    return part if text is None else {"type": "text", "text": text}


def _text_of(part: Mapping[str, Any]) -> str | None:
    kind, text = kind_of(part), part.get("text")
    if kind in _TEXT:
        return text if isinstance(text, str) else None
    if kind == "document" and isinstance(part.get("source"), Mapping):  # Anthropic's
        text = _text_of_source(part["source"])
        return None if text is None else _titled(part, text)
    if kind == "search_result":  # Anthropic's
        text = _joined(part.get("content"))
        return None if text is None else _titled(part, text)
    is_plain = kind == "text-plain" or (
        kind == "file" and str(part.get("mime_type")).startswith("text/")
    )
    if not is_plain:
        return None
    if not isinstance(text, str):
        text = _decoded(part.get("base64") or part.get("data"))
    return None if text is None else _titled(part, text)


def _text_of_source(source: Mapping[str, Any]) -> str | None:
    """Return the text of a document's source; None if it is another format, or a reference."""
    match source.get("type"):
        case "text":
            return source["data"] if isinstance(source.get("data"), str) else None
        case "content":
            return _joined(source.get("content"))
        case "base64" if str(source.get("media_type")).startswith("text/"):
            return _decoded(source.get("data"))
    return None


def _joined(content: Any) -> str | None:
    """Return the text of several blocks; None if one of them is not text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = [_text_of(part) if isinstance(part, Mapping) else None for part in content]
    return None if None in texts else "\n".join(filter(None, texts))


def _titled(part: Mapping[str, Any], text: str) -> str:
    """Return the text of a document, preceded by its title and context."""
    about = [part[name] for name in ("title", "context") if isinstance(part.get(name), str)]
    return "\n".join([*about, text])


def _decoded(data: Any) -> str | None:
    try:
        return base64.b64decode(data, validate=True).decode() if isinstance(data, str) else None
    except (binascii.Error, UnicodeDecodeError):
        return None
