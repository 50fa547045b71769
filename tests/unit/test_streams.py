"""A command whose output can't be written ends in one line, and no file gets the number of a closed stream."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ipamd.api.v1 import introspection_pb2 as pb
from tests.unit.ctl_daemon import Daemon, attachment, event

COMMANDS = (
    ("ipamd.ctl", "pods"),
    ("ipamd.ctl", "pods", "-o", "json"),
    ("ipamd.ctl", "status"),
    ("ipamd.ctl", "--help"),
    ("ipamd.ctl", "--version"),
    ("ipamd.ctl", "events"),
    ("ipamd.ctl", "capacity", "m5.large"),
    ("ipamd", "--help"),
    ("ipamd", "config", "check"),
    ("ipamd", "config", "example"),
)


def shell(script: str, at: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`script` has "$@" in the place of the command."""
    command = ["/bin/sh", "-c", script, "sh", sys.executable, "-m", *words]
    environment = {**os.environ, "IPAMD_API_SOCKET": str(at)}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, env=environment
    )


@pytest.fixture(autouse=True)
def _something_to_print(daemon: Daemon) -> None:
    daemon.events = [event(1, "daemon.ready")]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("redirection", "reason"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_output_to_nowhere_is_one_line(
    words: tuple[str, ...], redirection: str, reason: str, at: Path, daemon: Daemon
) -> None:
    done = shell(f'"$@" {redirection}', at, *words)
    assert done.stderr == f"{words[0].replace('ipamd.ctl', 'ipamctl')}: standard output: {reason}\n"
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_closed_input_and_errors_do_no_harm(words: tuple[str, ...], at: Path, daemon: Daemon) -> None:
    done = shell('"$@" <&- 2>&-', at, *words)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout


def test_a_reader_that_has_seen_enough_is_no_error(at: Path, daemon: Daemon) -> None:
    daemon.attachments = [attachment(n) for n in range(3000)]
    done = shell('{ "$@"; echo "ended with $?" >&2; } | head -n 2', at, "ipamd.ctl", "pods")
    assert (len(done.stdout.splitlines()), done.stderr) == (2, "ended with 0\n")


@pytest.mark.parametrize("number", [1, 3000])
def test_a_reader_that_has_gone_leaves_the_exit_code(at: Path, daemon: Daemon, number: int) -> None:
    """`doctor | true` and `status | head` say by it whether all is well, however much there is to print."""
    daemon.node.conditions.extend([pb.Condition(name="x", text="something is wrong")] * number)
    done = shell('{ "$@"; echo "ended with $?" >&2; } | true', at, "ipamd.ctl", "status")
    assert (done.stdout, done.stderr) == ("", "ended with 3\n")


def test_closed_streams_error_does_not_reach_a_reused_descriptor(at: Path) -> None:
    done = shell('"$@" 2>&-', at.with_name("none"), "ipamd.ctl", "pods")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
