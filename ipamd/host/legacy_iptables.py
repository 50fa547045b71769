"""The rules of iptables-legacy, which nftables knows nothing of: which of their parts look at marks or write them.

Read as iptables itself reads them, by two socket options (linux/netfilter_ipv4/ip_tables.h, ip6_tables.h,
linux/netfilter/x_tables.h): the size of a table, then all its entries as one block. Only tables that are in use are
asked for: to ask for another would make the kernel create it.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ipamd.host.errors import HostError
from ipamd.host.others import AnyChain

_GET_INFO, _GET_ENTRIES = 64, 65  # IPT_SO_GET_INFO, IPT_SO_GET_ENTRIES; the same for IPv6
_INFO = struct.Struct("=32sI5I5III")  # name, valid hooks, hook entries, underflows, number of entries, size
_REQUEST = struct.Struct("=32sI4x")  # ipt_get_entries, before the entries themselves
_PART = struct.Struct("=H29sB")  # xt_entry_match, xt_entry_target: size, name, revision

_HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
_PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}

_libc = ctypes.CDLL(None, use_errno=True)  # socket.getsockopt can't pass a request to the kernel


@dataclass(frozen=True, slots=True)
class Part:
    """A match or a target of a rule, with its parameters as the kernel holds them."""

    family: str
    table: str
    chain: str
    name: str
    revision: int
    info: bytes


@dataclass(frozen=True, slots=True)
class _Family:
    name: str
    number: int
    level: int
    names: Path
    # Of ipt_entry: where target_offset stands, right before next_offset; and the size of the entry's head.
    offsets: int
    head: int


_FAMILIES = (
    _Family("ip", socket.AF_INET, socket.IPPROTO_IP, Path("/proc/thread-self/net/ip_tables_names"), 88, 112),
    _Family("ip6", socket.AF_INET6, socket.IPPROTO_IPV6, Path("/proc/thread-self/net/ip6_tables_names"), 140, 168),
)


def parts() -> tuple[list[Part], list[AnyChain]]:
    """Of all rules of all tables that are in use; and the built-in chains. The tables are named with "-legacy".

    Raises `HostError`.
    """
    found: list[Part] = []
    chains: list[AnyChain] = []
    for family in _FAMILIES:
        for table in _names(family):
            try:
                hooks, block = _read(family, table)
            except OSError as error:
                raise HostError(f"the table {table} of iptables-legacy can't be read: {error.strerror}") from error
            shown = f"{table}-legacy"
            kind = "nat" if table == "nat" else "filter"
            for hook in hooks.values():
                chains.append(AnyChain(family.name, shown, _HOOKS[hook], hook, _PRIORITIES.get(table, 0), kind))
            found += _parts(family, shown, {offset: _HOOKS[hook] for offset, hook in hooks.items()}, block)
    return found, chains


def _names(family: _Family) -> list[str]:
    try:
        return family.names.read_text().split()
    except OSError:
        return []


def _read(family: _Family, table: str) -> tuple[dict[int, int], bytes]:
    """(offset of the first entry -> hook, all entries). Raises OSError."""
    # The kernel takes these options on any socket of the family. iptables opens a raw one, for which the daemon would
    # need CAP_NET_RAW.
    with socket.socket(family.number, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as kernel:
        info = _ask(kernel, family.level, _GET_INFO, table.encode().ljust(_INFO.size, b"\0"))
        _, valid, *rest = _INFO.unpack(info)
        size = rest[-1]
        request = _REQUEST.pack(table.encode(), size) + bytes(size)
        block = _ask(kernel, family.level, _GET_ENTRIES, request)[_REQUEST.size :]
    return {rest[hook]: hook for hook in range(5) if valid & 1 << hook}, block


def _ask(kernel: socket.socket, level: int, option: int, question: bytes) -> bytes:
    buffer = ctypes.create_string_buffer(question, len(question))
    length = ctypes.c_uint32(len(question))
    if _libc.getsockopt(kernel.fileno(), level, option, buffer, ctypes.byref(length)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return buffer.raw[: length.value]


def _parts(family: _Family, table: str, hooks: dict[int, str], block: bytes) -> Iterator[Part]:
    chain = ""
    offset = 0
    while offset + family.head <= len(block):
        chain = hooks.get(offset, chain)
        target, following = struct.unpack_from("=HH", block, offset + family.offsets)
        if following < family.head:
            return
        place = offset + family.head
        while place < offset + target:
            size, part = _part(family, table, chain, block, place)
            if size < _PART.size:
                break
            yield part
            place += size
        _, part = _part(family, table, chain, block, offset + target)
        if part.name == "ERROR":  # the head of a user-defined chain: its name
            chain = part.info.split(b"\0")[0].decode(errors="replace")
        else:
            yield part
        offset += following


def _part(family: _Family, table: str, chain: str, block: bytes, place: int) -> tuple[int, Part]:
    size, name, revision = _PART.unpack_from(block, place)
    text = name.split(b"\0")[0].decode(errors="replace")
    return size, Part(family.name, table, chain, text, revision, block[place + _PART.size : place + size])
