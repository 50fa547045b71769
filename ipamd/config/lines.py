"""Finds the line of a key in a TOML text, for error messages.

`tomllib` tells no positions. But a text that ends after a whole statement is a whole document, so the first such part
of it that has the key ends with the key's statement, however that is written: below a header, with a dotted key, as
an inline table, over several lines. It is read again and again, so this is for a file with a mistake in it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

# Longer files are not searched: the time grows with the square of the lines, and 2000 take about a second.
MOST_LINES = 2000


def line_of(text: str, path: tuple[str, ...]) -> int:
    """The number of the line on which the statement begins that has the key of this path; 0: not found."""
    lines = text.splitlines()
    if len(lines) > MOST_LINES:
        return 0
    begun = 0
    for end in range(1, len(lines) + 1):
        try:
            document = tomllib.loads("\n".join(lines[:end]) + "\n")
        except tomllib.TOMLDecodeError:
            continue  # in the middle of a statement
        if _has(document, path):
            statement = (number for number in range(begun, end) if lines[number].strip()[:1] not in ("", "#"))
            return next(statement, end - 1) + 1
        begun = end
    return 0


def _has(document: Any, path: tuple[str, ...]) -> bool:
    for key in path:
        if not isinstance(document, Mapping) or key not in document:
            return False
        document = document[key]
    return True
