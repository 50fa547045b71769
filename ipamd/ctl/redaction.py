"""Removes secrets from text that leaves the node: by the name in front of them, and by their form.

It rather removes too much: readers of a support bundle can ask again.
"""

from __future__ import annotations

import re

REMOVED = "REMOVED"

_KEY = r"(?:private|api|access|signing)[_-]?key"
_NAME = rf"[\w.-]*(?:secret|token|passw|passphrase|credential|authorization|{_KEY})[\w.-]*"
# A quoted value ends with its quote, any other at the first character that can't be part of it.
_VALUE = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s"',;&{}\[\]]+)"""
_NAMED = re.compile(rf"""(?P<head>["']?\b{_NAME}["']?\s*(?:=|:)\s*)(?P<value>{_VALUE})""", re.IGNORECASE)

_LOOKS = (
    # RFC 7468: armour of keys, and of certificates, which no reader needs here.
    re.compile(r"-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|\Z)", re.DOTALL),
    # RFC 9110, section 11.4: what follows the name of a scheme.
    re.compile(r"(?<=\b[Bb]earer )\S+|(?<=\b[Bb]asic )[A-Za-z0-9+/=_-]{8,}"),
    # RFC 7519: a JSON Web Token, such as those of Kubernetes' service accounts.
    re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"),
    # RFC 3986, section 3.2.1: user and password in a URL.
    re.compile(r"(?<=://)[^/\s@'\"]+(?=@)"),
    # IAM user guide, "IAM identifiers", unique ids: access keys, and their secrets, which are 40 of these characters.
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    re.compile(
        r"(?<![\w/+])(?=[\w/+]{0,39}[a-z])(?=[\w/+]{0,39}[A-Z])(?=[\w/+]{0,39}\d)[A-Za-z0-9/+]{40}(?![\w/+=])"
    ),
)


def redacted(text: str) -> str:
    for looks in _LOOKS:
        text = looks.sub(REMOVED, text)
    return _NAMED.sub(_without_value, text)


def _without_value(match: re.Match[str]) -> str:
    value = match["value"]
    quote = value[0] if value[0] in "\"'" else ""
    return f"{match['head']}{quote}{REMOVED}{quote}"
