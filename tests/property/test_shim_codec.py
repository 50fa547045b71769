"""The plugin's protobuf code against the generated classes, and its readers against any bytes at all."""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cni_shim import grpc_call, hpack, huffman, protobuf
from ipamd.api.v1 import ipam_pb2

text = st.text(max_size=40)
calls = st.builds(
    ipam_pb2.CniCall,
    container_id=text,
    ifname=text,
    netns=text,
    args=text,
    path=text,
    config=st.binary(max_size=300),
)


def encoded(call: ipam_pb2.CniCall) -> bytes:
    return protobuf.cni_call(
        call.container_id.encode(),
        call.ifname.encode(),
        call.netns.encode(),
        call.args.encode(),
        call.path.encode(),
        call.config,
    )


@given(calls, st.integers(0, 2**32 - 1))
def test_requests_are_the_bytes_that_protobuf_writes(call: ipam_pb2.CniCall, deadline_ms: int) -> None:
    reference = ipam_pb2.AllocateRequest(cni=call, deadline_ms=deadline_ms)
    assert protobuf.allocate_request(encoded(call), deadline_ms) == reference.SerializeToString()
    for kind in (
        ipam_pb2.ReleaseRequest,
        ipam_pb2.CheckRequest,
        ipam_pb2.CollectRequest,
        ipam_pb2.ReadyRequest,
    ):
        assert protobuf.request(encoded(call)) == kind(cni=call).SerializeToString()


def exactly(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


addresses = st.builds(
    lambda first, rest: bytes((first,)) + rest, st.integers(1, 223).filter(lambda first: first != 127), exactly(3)
)
characters = st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="/:%")
names = st.text(characters, min_size=1, max_size=15).filter(lambda name: name not in (".", ".."))
objects = st.binary(max_size=300).map(lambda inner: b"{" + inner + b"}")
replies = st.builds(
    ipam_pb2.AllocateReply,
    address=addresses,
    prefix_length=st.integers(1, 32),
    gateway=addresses,
    ifname=names,
    host_ifname=names,
    mac=exactly(6),
    host_mac=exactly(6),
    mtu=st.integers(1, 65535),
    link_group=st.integers(0, 2**32 - 1),
    table=st.integers(1, 2**31),
    route_protocol=st.integers(0, 255),
    netns=text,
    result=objects,
    request_id=text,
    result_beside=st.one_of(st.just(b""), objects),
)


@given(replies)
def test_a_plan_is_what_the_reply_says(reply: ipam_pb2.AllocateReply) -> None:
    plan = protobuf.Plan(reply.SerializeToString())
    for name in protobuf.Plan.__slots__:
        expected = getattr(reply, name)
        assert getattr(plan, name) == (expected.encode() if isinstance(expected, str) else expected)


NONSENSE: list[tuple[str, Any]] = [
    *[("address", bytes(address)) for address in ((0, 0, 0, 0), (127, 0, 0, 1), (224, 0, 0, 1), (255,) * 4, (10, 0))],
    *[("gateway", bytes(address)) for address in ((0, 0, 0, 0), (239, 1, 1, 1), (1,) * 5, ())],
    *[(field, name) for field in ("ifname", "host_ifname") for name in (
        "", ".", "..", "a/b", "../eth0", "a\0b", "a\nb", "a b", "a:b", "eth%d", "\t", "a" * 16
    )],
    *[(field, value) for field in ("prefix_length", "mtu", "table") for value in (0, 2**32 - 1)],
    *[(field, b"\1" * size) for field in ("mac", "host_mac") for size in (0, 5, 7)],
    *[("result", value) for value in (b"", b"{", b"null", b"{}\n")],
    *[("result_beside", value) for value in (b"x", b"[]", b"{}x")],
    ("route_protocol", 256),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), NONSENSE)
def test_a_plan_that_makes_no_sense(field: str, value: Any) -> None:
    values: dict[str, Any] = {
        "address": b"\x0a\0\0\5",
        "prefix_length": 32,
        "gateway": b"\xa9\xfe\1\1",
        "ifname": "eth0",
        "host_ifname": "ipm0123456789ab",
        "mac": b"\2\0\0\0\0\1",
        "host_mac": b"\2\0\0\0\0\2",
        "mtu": 1500,
        "table": 1500,
        "result": b"{}",
    }
    protobuf.Plan(ipam_pb2.AllocateReply(**values).SerializeToString())
    with pytest.raises(protobuf.DecodeError, match=field):
        protobuf.Plan(ipam_pb2.AllocateReply(**(values | {field: value})).SerializeToString())


