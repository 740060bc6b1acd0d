"""Config objects of models behind HTTP servers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, FieldSerializationInfo, SecretStr, field_serializer, field_validator

from stars_engine.config.loading import check_name, check_values
from stars_engine.config.parts import Part
from stars_engine.problems import Problem
from stars_engine.redaction import DIGESTS, MASK, digest, holds_secret

logger = logging.getLogger(__name__)


class Server(Part):
    """One or more HTTP servers that serve the same model, and how to call them.

    The API key is masked in representations and dumps, and is not written to files or pickles.
    """

    hints: ClassVar[dict[str, str]] = {
        "url": "use base_url, one URL or a list of them",
        "base_urls": "use base_url, one URL or a list of them",
        "token": "use api_key for the server's key",
        "model": "use served_model for the name under which the server serves the model",
        "name_or_path": "use served_model for the name under which the server serves the model, "
        "and tokenizer_name_or_path for its tokenizer",
        "tokenizer": "use tokenizer_name_or_path",
    }

    base_url: tuple[str, ...] = Field(
        min_length=1,
        description="URL of the server; or a list, of servers with the same model. Requests of one "
        "answer stay at one server, and go on at another one if it fails",
        examples=[["http://lm-0:8000", "http://lm-1:8000"]],
    )
    tokenizer_name_or_path: str = Field(
        min_length=1,
        description="hub name or directory of the model's tokenizer; only token ids are exchanged",
        examples=["Qwen/Qwen2.5-1.5B-Instruct"],
    )
    served_model: str | None = Field(
        default=None,
        min_length=1,
        description="the name under which the server serves the model; None uses its first one",
        examples=["qwen"],
    )
    revision: str | None = Field(
        default=None, description="branch, tag or commit of the tokenizer", examples=["main"]
    )
    api_key: SecretStr | None = Field(
        default=None, min_length=1, description="sent as a bearer token"
    )
    api_key_env: str | None = Field(
        default=None,
        min_length=1,
        description="environment variable with the API key, for configs in files",
        examples=["VLLM_API_KEY"],
    )
    ca_file: str | None = Field(
        default=None,
        min_length=1,
        description="certificates of your own authority; TLS is always verified",
        examples=["/etc/ssl/my-ca.pem"],
    )
    context_len: int | None = Field(
        default=None,
        ge=2,
        description="tokens of prompt and answer at most; None uses the server's limit",
        examples=[8192],
    )
    timeout_s: float = Field(
        default=120.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds for one answer of the server, its retries included",
        examples=[120.0],
    )
    connect_timeout_s: float = Field(
        default=5.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds for connecting to a server",
        examples=[5.0],
    )
    http_retries: int = Field(
        default=4,
        ge=0,
        description="retries of one request after connection errors, timeouts, malformed answers "
        "and the statuses 408, 429 and 5xx; at the other servers first",
        examples=[4],
    )
    max_connections: int = Field(
        default=256, ge=1, description="connections that are kept open", examples=[256]
    )

    @field_validator("base_url", mode="before")
    @classmethod
    def _one_or_many(cls, urls: object) -> object:
        return (urls,) if isinstance(urls, str) else urls

    @field_validator("base_url")
    @classmethod
    def _are_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        plain = tuple(_checked_url(url) for url in urls)
        if len(set(plain)) < len(plain):
            raise ValueError("a URL occurs twice; give each server once")
        return plain

    @field_validator("tokenizer_name_or_path", "revision", "served_model", "ca_file")
    @classmethod
    def _names_are_names(cls, name: str | None) -> str | None:
        return check_name(name)

    @field_validator("api_key_env")
    @classmethod
    def _variable_is_a_name(cls, name: str | None) -> str | None:
        if name is not None and (not name.isidentifier() or holds_secret(name)):
            raise ValueError("it names an environment variable; give the key itself as api_key")
        return name

    @field_validator("api_key")
    @classmethod
    def _key_is_no_mask(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None:
            check_values([key])
            text = key.get_secret_value()
            if not (text.isascii() and text.isprintable()) or " " in text:
                raise ValueError("an API key consists of printable ASCII characters without spaces")
        return key

    @field_serializer("api_key")
    def _key_masked(self, key: SecretStr | None, info: FieldSerializationInfo) -> str | None:
        if key is None:
            return None
        return digest(key) if info.context is DIGESTS else MASK

    @property
    def secrets(self) -> list[str]:
        """The secrets in the config, which must not appear in messages."""
        return [] if self.api_key is None else [self.api_key.get_secret_value()]

    @property
    def shown_name(self) -> str:
        """See `Part`."""
        return self.served_model or self.base_url[0]

    def unwritable(self) -> Iterator[Problem]:
        """See `Part`."""
        yield from super().unwritable()
        if self.api_key is not None:
            yield Problem(
                "api_key",
                "is a secret, which files cannot contain; set api_key_env to the name of an "
                "environment variable, or set the key in code with .replace(api_key=...)",
            )

    def __getstate__(self) -> dict[Any, Any]:
        """Return the state to pickle, without the API key."""
        state = super().__getstate__()
        if self.api_key is None:
            return state
        logger.warning(
            "The pickle of a %s does not contain its API key. Hint: use api_key_env",
            type(self).__name__,
        )
        values = {**state["__dict__"], "api_key": None}
        own = state["__pydantic_fields_set__"] - {"api_key"}
        return {**state, "__dict__": values, "__pydantic_fields_set__": own}


class OpenAIServerModel(Server):
    """A language model behind an HTTP server: vLLM, SGLang or llama-server."""

    kind: Literal["server"] = "server"
    dialect: Literal["auto", "vllm", "completions", "sglang", "llama.cpp"] = Field(
        default="auto",
        description="how to ask for drafts: 'vllm' (/inference/v1/generate), 'completions' "
        "(vLLM's /v1/completions), 'sglang' (/generate), 'llama.cpp' (/completion); 'auto' asks "
        "the server",
        examples=["sglang"],
    )
    chat_template: str | None = Field(
        default=None,
        min_length=1,
        description="a Jinja chat template that replaces the tokenizer's own; the server's is "
        "never used",
    )
    needs_seed: bool = Field(
        default=True,
        description="refuse a server whose seeds have no effect. If false, texts are not "
        "repeatable, but their distribution is the same",
    )


def _checked_url(url: str) -> str:
    """Return a URL without a path of the API.

    Raises:
        ValueError: It is not an http or https URL, or contains more than a host and a path.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            "a base URL begins with http:// or https://, such as http://localhost:8000"
        )
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            "a base URL must not contain credentials; give the key as api_key or api_key_env"
        )
    if parts.query or parts.fragment:
        raise ValueError("a base URL ends with its path, without ? and #")
    if holds_secret(url):
        raise ValueError(
            "a base URL must not contain keys, because it is logged; give the key as api_key or "
            "api_key_env"
        )
    return url.rstrip("/").removesuffix("/v1").rstrip("/")
