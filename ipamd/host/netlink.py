"""Netlink messages read and written by hand, where a library would decode far more than is needed.

The wire format is netlink(7)'s: messages and attributes are a length, a type and a payload, each padded to four
bytes, in the byte order of the machine.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress

from ipamd.host.errors import HostError

# linux/netlink.h
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLM_F_ACK_TLVS = 0x200  # in an acknowledgement
NLMSGERR_ATTR_MSG = 1
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF
NETLINK_NETFILTER = 12
SOL_NETLINK = 270
NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 10, 11, 12

# linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/fib_rules.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
RTM_F_CLONED = 0x200  # a route that the kernel learnt, such as an exception with a path's MTU
FIB_RULE_INVERT = 0x2
IFF_UP = 0x1
IFLA_MTU, IFLA_GROUP = 4, 27
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_TABLE = 1, 4, 5, 6, 15
RTNH_F_ONLINK = 4
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_NOWHERE = 0, 253, 255
RTN_UNICAST, RTN_LOCAL, RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT = 1, 2, 6, 7, 8
NUD_PERMANENT, NTF_PROXY, NDA_DST = 0x80, 0x08, 1  # linux/neighbour.h
FRA_DST = 1
FRA_SRC, FRA_PRIORITY, FRA_FWMARK, FRA_SUPPRESS_PREFIXLEN, FRA_TABLE, FRA_FWMASK = 2, 6, 10, 14, 15, 16
FRA_PROTOCOL = 21
FR_ACT_TO_TBL = 1
IFA_ADDRESS, IFA_LOCAL = 1, 2
IFA_F_NODAD = 0x2
IFINFO = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
RTMSG = struct.Struct("=8BI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
IFADDR = struct.Struct("=4BI")  # ifaddrmsg: family, prefixlen, flags, scope, index
NDMSG = struct.Struct("=BxHiHBB")  # ndmsg: family, padding, index, state, flags, type
FIB_RULE = RTMSG  # fib_rule_hdr: the same sizes; two reserved and the action after the table, and no protocol
NFGENMSG = struct.Struct("=BBH")  # linux/netfilter/nfnetlink.h: family, version, resource id

# A dump that another change interrupted shows neither the old state nor the new one.
DUMP_ATTEMPTS = 10
TIMEOUT = 10.0  # seconds for one answer of the kernel
RECEIVE = 1 << 17

HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type


# Asks for links without their counters. IFLA_EXT_MASK: RTEXT_FILTER_SKIP_STATS
LINKS_REQUEST = IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _ATTRIBUTE.pack(8, 29) + struct.pack("=I", 8)


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


def number(kind: int, value: int) -> bytes:
    """An attribute that is a 32 bit number."""
    return attribute(kind, value.to_bytes(4, sys.byteorder))


def u32(value: bytes) -> int:
    """0 for no value."""
    return int.from_bytes(value, sys.byteorder)


def text(value: bytes) -> str:
    """Of a string that ends with a zero."""
    return value.partition(b"\0")[0].decode(errors="replace")


def error_code(data: bytes, start: int) -> int:
    """The errno in an NLMSG_ERROR; 0: an acknowledgement."""
    (code,) = struct.unpack_from("=i", data, start)
    return -int(code)


Message = tuple[bytes, int, int]  # the datagram that it is in, start and end of its payload


def dump(protocol: int, kind: int, payload: bytes, answer: int, *, strict: bool = False) -> list[Message]:
    """Each message of type `answer`, in an answer of the kernel that was not interrupted.

    `strict`: list only what the payload selects, if the kernel can. It answers at once, within the calls that read.
    Raises OSError with what the kernel says, and `HostError` when it is interrupted again and again.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as kernel:
        kernel.settimeout(TIMEOUT)
        if strict:
            with suppress(OSError):  # kernels before 4.20 know nothing of it
                kernel.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        for attempt in range(DUMP_ATTEMPTS):
            kernel.send(request(kind, NLM_F_DUMP, attempt, payload))
            found = _answers(kernel, attempt, answer)
            if found is not None:
                return found
    raise HostError(f"the kernel's tables changed during each of {DUMP_ATTEMPTS} reads")


def change(protocol: int, kind: int, payload: bytes, flags: int = 0) -> None:
    """Have the kernel do something, and wait until it is done. Raises OSError with what the kernel says, in its own
    words where it has any."""
    ask(protocol, kind, payload, kind, flags)


def ask(protocol: int, kind: int, payload: bytes, answer: int, flags: int = 0) -> list[Message]:
    """The messages of type `answer` before the kernel's acknowledgement. Raises OSError as `change` does."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as kernel:
        kernel.settimeout(TIMEOUT)
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK):
            with suppress(OSError):  # kernels before 4.12 give the number alone
                kernel.setsockopt(SOL_NETLINK, option, 1)
        kernel.send(request(kind, NLM_F_ACK | flags, 1, payload))
        return _answers(kernel, 1, answer) or []


def _answers(kernel: socket.socket, sequence: int, answer: int) -> list[Message] | None:
    """None when the dump was interrupted. Raises OSError."""
    found: list[Message] = []
    whole = True
    while True:
        data = kernel.recv(RECEIVE)
        for kind, flags, number, _port, start, end in messages(data):
            if number != sequence:
                continue
            whole &= not flags & NLM_F_DUMP_INTR
            if kind in (NLMSG_ERROR, NLMSG_DONE):
                code = error_code(data, start)
                if code:
                    raise OSError(code, _explanation(data, flags, start, end) or os.strerror(code))
                return found if whole else None
            if kind == answer:
                found.append((data, start, end))


def _explanation(data: bytes, flags: int, start: int, end: int) -> str:
    """What follows the errno and the header of the refused request, if that was asked for (NETLINK_CAP_ACK)."""
    if not flags & NLM_F_ACK_TLVS:
        return ""
    said = dict(attributes(data, start + 4 + HEADER.size, end))
    return text(said.get(NLMSGERR_ATTR_MSG, b""))