@pytest.mark.parametrize("addition", [b"\0\1", b"\x02\0", b"\x05" + b"4" * 4])
def test_no_field_has_the_number_0(addition: bytes) -> None:
    with pytest.raises(protobuf.DecodeError, match="number 0"):
        protobuf.decode(addition)


def test_a_field_of_another_wire_type_is_not_the_field() -> None:
    """As protobuf has it: `address`, but 32 bits of fixed size."""
    assert protobuf.decode(b"\x0d\x0a\0\0\5\x09" + b"8" * 8) == {}


@given(st.binary(max_size=200))
def test_any_bytes_are_a_plan_or_an_error(data: bytes) -> None:
    with suppress(protobuf.DecodeError):
        protobuf.Plan(data)


@given(replies, st.data())
def test_a_damaged_reply_is_a_plan_or_an_error(reply: ipam_pb2.AllocateReply, data: st.DataObject) -> None:
    raw = bytearray(reply.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with suppress(protobuf.DecodeError):
        protobuf.Plan(bytes(raw[: data.draw(st.integers(0, len(raw)))]))


# Fields that a later version of the contract might add, in each wire type.
additions = st.sampled_from([b"\xf8\x07\x96\x01", b"\xf9\x07" + b"8" * 8, b"\xfa\x07\x03abc", b"\xfd\x07" + b"4" * 4])


@given(replies, replies, additions)
def test_later_fields_count_and_unknown_ones_do_not(
    first: ipam_pb2.AllocateReply, last: ipam_pb2.AllocateReply, addition: bytes
) -> None:
    raw = first.SerializeToString() + addition + last.SerializeToString()
    merged = ipam_pb2.AllocateReply.FromString(raw)
    plan = protobuf.Plan(raw)
    assert (plan.address, plan.mtu, plan.table) == (merged.address, merged.mtu, merged.table)
    assert plan.ifname.decode() == merged.ifname


header_names = st.binary(min_size=1, max_size=40)


@given(st.lists(st.tuples(header_names, st.binary(max_size=400)), max_size=8))
def test_header_blocks_come_back(fields: list[tuple[bytes, bytes]]) -> None:
    values: dict[bytes, list[bytes]] = {}
    assume([name for name, _ in fields].count(b":status") < 2)  # that is refused
    for name, value in fields:
        values.setdefault(name, []).append(value)
    joined = {name: b",".join(several) for name, several in values.items()}
    assert hpack.decode(b"".join(hpack.literal(*field) for field in fields)) == joined


@given(st.binary(max_size=200))
def test_any_bytes_are_headers_or_an_error(data: bytes) -> None:
    with suppress(ValueError):
        hpack.decode(data)
    with suppress(ValueError):
        huffman.decode(data)


frames = st.builds(
    lambda kind, flags, stream, payload: (
        len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload
    ),
    st.integers(0, 11),
    st.integers(0, 255),
    st.sampled_from([0, 1, 1, 1, 3, 2**31 + 1]),
    st.binary(max_size=64),
)
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
HEADERS = b"\0\0\1\1\4\0\0\0\1\x88"
peers = st.one_of(
    st.binary(max_size=300),
    st.lists(frames, max_size=12).map(b"".join),
    st.lists(frames, max_size=12).map(lambda made: SETTINGS + HEADERS + b"".join(made)),
)


@contextmanager
def peer(path: str, answer: bytes, hang: bool) -> Iterator[None]:
    """Takes one connection and sends the answer; then closes it, or leaves it open until the end."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    gone = threading.Event()

    def serve() -> None:
        connection, _ = listening.accept()
        with connection, suppress(OSError):
            connection.sendall(answer)
            if hang:
                gone.wait()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        gone.set()
        thread.join()
        listening.close()


@settings(deadline=None, max_examples=150)
@given(peers, st.booleans())
def test_no_peer_can_make_a_call_hang_or_crash(answer: bytes, hang: bool) -> None:
    directory = tempfile.mkdtemp(prefix="ipm")
    path = f"{directory}/s.sock"
    try:
        with peer(path, answer, hang), suppress(grpc_call.CallError):
            grpc_call.unary(path, b"/m", b"request", time.monotonic() + 0.05)
    finally:
        shutil.rmtree(directory)
