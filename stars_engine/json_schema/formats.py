"""Regular expressions for `format`, limited to values that Python and pydantic accept.

A format is an annotation in JSON Schema, so an unknown format allows any string. Where readers of
an RFC disagree, the pattern is stricter: no second 60, no year 0, no hour 24.
"""

from __future__ import annotations

import re
from zoneinfo import available_timezones

_YEAR = r"([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP_YEAR = (
    r"([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"  # not 0000
)
_DATE = (
    rf"({_YEAR}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    rf"|02-(0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?"
_ZONE = r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
# Years from 2 to 9998: a date stays within Python's range in any time zone.
_DATE_TIME = rf"(?!0001-|9999-){_DATE}T{_CLOCK}{_ZONE}"
_COUNT = r"[0-9]{1,5}"
_SECONDS = rf"{_COUNT}S"
_CLOCK_SPAN = rf"T({_COUNT}H({_COUNT}M)?({_SECONDS})?|{_COUNT}M({_SECONDS})?|{_SECONDS})"
_DURATION = (
    rf"P({_COUNT}W|([0-9]{{1,3}}Y({_COUNT}M)?({_COUNT}D)?|{_COUNT}M({_COUNT}D)?|{_COUNT}D)"
    rf"({_CLOCK_SPAN})?|{_CLOCK_SPAN})"
)
_BYTE = r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_BYTE}(\.{_BYTE}){{3}}"
_GROUP = r"[0-9a-fA-F]{1,4}"
_IPV6 = "(" + "|".join(
    [
        rf"({_GROUP}:){{7}}{_GROUP}",
        *(
            rf"{f'{_GROUP}(:{_GROUP}){{0,{before - 1}}}' if before else ''}::"
            rf"{f'({_GROUP}(:{_GROUP}){{0,{6 - before}}})?' if before < 7 else ''}"
            for before in range(8)
        ),
    ]
) + ")"  # fmt: skip
_LABEL = r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_TOP_LABEL = r"[a-zA-Z]{2,24}"
_FEW_LABELS = rf"({_LABEL}\.){{1,3}}{_TOP_LABEL}"
_SHORT_LABEL = r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,22}[a-zA-Z0-9])?"  # so that a host has at most 253
_HOST = rf"({_FEW_LABELS}|({_SHORT_LABEL}\.){{4,8}}{_TOP_LABEL})"
# A name without a dot, such as localhost: it begins like no number, and is no punycode.
_LOCAL_HOST = r"[a-zA-Z][a-zA-Z0-9]{0,30}(-[a-zA-Z0-9]{1,10}){0,3}"
_EMAIL = rf"[a-zA-Z0-9][a-zA-Z0-9_+-]{{0,20}}(\.[a-zA-Z0-9_+-]{{1,20}}){{0,2}}@{_FEW_LABELS}"
_PATH_CHARACTER = r"([a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})"
_URI = (
    rf"https?://({_HOST}|{_LOCAL_HOST}|{_IPV4})(:([1-9][0-9]{{0,3}}|[1-5][0-9]{{4}}))?"
    rf"(/{_PATH_CHARACTER}*)*(\?({_PATH_CHARACTER}|[/?])*)?(#({_PATH_CHARACTER}|[/?])*)?"
)
# Within the characters of a URI; the first part of a path has no colon, as it would be a scheme.
_URI_REFERENCE = (
    rf"({_URI}|/?([a-zA-Z0-9._~-]+/?)*(\?({_PATH_CHARACTER}|[/?])*)?(#({_PATH_CHARACTER}|[/?])*)?)"
)
_URI_TEMPLATE = (
    r"([a-zA-Z0-9._~:/?#@&=-]|\{[+#./;?&]?[a-zA-Z0-9_]{1,20}(,[a-zA-Z0-9_]{1,20})*\*?\})*"
)
_JSON_POINTER = r"(/([^~/\x00-\x1f]|~[01])*)*"
_HEX = "[0-9a-fA-F]"


