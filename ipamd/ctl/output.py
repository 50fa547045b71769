"""What a command prints: plain aligned columns, readable over any ssh session and easy to cut with awk, or JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Answer:
    """`data` for JSON; `rows` under `columns` for people, with `lines` above them."""

    data: Any
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    lines: tuple[str, ...] = ()


def show(answer: Answer, output: str) -> None:
    """`output` as on the command line: table or json."""
    print(json.dumps(answer.data, indent=2) if output == "json" else render(answer))


def render(answer: Answer) -> str:
    lines = list(answer.lines)
    if answer.rows:
        table = [tuple(column.upper() for column in answer.columns), *answer.rows]
        widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
        for row in table:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append("  ".join(cells).rstrip())
    elif answer.columns:
        lines.append("none")
    return "\n".join(lines)
