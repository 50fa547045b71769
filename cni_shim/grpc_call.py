"""One unary gRPC call over a Unix socket: HTTP/2 (RFC 9113) with nothing but `_socket`.

grpcio takes 70-110 ms to import; one call on one connection needs a small part of the protocol. The connection
carries a single stream, number 1. Windows for the answer are opened once, as wide as they go: none needs topping up.
gRPC over HTTP/2: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md

Whatever the peer sends ends in an answer or in one of the exceptions below, at the deadline at the latest. Rules that
a peer can break without harm to the answer (bounds of settings that are not used here, say) are not checked.
"""

import _socket
from time import monotonic

from cni_shim import hpack

TYPE_CHECKING = False  # as in `typing`, which is not imported
if TYPE_CHECKING:
    from collections.abc import Callable

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, WITH_PRIORITY = 0x4, 0x8, 0x20
NO_ERROR, REFUSED_STREAM = 0, 7
# Errors that blame the other side, RFC 9113 section 7: PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR,
# COMPRESSION_ERROR, INADEQUATE_SECURITY, HTTP_1_1_REQUIRED. A server that is stopping uses any of the others.
BLAME = (1, 3, 6, 9, 12, 13)

FRAME_SIZE = 16384  # SETTINGS_MAX_FRAME_SIZE that both sides start with
WINDOW = 65535  # both windows' size at the start
LARGEST_WINDOW = 0x7FFFFFFF
LARGEST_REPLY = 4 << 20  # gRPC's own limit for a message received
LARGEST_HEADERS = 64 << 10  # of the fields as text, RFC 9113 section 6.5.2...
LARGEST_BLOCK = 4 * LARGEST_HEADERS  # ...whose Huffman code may be longer: 30 bits for a byte
# Of the frames with a fixed length, RFC 9113 section 6.
LENGTHS = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}


def _setting(number: int, value: int) -> bytes:
    return number.to_bytes(2, "big") + value.to_bytes(4, "big")


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


_OPENING = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + _frame(
        SETTINGS,
        0,
        0,
        _setting(1, 0)  # HEADER_TABLE_SIZE
        + _setting(2, 0)  # ENABLE_PUSH
        + _setting(4, LARGEST_WINDOW)  # INITIAL_WINDOW_SIZE; padding counts too, up to 256 bytes for each of data
        + _setting(6, LARGEST_HEADERS),  # MAX_HEADER_LIST_SIZE
    )
    + _frame(WINDOW_UPDATE, 0, 0, (LARGEST_WINDOW - WINDOW).to_bytes(4, "big"))
)


class CallError(Exception):
    """The call brought no reply; the text says why. `sent`: whether the daemon may have got the request."""

    sent = True


class Unreachable(CallError):
    """Nobody listens, or the connection ended before an answer came: calling again may help."""

    def __init__(self, reason: str, sent: bool) -> None:
        Exception.__init__(self, reason)
        self.sent = sent


class Forbidden(CallError):
    """The socket is there but may not be used, now or later."""

    sent = False


class Late(CallError):
    """The deadline passed."""


class Garbled(CallError):
    """The peer does not speak gRPC, or not correctly."""


class Refused(CallError):
    """The daemon answered with a gRPC status other than OK."""

    def __init__(self, status: int, message: str, metadata: dict[bytes, bytes]) -> None:
        Exception.__init__(self, message)
        self.status = status
        self.metadata = metadata


def unary(
    path: str, method: bytes, request: bytes, deadline: float, meanwhile: "Callable[[], object] | None" = None
) -> bytes:
    """Call `method` ("/package.Service/Method") at the socket `path` and return the reply's message.

    `deadline` is a time of `time.monotonic`. `meanwhile` is called once the request is on its way, to use the time
    that the daemon takes. Raises CallError.
    """
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(_left(deadline))
        try:
            connection.connect(path)
        except PermissionError:
            raise Forbidden("permission denied") from None
        except TimeoutError:
            raise Late("no connection within the time allowed") from None
        except OSError as error:  # no such file; nobody listens; or its queue of connections is full
            raise Unreachable(error.strerror or str(error), False) from None
        return _Call(connection, deadline).run(method, request, meanwhile)
    finally:
        connection.close()


def _left(deadline: float) -> float:
    seconds = deadline - monotonic()
    if seconds <= 0:
        raise Late("no answer within the time allowed")
    return seconds


