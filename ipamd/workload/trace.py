"""A trace: when the pods of a node came and went, for `ipamd simulate policy` to play again.

A file of JSON lines, in the order of time, gzipped where its name ends in .gz:

    {"t": 0.0, "event": "add", "id": "ipamd/4f1c/eth0", "pod": "shop/web-0"}
    {"t": 81.25, "event": "del", "id": "ipamd/4f1c/eth0"}

    t       seconds since the recording began, 0 or more
    event   "add": the pod asks for an address; "del": it gives the address back, or no longer wants one
    id      any text; it names the same attachment in both lines, and may come back once it was deleted
    pod     its name, if known: for people

What was there when the recording began is added at 0. What is there at its end has no "del". Other keys are ignored.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

Kind = Literal["add", "del"]

_END_OF_TIME = 1e8  # three years: what is more is a date


class TraceError(Exception):
    """The file is no trace; the message names the file, the line and what is wrong."""


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """One line; `t` is in seconds since the recording began."""

    t: float
    event: Kind
    id: str
    pod: str = ""

    def line(self) -> str:
        """With its line feed. Milliseconds are enough."""
        values: dict[str, Any] = {"t": round(self.t, 3), "event": self.event, "id": self.id}
        if self.pod:
            values["pod"] = self.pod
        return json.dumps(values, ensure_ascii=False) + "\n"


@contextmanager
def writing(path: Path) -> Iterator[Callable[[TraceEvent], None]]:
    """A new file, or one that takes the old one's place; what it yields writes one event. Lines reach a plain file
    at once, so that it can be watched; a gzipped one is whole only after the end. Raises OSError."""
    with _open(path, "wt") as file:

        def write(event: TraceEvent) -> None:
            file.write(event.line())
            if path.suffix != ".gz":
                file.flush()

        yield write


def read(path: Path) -> list[TraceEvent]:
    """All of it. Raises `TraceError` for a file that can't be read or is no trace."""
    try:
        with _open(path, "rt") as file:
            return list(checked(file, str(path)))
    except UnicodeDecodeError:
        raise TraceError(f"{path}: not text; is it gzipped? Then its name has to end in .gz") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise TraceError(f"{path}: not whole, or not gzipped: {error}") from None
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}") from None


def checked(lines: Iterable[str], name: str) -> Iterator[TraceEvent]:
    """The events in these lines; empty lines are left out. Raises `TraceError`, which calls the source `name`."""
    present: set[str] = set()
    last = 0.0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = _parse(line)
            if event.t < last:
                raise ValueError(f"t {event.t:g} is before {last:g}, the line above: sort the lines by t")
            if event.event == "add":
                if event.id in present:
                    raise ValueError(f"add of {event.id!r}, which is there already")
                present.add(event.id)
            elif event.id in present:
                present.remove(event.id)
            else:
                raise ValueError(f"del of {event.id!r}, which was never added, or is deleted already")
        except ValueError as error:
            raise TraceError(f"{name}:{number}: {error}") from None
        last = event.t
        yield event


def _parse(line: str) -> TraceEvent:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not JSON that anybody wrote: nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError('expected an object, for instance {"t": 0.5, "event": "add", "id": "a"}')
    t, kind, id, pod = (values.get(name) for name in ("t", "event", "id", "pod"))
    if isinstance(t, bool) or not isinstance(t, int | float) or not 0 <= t < _END_OF_TIME:
        raise ValueError(f'"t" must be the seconds since the beginning, 0 to 1e8, not {json.dumps(t)}')
    if kind not in ("add", "del"):
        raise ValueError(f'"event" must be "add" or "del", not {json.dumps(kind)}')
    if not isinstance(id, str) or not id:
        raise ValueError(f'"id" must be text that is not empty, not {json.dumps(id)}')
    if not isinstance(pod, str | None):
        raise ValueError(f'"pod" must be text, not {json.dumps(pod)}')
    return TraceEvent(float(t), kind, id, pod or "")


def _open(path: Path, mode: Literal["rt", "wt"]) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, mode, encoding="utf-8")
    return path.open(mode, encoding="utf-8")
