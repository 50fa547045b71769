"""The plugin's gRPC client against grpcio's server, and against peers that only a raw socket can play."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

import grpc
import pytest

from cni_shim import grpc_call, hpack, huffman
from cni_shim.grpc_call import Forbidden, Garbled, Late, Refused, Unreachable, unary

SETTINGS = b"\0\0\0\4\0\0\0\0\0"


@pytest.fixture
def path() -> Iterator[str]:
    """A short one: pytest's own folders may exceed what a socket's path may have."""
    directory = tempfile.mkdtemp(prefix="ipm")
    yield f"{directory}/s.sock"
    shutil.rmtree(directory)


class Handlers(grpc.GenericRpcHandler):
    def __init__(self) -> None:
        self.seconds_left = 0.0
        self.started = asyncio.Event()

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = getattr(self, details.method.rpartition("/")[2], None)
        return grpc.unary_unary_rpc_method_handler(method) if method else None

    async def echo(self, request: bytes, context: Any) -> bytes:
        self.seconds_left = context.time_remaining()
        return request

    async def length(self, request: bytes, context: Any) -> bytes:
        return str(len(request)).encode()

    async def big(self, request: bytes, context: Any) -> bytes:
        return b"x" * int(request)

    async def fail(self, request: bytes, context: Any) -> bytes:
        await context.abort(
            grpc.StatusCode.RESOURCE_EXHAUSTED, "voll: 5 % Übrig\n", trailing_metadata=(("ipamd-cni-error", "{}"),)
        )
        return b""

    async def fail_late(self, request: bytes, context: Any) -> bytes:
        await context.send_initial_metadata((("early", "1"),))
        return await self.fail(request, context)

    async def slow(self, request: bytes, context: Any) -> bytes:
        self.started.set()
        await asyncio.sleep(3600)
        return b""


@pytest.fixture
async def handlers(path: str) -> AsyncIterator[Handlers]:
    server = grpc.aio.server()
    handlers = Handlers()
    server.add_generic_rpc_handlers((handlers,))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    yield handlers
    await server.stop(None)


async def call(path: str, method: str, request: bytes = b"", seconds: float = 20.0) -> bytes:
    return await asyncio.to_thread(unary, path, b"/test/" + method.encode(), request, time.monotonic() + seconds)


@pytest.mark.parametrize("size", [0, 1, 16378, 16379, 16380, 60_000, 65_529, 65_530, 65_531, 300_000, 3_000_000])
async def test_request_of_any_size(path: str, handlers: Handlers, size: int) -> None:
    assert await call(path, "length", b"q" * size) == str(size).encode()


@pytest.mark.parametrize("size", [0, 16_384, 300_000, grpc_call.LARGEST_REPLY])
async def test_reply_of_any_size(path: str, handlers: Handlers, size: int) -> None:
    assert await call(path, "big", str(size).encode()) == b"x" * size


async def test_a_reply_beyond_the_limit(path: str, handlers: Handlers) -> None:
    with pytest.raises(Garbled, match="too large"):
        await call(path, "big", str(grpc_call.LARGEST_REPLY + 1).encode())


async def test_many_calls(path: str, handlers: Handlers) -> None:
    requests = [bytes([number]) * number for number in range(100)]
    assert await asyncio.gather(*(call(path, "echo", request) for request in requests)) == requests


async def test_the_server_learns_the_deadline(path: str, handlers: Handlers) -> None:
    await call(path, "echo", seconds=50.0)
    assert 20.0 < handlers.seconds_left <= 50.0
    with pytest.raises((Late, Refused, Unreachable)):  # whichever side is first
        await call(path, "slow", seconds=0.3)


@pytest.mark.parametrize("method", ["fail", "fail_late"])
async def test_a_status_with_message_and_metadata(path: str, handlers: Handlers, method: str) -> None:
    with pytest.raises(Refused) as caught:
        await call(path, method)
    assert caught.value.status == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert str(caught.value) == "voll: 5 % Übrig\n"
    assert caught.value.metadata[b"ipamd-cni-error"] == b"{}"


async def test_an_unknown_method(path: str, handlers: Handlers) -> None:
    with pytest.raises(Refused) as caught:
        await call(path, "nothing")
    assert caught.value.status == grpc.StatusCode.UNIMPLEMENTED.value[0]


async def test_a_request_that_the_server_finds_too_large(path: str, handlers: Handlers) -> None:
    with pytest.raises(Refused) as caught:
        await call(path, "length", b"q" * (5 << 20))
    assert caught.value.status == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


async def test_a_server_that_stops(path: str) -> None:
    server = grpc.aio.server()
    handlers = Handlers()
    server.add_generic_rpc_handlers((handlers,))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    calling = asyncio.create_task(call(path, "slow"))
    await handlers.started.wait()
    await server.stop(None)
    with pytest.raises((Unreachable, Refused)) as caught:
        await calling
    assert caught.value.sent
    if isinstance(caught.value, Refused):
        assert caught.value.status in (grpc.StatusCode.CANCELLED.value[0], grpc.StatusCode.UNAVAILABLE.value[0])


def test_nobody_listens(path: str) -> None:
    with pytest.raises(Unreachable, match="No such file") as absent:
        unary(path, b"/m", b"", time.monotonic() + 1)
    assert not absent.value.sent
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with pytest.raises(Unreachable, match="refused") as refused:
        unary(path, b"/m", b"", time.monotonic() + 1)
    assert not refused.value.sent


def test_the_queue_of_connections_is_full(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as first:
        listening.bind(path)
        listening.listen(0)
        first.connect(path)
        with pytest.raises(Unreachable) as caught:
            unary(path, b"/m", b"", time.monotonic() + 1)
        assert not caught.value.sent


def test_a_deadline_that_passed_already(path: str) -> None:
    with pytest.raises(Late):
        unary(path, b"/m", b"", time.monotonic() - 1)


def test_a_refusal_to_connect(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may connect anywhere, so the kernel's refusal is played."""

    class Closed:
        def __init__(self, *_: int) -> None: ...
        def settimeout(self, seconds: float) -> None: ...
        def close(self) -> None: ...
        def connect(self, path: str) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("_socket.socket", Closed)
    with pytest.raises(Forbidden) as caught:
        unary(path, b"/m", b"", time.monotonic() + 1)
    assert not caught.value.sent


