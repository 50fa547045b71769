"""What `ipamctl status` ends with, and how long it waits."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.ctl import times
from tests.unit.ctl_daemon import SINCE, Daemon, answer, event, ill, ipamctl, serving, well


def conditions() -> pb.Node:
    node = well()
    node.conditions.add(name="metrics.not_served", text="Metrics are not served.", since=SINCE)
    return node


@pytest.mark.parametrize(("node", "code"), [(well(), 0), (ill(), 3), (conditions(), 3)], ids=["well", "ill", "odd"])
@pytest.mark.parametrize("output", ["table", "json", "yaml"])
def test_status_ends_with_0_only_if_nothing_needs_attention(
    at: Path, daemon: Daemon, node: pb.Node, code: int, output: str
) -> None:
    daemon.node = node
    done = ipamctl("status", "--socket", at, "-o", output)
    assert (done.returncode, done.stderr) == (code, "")


def test_status_without_a_daemon_is_1(tmp_path: Path) -> None:
    assert ipamctl("status", "--socket", tmp_path / "none").returncode == 1


def test_what_lasts_is_said_once(at: Path, daemon: Daemon) -> None:
    full = "ledger /run/ipamd/ledger.db: database or disk is full; free space on that file system"
    refused = f"the grant can't be recorded: {full}"
    daemon.node.would_refuse = f"LEDGER_UNWRITABLE: {refused}"
    daemon.node.troubles.append(event(1, "ledger.unwritable", "error", error=full))
    daemon.node.troubles.append(event(2, "attachment.refused", "warning", message=refused, pod="shop/web-0"))
    daemon.node.troubles.append(event(3, "ec2.throttled", "warning", action="AssignPrivateIpAddresses"))
    shown = " ".join(ipamctl("status", "--socket", at).stdout.split())
    assert shown.count("database or disk is full") == 1 and "ec2.throttled" in shown
    assert len(answer(at, "status", code=3)["troubles"]) == 3  # programs get all


def test_wait_answers_at_once_on_a_ready_node(at: Path, daemon: Daemon) -> None:
    done = ipamctl("status", "--wait", "--socket", at)
    assert done.returncode == 0 and "Nothing needs attention." in done.stdout


def test_wait_gives_up_with_the_last_obstacle(at: Path, daemon: Daemon) -> None:
    daemon.node = ill()
    done = ipamctl("status", "--wait", "0.2s", "--socket", at)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == ("ipamctl: not ready after 0s: NOT_AUTHORIZED: no\n")


def test_wait_outlasts_a_daemon_that_is_not_there_yet(at: Path) -> None:
    def begin() -> None:
        deadline = time.monotonic() + 60
        while not waiting.is_set() and time.monotonic() < deadline:
            time.sleep(0.05)
        with serving(at) as daemon:
            daemon.node = well()
            done.wait(60)

    waiting, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=begin)
    thread.start()
    try:
        assert ipamctl("status", "--wait", "0", "--socket", at).returncode == 1
        waiting.set()
        ended = ipamctl("status", "--wait", "1m", "--socket", at)
    finally:
        waiting.set()
        done.set()
        thread.join()
    assert (ended.returncode, ended.stderr) == (0, "")


def test_wait_does_not_outlast_what_time_cannot_mend(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = ipamctl("status", "--wait", "1h", "--socket", tmp_path / "file")
    assert done.returncode == 1 and "is no socket" in done.stderr


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("5m", 300), ("1.5h", 5400), ("2d", 172800), ("0", 0)]
)
def test_a_duration_has_a_unit_or_is_in_seconds(text: str, seconds: float) -> None:
    assert times.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "5x", "-1", "nan", "inf", "1e400", "5 m m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        times.duration(text)
    assert ipamctl("status", f"--wait={text}").returncode == 2
