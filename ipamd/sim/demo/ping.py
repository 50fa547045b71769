"""Everybody pings everybody: ICMP echo from inside many network namespaces at once, without a process for each.

A socket stays for life in the namespace in which it was opened, so one event loop asks from all of them.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ipamd.sim import netns as namespaces

# RFC 792
_ECHO_REPLY: Final = 0
_ECHO_REQUEST: Final = 8
_ECHO: Final = struct.Struct("!BBHHH")
# <linux/socket.h>, <linux/icmp.h>; the filter has a bit for each type that is not wanted
_SOL_RAW: Final = 255
_ICMP_FILTER: Final = 1
_ONLY_REPLIES: Final = struct.pack("=I", ~(1 << _ECHO_REPLY) & 0xFFFF_FFFF)

_IHL: Final = 0x0F


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Somebody who pings and is pinged. `netns`: a name of ip-netns(8), or a path."""

    name: str
    node: str
    ip: str
    netns: str | Path


@dataclass(slots=True)
class _Source:
    """The echo requests of one endpoint. Their sequence numbers are the indices of those asked."""

    endpoint: Endpoint
    socket: socket.socket
    identifier: int = field(default_factory=lambda: secrets.randbelow(1 << 16))
    unanswered: dict[int, str] = field(default_factory=dict)

    def send(self, sequence: int, ip: str) -> None:
        header = _ECHO.pack(_ECHO_REQUEST, 0, 0, self.identifier, sequence)
        packet = _ECHO.pack(_ECHO_REQUEST, 0, _checksum(header), self.identifier, sequence)
        self.unanswered[sequence] = ip
        try:
            self.socket.sendto(packet, (ip, 0))
        except OSError:
            pass  # no route, or the like: then it stays unanswered

    def receive(self) -> None:
        while True:
            try:
                packet, (sender, _) = self.socket.recvfrom(2048)
            except BlockingIOError:
                return
            header = (packet[0] & _IHL) * 4
            kind, _code, _sum, identifier, sequence = _ECHO.unpack_from(packet, header)
            if kind == _ECHO_REPLY and identifier == self.identifier and self.unanswered.get(sequence) == sender:
                del self.unanswered[sequence]


async def ping_all(endpoints: Sequence[Endpoint], wait: float = 2.0) -> list[tuple[Endpoint, Endpoint]]:
    """Let each ping each other once; returns the pairs (from, to) without an answer `wait` seconds after the last.

    Raises OSError when a namespace can't be entered.
    """
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        sources = []
        for endpoint in endpoints:
            source = _Source(endpoint, stack.enter_context(_open(endpoint.netns)))
            loop.add_reader(source.socket, source.receive)
            stack.callback(loop.remove_reader, source.socket)
            sources.append(source)
        for source in sources:
            for sequence, target in enumerate(endpoints):
                if target is not source.endpoint:
                    source.send(sequence, target.ip)
            await asyncio.sleep(0)  # read answers between
        end = loop.time() + wait
        while loop.time() < end:
            if not any(source.unanswered for source in sources):
                break
            await asyncio.sleep(0.01)
        return [(source.endpoint, endpoints[sequence]) for source in sources for sequence in source.unanswered]


def _open(netns: str | Path) -> socket.socket:
    def make() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)

    made = namespaces.run_in(str(netns), make)
    made.setsockopt(_SOL_RAW, _ICMP_FILTER, _ONLY_REPLIES)
    return made


def _checksum(data: bytes) -> int:
    """RFC 1071; `data` has an even length."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
