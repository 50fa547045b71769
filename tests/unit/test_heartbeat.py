"""What makes the watchdog's heart beat, and what stops it."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ipamd.ledger import LedgerCause
from ipamd.process.heartbeat import heartbeat
from ipamd.process.service_manager import ServiceManager
from tests.unit import test_runner
from tests.unit.test_runner import Build, Node

build = test_runner.build


class Systemd:
    """The other end of the notification socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self.manager = ServiceManager({"NOTIFY_SOCKET": str(path)})

    def beats(self) -> int:
        """How many have come since the last look."""
        count = 0
        while True:
            try:
                assert self._socket.recv(100) == b"WATCHDOG=1"
            except BlockingIOError:
                return count
            count += 1

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    made = Systemd(tmp_path / "notify")
    yield made
    made.close()


@pytest.fixture
async def listen(systemd: Systemd) -> Any:
    """Lets a node's heart beat in every turn of the loop for a while, and returns the number of beats."""

    async def run(node: Node) -> int:
        beating = asyncio.ensure_future(heartbeat(systemd.manager, 0, node.runner, node.ledger))
        for _ in range(20):
            await asyncio.sleep(0)
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
        if not beating.cancelled() and (error := beating.exception()) is not None:
            raise error
        return systemd.beats()

    return run


Listen = Callable[[Node], Awaitable[int]]


async def test_it_beats_while_all_moves(build: Build, listen: Listen) -> None:
    node = build()
    node.start("10.0.0.5")
    assert await listen(node) > 1
    assert await node.ask("a")  # and nothing of it was in the way
    assert node.cloud.calls == []


async def test_a_pool_that_contradicts_itself_stops_it(
    build: Build, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = build()
    node.start("10.0.0.5")
    monkeypatch.setattr(node.pool, "handle", lambda event, now: 1 / 0)
    with capture_logs() as logs:
        assert await listen(node) == 0
    assert "daemon.stuck" in {entry["event"] for entry in logs}
    node.runner.failed.exception()


async def test_a_turn_that_does_not_end_stops_it(
    build: Build, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = build()
    node.start("10.0.0.5")
    await asyncio.sleep(0)
    with monkeypatch.context() as patched:
        patched.setattr(node.runner, "_flush", lambda: None)  # the loop was asked for it, and nothing came of it
        assert await listen(node) == 0
    assert await listen(node) == 0  # it is not asked for again


async def test_a_ledger_that_has_no_room_does_not_stop_it(build: Build, listen: Listen) -> None:
    node = build()
    node.start("10.0.0.5", "10.0.0.6")
    assert await node.ask("a")
    node.ledger.refuses = True
    assert await node.release("a")
    assert node.runner.unrecorded is not None and node.runner.unrecorded.cause is LedgerCause.FULL
    assert await listen(node) > 1
    node.ledger.refuses = False


async def test_a_ledger_that_somebody_else_holds_does_not_stop_it(build: Build, listen: Listen) -> None:
    node = build()
    node.start("10.0.0.5")
    node.ledger._connection.execute("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(node.ledger.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert await listen(node) > 1
    other.close()


async def test_a_damaged_ledger_is_renewed_by_a_beat(build: Build, listen: Listen) -> None:
    node = build()
    node.start("10.0.0.5", "10.0.0.6")
    held = await node.ask("a")
    node.ledger._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    node.ledger.path.write_bytes(b"no database" * 10_000)
    node.ledger._connection.execute("PRAGMA shrink_memory")
    with capture_logs() as logs:
        assert await listen(node) > 1
    assert [entry["event"] for entry in logs] == ["ledger.renewed"]
    assert node.ledger.load().attachments == (held,)
    assert await node.ask("b")
