"""What is fuzzed: functions of bytes that raise for nothing but a defect, each with inputs to begin from.

They need no fuzzer to run; `run.py` gives them to atheris.
"""

from __future__ import annotations

import _socket
import json
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from struct import pack
from time import monotonic
from typing import NamedTuple, NoReturn
from unittest.mock import patch

from cni_shim import errors, grpc_call, hpack, huffman, main, netlink, protobuf
from ipamd.api.v1 import ipam_pb2
from tests.fuzz import understanding

SETTINGS = b"\0\0\0\4\0\0\0\0\0"
STATUS_OK = hpack.literal(b"grpc-status", b"0")
SECONDS = 5.0  # that a call may take; the peers here close their side at once


class Target(NamedTuple):
    check: Callable[[bytes], object]
    seeds: list[bytes]


def header_block(data: bytes) -> None:
    with suppress(ValueError):
        fields = hpack.decode(data)
        again = hpack.decode(b"".join(hpack.literal(*field) for field in fields.items()))
        assert again == fields, (again, fields)
    with suppress(ValueError):
        huffman.decode(data)


def plan(data: bytes) -> None:
    with suppress(protobuf.DecodeError):
        protobuf.checked(data)
    try:
        read = protobuf.Plan(data)
    except protobuf.DecodeError:
        return
    try:
        reference = ipam_pb2.AllocateReply.FromString(data)
    except Exception:  # stricter about text and numbers that mean nothing to the plugin
        return
    for name in protobuf.Plan.__slots__:
        expected = getattr(reference, name)
        assert getattr(read, name) == (expected.encode() if isinstance(expected, str) else expected), name


def call(answer: bytes) -> bytes:
    """The reply to a call whose peer sends these bytes and then nothing."""
    ours, peer = socket.socketpair()
    with peer:
        peer.sendall(answer[:60_000])
        peer.shutdown(socket.SHUT_WR)
        connection = _socket.socket(fileno=ours.detach())
        try:
            return grpc_call._Call(connection, monotonic() + SECONDS).run(b"/ipamd.v1.Ipam/Ready", b"request", None)
        finally:
            connection.close()


def peer_bytes(data: bytes) -> None:
    with suppress(grpc_call.CallError):
        call(data)


def frames(data: bytes) -> bytes:
    """Frames with lengths that fit, made from bytes: kind, flags, stream and length, then so much payload."""
    out = bytearray()
    at = 0
    while at + 4 <= len(data):
        kind, flags, stream, length = data[at : at + 4]
        payload = data[at + 4 : at + 4 + length]
        out += len(payload).to_bytes(3, "big") + bytes((kind % 11, flags)) + (stream % 3).to_bytes(4, "big") + payload
        at += 4 + length
    return bytes(out)


def peer_frames(data: bytes) -> None:
    with suppress(grpc_call.CallError):
        call(SETTINGS + frames(data))


