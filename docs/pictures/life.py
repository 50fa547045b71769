"""Draws the picture and the tables of docs/life.md from ipamd/pool/life: `python docs/pictures/life.py`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import get_args

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from ipamd.pool import effects as do  # noqa: E402
from ipamd.pool.life.failed import FAILED, Failed  # noqa: E402
from ipamd.pool.life.seen import SEEN, Seen, Sighting  # noqa: E402
from ipamd.pool.life.states import TRANSITIONS, Life  # noqa: E402
from ipamd.pool.model import CloudErrorKind  # noqa: E402

PAGE = HERE.parent / "life.md"


def picture() -> str:
    lines = ["```mermaid", "stateDiagram-v2"]
    for (before, after), cause in TRANSITIONS.items():
        start = "[*]" if before is None else before.__name__
        lines.append(f"    {start} --> {after.__name__}: {cause}")
    return "\n".join([*lines, "```"])


def states() -> str:
    kinds: tuple[type[Life], ...] = get_args(Life)
    rows = [(f"`{kind.__name__}`", kind.state.value, " ".join((kind.__doc__ or "").split())) for kind in kinds]
    return table(("state", "shown as", "meaning"), rows)


def sightings() -> str:
    kinds = list(dict.fromkeys(state for state, _ in SEEN))
    rows = [(kind.__name__, *(word(SEEN[kind, sighting]) for sighting in Sighting)) for kind in kinds]
    return table(("", *map(word, Sighting)), rows)


def failures() -> str:
    calls: tuple[type[do.EniOperation], ...] = get_args(do.EniOperation)
    rows = [(kind.value, *(word(FAILED[call, kind]) for call in calls)) for kind in CloudErrorKind]
    return table(("", *(call.__name__ for call in calls)), rows)


def meanings(kind: type[Enum]) -> str:
    return table(("", "meaning"), [(word(member), member.value) for member in kind])


def word(member: Enum) -> str:
    return member.name.lower().replace("_", " ")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = tuple(head)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def drawn(page: str) -> str:
    """The page with each part between its marks drawn anew."""
    parts: Mapping[str, str] = {
        "transitions": picture(),
        "states": states(),
        "sightings": meanings(Sighting),
        "seen": sightings(),
        "verdicts of readings": meanings(Seen),
        "failed": failures(),
        "verdicts of failures": meanings(Failed),
    }
    for name, text in parts.items():
        marks = f"(<!-- {name} -->\n).*?(<!-- end -->)"
        page, found = re.subn(marks, lambda match, text=text: f"{match[1]}{text}\n{match[2]}", page, flags=re.S)
        if found != 1:
            raise ValueError(f"{PAGE.name} has {found} places for: {name}")
    return page


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text()))
