"""docs/events.md has every event that the code can write, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from ipamd.telemetry.conditions import KINDS

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("debug", "info", "warning", "error", "exception")


def names_in(source: str) -> Iterator[str]:
    """What is written by `log.LEVEL(NAME, ...)`, `self._note(NAME, ...)`, or `_note(effects, NAME, ...)`."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        match call:
            case ast.Call(func=ast.Attribute(attr=method, value=value), args=[name, *_]) if (
                method in METHODS and ast.unparse(value).split("(")[0].split(".")[-1] in ("log", "get_logger")
            ) or method == "_note":
                yield from literals(name)
            case ast.Call(func=ast.Name(id="_note"), args=[_, name, *_]):
                yield from literals(name)


def literals(name: ast.expr) -> Iterator[str]:
    match name:
        case ast.Constant(value=str(text)):
            yield text
        case ast.IfExp(body=one, orelse=other):
            yield from literals(one)
            yield from literals(other)
        case ast.Name(id="event"):
            pass  # passed on
        case _:
            yield ast.unparse(name)


def test_the_page_has_them_all() -> None:
    files = [
        file
        for file in (ROOT / "ipamd").rglob("*.py")
        if not {"sim", "v1"} & set(file.relative_to(ROOT / "ipamd").parts)
    ]
    written = {name for file in files for name in names_in(file.read_text())}
    # The one name that is put together: ipamd/process/start.py asks both until they answer.
    written.remove("f'{who}.unavailable'")
    written |= {"ec2.unavailable", "imds.unavailable"}
    written |= {*KINDS, "condition.ended"}
    page = (ROOT / "docs" / "events.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert written == listed, (sorted(written - listed), sorted(listed - written))


def test_each_condition_has_a_row_in_their_order() -> None:
    section = (ROOT / "docs" / "events.md").read_text().partition("## Conditions")[2]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{name}` | {kind.level} | {kind.meaning} |" for name, kind in KINDS.items()]