class Kernel:
    """In the place of a netlink socket: the datagrams, each after its length, then silence."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def send(self, data: bytes) -> int:
        return len(data)

    def recv(self, size: int) -> bytes:
        if not self.data:
            raise TimeoutError("timed out")
        length = self.data[0]
        datagram, self.data = self.data[1 : 1 + length], self.data[1 + length :]
        return datagram


def kernel_answers(data: bytes) -> None:
    netlink.attributes(data, 0)
    with suppress(netlink.NetlinkError):
        netlink.Link(data)
    netlink.Way(data)
    kernel = netlink.Socket.__new__(netlink.Socket)
    kernel._socket = Kernel(data)  # type: ignore[assignment]
    kernel._sequence = 0
    with suppress(netlink.NetlinkError):
        for outcome in kernel.attempt(
            netlink.get_link(b"ipmx"), netlink.set_link_up(7, netlink.IPV4_DEVCONF_ARP_IGNORE, 1)
        ):
            assert 0 <= outcome.errno < 4096 and outcome.reason
            netlink.Way(outcome.answer)


def version(data: bytes) -> None:
    found = errors.version_of(data)
    assert re.fullmatch(r"[0-9.]+", found, re.ASCII), found
    message = data.decode("utf-8", "replace")
    rendered = json.loads(errors.CniError(7, message, message).render(found))
    assert (rendered["cniVersion"], rendered["msg"]) == (found, errors.cut(message))


class Ended(BaseException):
    """In the place of the end of the process."""


def run(data: bytes) -> None:
    """One whole run of STATUS, GC, VERSION or an unknown verb: the environment, standard input and the daemon's
    answer, parted by a byte that none of them needs. Always one JSON object on standard output when it fails."""
    verb, container, args, config, answer = (data.split(b"\xfe", 4) + [b""] * 5)[:5]
    command = {b"S": b"STATUS", b"G": b"GC", b"V": b"VERSION"}.get(verb, verb)
    if command in (b"ADD", b"DEL", b"CHECK"):  # they touch the kernel
        return
    given = {b"CNI_COMMAND": command, b"CNI_CONTAINERID": container, b"CNI_ARGS": args}
    printed = bytearray()
    unread = [config, b""]
    status: list[int] = []

    class Process:
        """The part of `posix` that a run uses."""

        environ = given

        @staticmethod
        def read(descriptor: int, size: int) -> bytes:
            return unread.pop(0)

        @staticmethod
        def write(descriptor: int, text: bytes) -> int:
            printed.extend(text)
            return len(text)

        @staticmethod
        def _exit(number: int) -> NoReturn:
            if not status:
                status.append(number)
            raise Ended

    answered = patch.object(main, "unary", lambda *ignored: call(answer))
    with patch.object(main, "posix", Process), answered, suppress(Ended):
        main.main()
    if status == [0]:
        return
    failure = json.loads(printed)
    assert failure["code"] and failure["msg"] and failure["code"] != errors.INTERNAL, failure


_ANSWER = b"\0\0\0\0\2{}"
_PLAN = ipam_pb2.AllocateReply(
    address=b"\x0a\0\0\5",
    prefix_length=32,
    gateway=b"\xa9\xfe\1\1",
    ifname="eth0",
    host_ifname="ipm0123456789ab",
    mac=b"\2\0\0\0\0\1",
    host_mac=b"\2\0\0\0\0\2",
    mtu=1500,
    table=1500,
    result=b"{}",
).SerializeToString()
_FRAMES = b"".join(
    bytes((kind, flags, stream, len(payload))) + payload
    for kind, flags, stream, payload in (
        (6, 0, 0, b"12345678"),
        (8, 0, 0, b"\0\0\1\0"),
        (4, 0, 0, b"\0\4\0\0\1\0"),
        (1, 4, 1, b"\x88"),
        (0, 8, 1, b"\2" + _ANSWER + b"\0\0"),
        (1, 1, 1, STATUS_OK[:5]),
        (9, 4, 1, STATUS_OK[5:]),
    )
)
_ACKNOWLEDGED = b"".join(
    bytes((36,)) + pack("=IHHIIiIHHII", 36, 2, 0x100, number, 0, 0, 32, 16, 5, number, 0) for number in (1, 2)
)
_PARTS = [b"S", b"7d0f", b"A=B", b'{"cniVersion":"1.0.0"}', SETTINGS + frames(_FRAMES)]

TARGETS = {
    "header_block": Target(header_block, [b"\x88" + STATUS_OK, bytes.fromhex("204088 9acac8b21234da8f 8107")]),
    "plan": Target(plan, [_PLAN]),
    "peer_bytes": Target(peer_bytes, [SETTINGS + frames(_FRAMES), b"HTTP/1.1 400 Bad Request\r\n\r\n"]),
    "peer_frames": Target(peer_frames, [_FRAMES]),
    "kernel_answers": Target(kernel_answers, [_ACKNOWLEDGED]),
    "version": Target(version, [b'{"cniVersion" : "1.0.0"}']),
    "from_runtime": Target(understanding.from_runtime, understanding.SEEDS),
    "as_message": Target(understanding.as_message, understanding.MESSAGES),
    "run": Target(run, [b"\xfe".join(_PARTS), b"V", b"\xfe".join([b"G", *_PARTS[1:]])]),
}