Peer = Callable[[socket.socket], None]


@pytest.fixture
def played(path: str) -> Iterator[Callable[[Peer], Callable[..., bytes]]]:
    """Makes a peer from a function that is given the connection; returns the call to it."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    threads: list[threading.Thread] = []

    def play(peer: Peer) -> Callable[..., bytes]:
        def accept() -> None:
            connection, _ = listening.accept()
            with connection:
                peer(connection)

        threads.append(threading.Thread(target=accept))
        threads[-1].start()

        def make_call(request: bytes = b"", seconds: float = 5.0) -> bytes:
            return unary(path, b"/m", request, time.monotonic() + seconds)

        return make_call

    yield play
    for thread in threads:
        thread.join()
    listening.close()


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


HEADERS = frame(1, 0x4, 1, b"\x88")
MESSAGE = b"\0\0\0\0\2ok"
TRAILERS = frame(1, 0x5, 1, hpack.literal(b"grpc-status", b"0"))


def answering(data: bytes) -> Peer:
    """Sends the bytes, then waits for the client to go."""

    def peer(connection: socket.socket) -> None:
        connection.sendall(data)
        while connection.recv(65536):
            pass

    return peer


@pytest.mark.parametrize(
    "answer",
    [
        HEADERS + frame(0, 0, 1, MESSAGE) + TRAILERS,
        # padding, priority, a header block in three parts, a message in two, unknown frames in between
        frame(1, 0x8 | 0x20, 1, b"\3" + b"\0" * 5 + b"\x88" + b"\0" * 3)
        + frame(9, 0, 1)
        + frame(9, 0x4, 1, hpack.literal(b"x", b"y"))
        + frame(0, 0x8, 1, b"\2" + MESSAGE[:3] + b"\0\0")
        + frame(2, 0, 1, b"\0" * 5)
        + frame(0xFA, 0xFF, 7, b"later versions")
        + frame(0, 0, 1, MESSAGE[3:])
        + frame(8, 0, 0, b"\0\0\1\0")
        + TRAILERS,
        # strings in Huffman's code (grpc-status: 0), a name with indexing, a table size of 0
        HEADERS
        + frame(0, 0, 1, MESSAGE)
        + frame(1, 0x5, 1, b"\x20\x40\x88" + bytes.fromhex("9acac8b21234da8f") + b"\x81\x07"),
        # a server that says it will stop, but answers this call
        frame(7, 0, 0, b"\x7f\xff\xff\xff\0\0\0\0") + HEADERS + frame(0, 0, 1, MESSAGE) + TRAILERS,
        # early hints, whatever they say
        frame(1, 0x4, 1, hpack.literal(b":status", b"103") + hpack.literal(b"grpc-status", b"5"))
        + HEADERS
        + frame(0, 0, 1, MESSAGE)
        + TRAILERS,
        # the status that counts is that of the trailers
        frame(1, 0x4, 1, b"\x88" + hpack.literal(b"grpc-status", b"5")) + frame(0, 0, 1, MESSAGE) + TRAILERS,
        # a peer that wants no more of the request; what comes after the end is nobody's business
        HEADERS + frame(0, 0, 1, MESSAGE) + TRAILERS + frame(3, 0, 1, b"\0" * 4) + frame(0, 0, 1, b"more"),
        # no streams allowed from now on; many settings
        frame(4, 0, 0, b"\0\3\0\0\0\0" + b"\xfa\xfa\0\0\0\1" * 2000) + HEADERS + frame(0, 0, 1, MESSAGE) + TRAILERS,
        # an encoding is named, and not used
        frame(1, 0x4, 1, b"\x88" + hpack.literal(b"grpc-encoding", b"gzip")) + frame(0, 0, 1, MESSAGE) + TRAILERS,
        # data of no length, and of nothing but padding
        HEADERS + frame(0, 0, 1) + frame(0, 0x8, 1, b"\3\0\0\0") + frame(0, 0, 1, MESSAGE) + TRAILERS,
    ],
)
def test_answers_in_any_lawful_form(played: Callable[[Peer], Callable[..., bytes]], answer: bytes) -> None:
    assert played(answering(SETTINGS + answer))() == b"ok"


def test_huffman_codes_that_are_longer_than_the_text(played: Callable[[Peer], Callable[..., bytes]]) -> None:
    """The size of a header list is that of its text (RFC 9113, 6.5.2); some encoders compress at any price."""
    text = b"\xf9" * 40_000  # 28 bits each
    coded = bytes.fromhex("ffffffeffffffe") * 20_000
    value = b"\xff" + hpack._integer(len(coded), 7)[1:] + coded
    block = TRAILERS[9:] + b"\0" + hpack._string(b"long") + value
    parts = [block[at : at + 16384] for at in range(0, len(block), 16384)]
    trailers = frame(1, 0x1, 1, parts[0]) + b"".join(frame(9, 0, 1, part) for part in parts[1:]) + frame(9, 0x4, 1)
    assert huffman.decode(coded) == text
    assert played(answering(SETTINGS + HEADERS + frame(0, 0, 1, MESSAGE) + trailers))() == b"ok"


def test_ping_and_settings_are_acknowledged(played: Callable[[Peer], Callable[..., bytes]]) -> None:
    seen = bytearray()

    def peer(connection: socket.socket) -> None:
        connection.sendall(SETTINGS + frame(6, 0, 0, b"12345678"))
        while b"12345678" not in seen:
            seen.extend(connection.recv(65536))
        connection.sendall(HEADERS + frame(0, 0, 1, MESSAGE) + TRAILERS)

    assert played(peer)() == b"ok"
    assert frame(4, 1, 0) in seen and frame(6, 1, 0, b"12345678") in seen


def test_padding_uses_the_windows_up(played: Callable[[Peer], Callable[..., bytes]]) -> None:
    """The largest reply, in frames that are padding for the most part, never more than the client's windows allow."""
    reply = b"r" * grpc_call.LARGEST_REPLY
    message = b"\0" + len(reply).to_bytes(4, "big") + reply

    def peer(connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        stream.read(24)
        opening = [stream.read(int.from_bytes(stream.read(9)[:3], "big")) for _ in range(2)]
        settings = {opening[0][at : at + 2]: opening[0][at + 2 : at + 6] for at in range(0, len(opening[0]), 6)}
        room = min(65535 + int.from_bytes(opening[1], "big"), int.from_bytes(settings[b"\0\4"], "big"))
        connection.sendall(SETTINGS + HEADERS)
        for at in range(0, len(message), 200):
            part = message[at : at + 200]
            room -= 256 + len(part)
            if room < 0:  # a client would have to open the windows again
                return
            connection.sendall(frame(0, 0x8, 1, b"\xff" + part + b"\0" * 255))
        connection.sendall(TRAILERS)
        while connection.recv(65536):
            pass

    assert played(peer)(seconds=60.0) == reply


def test_an_answer_before_the_request_is_complete(played: Callable[[Peer], Callable[..., bytes]]) -> None:
    """A peer may answer, and have enough, while most of the request still waits for its windows."""
    answer = HEADERS + frame(0, 0, 1, MESSAGE) + TRAILERS + frame(3, 0, 1, b"\0" * 4)
    assert played(answering(SETTINGS + answer))(b"q" * 300_000) == b"ok"


def test_windows_are_kept(played: Callable[[Peer], Callable[..., bytes]]) -> None:
    """Nothing beyond the windows is sent, whether they shrink or grow; all of it in the end."""
    request = b"q" * 200_000
    sizes: list[int] = []

    def peer(connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        stream.read(24)
        received = 0

        def read_data(wanted: int) -> None:
            nonlocal received
            while received < wanted:
                head = stream.read(9)
                payload = stream.read(int.from_bytes(head[:3], "big"))
                if head[3] == 0:
                    received += len(payload)
                    assert len(payload) <= 16384 and received <= wanted
            sizes.append(received)

        read_data(65535)
        # The stream's window was 65535 and is used up: 10000 in total is 55535 less than nothing.
        connection.sendall(frame(4, 0, 0, b"\0\4" + (10_000).to_bytes(4, "big")))
        connection.sendall(frame(8, 0, 0, (1 << 20).to_bytes(4, "big")))
        connection.sendall(frame(8, 0, 1, (55_535 + 30_000).to_bytes(4, "big")))
        read_data(65535 + 30_000)
        connection.sendall(frame(8, 0, 1, (1 << 20).to_bytes(4, "big")))
        read_data(len(request) + 5)
        connection.sendall(HEADERS + frame(0, 0, 1, MESSAGE) + TRAILERS)
        while connection.recv(65536):
            pass

    assert played(peer)(request) == b"ok"
    assert sizes == [65535, 95535, 200_005]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP/2"),
        (HEADERS, "HTTP/2"),
        (SETTINGS + frame(1, 0x5, 1, b"\x8d"), "HTTP status 404"),
        (SETTINGS + frame(0, 0, 1, MESSAGE), "before the headers"),
        (SETTINGS + HEADERS + frame(0, 1, 1, MESSAGE), "without a gRPC status"),
        (SETTINGS + HEADERS + TRAILERS, "not one plain message"),
        (SETTINGS + TRAILERS, "without headers"),
        (SETTINGS + frame(1, 0x5, 1, hpack.literal(b"x", b"y")), "without headers"),
        (SETTINGS + HEADERS + frame(1, 0x4, 1, hpack.literal(b"grpc-status", b"0")), "do not end"),
        (SETTINGS + HEADERS + HEADERS, "twice"),
        (SETTINGS + HEADERS + frame(0, 0, 1, MESSAGE) + frame(1, 0x5, 1, b"\x88" + TRAILERS[9:]), "twice"),
        (SETTINGS + frame(1, 0x4, 1, b"\x88\x88"), "more than one status"),
        (SETTINGS + frame(1, 0x4, 1, hpack.literal(b":status", b"20")), "HTTP status 20"),
        (SETTINGS + frame(1, 0x5, 1, hpack.literal(b":status", b"103")), "HTTP status 103"),
        (SETTINGS + frame(1, 0x4, 1, hpack.literal(b":status", b"103")) + TRAILERS, "without headers"),
        (SETTINGS + frame(1, 0x4, 1, hpack.literal(b":status", b"103")) + frame(0, 0, 1), "before the headers"),
        (SETTINGS + frame(1, 0x5, 1, b"\x88" + TRAILERS[9:] + hpack.literal(b"grpc-status", b"8")), "unreadable"),
        (SETTINGS + HEADERS + frame(0, 0, 1, b"\1" + MESSAGE[1:]) + TRAILERS, "not one plain message"),
        (SETTINGS + HEADERS + frame(0, 0, 1, MESSAGE * 2) + TRAILERS, "not one plain message"),
        (SETTINGS + frame(1, 0x5, 1, b"\x88" + hpack.literal(b"grpc-status", b"zero")), "unreadable"),
        (SETTINGS + frame(1, 0x4, 3, b"\x88"), "does not exist"),
        (SETTINGS + frame(0, 0, 0, b"x"), "does not exist"),
        (SETTINGS + frame(4, 0, 1), "carries a stream"),
        (SETTINGS + frame(4, 0, 0, b"12345"), "wrong length"),
        (SETTINGS + frame(4, 0, 0, b"\0\4\xff\xff\xff\xff"), "window"),
        (SETTINGS + frame(5, 0, 1, b"\0\0\0\2"), "pushes"),
        (SETTINGS + frame(7, 0, 0, b"\0"), "wrong length"),
        (SETTINGS + frame(7, 0, 0, b"\0\0\0\1\0\0\0\1"), "refused"),
        (SETTINGS + frame(3, 0, 1, b"\0\0\0\1"), "reset"),
        (SETTINGS + frame(3, 0, 1, b"\0\0\0"), "wrong length"),
        (SETTINGS + frame(6, 0, 0, b"1234567"), "wrong length"),
        (SETTINGS + frame(4, 1, 0, b"\0\3\0\0\0\0"), "wrong length"),
        (SETTINGS + frame(8, 0, 3, b"\0\0\1\0"), "does not exist"),
        (SETTINGS + frame(8, 0, 1, b"\0\0\1\0") + frame(4, 0, 0, b"\0\4\x7f\xff\xff\xff"), "too large"),
        (SETTINGS + frame(8, 0, 0, b"\0\0\0\0"), "no size"),
        (SETTINGS + frame(8, 0, 1, b"\x7f\xff\xff\xff"), "too large"),
        (SETTINGS + frame(9, 0x4, 1, b"\x88"), "not begun"),
        (SETTINGS + frame(1, 0, 1, b"\x88") + HEADERS, "interrupted"),
        (SETTINGS + frame(1, 0xC, 1, b"\5\x88"), "padding"),
        (SETTINGS + frame(1, 0x24, 1, b"\0"), "cut short"),
        (SETTINGS + frame(1, 0x4, 1, b"\xbe"), "number 62"),
        (SETTINGS + frame(1, 0x4, 1, b"\x80"), "number 0"),
        (SETTINGS + frame(1, 0x4, 1, b"\x3f\x80\x80\x01"), "table"),
        (SETTINGS + frame(1, 0x4, 1, b"\0\x05ab"), "cut short"),
        (SETTINGS + frame(1, 0x4, 1, b"\0\x7f\xff\xff\xff\xff\xff\xff\x01"), "too large"),
        (SETTINGS + frame(1, 0x4, 1, b"\0\x81\x00\x01x"), "Huffman"),
        (SETTINGS + frame(1, 0, 1, b"a" * 16384) + frame(9, 0, 1, b"a" * 16384) * 16, "too large"),
        (SETTINGS + b"\xff\xff\xff\0\0\0\0\0\1", "larger than allowed"),
    ],
)
def test_a_peer_that_breaks_the_rules(
    played: Callable[[Peer], Callable[..., bytes]], answer: bytes, reason: str
) -> None:
    with pytest.raises(Garbled, match=reason):
        played(answering(answer))()


