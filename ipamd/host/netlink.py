"""Netlink messages read and written by hand, where a library would decode far more than is needed.

The wire format is netlink(7)'s: messages and attributes are a length, a type and a payload, each padded to four
bytes, in the byte order of the machine.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

# linux/netlink.h
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type


def request(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    """A message from us to the kernel; the payload is made of padded parts."""
    return HEADER.pack(HEADER.size + len(payload), kind, flags | NLM_F_REQUEST, sequence, 0) + payload


def attribute(kind: int, value: bytes) -> bytes:
    """For a nested attribute `value` is its attributes, and `kind` has NLA_F_NESTED."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) & 3)


def messages(data: bytes) -> Iterator[tuple[int, int, int, int, int, int]]:
    """(type, flags, sequence number, port, start and end of the payload) of each message in a datagram."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, flags, sequence, port = HEADER.unpack_from(data, offset)
        if length < HEADER.size:
            return
        yield kind, flags, sequence, port, offset + HEADER.size, offset + length
        offset += length + 3 & ~3


def attributes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """(type without its flags, payload) of each attribute between the two offsets."""
    end = len(data) if end is None else end
    while start + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < _ATTRIBUTE.size:
            return
        yield kind & NLA_TYPE_MASK, data[start + _ATTRIBUTE.size : start + length]
        start += length + 3 & ~3


def error_code(data: bytes, start: int) -> int:
    """The errno in an NLMSG_ERROR; 0: an acknowledgement."""
    (code,) = struct.unpack_from("=i", data, start)
    return -int(code)
