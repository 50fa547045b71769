"""The log never stands in the way of the work."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import time

import pytest
import structlog
from google.protobuf.struct_pb2 import Struct

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.settings import LogSettings
from ipamd.telemetry import logs
from ipamd.telemetry.conditions import Conditions
from ipamd.telemetry.history import History


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
    writer = logs.set_up(LogSettings(format="json"), History())
    structlog.get_logger("t").error("ledger.unwritable", error="full")
    writer.close()
    assert not writer._thread.is_alive()


def test_each_event_is_one_line_of_json(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    writer = logs.set_up(LogSettings(format="json", level="warning"), History())
    log = structlog.get_logger("t")
    log.info("unseen")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("seen", ip="10.0.0.1")
    writer.close()
    (line,) = stream.getvalue().splitlines()
    event = json.loads(line)
    assert (event["event"], event["level"], event["ip"]) == ("seen", "error", "10.0.0.1")
    assert "two" in event["exception"] and event["timestamp"].endswith("Z")


class Stuck(io.StringIO):
    """A journald that was stopped: a write comes back only when `goes_on` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()

    def write(self, text: str) -> int:
        self.goes_on.wait()
        return super().write(text)


def test_stuck_log_reader_blocks_nobody_and_losses_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "LINES_WAITING", 5)
    stream = Stuck()
    monkeypatch.setattr(sys, "stderr", stream)
    writer = logs.set_up(LogSettings(format="json"), history := History())
    log = structlog.get_logger("t")
    for number in range(20):
        log.info("busy", number=number)  # would hang here
    assert [event.fields["number"] for event in history.last(100)] == list(range(20))
    stream.goes_on.set()
    while "log.lost" not in stream.getvalue():
        time.sleep(0.001)
    log.info("after")
    writer.close()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    busy = [line["number"] for line in lines if line["event"] == "busy"]
    assert busy == list(range(len(busy))) and len(busy) in (5, 6)  # one may have been in the writer's hand
    assert [line["event"] for line in lines[len(busy) :]] == ["log.lost", "after"]
    assert lines[-2]["lines"] == 20 - len(busy)


def test_history_keeps_log_levels_without_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    writer = logs.set_up(LogSettings(format="json", level="error"), history := History())
    log = structlog.get_logger("t")
    log.debug("detail")
    log.info("pod.came", ip="10.0.0.1")
    log.error("pod.lost")
    writer.close()
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["pod.lost"]
    assert [(e.number, e.level, e.name, e.fields) for e in history.last(9)] == [
        (1, "info", "pod.came", {"ip": "10.0.0.1"}),
        (2, "error", "pod.lost", {}),
    ]
    assert [event.name for event in history.last(9, "warning")] == ["pod.lost"]


def test_what_others_chose_is_short_in_the_log_and_in_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    history = History()
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    writer = logs.set_up(LogSettings(format="json"), history)
    huge = "x" * (3 << 20)
    nested: list[object] = [huge]
    for _ in range(100):
        nested = [nested]
    log = structlog.get_logger("t")
    log.warning("t.words", a=huge, b=[huge] * 1000, c={huge: {str(n): n for n in range(1000)}}, d=nested, e=3)
    try:
        raise ValueError(huge)
    except ValueError:
        log.exception("t.fault")
    writer.close()
    for line in stream.getvalue().splitlines():
        assert len(line) < 100_000
    words, fault = history.last(2)
    assert words.fields["a"] == "x" * 1024 + "... (3145728 characters)" and words.fields["e"] == 3
    assert len(repr(words.fields)) < 100_000
    assert len(fault.fields["exception"]) < 10_000


def test_a_terminal_gets_nothing_that_it_obeys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    writer = logs.set_up(LogSettings(format="text"), History())
    structlog.get_logger("t").warning("t.words", pod="shop/\x1b[2J\u202eweb\r\n", error=["\x07"])
    writer.close()
    text = stream.getvalue()
    assert "\\x1b[2J\\u202eweb\\r\\n" in text
    assert text.rstrip("\n").isprintable()


def test_a_name_that_is_not_utf8_can_be_sent_to_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    history, conditions = History(), Conditions()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    # A logger keeps the settings of its first use: this one goes with the test.
    monkeypatch.setattr("ipamd.telemetry.conditions.log", structlog.get_logger("ipamd.conditions"))
    writer = logs.set_up(LogSettings(format="text"), history)
    name = os.fsdecode(b"/run/ipamd/released/\xff\xc3\xb6")
    structlog.get_logger("t").error("spool.rejected", file=name)
    conditions.begin("metrics.not_served", name)
    writer.close()
    fields = Struct()
    fields.update({"file": history.last(2)[0].fields["file"]})
    assert fields["file"] == "/run/ipamd/released/\\udcff\u00f6"
    assert "udcff" in pb.Condition(text=conditions.active()[0].text).text
