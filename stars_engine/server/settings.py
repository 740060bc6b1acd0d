"""Settings of the server: address, keys, limits, and what clients may see and change."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field, field_validator

from stars_engine.errors import ConfigError, Problem
from stars_engine.files.disk import file_error, why_not
from stars_engine.schema import Schema

DIGEST_PREFIX = "sha256:"
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


def host_of(header: str) -> str:
    """Return the name or address in a Host header, in lower case and without its port."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0] if name.count(":") == 1 else name


class ServerParams(Schema):
    """Settings of the server. They hold for all models that it serves."""

    host: str = Field(
        default="127.0.0.1",
        description="address to listen on; 0.0.0.0 accepts connections from other machines",
        examples=["0.0.0.0"],
    )
    port: int = Field(
        default=8000,
        ge=0,
        le=65535,
        description="port to listen on; 0 chooses a free one",
        examples=[8000],
    )
    cors_origins: tuple[str, ...] = Field(
        default=(),
        description="origins whose pages may call the server from a browser; none by default",
        examples=[["https://chat.example.org"]],
    )
    allowed_hosts: tuple[str, ...] | None = Field(
        default=None,
        description="names of this server that requests may address, without port; '*' allows "
        "all. None: all; for `stars serve` without keys on a local address only localhost, "
        "127.0.0.1 and ::1, so that no web page can reach it through a name of its own",
        examples=[["chat.example.org"]],
    )
    max_body_bytes: int = Field(
        default=4 * 2**20,
        ge=1024,
        description="maximum size of a request body; larger ones get status 413",
        examples=[2**20],
    )
    max_requests: int = Field(
        default=1024,
        ge=1,
        description="maximum number of requests in progress, streams included; further ones get "
        "status 429",
        examples=[256],
    )
    max_requests_per_key: int = Field(
        default=256,
        ge=1,
        description="maximum number of requests in progress of one API key; further ones get "
        "status 429",
        examples=[32],
    )
    tokens_per_minute_per_key: int | None = Field(
        default=None,
        ge=1,
        description="tokens of prompts and drafts per minute of one API key, rejected drafts "
        "included; requests of a key that has used more get status 429. None sets no limit",
        examples=[100_000],
    )
    keep_alive_s: float = Field(
        default=10.0,
        gt=0,
        description="seconds between two comments that keep a stream open while no segment is "
        "accepted",
        examples=[10.0],
    )
    receive_timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="seconds that the headers of a request may take to arrive, and its body; then "
        "the connection is closed, after status 408 if a body is late",
        examples=[60.0],
    )
    send_timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="seconds in which a client must read something of what is sent; then the "
        "connection is closed",
        examples=[60.0],
    )
    drain_s: float = Field(
        default=30.0,
        ge=0,
        description="seconds that requests in progress may take to end after SIGTERM",
        examples=[30.0],
    )
    client_align: bool = Field(
        default=False,
        description="whether clients may change thresholds and the acceptance test",
    )
    show_rejected: bool = Field(
        default=False,
        description="whether clients may ask for the text of rejected drafts",
    )
    page: bool = Field(default=True, description="whether `/` shows a page to try the models")
    tracing: bool = Field(
        default=False, description="whether requests become OpenTelemetry spans; needs [otel]"
    )

    @field_validator("cors_origins")
    @classmethod
    def _whole_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and ("://" not in origin or origin.endswith("/")):
                raise ValueError(
                    f"{origin!r} is not an origin; allowed: scheme and host, or '*'. Hint: "
                    "write it like 'https://chat.example.org', without a path"
                )
        return origins

    @field_validator("allowed_hosts")
    @classmethod
    def _names_only(cls, hosts: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for host in hosts or ():
            if "/" in host or not host or host_of(host) != host:
                raise ValueError(
                    f"{host!r} is not the name of a host. Hint: write it like 'chat.example.org', "
                    "in lower case, without scheme, port and path"
                )
        return hosts

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in LOCAL_HOSTS


class ApiKeys:
    """The keys that clients may use; only their digests are kept.

    Args:
        digests: SHA-256 digests of the keys, as hexadecimal digits. Without any, no key is needed.
    """

    def __init__(self, digests: Iterable[str] = ()) -> None:
        self._digests = tuple(dict.fromkeys(digests))

    def __len__(self) -> int:
        return len(self._digests)

    @classmethod
    def read(cls, text: str, source: str) -> ApiKeys:
        """Read keys, one a line; `sha256:` and a digest stand for a key that is not written down.

        Args:
            text: The lines. Empty lines and those that begin with `#` are skipped.
            source: Where they come from, for errors.

        Raises:
            ConfigError: A key is too short, a digest is malformed, or there is no key.
        """
        digests = []
        for number, line in enumerate(text.splitlines(), 1):
            key = line.strip()
            if key and not key.startswith("#"):
                digests.append(_digest_of(key, f"{source}, line {number}"))
        if not digests:
            raise _problem(source, "there is no key. Hint: write one key a line")
        return cls(digests)

    @classmethod
    def from_file(cls, path: Path) -> ApiKeys:
        """Read the keys of a file; see `read`.

        Raises:
            ConfigError: The file cannot be read, or see `read`.
        """
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            message = f"byte {error.start} is not UTF-8. Hint: save the file as UTF-8"
            raise _problem(str(path), message) from None
        except (OSError, ValueError) as error:
            raise file_error(path, "API keys", f"cannot be read: {why_not(error)}") from None
        return cls.read(text, str(path))

    def find(self, key: str) -> str | None:
        """Return a short name of a known key, for logs; None for an unknown key.

        The comparison takes the same time for every key.
        """
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        found = None
        for known in self._digests:
            if hmac.compare_digest(digest, known):
                found = known[:8]
        return found


def _digest_of(key: str, where: str) -> str:
    if key.startswith(DIGEST_PREFIX):
        digest = key.removeprefix(DIGEST_PREFIX).lower()
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            message = "not a SHA-256 digest; expected 64 hexadecimal digits. Hint: use sha256sum"
            raise _problem(where, message)
        return digest
    if len(key) < 16:
        message = f"the key has {len(key)} characters; expected at least 16. Hint: use openssl rand"
        raise _problem(where, f"{message} -hex 32")
    return hashlib.sha256(key.encode()).hexdigest()


def _problem(where: str, message: str) -> ConfigError:
    return ConfigError("API keys", [Problem(where, message)])