@pytest.mark.parametrize(
    ("answer", "sent"),
    [
        (SETTINGS + frame(7, 0, 0, b"\0" * 8), False),  # GOAWAY before this stream
        (SETTINGS + frame(7, 0, 0, b"\0\0\0\1\0\0\0\2"), True),
        (SETTINGS + frame(3, 0, 1, b"\0\0\0\7"), False),  # REFUSED_STREAM
        (SETTINGS + frame(3, 0, 1, b"\0\0\0\x08"), True),  # CANCEL
    ],
)
def test_a_server_that_drops_the_call(
    played: Callable[[Peer], Callable[..., bytes]], answer: bytes, sent: bool
) -> None:
    with pytest.raises(Unreachable) as caught:
        played(answering(answer))()
    assert caught.value.sent is sent


def test_a_connection_that_ends(played: Callable[[Peer], Callable[..., bytes]]) -> None:
    with pytest.raises(Unreachable, match=r"ended|reset"):
        played(lambda connection: None)()
    with pytest.raises(Unreachable, match=r"ended|reset") as caught:
        played(lambda connection: connection.sendall(SETTINGS + HEADERS))()
    assert caught.value.sent


def test_a_peer_that_is_silent(played: Callable[[Peer], Callable[..., bytes]]) -> None:
    with pytest.raises(Late):
        played(answering(b""))(seconds=0.2)
    with pytest.raises(Late):
        played(answering(SETTINGS + HEADERS))(seconds=0.2)


