"""An internet that answers: a resolver and a web server in the internet's namespace of the VPC in a box.

8.8.8.8       DNS by UDP and TCP: the names that it was given, each as 203.0.113.80; its own address as dns.google; no
              other name exists
203.0.113.80  HTTP: every path is a sentence that names the address that the question came from
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, cast

from aiohttp import web

from ipamd.sim import netns

RESOLVER: Final = "8.8.8.8"
WEB_SERVER: Final = "203.0.113.80"
RESOLVER_NAME: Final = "dns.google"
NAMES: Final = ("google.com", RESOLVER_NAME)

_HEADER: Final = struct.Struct("!HHHHHH")  # RFC 1035, section 4.1.1
_A, _PTR, _IN = 1, 12, 1
_TTL: Final = 30
_PATIENCE: Final = 10.0  # for a question by TCP


@asynccontextmanager
async def serve(namespace: str, names: Collection[str] = ()) -> AsyncIterator[None]:
    """Answer in the namespace for `NAMES` and `names`. Raises `netns.CommandError` and OSError."""
    resolver = Resolver({name.lower().rstrip(".") for name in (*NAMES, *names)}, WEB_SERVER)
    await netns.ip_batch(namespace, [f"addr add {address}/32 dev lo" for address in (RESOLVER, WEB_SERVER)])
    async with AsyncExitStack() as stack:
        loop = asyncio.get_running_loop()
        datagrams = netns.run_in(namespace, _datagram_socket)
        transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(resolver), sock=datagrams)
        stack.callback(transport.close)
        streams = netns.listen_in(namespace, RESOLVER, 53)
        server = await asyncio.start_server(lambda *stream: _answer_stream(resolver, *stream), sock=streams)
        stack.callback(server.close)
        application = web.Application()
        application.router.add_get("/{path:.*}", _greet)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.SockSite(runner, netns.listen_in(namespace, WEB_SERVER, 80)).start()
        yield


def _datagram_socket() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((RESOLVER, 53))
    return made


async def _greet(request: web.Request) -> web.Response:
    return web.Response(text=f"hello {request.remote}, this is {request.host}\n")


class Resolver:
    """`names` in lower case, without a final dot."""

    def __init__(self, names: Collection[str], address: str) -> None:
        packed = ipaddress.IPv4Address(address).packed
        self._records = dict.fromkeys(names, (_A, packed))
        self._records[ipaddress.IPv4Address(RESOLVER).reverse_pointer] = (_PTR, _encoded(RESOLVER_NAME))

    def answer(self, query: bytes) -> bytes | None:
        """The reply to a DNS message of one question; None to what is no such message."""
        try:
            number, flags, questions, _, _, _ = _HEADER.unpack_from(query)
            name, end = _name(query, _HEADER.size)
            kind, family = struct.unpack_from("!HH", query, end)
        except (struct.error, ValueError, IndexError):
            return None
        if flags & 0x8000 or questions != 1:  # a reply
            return None
        record = self._records.get(name.lower())
        found = record is not None and (kind, family) == (record[0], _IN)
        # A reply, recursion available; what was asked comes back. RCODE 3: no such name.
        flags = 0x8080 | flags & 0x7900 | (3 if record is None else 0)
        reply = _HEADER.pack(number, flags, 1, int(found), 0, 0) + query[_HEADER.size : end + 4]
        if record is not None and found:
            data = record[1]
            reply += struct.pack("!HHHIH", 0xC000 | _HEADER.size, kind, _IN, _TTL, len(data)) + data
        return reply


def _encoded(name: str) -> bytes:
    """A name as it stands in a message."""
    return b"".join(bytes([len(label)]) + label.encode("ascii") for label in name.split(".")) + b"\0"


def _name(message: bytes, start: int) -> tuple[str, int]:
    """The name at `start`, and where it ends. Raises ValueError and IndexError."""
    labels = []
    while length := message[start]:
        if length > 63:
            raise ValueError("a compressed name in a question")
        labels.append(message[start + 1 : start + 1 + length].decode("ascii"))
        start += 1 + length
    return ".".join(labels), start + 1


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        if self._transport is not None and (reply := self._resolver.answer(data)) is not None:
            self._transport.sendto(reply, address)


async def _answer_stream(resolver: Resolver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One question by TCP, with its length before it: RFC 1035, section 4.2.2."""
    with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError), contextlib.closing(writer):
        async with asyncio.timeout(_PATIENCE):
            [length] = struct.unpack("!H", await reader.readexactly(2))
            if reply := resolver.answer(await reader.readexactly(length)):
                writer.write(struct.pack("!H", len(reply)) + reply)
                await writer.drain()
