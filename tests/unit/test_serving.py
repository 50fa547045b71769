"""The daemon's answer whether it serves, and the record of it for the plugin."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cni_shim import served
from ipamd.pool.serving import NotServing
from ipamd.pool.view import View
from ipamd.shell.serving import UNRECORDED, Record, Serving
from ipamd.telemetry.conditions import Conditions

BOOT = "6f1f2f9c-3a0e-4a34-9d9a-0f3f3f1f2a11"


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "ipamd.sock"


def boot(monkeypatch: pytest.MonkeyPatch, folder: Path, boot_id: str) -> None:
    """As if the kernel had booted with this id."""
    file = folder / "boot_id"
    file.write_text(f"{boot_id}\n")
    monkeypatch.setattr(served, "BOOT_ID", str(file))
    monkeypatch.setattr("ipamd.ledger.place._BOOT_ID", file)


def test_the_record_is_for_root_alone_and_for_this_boot(
    socket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot(monkeypatch, tmp_path, BOOT)
    record = Record(socket)
    assert not served.since_boot(str(socket))
    record.write()
    assert record.holds() and served.since_boot(str(socket))
    assert stat.S_IMODE(record.path.stat().st_mode) == 0o600
    record.write()  # again, over the first
    boot(monkeypatch, tmp_path, BOOT.replace("6", "7"))
    assert not record.holds()
    record.remove()
    record.remove()
    assert not record.path.exists()


def test_a_record_of_another_socket_does_not_count(socket: Path) -> None:
    Record(socket.with_name("other.sock")).write()
    assert not served.since_boot(str(socket))


@pytest.mark.parametrize("kind", ["writable by others", "empty", "link", "folder", "fifo", "too long", "half"])
def test_what_is_no_record_does_not_count(socket: Path, kind: str) -> None:
    record = Record(socket)
    record.write()
    content = record.path.read_text()
    if kind == "writable by others":
        record.path.chmod(0o666)
        assert not record.holds()
        return
    record.remove()
    match kind:
        case "empty":
            record.path.touch(0o600)
        case "link":
            real = socket.with_name("real")
            real.write_text(content)
            record.path.symlink_to(real)
        case "folder":
            record.path.mkdir()
        case "fifo":
            os.mkfifo(record.path, 0o600)
        case "too long":
            record.path.write_text(content.strip() + "x" * 100)
        case _:
            record.path.write_text(content[:20])
    assert not record.holds()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a file away")
def test_a_record_of_another_user_does_not_count(socket: Path) -> None:
    record = Record(socket)
    record.write()
    os.chown(record.path, 65534, -1)
    assert not record.holds()


def test_without_a_boot_id_nothing_counts(socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Record(socket).write()
    monkeypatch.setattr(served, "BOOT_ID", os.devnull)
    assert not served.since_boot(str(socket))


class Daemon:
    """A pool that can serve or not, and a kernel that is broken or not."""

    def __init__(self, socket: Path) -> None:
        self.able = False
        inventory = SimpleNamespace(attachments={})
        pool = SimpleNamespace(started=True, inventory=inventory, can_serve=lambda: self.able)
        self.view = View(cast(Any, pool))
        self.reconciler = SimpleNamespace(broken="")
        self.changed = asyncio.Event()
        self.conditions = Conditions()
        reconciler = cast(Any, self.reconciler)
        self.serving = Serving(cast(Any, self), reconciler, Record(socket), self.conditions, self.changed)

    def clock(self) -> float:
        return 0.0

    def becomes(self, *, able: bool | None = None, broken: str | None = None) -> None:
        self.able = self.able if able is None else able
        self.reconciler.broken = self.reconciler.broken if broken is None else broken
        self.changed.set()


@pytest.fixture
def asked_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipamd.pool.serving.would_refuse", lambda state, now: None)


@pytest.mark.usefixtures("asked_in_vain")
async def test_changes_are_told_once_each(socket: Path) -> None:
    daemon = Daemon(socket)
    changes = daemon.serving.changes()
    first = await anext(changes)
    assert isinstance(first, NotServing) and first.reason == "NOT_READY"
    daemon.becomes(able=True)
    assert await anext(changes) is None
    daemon.becomes(able=False)  # full: it has served
    daemon.becomes(broken="rule 500: refused")
    broken = await anext(changes)
    assert broken is not None and broken.reason == "NETWORK_BROKEN"
    daemon.becomes(broken="")
    assert await anext(changes) is None
    await changes.aclose()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("asked_in_vain")
async def test_a_restarted_daemon_serves_as_the_one_before_it_did(socket: Path) -> None:
    first = Daemon(socket)
    first.becomes(able=True)
    first.serving.record()
    second = Daemon(socket)
    assert second.serving.obstacle() is None  # its pool can't give an address now


@pytest.mark.usefixtures("asked_in_vain")
async def test_the_record_goes_while_the_network_is_broken(socket: Path) -> None:
    daemon = Daemon(socket)
    daemon.becomes(able=True)
    daemon.serving.record()
    assert Record(socket).holds()
    daemon.becomes(broken="rule 500: refused")
    daemon.serving.record()
    assert not Record(socket).holds()
    daemon.becomes(broken="")
    daemon.serving.record()
    assert Record(socket).holds()


async def test_unwritable_record_is_a_condition_until_it_is_written(
    socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipamd.shell.serving.AGAIN", 0.01)
    blocked = Record(socket).path.with_name("ipamd.sock.served.new")
    blocked.mkdir()
    daemon = Daemon(socket)
    daemon.becomes(able=True)
    daemon.serving.record()
    [condition] = daemon.conditions.active()
    assert condition.name == UNRECORDED and str(Record(socket).path) in condition.text
    blocked.rmdir()
    keeping = asyncio.create_task(daemon.serving.keep_recorded())
    async with asyncio.timeout(10):
        while not Record(socket).holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert daemon.conditions.active() == []
        Record(socket).remove()  # by somebody
        while not Record(socket).holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    keeping.cancel()
