"""The door of the metrics port, by itself: who is let in, who has to go, and what happens with nothing left."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from contextlib import suppress

import pytest
import structlog

from ipamd.metrics import door
from ipamd.metrics.door import Door
from ipamd.process import descriptors


class Echo(asyncio.Protocol):
    """Says hello, and keeps the connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"hello")


def opened() -> tuple[Door, int]:
    made = Door("127.0.0.1", 0, Echo)
    return made, made._socket.getsockname()[1]


async def come(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await reader.readexactly(5) == b"hello"
    return reader, writer


async def ended(reader: asyncio.StreamReader) -> None:
    """In good order or not."""
    with suppress(ConnectionResetError):
        assert await reader.read() == b""


async def test_the_oldest_makes_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(descriptors.SIDE_DOORS, "metrics", 4)
    here, port = opened()
    guests = [await come(port) for _ in range(6)]
    for reader, _ in guests[:2]:
        await ended(reader)
    assert not any(reader.at_eof() for reader, _ in guests[2:])
    here.close()
    for _, writer in guests:
        writer.close()


async def test_nobody_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "LASTS", 0.05)
    here, port = opened()
    reader, writer = await come(port)
    await ended(reader)
    assert not here._guests
    here.close()
    writer.close()


async def test_a_flood_waits_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "RATE", 1e-6)
    monkeypatch.setattr(door, "BURST", 3.0)
    here, port = opened()
    guests = [await come(port) for _ in range(3)]
    waiting = socket.create_connection(("127.0.0.1", port))  # by the kernel alone
    waiting.setblocking(False)
    for _ in range(20):
        await asyncio.sleep(0)
    with pytest.raises(BlockingIOError):
        waiting.recv(5)
    here.close()
    waiting.close()
    for _, writer in guests:
        writer.close()


async def test_without_a_descriptor_it_pauses_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "PAUSE", 0.001)
    here, port = opened()
    listening, tries, over = here._socket, 0, asyncio.Event()

    class Exhausted:
        fileno = listening.fileno
        close = listening.close

        def accept(self) -> None:
            nonlocal tries
            tries += 1
            if tries == 5:
                over.set()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    here._loop.remove_reader(listening)
    here._socket = Exhausted()  # type: ignore[assignment]
    here._watch()
    with structlog.testing.capture_logs() as logs:
        waiting = socket.create_connection(("127.0.0.1", port))
        await over.wait()
    assert [line["event"] for line in logs] == ["metrics.refused"]
    here.close()
    waiting.close()
