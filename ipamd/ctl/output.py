"""Prints a command's answer: aligned columns, readable over any ssh session and easy to cut with awk, or data for
programs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ipamd.cli import streams
from ipamd.ctl.command import USAGE, Failed

FORMATS = ("table", "json", "yaml", "name")


@dataclass(frozen=True, slots=True)
class Answer:
    """`data` for JSON and YAML; `rows` under `columns` for people, with `lines` above them; `names`, one for each
    thing listed, for `-o name`, and None where nothing is listed."""

    data: Any
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    lines: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None


def show(answer: Answer, output: str) -> None:
    """`output` is one of `FORMATS`. A closed pipe is no error: the exit code is an answer, too. Raises `Failed`."""
    try:
        _print(answer, output)
    except BrokenPipeError:
        streams.discard_output()


def _print(answer: Answer, output: str) -> None:
    if output == "json":
        print(json.dumps(answer.data, indent=2))
    elif output == "yaml":
        import yaml

        print(yaml.safe_dump(answer.data, sort_keys=False, allow_unicode=False), end="")
    elif output == "name":
        if answer.names is None:
            raise Failed("-o name goes with a command that lists something: table, json or yaml", USAGE)
        print("".join(f"{printable(name)}\n" for name in answer.names), end="")
    else:
        print(render(answer))


def render(answer: Answer) -> str:
    lines = list(answer.lines)
    if answer.rows:
        lines += aligned([tuple(column.upper() for column in answer.columns), *answer.rows])
    elif answer.columns:
        lines.append("none")
    return "\n".join(lines)


def aligned(table: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines with at least two spaces between columns."""
    cleaned = [tuple(map(printable, row)) for row in table]
    widths = [max(map(len, cells)) for cells in zip(*cleaned, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cleaned]


def printable(text: str) -> str:
    """Removes characters that could move the cursor or set a colour: names and messages come from others."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
