"""ipamctl events --record: from events to a trace."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.ctl.record import Recorder
from ipamd.workload import trace
from tests.unit.ctl_daemon import SINCE, attachment, event, ipamctl, serving

BEGAN = float(SINCE.seconds)
ONE, TWO = f"ipamd/{1:064x}/eth0", f"ipamd/{'b' * 64}/eth0"


def granted(number: int, container: str, **more: object) -> pb.Event:
    return event(number, "attachment.granted", network="ipamd", container=container[:12], ifname="eth0", **more)


def lines(*found: list[trace.TraceEvent]) -> list[tuple[float, str, str]]:
    every = [each for some in found for each in some]
    assert list(trace.checked([each.line() for each in every], "test")) == every, "a trace"
    return [(each.t, each.event, each.id[6:7] + each.pod) for each in every]


def test_what_is_there_comes_first_and_then_what_happens() -> None:
    recorder = Recorder(BEGAN)
    assert lines(
        recorder.present([attachment(1)], BEGAN),
        recorder.happened(granted(10, "b" * 64, pod="shop/web-0", waited_ms=4125)),
        recorder.happened(granted(11, "b" * 64, pod="shop/web-0")),
        recorder.happened(event(12, "attachment.released", key=TWO)),
        recorder.happened(event(13, "attachment.released", key=TWO)),
        recorder.happened(event(14, "attachment.collected", key=ONE)),
        recorder.happened(event(15, "pool.restored")),
    ) == [(0, "add", "0shop/web-1"), (6, "add", "bshop/web-0"), (12.125, "del", "b"), (14.125, "del", "0")]
    assert (recorder.adds, recorder.dels) == (2, 2)


def test_trace_records_refusals_retries_and_timeouts_in_order() -> None:
    recorder = Recorder(BEGAN)
    refused = event(30, "attachment.refused", network="ipamd", container="c" * 12, ifname="eth0", waited_ms=30_000)
    assert lines(recorder.happened(granted(20, "b" * 64)), recorder.happened(refused)) == [
        (20.125, "add", "b"),
        (20.125, "add", "c"),
        (30.125, "del", "c"),
    ]


def test_trace_leaves_out_the_past_and_fills_gaps() -> None:
    recorder, other = Recorder(BEGAN + 10), attachment(2)
    other.container_id = "b" * 64
    assert recorder.happened(granted(5, "b" * 64)) == []
    assert lines(recorder.present([attachment(1)], BEGAN + 10), recorder.present([other], BEGAN + 15)) == [
        (0, "add", "0shop/web-1"),
        (5, "del", "0"),
        (5, "add", "bshop/web-2"),
    ]
    assert recorder.present([other], BEGAN + 16) == []


@pytest.mark.parametrize("name", ["day.jsonl", "day.jsonl.gz"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_writes_a_whole_trace(tmp_path: Path, name: str, number: signal.Signals) -> None:
    file = tmp_path / name
    with serving(tmp_path / "s") as daemon:
        daemon.events = [event(1, "daemon.ready")]
        command = [
            sys.executable,
            "-m",
            "ipamd.ctl",
            "events",
            "--record",
            str(file),
            "--socket",
            str(tmp_path / "s"),
        ]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            soon = granted(2, "b" * 64, pod="shop/web-9")
            soon.at.CopyFrom(Timestamp(seconds=int(time.time()) + 5))
            daemon.coming.put(soon)
            daemon.attachments.pop()
            daemon.coming.put(None)
            assert "has gone" in process.stderr.readline()
            process.send_signal(number)
            try:
                assert process.wait(20) == 0
            finally:
                process.kill()  # it may ignore the signal
            assert process.stderr.read().startswith(f"{file}: 2 adds and 0 dels in ")
    assert [(each.event, each.pod) for each in trace.read(file)] == [("add", "shop/web-1"), ("add", "shop/web-9")]


def test_without_a_daemon_no_file_is_made(tmp_path: Path) -> None:
    assert ipamctl("events", "--record", tmp_path / "f", "--socket", tmp_path / "none").returncode == 1
    assert not (tmp_path / "f").exists()
    with serving(tmp_path / "s"):
        done = ipamctl("events", "--record", tmp_path / "no" / "f", "--socket", tmp_path / "s")
        assert done.returncode == 1 and "No such file or directory" in done.stderr
