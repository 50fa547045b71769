"""What the e2e program writes of its specs: one JUnit file for all its processes."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

_SPEC: Final = "[It] "  # what the name of a spec begins with; set-up and reports are cases as well
_FILTERED: Final = "skipped"  # the message of a spec that was never selected
_WHY: Final = "skipped - "  # what the message begins with where a spec skipped itself
_MESSAGE: Final = 300  # characters: a failure's message can hold a whole log


class Status(Enum):
    PASSED = "passed"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Result:
    """`seconds` includes the namespace's making and removal; `message` is one line, empty for one that passed."""

    name: str
    status: Status
    seconds: float
    message: str = ""


class NoReport(Exception):
    """The program has left no report, or none that can be read; the message says which."""


def read(file: Path) -> list[Result]:
    """The specs that ran, with those that skipped themselves. Raises `NoReport`."""
    try:
        root = ElementTree.parse(file).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise NoReport(f"no report of the specs in {file}: {error}") from error
    return list(_results(root))


def _results(root: ElementTree.Element) -> Iterator[Result]:
    for case in root.iter("testcase"):
        name = case.get("name", "")
        if not name.startswith(_SPEC):
            # What fails beside the specs, such as the wait for the nodes before the first, fails the whole run.
            if _status(case) is Status.FAILED:
                yield Result(name, Status.FAILED, _seconds(case), _message(case))
            continue
        status, message = _status(case), _message(case)
        if status is Status.SKIPPED and message in ("", _FILTERED):
            continue
        yield Result(name.removeprefix(_SPEC).rstrip(), status, _seconds(case), message)


def _status(case: ElementTree.Element) -> Status:
    """Ginkgo has more: what panicked, was interrupted or took too long has failed; "pending" is never selected."""
    match case.get("status"):
        case "passed":
            return Status.PASSED
        case "skipped" | "pending":
            return Status.SKIPPED
        case _:
            return Status.FAILED


def _seconds(case: ElementTree.Element) -> float:
    return float(case.get("time", "0"))


def _message(case: ElementTree.Element) -> str:
    """The program says why a spec failed in the element's text alone, and why it was skipped in the attribute."""
    for kind in ("failure", "error", "skipped"):
        if (found := case.find(kind)) is not None:
            words = (found.get("message") or found.text or "").split()
            return " ".join(words).removeprefix("[FAILED] ").removeprefix(_WHY)[:_MESSAGE]
    return ""
