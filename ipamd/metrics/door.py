"""The door of the metrics port: every process of the node may come in, and none may stay.

A connection is for one answer and ends after some seconds, whatever it sends. The oldest one makes room for the next:
who asks at once is answered, also while somebody else holds as many connections open as he can. The event loop serves
pods first of all, so few are let in per turn and per second; the others wait in the kernel's queue.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import OrderedDict
from collections.abc import Callable

import structlog

from ipamd.process import descriptors

log = structlog.get_logger("ipamd.metrics")

AT_ONCE = 4  # connections accepted in one turn of the loop
RATE, BURST = 100.0, 50.0  # connections accepted per second, and in a burst after an idle time
LASTS = 10.0  # seconds from its beginning to its end
QUEUE = 128  # connections that wait in the kernel

# Seconds without a look at the queue when no descriptor is left, and between two lines of the log about that.
PAUSE = 1.0
SAID = 600.0


class Door:
    """`protocol` makes the object that answers one connection."""

    def __init__(self, host: str, port: int, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Raises OSError when the address can't be served."""
        self._protocol = protocol
        self._most = descriptors.connections("metrics")
        self._guests: OrderedDict[_Guest, asyncio.TimerHandle] = OrderedDict()
        self._coming: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._said = -SAID
        self._room, self._room_at = BURST, time.monotonic()  # connections that may come in at that time
        self._loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=QUEUE)
        self._socket.setblocking(False)
        self._watch()

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        if self._pause is not None:
            self._pause.cancel()
        self._socket.close()
        for guest in tuple(self._guests):
            guest.end()

    def left(self, guest: _Guest) -> None:
        if (ends := self._guests.pop(guest, None)) is not None:
            ends.cancel()

    def _watch(self) -> None:
        self._loop.add_reader(self._socket, self._let_in)

    def _let_in(self) -> None:
        for _ in range(AT_ONCE):
            if not self._may_come():
                self._look_again(1 / RATE)
                return
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptor or no memory is left, and the queue stays
                self._run_out(error)
                return
            self._room -= 1
            while len(self._guests) >= self._most:
                next(iter(self._guests)).end()
            connection.setblocking(False)
            guest = _Guest(self, connection, self._protocol())
            self._guests[guest] = self._loop.call_later(LASTS, guest.end)
            task = self._loop.create_task(guest.come())
            self._coming.add(task)
            task.add_done_callback(self._coming.discard)

    def _may_come(self) -> bool:
        now = time.monotonic()
        self._room = min(self._room + (now - self._room_at) * RATE, BURST)
        self._room_at = now
        return self._room >= 1

    def _look_again(self, after: float) -> None:
        self._loop.remove_reader(self._socket)
        self._pause = self._loop.call_later(after, self._watch)

    def _run_out(self, error: OSError) -> None:
        self._look_again(PAUSE)
        if self._guests:
            next(iter(self._guests)).end()
        if time.monotonic() - self._said >= SAID:
            self._said = time.monotonic()
            log.warning("metrics.refused", error=error.strerror or str(error))


class _Guest(asyncio.Protocol):
    """One accepted connection, handed on to its protocol."""

    def __init__(self, door: Door, connection: socket.socket, protocol: asyncio.Protocol) -> None:
        self._door = door
        self._connection = connection
        self._protocol = protocol
        self._transport: asyncio.Transport | None = None
        self._ended = False

    async def come(self) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: self, self._connection)
        except OSError:  # gone already
            self.end()
            self._connection.close()

    def end(self) -> None:
        self._door.left(self)
        self._ended = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._protocol.connection_made(transport)
        if self._ended:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.left(self)
        self._protocol.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()
