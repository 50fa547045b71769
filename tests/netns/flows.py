"""Packets from one place to another and back, in each of the protocols that a pod may use.

A flow returns what its server saw of the client, and raises TimeoutError when no answer came, or what the network
said of it (ConnectionRefusedError, OSError with EHOSTUNREACH). All block: the VPC has an event loop elsewhere.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from ipamd.sim import netns
from ipamd.sim.runtimes.process import inside

PORT: Final = 8080  # where all servers listen
PATIENCE: Final = 5.0  # seconds; an answer takes a thousandth of one
LITTLE_PATIENCE: Final = 0.4  # where no answer is to come

# linux/in.h; the socket module has them from Python 3.12 on, or not at all
IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_MTU = 10, 2, 14

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where packets come from and go to: an address in a network namespace. `bound`: a client there binds it, since
    it would not be the kernel's own choice."""

    name: str
    netns: str
    address: str
    bound: bool = False

    def __str__(self) -> str:
        return self.name

    def run(self, function: Callable[[], T]) -> T:
        return netns.run_in(self.netns, function)

    def command(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(inside(self.netns, *argv), text=True, capture_output=True)


@dataclass(frozen=True)
class Seen:
    """The client as the server saw it, and as it saw itself."""

    address: str
    port: int
    client_port: int


Flow = Callable[..., Seen]


def tcp(
    client: Place,
    server: Place,
    to: tuple[str, int] | None = None,
    *,
    patience: float = PATIENCE,
    size: int = 1,
    port: int = 0,
) -> Seen:
    """Connect to `to` (default: the server itself), and send `size` bytes each way. `port` is the client's."""
    with ExitStack() as stack:
        listener = stack.enter_context(server.run(lambda: _tcp_listener(server.address)))
        connection = stack.enter_context(
            client.run(
                lambda: socket.create_connection(
                    to or (server.address, PORT), patience, source_address=_source(client, port)
                )
            )
        )
        listener.settimeout(patience)
        accepted, peer = listener.accept()
        stack.enter_context(accepted)
        accepted.settimeout(patience)
        message = bytes(size)
        for here, there in ((connection, accepted), (accepted, connection)):
            _pour(here, there, message)
        return Seen(peer[0], peer[1], connection.getsockname()[1])


def udp(
    client: Place,
    server: Place,
    to: tuple[str, int] | None = None,
    *,
    patience: float = PATIENCE,
    size: int = 1,
    port: int = 0,
) -> Seen:
    """A datagram of `size` bytes each way. The client takes an answer from `to` alone."""
    with udp_server(server) as listener, udp_client(client, to or (server.address, PORT), port) as sender:
        listener.settimeout(patience)
        sender.settimeout(patience)
        message = b"\x2a" * size
        sender.send(message)
        got, peer = listener.recvfrom(1 << 16)
        assert got == message
        listener.sendto(message, peer)
        assert sender.recv(1 << 16) == message
        return Seen(peer[0], peer[1], sender.getsockname()[1])


PROTOCOLS: Final = (tcp, udp)


def name_of(value: object) -> str | None:
    """For pytest's `ids`."""
    return getattr(value, "__name__", None) or (str(value) if isinstance(value, Place) else None)


@contextmanager
def udp_server(place: Place, port: int = PORT) -> Iterator[socket.socket]:
    def bound() -> socket.socket:
        server = socket.socket(_family(place.address), socket.SOCK_DGRAM)
        server.bind((place.address, port))
        return server

    with place.run(bound) as server:
        yield server


@contextmanager
def udp_client(place: Place, to: tuple[str, int], port: int = 0) -> Iterator[socket.socket]:
    """Connected, so that it hears what the network says of its datagrams."""

    def connected() -> socket.socket:
        client = socket.socket(_family(to[0]), socket.SOCK_DGRAM)
        if (source := _source(place, port)) is not None:
            client.bind(source)
        client.connect(to)
        return client

    with place.run(connected) as client:
        yield client


def never_fragment(client: socket.socket) -> None:
    client.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)


def path_mtu(client: socket.socket) -> int:
    """What the kernel knows of the path of a connected socket, in bytes."""
    return client.getsockopt(socket.IPPROTO_IP, IP_MTU)


def ping(client: Place, address: str, *, size: int = 56, patience: float = PATIENCE) -> None:
    options = ["-I", client.address] if client.bound else []
    done = client.command("ping", "-n", "-q", "-c", "1", "-W", str(patience), "-s", str(size), *options, address)
    if done.returncode != 0:
        raise TimeoutError(f"ping {address} from {client}: {done.stdout}{done.stderr}")


def _tcp_listener(address: str) -> socket.socket:
    return socket.create_server((address, PORT), family=_family(address))


def _pour(here: socket.socket, there: socket.socket, message: bytes) -> None:
    """In turns: neither end has room for all of a large message."""
    view, received = memoryview(message), 0
    here.setblocking(False)
    try:
        while received < len(message):
            if view:
                try:
                    view = view[here.send(view) :]
                except BlockingIOError:
                    pass
            received += len(there.recv(1 << 20))
    finally:
        here.settimeout(there.gettimeout())


def _source(place: Place, port: int) -> tuple[str, int] | None:
    if place.bound:
        return place.address, port
    return ("", port) if port else None


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