def test_a_peer_that_drips(played: Callable[[Peer], Callable[..., bytes]]) -> None:
    """The deadline is for the whole call, not for each read."""
    gone = threading.Event()

    def peer(connection: socket.socket) -> None:
        connection.sendall(SETTINGS)
        while not gone.wait(0.02):
            connection.sendall(frame(6, 1, 0, b"12345678"))

    make_call = played(peer)
    with pytest.raises(Late):
        make_call(seconds=0.3)
    gone.set()


@pytest.mark.parametrize(
    "flood",
    [
        frame(6, 0, 0, b"12345678"),
        SETTINGS,
        frame(0, 0, 1),
        frame(0, 0, 1, b"\0"),
        frame(8, 0, 0, b"\0\0\0\1"),
        frame(0xFA, 0, 0, b"x" * 16384),
        frame(7, 0, 0, b"\0\0\0\1\0\0\0\0"),
        frame(1, 0x4, 1, hpack.literal(b":status", b"100")),
    ],
)
def test_a_peer_that_never_stops(played: Callable[[Peer], Callable[..., bytes]], flood: bytes) -> None:
    informational = flood[3] == 1
    first = SETTINGS + (b"" if informational else HEADERS + frame(0, 0, 1, b"\0\0\x10\0\0"))

    def peer(connection: socket.socket) -> None:
        with suppress(OSError):
            connection.sendall(first)
            while True:
                connection.sendall(flood * 50)
                with suppress(BlockingIOError):
                    connection.recv(1 << 20, socket.MSG_DONTWAIT)

    with pytest.raises(Late):
        played(peer)(seconds=0.2)