def _uuid(version: str) -> str:
    """Return the pattern of one version; the format of all versions is any 32 digits."""
    return rf"{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-[89abAB]{_HEX}{{3}}-{_HEX}{{12}}"


# Regular expressions that Python and ECMAScript read alike, with groups in groups.
_ESCAPED = r"\\[dDsSwW.*+?()\[\]{}|^$/\\-]"
_ATOM = (
    rf"([a-zA-Z0-9 _,:;=@#%&/'\"<>!~-]|\.|{_ESCAPED}"
    rf"|\[\^?([a-zA-Z0-9 _,:;=@#%/'\".*+?$()]|{_ESCAPED}|a-z|A-Z|0-9)+\])"
)
_TIMES = r"(([*+?]|\{[0-9]{1,2},?\}|\{[01],[1-9][0-9]?\})\??)?"


def _alternatives(atom: str) -> str:
    """Return the pattern of a regular expression whose parts are given."""
    sequence = rf"({atom}{_TIMES}|[\^$]|\\b)*"
    return rf"{sequence}(\|{sequence})*"


def _grouped(inner: str) -> str:
    return _alternatives(rf"({_ATOM}|\((\?:)?{inner}\))")


_REGEX = _grouped(_grouped(_alternatives(_ATOM)))
_BASE64 = r"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"
_BASE64_URL = r"([A-Za-z0-9_-]{4})*([A-Za-z0-9_-][AQgw]==|[A-Za-z0-9_-]{2}[AEIMQUYcgkosw048]=)?"

_IPV4_INTERFACE = rf"{_IPV4}(/([12]?[0-9]|3[0-2]))?"
_IPV6_INTERFACE = rf"{_IPV6}(/([1-9]?[0-9]|1[01][0-9]|12[0-8]))?"
# Only networks of one address, because the host bits of a network must be 0.
_IPV4_NETWORK = rf"{_IPV4}(/32)?"
_IPV6_NETWORK = rf"{_IPV6}(/128)?"

FORMATS = {
    "date": _DATE,
    "date-time": _DATE_TIME,
    "time": _CLOCK + _ZONE,
    "duration": _DURATION,
    "time-delta": _DURATION,
    "email": _EMAIL,
    "idn-email": _EMAIL,
    "hostname": f"({_HOST}|{_LOCAL_HOST})",
    "idn-hostname": f"({_HOST}|{_LOCAL_HOST})",
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "ipvanyaddress": f"({_IPV4}|{_IPV6})",
    "ipv4network": _IPV4_NETWORK,
    "ipv6network": _IPV6_NETWORK,
    "ipvanynetwork": f"({_IPV4_NETWORK}|{_IPV6_NETWORK})",
    "ipv4interface": _IPV4_INTERFACE,
    "ipv6interface": _IPV6_INTERFACE,
    "ipvanyinterface": f"({_IPV4_INTERFACE}|{_IPV6_INTERFACE})",
    "uri": _URI,
    "iri": _URI,
    "uri-reference": _URI_REFERENCE,
    "iri-reference": _URI_REFERENCE,
    "uri-template": _URI_TEMPLATE,
    "uuid": rf"{_HEX}{{8}}(-{_HEX}{{4}}){{3}}-{_HEX}{{12}}",
    **{f"uuid{version}": _uuid(str(version)) for version in range(1, 9)},
    "base64": _BASE64,
    "base64url": _BASE64_URL,
    "json-pointer": _JSON_POINTER,
    "relative-json-pointer": rf"(0|[1-9][0-9]{{0,3}})(#|{_JSON_POINTER})",
    "regex": _REGEX,
    "fraction": r"-?[0-9]{1,9}(/[1-9][0-9]{0,8})?",
}  # fmt: skip


def pattern_of(name: str) -> str | None:
    """Return the regular expression for a format; None allows any string."""
    held = FORMATS.get(name)
    if name == "zoneinfo":
        held = "|".join(re.escape(zone) for zone in sorted(available_timezones()))
    return None if held is None else f"^({held})$"
