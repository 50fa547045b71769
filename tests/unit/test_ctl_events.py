"""ipamctl events: lines, JSON lines, gaps, and a daemon that goes and comes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ipamd.ctl.event import line
from ipamd.ctl.following import Numbers
from tests.unit.ctl_daemon import event, ipamctl, serving


@pytest.fixture
def at(tmp_path: Path) -> Path:
    return tmp_path / "s"


@contextmanager
def following(at: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "ipamd.ctl", "events", "-f", "--socket", str(at), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def read(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def test_an_event_is_a_line_that_can_be_read_and_cut() -> None:
    shown = line(event(3, "attachment.granted", ip="10.0.0.9", pod="shop/web-0", waited_ms=3, odd="a b", empty=""))
    assert shown == (
        "2027-01-15T08:00:03.125Z info    attachment.granted       "
        'pod=shop/web-0 ip=10.0.0.9 empty="" odd="a b" waited_ms=3'
    )
    assert not any(c < " " for c in line(event(1, "a.b", pod="\x1b[2J\n")))


@pytest.mark.parametrize(
    ("numbers", "lost"), [((5, 6, 7), [0, 0, 0]), ((5, 8, 9), [0, 2, 0]), ((8, 9, 1, 2, 5), [0, 0, 0, 0, 2])]
)
def test_a_gap_is_counted_and_a_new_daemon_is_none(numbers: tuple[int, ...], lost: list[int]) -> None:
    counted = Numbers()
    assert [counted.lost_before(number) for number in numbers] == lost


def test_the_kept_ones_are_shown_and_that_is_all(at: Path) -> None:
    with serving(at) as daemon:
        daemon.events = [event(n, "a.b", x=n) for n in (1, 2, 4)]
        done = ipamctl("events", "-n", "2", "-o", "json", "--socket", at)
        assert [json.loads(text)["fields"] for text in done.stdout.splitlines()] == [{"x": 2}, {"x": 4}]
        assert (done.returncode, done.stderr) == (0, "ipamctl: 1 events lost: they came faster than they were read\n")
        assert ipamctl("events", "--level", "error", "--socket", at).stderr == ""
        assert daemon.requests[-1].level == "error"
        assert ipamctl("events", "-o", "yaml", "--socket", at).returncode == 2
        assert ipamctl("events", "-n", "-1", "--socket", at).returncode == 2


def test_following_survives_the_daemon_and_ends_well_with_ctrl_c(at: Path) -> None:
    with serving(at) as daemon:
        daemon.events = [event(1, "daemon.ready")]
        with following(at) as process:
            assert "daemon.ready" in read(process)
            daemon.coming.put(event(2, "attachment.granted"))
            assert "attachment.granted" in read(process)
            daemon.coming.put(None)
            assert process.stderr is not None and "has gone" in process.stderr.readline()
            # The fake one answers the next call as its successor would, from its own first event on.
            assert "daemon.ready" in read(process)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0 and process.stderr.read() == ""


def test_following_without_a_daemon_says_so_at_once(at: Path) -> None:
    done = ipamctl("events", "-f", "--socket", at)
    assert done.returncode == 1 and "no such socket" in done.stderr