class _Call:
    def __init__(self, connection: _socket.socket, deadline: float) -> None:
        self.connection = connection
        self.deadline = deadline
        self.received = bytearray()  # bytes not yet taken apart into frames
        self.connection_window = WINDOW  # what we may still send
        self.stream_window = WINDOW
        self.initial_window = WINDOW
        self.http_status = b""  # empty until the headers have come
        self.trailers: dict[bytes, bytes] = {}
        self.block = bytearray()  # of a HEADERS frame and the CONTINUATION frames after it
        self.block_open = False
        self.block_ends_stream = False
        self.reply = bytearray()
        self.ended = False
        self.broken = False  # the peer has stopped reading; what it wrote before may still hold the answer

    def run(self, method: bytes, request: bytes, meanwhile: "Callable[[], object] | None") -> bytes:
        message = b"\0" + len(request).to_bytes(4, "big") + request  # not compressed
        at = min(len(message), WINDOW)
        self._send(_OPENING + _frame(HEADERS, END_HEADERS, 1, self._request_headers(method)) + _data(message, 0, at))
        self.connection_window -= at
        self.stream_window -= at
        if meanwhile is not None:
            meanwhile()
        kind, flags, stream, payload = self._frame()
        if kind != SETTINGS or flags & ACK:
            raise Garbled("it does not speak HTTP/2")
        self._handle(kind, flags, stream, payload)
        while not self.ended:
            room = min(self.connection_window, self.stream_window, len(message) - at)
            if room > 0:
                self._send(_data(message, at, at + room))
                at += room
                self.connection_window -= room
                self.stream_window -= room
            self._handle(*self._frame())
        return self._outcome()

    def _request_headers(self, method: bytes) -> bytes:
        milliseconds = max(int(_left(self.deadline) * 1000), 1)
        return (
            b"\x83\x86"  # :method POST, :scheme http (static table 3 and 6)
            + hpack.literal_indexed(4, method)  # :path
            + hpack.literal_indexed(1, b"localhost")  # :authority
            + hpack.literal_indexed(31, b"application/grpc")  # content-type
            + hpack.literal(b"te", b"trailers")
            + hpack.literal(b"grpc-timeout", b"%dm" % milliseconds)
        )

    def _send(self, data: bytes) -> None:
        if self.broken:
            return
        self.connection.settimeout(_left(self.deadline))
        try:
            self.connection.sendall(data)
        except TimeoutError:
            raise Late("the daemon accepts no data") from None
        except OSError:
            self.broken = True

    def _frame(self) -> tuple[int, int, int, bytes]:
        received = self.received
        self._receive(9)
        length = int.from_bytes(received[:3], "big")
        if length > FRAME_SIZE:
            raise Garbled("it does not speak HTTP/2, or sends frames larger than allowed")
        self._receive(9 + length)
        head = received[:9]
        payload = bytes(received[9 : 9 + length])
        del received[: 9 + length]
        return head[3], head[4], int.from_bytes(head[5:9], "big") & 0x7FFFFFFF, payload

    def _receive(self, size: int) -> None:
        while len(self.received) < size:
            self.connection.settimeout(_left(self.deadline))
            try:
                data = self.connection.recv(FRAME_SIZE)
            except TimeoutError:
                raise Late("no answer within the time allowed") from None
            except OSError as error:
                raise Unreachable(error.strerror or str(error), True) from None
            if not data:
                raise Unreachable("the connection ended before an answer came", True)
            self.received += data

    def _handle(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if self.block_open != (kind == CONTINUATION):
            raise Garbled("a header block is interrupted, or goes on that has not begun")
        if kind in (SETTINGS, PING, GOAWAY):
            if stream:
                raise Garbled("a frame of the connection carries a stream")
        elif kind <= CONTINUATION and kind != PRIORITY and stream != 1 and (stream or kind != WINDOW_UPDATE):
            raise Garbled("a frame of a stream that does not exist")
        if len(payload) != LENGTHS.get(kind, len(payload)):
            raise Garbled("a frame has the wrong length")
        if kind == DATA:
            self._on_data(flags, payload)
        elif kind == HEADERS:
            self._on_headers(flags, payload)
        elif kind == CONTINUATION:
            self._on_block(flags, payload)
        elif kind == RST_STREAM:
            self._on_reset(payload)
        elif kind == SETTINGS:
            self._on_settings(flags, payload)
        elif kind == PING:
            if not flags & ACK:
                self._send(_frame(PING, ACK, 0, payload))
        elif kind == GOAWAY:
            self._on_goaway(payload)
        elif kind == WINDOW_UPDATE:
            self._on_window(stream, payload)
        elif kind == PUSH_PROMISE:
            raise Garbled("it pushes")
        # PRIORITY and kinds of frames that later versions may add mean nothing to us.

    def _on_data(self, flags: int, payload: bytes) -> None:
        if not self.http_status:
            raise Garbled("data come before the headers")
        self.reply += _unpadded(flags, payload)
        if int.from_bytes(self.reply[1:5], "big") > LARGEST_REPLY or len(self.reply) > LARGEST_REPLY + 5:
            raise Garbled("the reply is too large")
        self.ended = bool(flags & END_STREAM)

    def _on_headers(self, flags: int, payload: bytes) -> None:
        payload = _unpadded(flags, payload)
        if flags & WITH_PRIORITY:
            if len(payload) < 5:
                raise Garbled("a frame is cut short")
            payload = payload[5:]
        self.block.clear()
        self.block_open = True
        self.block_ends_stream = bool(flags & END_STREAM)
        self._on_block(flags, payload)

    def _on_block(self, flags: int, payload: bytes) -> None:
        self.block += payload
        if len(self.block) > LARGEST_BLOCK:
            raise Garbled("the headers are too large")
        if flags & END_HEADERS:
            try:
                fields = hpack.decode(bytes(self.block))
            except ValueError as error:
                raise Garbled(str(error)) from None
            self.block_open = False
            self._on_fields(fields, self.block_ends_stream)
            self.ended = self.block_ends_stream

    def _on_fields(self, fields: dict[bytes, bytes], last: bool) -> None:
        """One whole header block: interim headers, those of the answer, its trailers, or the last two in one."""
        http_status = fields.get(b":status")
        if http_status is None:
            if not self.http_status:
                raise Garbled("trailers come without headers")
            if not last:
                raise Garbled("trailers do not end the stream")
        elif self.http_status:
            raise Garbled("headers come twice")
        elif len(http_status) != 3 or not http_status.isdigit() or (last and http_status < b"200"):
            raise Garbled("it answers with HTTP status %s" % _text(http_status))
        elif http_status >= b"200":
            self.http_status = http_status
        if last:
            self.trailers = fields

    def _on_reset(self, payload: bytes) -> None:
        code = int.from_bytes(payload[:4], "big")
        if code in BLAME:
            raise Garbled("the call was reset (HTTP/2 error %d)" % code)
        raise Unreachable("the daemon dropped the call", code != REFUSED_STREAM)

    def _on_settings(self, flags: int, payload: bytes) -> None:
        if len(payload) % 6 or (payload and flags & ACK):
            raise Garbled("a frame has the wrong length")
        if flags & ACK:
            return
        for at in range(0, len(payload), 6):
            if payload[at : at + 2] == b"\0\x04":  # INITIAL_WINDOW_SIZE; the change applies to the open stream too
                size = int.from_bytes(payload[at + 2 : at + 6], "big")
                self.stream_window += size - self.initial_window
                self.initial_window = size
                self._check_windows()
        self._send(_frame(SETTINGS, ACK, 0, b""))

    def _on_goaway(self, payload: bytes) -> None:
        if len(payload) < 8:
            raise Garbled("a frame has the wrong length")
        last = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF  # the last stream that may still be answered
        code = int.from_bytes(payload[4:8], "big")
        if code in BLAME:
            raise Garbled("the connection was refused (HTTP/2 error %d)" % code)
        if code != NO_ERROR or last < 1:
            raise Unreachable("the daemon is stopping", last >= 1)

    def _on_window(self, stream: int, payload: bytes) -> None:
        increment = int.from_bytes(payload, "big") & 0x7FFFFFFF
        if not increment:
            raise Garbled("a window update of no size")
        if stream:
            self.stream_window += increment
        else:
            self.connection_window += increment
        self._check_windows()

    def _check_windows(self) -> None:
        if max(self.initial_window, self.stream_window, self.connection_window) > LARGEST_WINDOW:
            raise Garbled("a window is too large")

    def _outcome(self) -> bytes:
        """The reply, or what the trailers say instead."""
        trailers = self.trailers
        status = trailers.get(b"grpc-status")
        if status is None:
            raise Garbled("it answers without a gRPC status (HTTP status %s)" % _text(self.http_status))
        if not status.isdigit() or len(status) > 4:
            raise Garbled("it answers with an unreadable gRPC status")
        if int(status):
            raise Refused(int(status), _text(_percent_decoded(trailers.get(b"grpc-message", b""))), trailers)
        reply = self.reply
        if len(reply) < 5 or reply[0] or int.from_bytes(reply[1:5], "big") != len(reply) - 5:
            raise Garbled("the reply is not one plain message")
        return bytes(reply[5:])


def _data(message: bytes, start: int, end: int) -> bytes:
    """DATA frames for that part of the message; the one that holds its end closes our side of the stream."""
    out = bytearray()
    while start < end:
        stop = min(start + FRAME_SIZE, end)
        out += _frame(DATA, END_STREAM if stop == len(message) else 0, 1, message[start:stop])
        start = stop
    return bytes(out)


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Garbled("a frame has more padding than room")
    return payload[1 : len(payload) - payload[0]]


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _percent_decoded(value: bytes) -> bytes:
    """grpc-message is percent-encoded UTF-8; what is no escape stands for itself, as the protocol asks."""
    parts = value.split(b"%")
    out = bytearray(parts[0])
    for part in parts[1:]:
        try:
            if len(part) < 2 or not part[:2].isalnum():  # `int` would also take a sign or a space
                raise ValueError
            out += bytes((int(part[:2], 16),)) + part[2:]
        except ValueError:
            out += b"%" + part
    return bytes(out)
