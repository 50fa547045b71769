"""The installed plugin, in both packagings, among peers and runtimes that mean it no good.

A daemon's socket that answers with anything, variables and standard input of any kind: always one CNI error object,
silence on standard error, and nothing left in the kernel.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from cni_shim import hpack
from ipamd.sim import netns
from tests.netns.test_plugin import CONFIG, CONTAINER, Daemon, Node, Outcome, plan
from tests.netns.test_plugin import node as bare_node

__all__ = ["bare_node"]
pytestmark = pytest.mark.netns


@pytest.fixture
async def node(bare_node: Node) -> Node:
    """ADDs wait for an answer for a good second, and not for as long as usual."""
    await asyncio.to_thread(bare_node.install_plugin, bare_node.directory / "bin", bare_node.socket, add_seconds=4.2)
    return bare_node


Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


SETTINGS = frame(4, 0, 0)
HEADERS = frame(1, 4, 1, b"\x88")


def answer(message: bytes) -> bytes:
    data = b"\0" + len(message).to_bytes(4, "big") + message
    return (
        SETTINGS
        + HEADERS
        + b"".join(frame(0, 0, 1, data[at : at + 16384]) for at in range(0, len(data), 16384))
        + frame(1, 5, 1, hpack.literal(b"grpc-status", b"0"))
    )


def sending(data: bytes, hang: bool = False) -> Peer:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        while hang and await reader.read(65536):
            pass

    return peer


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An answer that never ends, a byte of data at a time."""
    writer.write(SETTINGS + HEADERS + frame(0, 0, 1, b"\0\0\x20\0\0"))
    while not writer.is_closing():
        writer.write(frame(0, 0, 1, b"x"))
        await writer.drain()
        await asyncio.sleep(0.001)


async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(SETTINGS)
    while not writer.is_closing():
        writer.write(frame(6, 0, 0, b"12345678") * 1000)
        await writer.drain()


PEERS: dict[str, Peer] = {
    "nothing": sending(b""),
    "silence": sending(b"", hang=True),
    "random": sending(random.Random(5).randbytes(5000)),
    "HTTP/1.1": sending(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"),
    "a web server": sending(SETTINGS + HEADERS + frame(0, 1, 1, b"<html>")),
    "no gRPC status": sending(SETTINGS + frame(1, 5, 1, b"\x8d")),
    "half a frame": sending(SETTINGS + b"\0\0"),
    "half an answer": sending(answer(plan().SerializeToString())[:-40]),
    "half an answer, then silence": sending(answer(plan().SerializeToString())[:-40], hang=True),
    "a plan that is cut short": sending(answer(plan().SerializeToString()[:-3])),
    "an empty plan": sending(answer(b"")),
    "random plan": sending(answer(random.Random(6).randbytes(300))),
    "too large a reply": sending(SETTINGS + HEADERS + frame(0, 0, 1, b"\0\x7f\xff\xff\xff")),
    "a status without a reason": sending(SETTINGS + frame(1, 5, 1, b"\x88" + hpack.literal(b"grpc-status", b"13"))),
    "an error object that is none": sending(
        SETTINGS
        + frame(1, 5, 1, b"\x88" + hpack.literal(b"grpc-status", b"8") + hpack.literal(b"ipamd-cni-error", b"<html>"))
    ),
    "drip": drip,
    "flood": flood,
}


async def serve(node: Node, peer: Peer) -> asyncio.Server:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await peer(reader, writer)
        writer.close()

    return await asyncio.start_unix_server(handle, node.socket)


@pytest.mark.parametrize("name", PEERS)
async def test_add_and_a_peer_that_is_no_daemon(node: Node, name: str) -> None:
    async with await serve(node, PEERS[name]):
        error = (await node.cni("ADD")).error
    assert error["code"] in (11, 101) and error["msg"], error
    assert await node.bare()


@pytest.mark.parametrize("name", ["nothing", "random", "HTTP/1.1", "half an answer", "random plan"])
async def test_other_verbs_and_a_peer_that_is_no_daemon(node: Node, name: str) -> None:
    async with await serve(node, PEERS[name]):
        for verb in ("STATUS", "CHECK", "GC"):
            outcome = await node.cni(verb)
            if name == "random plan" and verb != "CHECK":  # the reply's message is of no interest
                assert (outcome.status, outcome.out, outcome.err) == (0, b"", b"")
            else:
                assert outcome.error["code"] in (11, 50, 101)


@pytest.mark.parametrize("name", ["nothing", "random", "HTTP/1.1", "silence", "drip", "flood"])
async def test_del_succeeds_beside_a_peer_that_is_no_daemon(node: Node, name: str) -> None:
    async with await serve(node, PEERS[name]):
        outcome = await node.cni("DEL")
    assert (outcome.status, outcome.out, outcome.err) == (0, b"", b"")
    assert len(list(node.spool.iterdir())) == 1


NONSENSE: list[tuple[str, Any]] = [
    ("address", socket.inet_aton("224.0.0.1")),
    ("address", socket.inet_aton("127.0.0.1")),
    ("address", b""),
    ("gateway", socket.inet_aton("0.0.0.0")),
    ("prefix_length", 0),
    ("prefix_length", 33),
    *[("ifname", name) for name in ("", "a/b", "../x", "a\0b", "a\nb", "eth%d", ".", "lo")],
    *[("host_ifname", name) for name in ("", "a/b", "a\0b", "ipm%d", "lo")],
    *[("mac", mac) for mac in (b"", b"\1\0\0\0\0\1", bytes(6))],
    *[("host_mac", mac) for mac in (b"\xff" * 6, bytes(6))],
    *[("mtu", mtu) for mtu in (0, 67, 65536, 2**32 - 1)],
    *[("table", table) for table in (0, 2**32 - 1)],
    ("route_protocol", 256),
    *[("result", text) for text in (b"", b"<html>", b"x" * (4 << 20))],
]


@pytest.mark.parametrize(("field", "value"), NONSENSE)
async def test_a_plan_of_nonsense(node: Node, field: str, value: Any) -> None:
    """The unusual value is refused, by the plugin or by the kernel, and the address given back."""
    daemon = Daemon(plan=plan(**{field: value}))
    await node.serve(daemon)
    error = (await node.cni("ADD")).error
    assert error["code"] in (100, 101), error
    assert await node.bare()
    assert daemon.made() == ["Allocate", "Release"]


async def start(node: Node, verb: str, stdin: Any, **changes: bytes) -> Outcome:
    """The plugin with raw bytes in its environment and any file as its standard input."""
    environment: dict[bytes, bytes] = {
        b"CNI_COMMAND": verb.encode(),
        b"CNI_CONTAINERID": CONTAINER.encode(),
        b"CNI_NETNS": node.pod_path.encode(),
        b"CNI_IFNAME": b"eth0",
        b"CNI_PATH": b"/opt/cni/bin",
    } | {f"CNI_{name}".encode(): value for name, value in changes.items()}
    process = await asyncio.create_subprocess_exec(
        *("/usr/bin/nsenter", f"--net={netns.DIRECTORY / node.host}", str(node.directory / "bin" / "ipamd-cni")),
        env=environment,
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(CONFIG if stdin == asyncio.subprocess.PIPE else None)
    assert process.returncode is not None
    return Outcome(process.returncode, out, err)


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "STATUS", "GC"])
async def test_a_variable_that_is_not_utf8(node: Node, verb: str) -> None:
    daemon = Daemon()
    await node.serve(daemon)
    for variable in ("CONTAINERID", "IFNAME", "NETNS", "ARGS", "PATH"):
        error = (await start(node, verb, asyncio.subprocess.PIPE, **{variable: b"\xff\xfe/\x80"})).error
        assert error["code"] == 4 and f"CNI_{variable}" in error["msg"]
    assert daemon.calls == []


