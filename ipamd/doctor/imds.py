"""Whether pods can use the instance metadata service: the TTL of its answer says it.

EC2 sends the answer to the PUT for a session token with an IP TTL as low as the instance's hop limit, 1 by default:
enough for the instance, and one too few for a pod, to which the node forwards it
(https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html). The answer has come
by the time it is read from the socket, so the TTL is read from the packets themselves, by a second socket.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import struct
import time
import urllib.parse
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

TIMEOUT = 2.0
_ETH_P_IP = 0x0800  # linux/if_ether.h
_OUTGOING = 4  # PACKET_OUTGOING, linux/if_packet.h


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` of the PUT, 0 without an answer, and then `error` says why. `ttl` of the answer as it came in, None
    if unknown. `macs` of the instance's ENIs, empty if they could not be read. `skew`: seconds by which
    this host's clock is ahead of the service's, None if that gave no date."""

    status: int = 0
    error: str = "not asked"
    ttl: int | None = None
    macs: frozenset[str] = frozenset()
    skew: float | None = None


def ask(endpoint: str) -> Answer:
    """Ask for a token, and with it for the ENIs. Raises nothing."""
    url = urllib.parse.urlsplit(endpoint)
    host, port = url.hostname or "", url.port or 80
    packets = _packets(host)
    try:
        status, token, skew = _request(
            "PUT", host, port, "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds", "60"
        )
        ttl = _ttl(packets, host, port) if packets is not None else None
        if status != 200:
            return Answer(status, "", ttl, skew=skew)
        path = "/latest/meta-data/network/interfaces/macs/"
        listed, text, _ = _request("GET", host, port, path, "X-aws-ec2-metadata-token", token)
        macs = frozenset(line.strip("/ ").lower() for line in text.split()) if listed == 200 else frozenset()
        return Answer(status, "", ttl, macs, skew)
    except (OSError, http.client.HTTPException) as error:
        return Answer(0, str(error) or type(error).__name__)
    finally:
        if packets is not None:
            packets.close()


def _request(method: str, host: str, port: int, path: str, header: str, value: str) -> tuple[int, str, float | None]:
    """Status, body, and by how many seconds our clock is ahead of the Date of the answer. Raises OSError,
    HTTPException."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    try:
        connection.request(method, path, headers={header: value})
        response = connection.getresponse()
        body = response.read(1 << 16).decode(errors="replace")
        return response.status, body, _skew(response.getheader("Date"))
    finally:
        connection.close()


def _skew(date: str | None) -> float | None:
    try:
        return time.time() - parsedate_to_datetime(date or "").timestamp()
    except (ValueError, OverflowError):
        return None


def _packets(host: str) -> socket.socket | None:
    """None where they can't be seen: without CAP_NET_RAW, and for IPv6."""
    try:
        ipaddress.IPv4Address(host)
        packets = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP))
    except (OSError, ValueError):
        return None
    packets.setblocking(False)
    return packets


def _ttl(packets: socket.socket, host: str, port: int) -> int | None:
    """Of the packets with data that came from there: the handshake's need not have the low one."""
    source = ipaddress.IPv4Address(host).packed
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        try:
            packet, (_, _, direction, *_) = packets.recvfrom(1 << 16)
        except OSError:
            return None  # all that was there has been read
        header = (packet[0] & 0xF) * 4 if packet else 0
        if direction == _OUTGOING or len(packet) < header + 20 or packet[9] != 6 or packet[12:16] != source:
            continue
        length, (sent_by,) = struct.unpack_from("!H", packet, 2)[0], struct.unpack_from("!H", packet, header)
        if sent_by == port and length > header + (packet[header + 12] >> 4) * 4:
            return packet[8]
    return None
