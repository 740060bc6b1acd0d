"""What a server says of itself: its kind, the name of its model, its limits and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from stars_engine.errors import ModelLoadError, ServerError
from stars_engine.remote.client import ServerClient
from stars_engine.remote.endpoints import Endpoint
from stars_engine.tokenization.codec import Codec

Kind = Literal["vllm", "sglang", "llama.cpp", "unknown"]

_TEXT = "Tokens of one text: 12 naïve cafés,\n\n\tfoo_bar(); 日本 🙂"
_CHAT = [{"role": "user", "content": "Which template?"}]


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model as its server describes it.

    Attributes:
        name: The name to send with requests; None if the server has none.
        kind: The kind of the server.
        version: Its version; empty if it does not say.
        context_len: Tokens of prompt and answer at most; None if unknown.
    """

    name: str | None
    kind: Kind
    version: str = ""
    context_len: int | None = None


async def find_served(client: ServerClient, endpoint: Endpoint) -> RemoteModel:
    """Ask a server for its kind, its model and its limits.

    Raises:
        ModelLoadError: It does not serve the model, or its context is shorter than configured.
        ServerError: It cannot be reached, or refuses the API key.
    """
    kind, version, context_len = await _find_kind(client, endpoint)
    name, listed_len = await _find_name(client, endpoint)
    context_len = listed_len or context_len
    asked = client.server.context_len
    if asked is not None and context_len is not None and context_len < asked:
        raise ModelLoadError(
            f"{endpoint.url} reads at most {context_len} tokens, but context_len={asked} is "
            "configured; longer answers would be cut silently. Hint: start the server with "
            f"--max-model-len {asked}, or set context_len={context_len} or leave it out"
        )
    return RemoteModel(name, kind, version, asked or context_len)


async def _find_kind(client: ServerClient, endpoint: Endpoint) -> tuple[Kind, str, int | None]:
    found = await client.get("/version", endpoint)
    if isinstance(found, dict) and "version" in found:
        return "vllm", str(found["version"]), None
    for path in ("/get_server_info", "/get_model_info"):
        found = await client.get(path, endpoint)
        if isinstance(found, dict) and found:
            limit = found.get("max_total_num_tokens_per_request") or found.get("context_length")
            return "sglang", str(found.get("version", "")), _limit(limit)
    found = await client.get("/props", endpoint)
    if isinstance(found, dict) and "default_generation_settings" in found:
        limit = found["default_generation_settings"].get("n_ctx")
        return "llama.cpp", str(found.get("build_info", "")), _limit(limit)
    return "unknown", "", None


async def _find_name(client: ServerClient, endpoint: Endpoint) -> tuple[str | None, int | None]:
    found = await client.get("/v1/models", endpoint)
    asked = client.server.served_model
    try:
        models = {str(each["id"]): each for each in found["data"]}
    except (TypeError, LookupError):
        return asked, None
    if not models:
        return asked, None
    name = asked or next(iter(models))
    if name not in models:
        raise ModelLoadError(
            f"{endpoint.url} does not serve {name!r}; it serves {', '.join(models)}. Hint: set "
            "served_model to one of these names, or leave it out for the first one"
        )
    return name, _limit(models[name].get("max_model_len"))


async def check_tokenizers(
    client: ServerClient, model: str | None, codec: Codec, *, has_chat: bool
) -> None:
    """Check that all servers have the local tokenizer, and one chat template.

    Servers without an endpoint for tokens are not checked. Chat templates are rendered locally, so
    two different ones only show that the servers hold different models.

    Raises:
        ModelLoadError: Tokenizers or chat templates differ.
    """
    local = codec.encode(_TEXT)
    chats: dict[str, list[int]] = {}
    for endpoint in client.endpoints.all:
        plain = {
            "prompt": _TEXT,
            "content": _TEXT,
            "add_special_tokens": False,
            "add_special": False,
        }
        ids = await _tokens(client, endpoint, {"model": model, **plain})
        if ids is not None and ids != local:
            raise ModelLoadError(
                f"{endpoint.url} has a different tokenizer from "
                f"{client.server.tokenizer_name_or_path!r}: a text of {len(local)} tokens has "
                f"{len(ids)} there, or other ids. Hint: set tokenizer_name_or_path to the model "
                "that the server serves, and give only servers of one model as base_url"
            )
        if has_chat and len(client.endpoints.all) > 1:
            body = {"model": model, "messages": _CHAT, "add_generation_prompt": True}
            rendered = await _tokens(client, endpoint, body)
            if rendered is not None:
                chats[endpoint.url] = rendered
    if len({tuple(ids) for ids in chats.values()}) > 1:
        raise ModelLoadError(
            f"{' and '.join(chats)} have different chat templates, so they probably serve "
            "different models. Hint: give only servers of one model as base_url, started with the "
            "same options"
        )


async def _tokens(
    client: ServerClient, endpoint: Endpoint, body: dict[str, Any]
) -> list[int] | None:
    """Return the ids of a text by the server's tokenizer; None if it does not tell."""
    try:
        answer = await client.call("/tokenize", body, lambda found: found, endpoint=endpoint)
    except ServerError:
        return None
    ids = answer.get("tokens") if isinstance(answer, dict) else None
    is_ids = isinstance(ids, list) and all(type(token) is int for token in ids)
    return ids if is_ids else None


def _limit(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None