def test_continuation_without_end(played: Callable[[Peer], Callable[..., bytes]]) -> None:
    """Parts of no size never reach the limit on header blocks: the deadline ends it."""

    def peer(connection: socket.socket) -> None:
        with suppress(OSError):
            connection.sendall(SETTINGS + frame(1, 0, 1, b"\x88"))
            while True:
                connection.sendall(frame(9, 0, 1) * 50)

    with pytest.raises(Late):
        played(peer)(seconds=0.2)


@pytest.mark.parametrize(
    ("coded", "plain"),
    [
        (b"plain", "plain"),
        (b"%C3%bcbrig 5 %25", "übrig 5 %"),
        (b"%", "%"),
        (b"%4", "%4"),
        (b"%zz%+f% f%0x", "%zz%+f% f%0x"),
        (b"%ff", "\ufffd"),
    ],
)
def test_status_messages(played: Callable[[Peer], Callable[..., bytes]], coded: bytes, plain: str) -> None:
    trailers = hpack.literal(b"grpc-status", b"14") + hpack.literal(b"grpc-message", coded)
    with pytest.raises(Refused) as caught:
        played(answering(SETTINGS + frame(1, 0x5, 1, b"\x88" + trailers)))()
    assert str(caught.value) == plain


def test_metadata_given_twice_is_joined(played: Callable[[Peer], Callable[..., bytes]]) -> None:
    fields = [(b"grpc-status", b"9"), (b"more", b"a"), (b"more", b"b")]
    trailers = b"\x88" + b"".join(hpack.literal(*field) for field in fields)
    with pytest.raises(Refused) as caught:
        played(answering(SETTINGS + frame(1, 0x5, 1, trailers)))()
    assert caught.value.metadata[b"more"] == b"a,b"


