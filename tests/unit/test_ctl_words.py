"""Names and messages of others reach a terminal in no format as something that it obeys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.ctl_daemon import Daemon, attachment, event, ipamctl, pb

EVIL = "web\x1b[31m\u202e\x07\r\n\u200b\x9b2J"
COMMANDS = [
    ("pods",),
    ("waiting",),
    ("events",),
    ("explain", "pool"),
    ("status",),
    ("audit",),
    ("enis",),
    ("config",),
    ("release", "10.0.0.1"),
]


@pytest.mark.parametrize("output", ["table", "json", "yaml", "name"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_output_has_only_what_prints(at: Path, daemon: Daemon, command: tuple[str, ...], output: str) -> None:
    evil = attachment(1, netns=f"/run/netns/{EVIL}")
    evil.pod_name = evil.pod_namespace = EVIL
    daemon.attachments = [evil]
    daemon.waiting = [pb.Waiting(container_id="c" * 64, pod_name=EVIL, pod_namespace=EVIL, since=evil.since)]
    daemon.events = [event(1, "attachment.refused", "warning", pod=EVIL, message=EVIL)]
    daemon.explanation = pb.Explanation(state="waiting", headline=EVIL, because=[EVIL], next=[EVIL], advice=[EVIL])
    daemon.node.not_ready_reason, daemon.node.ready = EVIL, False
    daemon.node.host.error = EVIL
    daemon.node.troubles.extend(daemon.events)
    daemon.node.conditions.add(name="metrics.not_served", text=EVIL, since=evil.since)
    daemon.audit.mismatches.add(kind="route_missing", subject=EVIL, meaning=EVIL, remedy=EVIL, ec2=EVIL, kernel=EVIL)
    done = ipamctl("--socket", at, "-o", output, *command)
    assert "Traceback" not in done.stderr
    for text in (done.stdout, done.stderr):
        assert text.replace("\n", "").isprintable(), text


def test_a_word_that_is_not_utf8_is_a_wrong_command_line(at: Path, daemon: Daemon) -> None:
    done = ipamctl("--socket", at, "explain", os.fsdecode(b"web-\xff"))
    assert (done.returncode, done.stdout) == (2, "") and "not UTF-8" in done.stderr
    assert daemon.requests == []
