"""The log never stands in the way of the work."""

from __future__ import annotations

import io
import json
import sys

import pytest
import structlog

from ipamd import logs
from ipamd.settings import LogSettings


@pytest.fixture(autouse=True)
def restore() -> object:
    yield
    structlog.reset_defaults()


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        raise OSError(28, "No space left on device")


def test_a_line_that_can_not_be_written_is_lost_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", FullDisk())
    logs.set_up(LogSettings(format="json"))
    structlog.get_logger("t").error("ledger.unwritable", error="full")


def test_each_event_is_one_line_of_json(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.set_up(LogSettings(format="json", level="warning"))
    log = structlog.get_logger("t")
    log.info("unseen")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("seen", ip="10.0.0.1")
    (line,) = stream.getvalue().splitlines()
    event = json.loads(line)
    assert (event["event"], event["level"], event["ip"]) == ("seen", "error", "10.0.0.1")
    assert "two" in event["exception"] and event["timestamp"].endswith("Z")
