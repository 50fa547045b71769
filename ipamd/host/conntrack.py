"""The kernel's table of tracked connections: taking addresses out of it.

An entry that outlives the pod it was made for catches packets of the address's next holder: they get the old NAT and
take the old way out, for up to five days (nf_conntrack_tcp_timeout_established). So the entries that name an address
are removed when its pod goes, and again before another pod gets it.

The whole table is read and looked through here, in a thread: measured on 2 cores, 20 ms for a table of 10,000 entries
and 190 ms for 100,000, during which the event loop was at most 3 ms late; 0.02 ms more for each entry removed. The
kernel could filter (CTA_FILTER, since Linux 5.8), but by one field of an entry at a time: four walks, each with soft
interrupts off from one end of the table to the other. And those before 5.10.83 find nothing by the direction of the
replies, which NAT makes differ from the other one.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import re
import socket
from collections.abc import Collection
from pathlib import Path

import structlog

from ipamd.host import netlink
from ipamd.host.errors import HostError

log = structlog.get_logger("ipamd.host")

# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nfnetlink_conntrack.h
NETLINK_CAP_ACK = 10
NFNL_SUBSYS_CTNETLINK = 1 << 8
IPCTNL_MSG_CT_NEW, IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_DELETE = (NFNL_SUBSYS_CTNETLINK | i for i in range(3))
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_ID, CTA_ZONE = 1, 2, 12, 18
CTA_TUPLE_IP = 1

_IDENTITY = frozenset({CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE})

# Exists in every network namespace once the kernel tracks connections.
_COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")

# A dump comes in datagrams of up to 32 KiB, when there is room for them.
RECEIVE = 1 << 16
# Deletions in one datagram: their acknowledgements must fit the socket's receive buffer together. The kernel
# books about 800 bytes for each.
BATCH = 64
# Seconds for one answer of the kernel.
TIMEOUT = 10.0


class Conntrack:
    """The table of the current network namespace."""

    def __init__(self) -> None:
        self._absence_told = False

    async def forget(self, addresses: Collection[str]) -> int:
        """Remove every entry that has one of these addresses as source or destination, in either direction.

        The addresses are all IPv4 or all IPv6; many cost one walk through the table, as one does. Returns how many
        entries were removed; none where nothing is tracked. Raises `HostError`; what was removed until then stays
        removed.
        """
        packed = frozenset(ipaddress.ip_address(address).packed for address in addresses)
        try:
            return await asyncio.to_thread(_forget, packed)
        except OSError as error:
            # Without nfnetlink there is no such socket; without its part for connections the request is invalid.
            unsupported = error.errno in (errno.EPROTONOSUPPORT, errno.EINVAL)
            if unsupported and not _COUNT.exists():
                self._tell_absence()
                return 0
            reason = error.strerror or str(error)
            if unsupported:
                reason += (
                    ": the kernel tracks connections but does not show them: load its module nf_conntrack_netlink"
                )
            elif error.errno == errno.EPERM:
                reason += ": run as root"
            raise HostError(f"tracked connections of {', '.join(addresses)} can't be removed: {reason}") from error

    def _tell_absence(self) -> None:
        if not self._absence_told:
            self._absence_told = True
            log.warning("host.no_conntrack", effect="the kernel tracks no connections, so there are none to remove")


def _forget(addresses: frozenset[bytes]) -> int:
    """Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, netlink.NETLINK_NETFILTER) as table:
        table.settimeout(TIMEOUT)
        table.setsockopt(netlink.SOL_NETLINK, NETLINK_CAP_ACK, 1)
        family = netlink.NFGENMSG.pack(
            socket.AF_INET if all(len(address) == 4 for address in addresses) else socket.AF_INET6, 0, 0
        )
        return _delete(table, [family + identity for identity in _find(table, family, addresses)])


def _find(table: socket.socket, family: bytes, addresses: frozenset[bytes]) -> list[bytes]:
    """What identifies each entry with one of the addresses, as the attributes that the kernel wrote."""
    table.send(netlink.request(IPCTNL_MSG_CT_GET, netlink.NLM_F_DUMP, 0, family))
    found: list[bytes] = []
    # Most datagrams have none of them, and then their entries need no reading. One search for all addresses: for 110
    # of them it takes 0.1 ms for a datagram, one by one 2 ms.
    any_of_them = re.compile(b"|".join(map(re.escape, addresses)), re.DOTALL)
    while True:
        data = table.recv(RECEIVE)
        promising = any_of_them.search(data) is not None
        for kind, _flags, _sequence, _port, start, end in netlink.messages(data):
            if kind == netlink.NLMSG_DONE:
                return found
            if kind == netlink.NLMSG_ERROR:
                raise _failure(netlink.error_code(data, start))
            if kind == IPCTNL_MSG_CT_NEW and promising:
                entry = list(netlink.attributes(data, start + netlink.NFGENMSG.size, end))
                if addresses & _addresses(entry):
                    found.append(_identity(entry))


def _addresses(entry: list[tuple[int, bytes]]) -> set[bytes]:
    """All four, packed."""
    return {
        address
        for direction, parts in entry
        if direction in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY)
        for part, fields in netlink.attributes(parts)
        if part == CTA_TUPLE_IP
        for _field, address in netlink.attributes(fields)
    }


def _identity(entry: list[tuple[int, bytes]]) -> bytes:
    """The id tells the entry from a later one of the same connection."""
    nested = {CTA_TUPLE_ORIG: CTA_TUPLE_ORIG | netlink.NLA_F_NESTED}
    return b"".join(netlink.attribute(nested.get(kind, kind), value) for kind, value in entry if kind in _IDENTITY)


def _delete(table: socket.socket, entries: list[bytes]) -> int:
    """How many were still there. What can't be removed does not keep the others."""
    removed, failure = 0, 0
    for first in range(0, len(entries), BATCH):
        batch = entries[first : first + BATCH]
        table.send(
            b"".join(
                netlink.request(IPCTNL_MSG_CT_DELETE, netlink.NLM_F_ACK, first + i, entry)
                for i, entry in enumerate(batch)
            )
        )
        answers = 0
        while answers < len(batch):
            data = table.recv(RECEIVE)
            for kind, _flags, _sequence, _port, start, _end in netlink.messages(data):
                if kind != netlink.NLMSG_ERROR:
                    continue
                answers += 1
                code = netlink.error_code(data, start)
                removed += code == 0
                if code not in (0, errno.ENOENT):  # an entry that is gone meanwhile is fine
                    failure = code
    if failure:
        raise _failure(failure)
    return removed


def _failure(code: int) -> OSError:
    return OSError(code, os.strerror(code))
