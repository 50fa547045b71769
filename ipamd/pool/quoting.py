"""Words of others, as they are repeated: in events, errors, records and answers.

Their senders choose how long they are and what is in them. So they are cut where they come in, and what could
move a cursor, set a colour or turn the direction of writing is escaped before people see it.
"""

from __future__ import annotations

# Characters of one text. EC2's longest sentences have 300.
LONGEST = 1024


def cut(text: str, longest: int = LONGEST) -> str:
    """Fit for a message: a name of a file need not be UTF-8, and Python then holds what no encoder takes."""
    if len(text) > longest:
        text = f"{text[:longest]}... ({len(text)} characters)"
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def quoted(value: object) -> str:
    """A value that was not expected, for a message."""
    match value:
        case str():
            return repr(value) if len(value) <= 200 else f"{value[:200]!r}... ({len(value)} characters)"
        case list() if len(value) <= 4 and not any(isinstance(item, list | dict) for item in value):
            return f"[{', '.join(map(quoted, value))}]"
        case list():
            return f"a list of {len(value)}"
        case dict():
            return f"an object with {len(value)} keys"
        case _:
            return cut(repr(value), 200)


def shown(text: str) -> str:
    """What does not print is escaped, as \\x1b; letters of any language stay."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def in_ascii(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if " " <= c <= "~" else _escape(c) for c in text)


def _escape(character: str) -> str:
    return ascii(character)[1:-1]
