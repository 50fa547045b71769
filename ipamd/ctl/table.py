"""Plain aligned columns: readable over any ssh session, easy to cut with awk."""

from __future__ import annotations

from ipamd.ctl.views import Answer


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
