"""ipamctl release, collect, drain and undrain: what is chosen, what is asked, what is then done."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from ipamd.api.v1 import administration_pb2 as admin
from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.ctl.changes import chosen, consequences
from ipamd.ctl.command import Failed
from tests.unit.ctl_daemon import SINCE, Daemon, answer, attachment, ipamctl


def said(text: str, *words: str | Path) -> tuple[int, str, str]:
    """Exit code and both outputs of ipamctl on a terminal where somebody types `text`."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, text.encode())
        command = [sys.executable, "-m", "ipamd.ctl", *map(str, words)]
        done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=60)
    finally:
        os.close(ours)
        os.close(theirs)
    return done.returncode, done.stdout, done.stderr


def changed(daemon: Daemon) -> list[object]:
    return [request for request in daemon.requests if not isinstance(request, pb.ListAttachmentsRequest)]


@pytest.mark.parametrize("word", ["10.0.0.1", "shop/web-1", "web-1", f"{1:064x}", "dead"])
def test_an_attachment_is_found_by_what_people_have_at_hand(word: str) -> None:
    held = [attachment(0), attachment(1), attachment(10)]
    held[1].container_id = held[1].container_id if word != "dead" else "deadbeef" * 8
    assert chosen(held, word).ip == "10.0.0.1"


@pytest.mark.parametrize("word", ["10.0.0.2", "shop/web-2", "web", "00", "", "\x1b[2J"])
def test_what_names_nothing_is_refused(word: str) -> None:
    with pytest.raises(Failed, match="no attachment has this") as failed:
        chosen([attachment(0), attachment(1)], word)
    assert "\x1b" not in str(failed.value)


def test_what_names_several_lists_them_all() -> None:
    with pytest.raises(Failed) as failed:
        chosen([attachment(1), attachment(0)], "000000")
    assert str(failed.value).splitlines() == [
        "000000 means several; name one by its address:",
        "  shop/web-0  000000000000  eth0  10.0.0.0",
        "  shop/web-1  000000000000  eth0  10.0.0.1",
    ]


def test_it_is_told_whether_the_container_probably_runs(tmp_path: Path) -> None:
    assert "IT PROBABLY RUNS" in "\n".join(consequences(attachment(1, str(tmp_path))))
    assert any(line.endswith("/none is gone.") for line in consequences(attachment(1, f"{tmp_path}/none")))
    assert "is not known" in "\n".join(consequences(attachment(1)))


@pytest.mark.parametrize("text", ["n\n", "\n", "yesterday\n", "\x04"])
def test_release_changes_nothing_without_a_yes(at: Path, daemon: Daemon, text: str) -> None:
    code, out, err = said(text, "release", "web-1", "--socket", at)
    assert (code, out, changed(daemon)) == (1, "", [])
    assert "pod shop/web-1 (container 000000000000) holds 10.0.0.1 on eni-0" in err
    assert "Release 10.0.0.1 of pod shop/web-1 (container 000000000000)? [y/N] nothing was changed\n" in err


def test_release_after_a_yes(at: Path, daemon: Daemon) -> None:
    code, out, _ = said("y\n", "release", "10.0.0.1", "--socket", at)
    assert (code, out) == (0, "released 10.0.0.1 of pod shop/web-1 (container 000000000000)\n")
    assert changed(daemon) == [
        admin.ReleaseAttachmentRequest(network="ipamd", container_id=f"{1:064x}", ifname="eth0")
    ]


def test_nobody_to_ask_and_no_yes_is_refused(at: Path, daemon: Daemon) -> None:
    done = ipamctl("release", "web-1", "--socket", at)
    assert (done.returncode, done.stdout, changed(daemon)) == (2, "", []) and "--yes" in done.stderr
    assert answer(at, "release", "web-1", "--yes")["ip"] == "10.0.0.1"


def test_collect_shows_asks_and_releases(at: Path, daemon: Daemon) -> None:
    look, act = admin.CollectVanishedRequest(only_look=True), admin.CollectVanishedRequest()
    code, out, _ = said("", "collect", "--socket", at)
    assert (code, changed(daemon)) == (0, [look]) and "Nothing to release" in out
    daemon.vanished = [admin.ReleasedAttachment(container_id="c" * 64, ip="10.0.0.7", ifname="eth0")]
    code, out, err = said("n\n", "collect", "--socket", at)
    assert (code, out, changed(daemon)) == (1, "", [look, look]) and "10.0.0.7 of container cccccccccccc" in err
    assert ipamctl("collect", "--socket", at).returncode == 2
    assert changed(daemon) == [look] * 3
    code, out, _ = said("y\n", "collect", "--socket", at)
    assert (code, out) == (0, "released 10.0.0.7 of container cccccccccccc\n")
    assert changed(daemon) == [*[look] * 4, act]
    assert answer(at, "collect", "--yes") == []


def test_drain_and_undrain(at: Path, daemon: Daemon) -> None:
    assert answer(at, "drain") == {"since": "2027-01-15T08:00:00Z", "attachments": 1}
    done = ipamctl("drain", "--socket", at)
    assert done.returncode == 0 and "1 attachment still holds an address." in done.stdout
    assert ipamctl("undrain", "--socket", at).stdout == "Pods get addresses on this node again.\n"
    assert [type(request) for request in daemon.requests] == [admin.DrainRequest] * 2 + [admin.UndrainRequest]
    assert SINCE.seconds == 1_800_000_000
