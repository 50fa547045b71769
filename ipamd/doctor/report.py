"""What a check says: four states, and for all but the first what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """`note`: worth knowing, and nothing has to be done. `warn`: will hurt some day or some traffic. `fail`: pods
    won't work, or stop working with the next restart of something."""

    OK = "ok"
    NOTE = "note"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """`remedy` names the file and the lines to write, or the command; empty if there is nothing to do."""

    check: str
    state: State
    found: str
    remedy: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check, State.OK, found)


def note(check: str, found: str, remedy: str = "") -> Finding:
    return Finding(check, State.NOTE, found, remedy)


def warn(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, State.WARN, found, remedy)


def fail(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, State.FAIL, found, remedy)


def exit_code(findings: Iterable[Finding]) -> int:
    """0: nothing to do; 1: something fails; 3: nothing fails, something warns. (2 is a wrong command line.)"""
    states = {finding.state for finding in findings}
    if State.FAIL in states:
        return 1
    return 3 if State.WARN in states else 0
