"""Redact secrets, such as API keys, in representations, dumps and logs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any
from urllib.parse import quote

from pydantic import Secret, SecretBytes, SecretStr

MASK = "**********"

# What secrets are sealed in: texts, bytes and numbers.
Sealed = SecretStr | SecretBytes | Secret[Any]
_SEALED = (SecretStr, SecretBytes, Secret)

# The `context` of dumps that are only hashed: they contain digests, so that secrets have different
# hashes.
DIGESTS = {"stars_engine.secrets": "digest"}

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_SECRET_WORDS = _set(
    "accesskey accesstoken apikey authentication authorization authtoken bearer connectionstring "
    "connstr cookie cookies credential credentials dsn jwt oauth otp passcode passphrase passwd "
    "password pem privatekey pwd sas secret secretkey secrets sessionid signature userpass"
)
_ISSUERS = _set(
    "anthropic aws azure cohere gcp github gitlab google groq hf hub huggingface mistral nvidia "
    "openai openrouter replicate together wandb"
)
_KEYS = _ISSUERS | _set(
    "access account admin api app auth client deploy encryption license master private project "
    "secret service session shared signing ssh storage subscription"
)
_PASSES = _set("admin database db ftp login mysql postgres proxy redis root smtp user")
# Last words of names of secrets and of other things, which the value tells apart.
_AMBIGUOUS = _set("keys pat pats psk pw sig tokens")
# Words that name secrets in keywords, but mostly other things in a text.
_IN_KEYWORDS = _set("key pass session sid")
_TEXT_TOKENS = _set(  # tokens of text, which are not secrets
    "additional audio begin bos cls decoder end eoi eos fill first forced image last mask middle "
    "next pad per prefix sep special start stop suffix text unk video vision"
)

_SECRET_FIELDS = ("token", "api_key", "hf_token", "auth_token", "password", "secret")

_GROUPS = (list, tuple, set, frozenset)
_SHORTEST = 8  # characters of a secret whose name could be another thing's
# Letters and digits, as generated secrets have them; a word, a path or a control token differs.
_GENERATED = re.compile(rf"(?=.*[A-Za-z])(?=.*\d)[\w.~+=-]{{{_SHORTEST},}}", re.ASCII)

_START = r"(?<![A-Za-z0-9])"
# Secrets anywhere in a text: credentials in URLs, and tokens with the prefix of an issuer.
_ANYWHERE = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"(?<=://)[^\s/?#'\"]+(?=@)",
        _START + r"hf_(?:(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{4,}|[A-Za-z0-9]{16,})",
        _START + r"(?:sk|pk|rk)-(?=[a-z_-]*[A-Z0-9])[\w-]{6,}",
        _START + r"(?:gh[opsur]_|github_pat_|glpat-|gsk_|nvapi-|lsv2_)[\w-]{12,}",
        _START + r"xox[abeprs]-[\w-]{8,}",
        _START + r"(?:(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{30,})",
        _START + r"eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*",
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|\Z)",
    )
)
_BEARER = re.compile(
    r"(\bauthorization['\"]?\s*[:=]\s*['\"]?\w+\s+|\bbearer\s+(?=\S*[\d_.=-]))[\w.~+/=-]{6,}",
    re.IGNORECASE,
)
# In the query of a URL, also values of names that are otherwise plain.
_QUERY = re.compile(r"([?&](?:code|key|sid|sig)=)[^\s&#'\"]{6,}", re.IGNORECASE)
# Every name of a secret contains one of these words. Another name ends before its value, which may
# contain a name itself: host:8000/path?token=value
_PARTS = "|".join(
    sorted(_SECRET_WORDS | _IN_KEYWORDS | _AMBIGUOUS | _set("auth conn session token"))
)
# name='value', "name": "value", name: value, ?name=value
_NAMED = re.compile(
    rf"(?<![\w-])(?=[\w-]*?(?i:{_PARTS}))"
    r"([\w-]++)(['\"]?\s*[:=]\s*)"  # of whole words only: linear in a long word
    r"(?:(['\"])([^'\"]+)\3|((?!/)[^\s'\"<(\[{,;&)]{6,}+(?!\()))"
)


def is_secret_name(name: object) -> bool:
    """Return whether a name denotes a secret, such as `token`, `api_key` or `X-Auth-Token`."""
    if not isinstance(name, str):
        return False
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words:
        return False
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    return (
        not _SECRET_WORDS.isdisjoint(words)
        or (last in ("key", "keys") and before in _KEYS)
        or (last == "token" and before not in _TEXT_TOKENS)
        or (last == "tokens" and before in _KEYS)
        or last in ("auth", "session")
        or (last == "pass" and before in _PASSES)
        or (last == "pat" and before in _ISSUERS)
        or (before in ("conn", "connection") and last in ("str", "string", "uri", "url"))
        or (before == "session" and last in ("id", "cookie"))
        or (len(words) == 1 and last in _IN_KEYWORDS)
    )


def hides_secret(name: object, value: object) -> bool:
    """Return whether a name denotes a secret, or may denote one that the value looks like.

    `tokens` may be API tokens or the tokens of a text, and `access_key_id` is half of a secret.
    """
    if is_secret_name(name):
        return True
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if not isinstance(name, str) or not isinstance(value, str):
        return False
    words = [word.lower() for word in _WORDS.findall(name)]
    is_ambiguous = words[-2:] == ["key", "id"] or not _AMBIGUOUS.isdisjoint(words[-1:])
    return is_ambiguous and _GENERATED.fullmatch(value) is not None


def resembles_secret_name(name: str) -> bool:
    """Return whether a name is that of a secret, or a misspelling of `token` or `api_key`."""
    return is_secret_name(name) or bool(get_close_matches(name.lower(), _SECRET_FIELDS, 1, 0.75))


def redact(text: str, known: Iterable[str] = ()) -> str:
    """Mask the known secrets in a text, and everything that looks like a secret."""
    forms = {form for value in known for form in (value, quote(value, safe=""))}
    for secret in sorted(forms, key=len, reverse=True):
        if len(secret) > 3:  # shorter ones occur in ordinary words
            text = text.replace(secret, MASK)
    for pattern in _ANYWHERE:
        text = pattern.sub(MASK, text)
    for pattern in (_QUERY, _BEARER):
        text = pattern.sub(rf"\1{MASK}", text)
    return _NAMED.sub(_without_value, text)


def holds_secret(text: str) -> bool:
    """Return whether a text contains something that looks like a secret, whatever its name."""
    return redact(text) != text


def _without_value(found: re.Match[str]) -> str:
    name, between, quotes, unquoted = found[1], found[2], found[3] or "", found[5]
    # In grammars, `token: word` is common, and in other texts `key: 'word'`.
    is_word = unquoted is not None and unquoted.isalpha() and name.lower() == "token"
    is_plain = name.lower() in _IN_KEYWORDS and (not quotes or len(found[4]) < _SHORTEST)
    if is_word or is_plain or not hides_secret(name, found[4] if quotes else found[5]):
        return found[0]
    return f"{name}{between}{quotes}{MASK}{quotes}"


def seal(value: Any, *, secret: bool = False) -> Any:
    """Return plain values with their secrets as `SecretStr`, whose representation is masked.

    Secrets are strings, bytes and numbers under a name like `token` or `password`, and strings and
    bytes that look like one, alone or with a name like `tokens`.
    """
    if isinstance(value, str):
        return SecretStr(value) if value and (secret or holds_secret(value)) else value
    if isinstance(value, bytes):
        is_secret = secret or holds_secret(value.decode(errors="replace"))
        return SecretBytes(value) if value and is_secret else value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Secret(value) if secret else value
    if isinstance(value, Mapping):
        sealed = {
            name: seal(item, secret=secret or _hides(name, item)) for name, item in value.items()
        }
        return value if all(sealed[name] is value[name] for name in sealed) else sealed
    if type(value) in _GROUPS:
        items = [seal(item, secret=secret) for item in value]
        same = all(new is old for new, old in zip(items, value, strict=True))
        return value if same else type(value)(items)
    return value


def _hides(name: object, value: object) -> bool:
    """Return whether a keyword holds a secret; a number is one only under a plain secret name."""
    if isinstance(value, int | float):  # `max_token` is a number too
        words = [word.lower() for word in _WORDS.findall(str(name))]
        is_token = words[-1:] == ["token"] and _KEYS.issuperset(words[:-1])
        return is_token or not _SECRET_WORDS.isdisjoint(words)
    items: Iterable[object] = value if isinstance(value, _GROUPS) else [value]
    return is_secret_name(name) or any(hides_secret(name, item) for item in items)


def unseal(value: Any) -> Any:
    """Undo `seal`."""
    return _shown(value, lambda secret: secret.get_secret_value())


def masked(value: Any) -> Any:
    """Return values with a mask for each secret, sealed or not.

    For values that are nested too deeply, or within themselves, only the type is shown.
    """
    try:
        return _shown(seal(value), lambda _: MASK)
    except RecursionError:
        return f"{type(value).__name__}, deeply nested"


def digested(value: Any) -> Any:
    """Return values with a digest for each secret, for hashing."""
    return _shown(seal(value), digest)


def emptied(value: Any) -> Any:
    """Return values with a sealed mask for each secret, which shows that a secret is missing."""
    return _shown(seal(value), lambda _: SecretStr(MASK))


def _shown(value: Any, show: Callable[[Sealed], Any]) -> Any:
    if isinstance(value, _SEALED):
        return show(value)
    if isinstance(value, Mapping) and any(True for _ in secrets_in(value)):
        return {name: _shown(item, show) for name, item in value.items()}
    if isinstance(value, _GROUPS) and any(True for _ in secrets_in(value)):
        return type(value)(_shown(item, show) for item in value)
    return value


def digest(secret: Sealed) -> str:
    """Return a digest that identifies a secret without revealing it."""
    value = secret.get_secret_value()
    data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    found = hashlib.sha256(data)
    return f"sha256:{found.hexdigest()[:12]}"


def secrets_in(value: Any) -> Iterator[str]:
    """Yield the sealed secrets in plain values, as texts."""
    if isinstance(value, _SEALED):
        secret = value.get_secret_value()
        yield secret.decode(errors="replace") if isinstance(secret, bytes) else str(secret)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from secrets_in(item)
    elif isinstance(value, _GROUPS):
        for item in value:
            yield from secrets_in(item)


def redacted_cause(error: Exception, known: Iterable[str] = ()) -> Exception | None:
    """Return an error for use as a cause; None if its chain of messages reveals a secret."""
    known = tuple(known)
    link: BaseException | None = error
    seen = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        text = str(link)
        if redact(text, known) != text:
            return None
        link = link.__cause__ or link.__context__
    return error
