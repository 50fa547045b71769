"""What a pod may try that it should not: packets with an address that is not its own, and the instance's metadata."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from ipamd.sim.fabric import IMDS_ADDRESS
from tests.netns.flows import PATIENCE, PORT, Place
from tests.netns.flows_stage import Stage

TOKEN = f"""PUT /latest/api/token HTTP/1.1\r
Host: {IMDS_ADDRESS}\r
X-aws-ec2-metadata-token-ttl-seconds: 60\r
Content-Length: 0\r
\r
""".encode()


def forged(source: str, destination: str, payload: bytes) -> bytes:
    """An IPv4 packet (RFC 791) with a UDP datagram (RFC 768) to PORT; the kernel fills in length and checksum."""
    header = struct.pack(
        "!BBHHHBBH4s4s",
        *(0x45, 0, 0, 0, 0, 64, socket.IPPROTO_UDP, 0),
        socket.inet_aton(source),
        socket.inet_aton(destination),
    )
    return header + struct.pack("!HHHH", 4242, PORT, 8 + len(payload), 0) + payload


@contextmanager
def counting(victim: Place) -> Iterator[socket.socket]:
    """A socket that gets every UDP packet as it comes in."""
    with victim.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)) as raw:
        yield raw


def arrived(raw: socket.socket, payload: bytes) -> list[str]:
    """The sources of packets with this payload, once the one that was sent last is there."""
    sources: list[str] = []
    raw.settimeout(PATIENCE)
    while True:
        packet = raw.recv(1 << 16)
        if packet.endswith(payload + b"last"):
            return sources
        if packet.endswith(payload):
            sources.append(socket.inet_ntoa(packet[12:16]))


def spoof(stage: Stage, attacker: str, victim: str, sources: list[str]) -> list[str]:
    """Which of the packets with these sources arrived; the attacker's own, sent after them, does."""
    one, other = stage.place(attacker), stage.place(victim)
    payload = b"forged"
    with counting(other) as raw, one.run(_raw_sender) as sender:
        for source in sources:
            sender.sendto(forged(source, other.address, payload), (other.address, 0))
        sender.sendto(forged(one.address, other.address, payload + b"last"), (other.address, 0))
        return arrived(raw, payload)


def _raw_sender() -> socket.socket:
    sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    sender.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
    return sender


def token_status(client: Place, patience: float = PATIENCE) -> str:
    """The status line of the answer to a request for a token."""
    with client.run(lambda: socket.create_connection((IMDS_ADDRESS, 80), patience)) as connection:
        connection.settimeout(patience)
        connection.sendall(TOKEN)
        return connection.recv(1 << 16).split(b"\r\n")[0].decode()
