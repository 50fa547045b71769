"""Limits of the gRPC sockets for their callers.

The main socket is root's. Its limits are far above what a node's pods can need: a thousand ADDs may wait at once,
each with a connection of its own. The members of the reading group may look but must not slow pods down: they get few
connections, few calls at once, a limited rate, and small requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc

from ipamd.process import descriptors

# Concurrent calls on each connection of the reading group, including those that follow events.
CALLS_OF_READER = 4

# Concurrent calls on the main socket.
CALLS = 4096

# Bytes of a reader's request: it holds at most a name.
LONGEST_QUESTION = 16 << 10

# Milliseconds to say that it speaks HTTP/2, and of a reader's connection without a call.
HANDSHAKE = 5_000
IDLE = 60_000

Options = list[tuple[str, int]]

if TYPE_CHECKING:
    Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]]


def main_options() -> Options:
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_allowed_incoming_connections", descriptors.main_connections()),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE),
    ]


def reading_options() -> Options:
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_allowed_incoming_connections", readers()),
        ("grpc.max_concurrent_streams", CALLS_OF_READER),
        ("grpc.max_connection_idle_ms", IDLE),
        ("grpc.max_receive_message_length", LONGEST_QUESTION),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE),
    ]


def readers() -> int:
    return descriptors.connections("readers")


class _Bucket:
    """So many calls a second, and so many at once before that counts."""

    def __init__(self, rate: float, burst: int) -> None:
        self._interval = 1 / rate
        self._ahead = burst / rate
        self._full_at = 0.0  # when nothing would be left to wait for, on the monotonic clock

    def wait(self, patience: float) -> float | None:
        """Seconds until the call's turn; None: that would be longer than `patience`, and it takes no turn."""
        now = time.monotonic()
        full_at = max(self._full_at, now) + self._interval
        wait = max(full_at - now - self._ahead, 0.0)
        if wait > patience:
            return None
        self._full_at = full_at
        return wait


class Pace(grpc.aio.ServerInterceptor):
    """The rate limit of one server: callers wait for their turn, and are refused if the wait would be long. `Audit`
    has a rate of its own, because each audit costs EC2 calls that growth needs."""

    PATIENCE = 5.0

    def __init__(self) -> None:
        self._all = _Bucket(rate=50, burst=100)
        self._audits = _Bucket(rate=1 / 20, burst=3)

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        wait = self._all.wait(self.PATIENCE)
        if wait is not None and handler_call_details.method.endswith("/Audit"):
            wait = self._audits.wait(0.0)
        if wait is None:
            return _REFUSED
        if wait:
            await asyncio.sleep(wait)
        return await continuation(handler_call_details)


async def _refuse(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    message = "asked too often by the reading group: ask again in some seconds, or as root"
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)


_REFUSED: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(_refuse)