async def test_an_unreadable_command(node: Node) -> None:
    assert (await start(node, "", asyncio.subprocess.PIPE, COMMAND=b'\xff"\n\\')).error["code"] == 4


async def test_the_longest_variables_that_the_kernel_passes_on(node: Node) -> None:
    """MAX_ARG_STRLEN, 128 KiB, for each; they arrive whole."""
    daemon = Daemon()
    await node.serve(daemon)
    long = b"K=" + b"v" * 130_000
    outcome = await start(node, "ADD", asyncio.subprocess.PIPE, ARGS=long, PATH=long)
    assert (outcome.status, outcome.err) == (0, b"")
    assert daemon.calls[0][1].cni.args.encode() == long


async def test_a_namespace_that_is_none(node: Node) -> None:
    daemon = Daemon()
    await node.serve(daemon)
    os.mkfifo(node.directory / "fifo")
    (node.directory / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(node.directory / "bound"))
    names = ["fifo", "loop", "bound", "missing", "", "/proc/self/ns/net", "/dev/null", "x" * 5000, "a\nb"]
    for name in names:
        for verb in ("ADD", "CHECK"):
            error = (await node.cni(verb, NETNS=str(node.directory / name))).error
            assert error["code"] in (3, 4), (name, error)
            assert error["msg"].isprintable(), error
    assert daemon.calls == []


async def test_standard_input_is_a_directory(node: Node, request: pytest.FixtureRequest) -> None:
    descriptor = os.open("/", os.O_RDONLY)
    try:
        outcome = await start(node, "ADD", descriptor)
    finally:
        os.close(descriptor)
    if b"Fatal Python error" in outcome.err:  # the launcher's interpreter refuses before it runs anything
        assert (outcome.status, outcome.out) == (1, b"") and "launcher" in request.node.name
    else:
        assert outcome.error["code"] == 5


async def test_standard_input_without_end(node: Node) -> None:
    descriptor = os.open("/dev/zero", os.O_RDONLY)
    try:
        assert (await start(node, "ADD", descriptor)).error["code"] == 7
    finally:
        os.close(descriptor)


async def test_standard_input_is_closed(node: Node) -> None:
    """Descriptor 0 is free: nothing else may take its place unseen."""
    await node.serve(Daemon())
    outcome = await asyncio.create_subprocess_exec(
        *("/usr/bin/nsenter", f"--net={netns.DIRECTORY / node.host}", "/bin/sh", "-c"),
        f'exec "{node.directory}/bin/ipamd-cni" <&-',
        env={"CNI_COMMAND": "ADD", "CNI_CONTAINERID": CONTAINER, "CNI_NETNS": node.pod_path, "CNI_IFNAME": "eth0"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await outcome.communicate()
    assert Outcome(outcome.returncode or 0, out, err).error["code"] in (5, 6)


async def test_standard_output_is_closed(node: Node) -> None:
    """Descriptor 1 is free: the result must not go to whatever opens next, and an ADD that told nobody is undone."""
    daemon = Daemon()
    await node.serve(daemon)
    process = await asyncio.create_subprocess_exec(
        *("/usr/bin/nsenter", f"--net={netns.DIRECTORY / node.host}", "/bin/sh", "-c"),
        f'exec "{node.directory}/bin/ipamd-cni" >&-',
        env={"CNI_COMMAND": "ADD", "CNI_CONTAINERID": CONTAINER, "CNI_NETNS": node.pod_path, "CNI_IFNAME": "eth0"},
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await process.communicate(CONFIG)
    assert (process.returncode, err) == (1, b"")
    assert await node.bare()