def test_a_peer_that_reads_nothing(played: Callable[[Peer], Callable[..., bytes]]) -> None:
    done = threading.Event()

    def peer(connection: socket.socket) -> None:
        connection.sendall(SETTINGS + frame(4, 0, 0, b"\0\4\x7f\xff\xff\xff") + frame(8, 0, 0, b"\x7f\xff\0\0"))
        done.wait()

    make_call = played(peer)
    with pytest.raises(Late):
        make_call(b"q" * (4 << 20), seconds=0.3)
    done.set()


@pytest.mark.parametrize(
    ("coded", "plain"),
    [  # RFC 7541, Appendix C.4 and C.6
        ("f1e3c2e5f23a6ba0ab90f4ff", b"www.example.com"),
        ("a8eb10649cbf", b"no-cache"),
        ("25a849e95ba97d7f", b"custom-key"),
        ("25a849e95bb8e8b4bf", b"custom-value"),
        ("6402", b"302"),
        ("aec3771a4b", b"private"),
        ("d07abe941054d444a8200595040b8166e082a62d1bff", b"Mon, 21 Oct 2013 20:13:21 GMT"),
        ("9d29ad171863c78f0b97c8e9ae82ae43d3", b"https://www.example.com"),
        ("94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
         b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
        ("", b""),
    ],
)  # fmt: skip
def test_huffman_code(coded: str, plain: bytes) -> None:
    assert huffman.decode(bytes.fromhex(coded)) == plain


def test_huffman_table_is_complete() -> None:
    """Every symbol once, and the codes fill the space of codes up to the end-of-string symbol (Kraft's equality)."""
    symbols = b"".join(huffman._SYMBOLS.values())
    assert sorted(symbols) == list(range(256))
    assert sum(len(symbols) << 30 - length for length, symbols in huffman._SYMBOLS.items()) == (1 << 30) - 1
    # The last codes of RFC 7541, Appendix B: 10, 13 and 22, of 30 bits.
    table = huffman._TABLE
    assert [table[30, code] for code in (0x3FFFFFFC, 0x3FFFFFFD, 0x3FFFFFFE)] == [10, 13, 22]
    assert (30, 0x3FFFFFFF) not in table


@pytest.mark.parametrize("coded", ["ffffffff", "ff", "00ff00ffff", "1e"])
def test_no_huffman_code(coded: str) -> None:
    with pytest.raises(ValueError, match="Huffman"):
        huffman.decode(bytes.fromhex(coded))
