"""What is measured of a way that packets take: small equal pieces of work, again and again.

Each piece is done by one thread: it sends, and it receives at the other end. Between network namespaces of one
machine the kernel carries a packet all the way to the receiving socket, and the answer back, within the call that
sends it; so no other thread has to run, and no scheduler is part of what is measured. What a piece takes is the work
of one core for both ends and for the node in between. The printed figure is the median piece, so
that pieces which other work of the machine interrupts do not count.
"""

from __future__ import annotations

import gc
import select
import socket
import statistics
import struct
import time
from abc import ABC, abstractmethod
from typing import ClassVar, Final

from datapath_stage import VPC_HOST, Stage

from ipamd.sim import netns

TIMEOUT: Final = 2  # seconds for an answer


class Probe(ABC):
    """Opened between the pod of a stage and the host beyond. `figure` makes of the seconds that a piece takes what is
    told of it, in `unit`. What a piece sends has to arrive: OSError when it does not."""

    name: ClassVar[str]
    unit: ClassVar[str]
    digits: ClassVar[int]

    @abstractmethod
    def __init__(self, stage: Stage) -> None: ...

    @abstractmethod
    def piece(self) -> None: ...

    def between(self) -> None:  # noqa: B027
        """After each piece; no part of what is measured."""

    @staticmethod
    @abstractmethod
    def figure(seconds: float) -> float: ...

    @abstractmethod
    def close(self) -> None: ...


def measure(probe: Probe, stage: Stage, seconds: float) -> float:
    """How long the median piece took, in seconds. Raises OSError."""

    def pieces() -> float:
        piece, between, clock = probe.piece, probe.between, time.perf_counter_ns
        durations = []
        end = clock() + int(seconds * 1e9)
        started = 0
        while started < end:
            started = clock()
            piece()
            durations.append(clock() - started)
            between()
        return statistics.median(durations) / 1e9

    gc.disable()
    try:
        return netns.run_in(stage.pod, pieces)
    finally:
        gc.enable()


class Ping(Probe):
    """One ICMP echo of the pod and its answer: sent, answered by the other end's kernel, received."""

    name, unit, digits = "ping", "us", 2

    def __init__(self, stage: Stage) -> None:
        self._socket = netns.run_in(
            stage.pod, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        )
        _limit(self._socket)
        self._socket.connect((VPC_HOST, 0))
        self._request = _echo_request(b"\0" * 56)  # as much as ping(8) sends

    def piece(self) -> None:
        self._socket.send(self._request)
        if self._socket.recv(256)[20] != 0:  # type 0 behind the IP header: echo reply (RFC 792)
            raise OSError("the answer to the ping is an ICMP error")

    @staticmethod
    def figure(seconds: float) -> float:
        return seconds * 1e6

    def close(self) -> None:
        self._socket.close()


class Datagrams(Probe):
    """Small UDP datagrams that the pod sends one by one; read at the other end when the clock has stopped."""

    name, unit, digits = "UDP", "18 byte packets/s", 0
    COUNT: Final = 64
    PAYLOAD: Final = b"\0" * 18  # the shortest Ethernet frame

    def __init__(self, stage: Stage) -> None:
        self._sink = netns.run_in(stage.vpc, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._sink.bind((VPC_HOST, 0))
        _limit(self._sink)
        self._source = netns.run_in(stage.pod, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._source.connect(self._sink.getsockname())

    def piece(self) -> None:
        send, payload = self._source.send, self.PAYLOAD
        for _ in range(self.COUNT):
            send(payload)

    def between(self) -> None:
        for _ in range(self.COUNT):
            self._sink.recv(64)  # so each one is known to have arrived

    @staticmethod
    def figure(seconds: float) -> float:
        return Datagrams.COUNT / seconds

    def close(self) -> None:
        self._source.close()
        self._sink.close()


class Stream(Probe):
    """One TCP connection of the pod, on which it sends as much as fits."""

    name, unit, digits = "TCP", "Gbit/s", 1
    SIZE: Final = 1 << 20

    def __init__(self, stage: Stage) -> None:
        with netns.listen_in(stage.vpc, VPC_HOST, 0) as listener:
            address = listener.getsockname()
            self._source = netns.run_in(stage.pod, lambda: socket.create_connection(address, TIMEOUT))
            self._sink, _ = listener.accept()
        for end in (self._source, self._sink):
            end.setblocking(False)
        self._payload = memoryview(bytes(self.SIZE))
        self._buffer = bytearray(1 << 18)
        self._poll = select.poll()
        self._poll.register(self._sink, select.POLLIN)

    def piece(self) -> None:
        sent = received = 0
        while received < self.SIZE:
            before = sent + received
            try:
                sent += self._source.send(self._payload[sent:]) if sent < self.SIZE else 0
            except BlockingIOError:
                pass
            try:
                received += self._sink.recv_into(self._buffer)
            except BlockingIOError:
                pass
            if before == sent + received and not self._poll.poll(TIMEOUT * 1000):
                raise TimeoutError("the TCP connection stands still")

    @staticmethod
    def figure(seconds: float) -> float:
        return Stream.SIZE * 8 / seconds / 1e9

    def close(self) -> None:
        self._source.close()
        self._sink.close()


class Connections(Probe):
    """TCP connections that the pod opens one after the other: connect, accept, close at both ends."""

    name, unit, digits = "TCP connections", "per s", 0

    def __init__(self, stage: Stage) -> None:
        self._listener = netns.listen_in(stage.vpc, VPC_HOST, 0)
        # Accepted connections inherit it: they are closed with a reset after the client's end, so that no port is
        # left waiting and a long run does not run out of them. Six packets, three each way.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        _limit(self._listener)
        self._address = self._listener.getsockname()

    def piece(self) -> None:
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.connect(self._address)
        server, _ = self._listener.accept()
        client.close()
        server.close()

    @staticmethod
    def figure(seconds: float) -> float:
        return 1 / seconds

    def close(self) -> None:
        self._listener.close()


PROBES: Final[tuple[type[Probe], ...]] = (Ping, Datagrams, Stream, Connections)


def _limit(waiting: socket.socket) -> None:
    """Let receiving fail rather than wait for ever. Python's own time-outs cost a system call more each time."""
    waiting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", TIMEOUT, 0))


def _echo_request(payload: bytes) -> bytes:
    """Type 8, code 0, checksum, identifier, sequence number (RFC 792)."""
    head = struct.Struct("!BBHHH")
    identifier = 0x6970
    words = struct.unpack(f"!{len(payload) // 2 + 4}H", head.pack(8, 0, 0, identifier, 1) + payload)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return head.pack(8, 0, ~total & 0xFFFF, identifier, 1) + payload
