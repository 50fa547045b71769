"""All rules, routes, links and nftables tables of the host, ours and those of other programs.

The reconciler reads only its own kind of rules and routes; the search for clashes needs all of them.
Formats: linux/fib_rules.h, linux/rtnetlink.h, linux/if_link.h, linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import AF_INET, AF_INET6

from ipamd.host import netlink
from ipamd.host.errors import HostError
from ipamd.host.netlink import FIB_RULE_INVERT, IFINFO, NETLINK_NETFILTER, NFGENMSG, RTM_F_CLONED, RTMSG, text, u32

_NFT = 10 << 8  # NFNL_SUBSYS_NFTABLES
_NFT_NEWTABLE, _NFT_GETTABLE, _NFT_NEWCHAIN, _NFT_GETCHAIN = _NFT, _NFT + 1, _NFT + 3, _NFT + 4
NFT_NEWRULE, NFT_GETRULE = _NFT + 6, _NFT + 7
_NFT_NEWGEN, _NFT_GETGEN = _NFT + 15, _NFT + 16

_FAMILIES = {0: "", 1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}  # NFPROTO_


@dataclass(frozen=True, slots=True)
class AnyRule:
    """A policy rule. `mask` 0: it does not look at the mark. `source` and `destination` empty: any. `inverted`: for
    what does not match. `vrf`: it looks up the table of the VRF that a link is in, and is the kernel's own as a rule
    (FRA_L3MDEV, made with the first VRF)."""

    family: int
    priority: int
    table: int
    protocol: int
    mark: int = 0
    mask: int = 0
    source: str = ""
    destination: str = ""
    inverted: bool = False
    vrf: bool = False

    def __str__(self) -> str:
        words = [f"ip{' -6' if self.family == AF_INET6 else ''} rule {self.priority}:"]
        words.append(f"{'not ' if self.inverted else ''}from {self.source or 'all'}")
        if self.destination:
            words.append(f"to {self.destination}")
        if self.mask:
            words.append(f"fwmark {self.mark:#x}" + (f"/{self.mask:#x}" if self.mask != 0xFFFFFFFF else ""))
        if self.vrf:
            words.append("lookup [l3mdev-table] (VRF)")
        elif self.table:
            words.append(f"lookup {self.table}")
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class AnyRoute:
    """`destination` is "default" or an address with its prefix length; `index` the link's, 0 for none."""

    family: int
    table: int
    protocol: int
    destination: str
    index: int

    def __str__(self) -> str:
        return f"ip{' -6' if self.family == AF_INET6 else ''} route {self.destination} table {self.table}"


@dataclass(frozen=True, slots=True)
class AnyLink:
    """`kind` is the driver's name for virtual links ("veth"), empty for a network card."""

    index: int
    name: str
    mac: str
    mtu: int
    group: int
    kind: str = ""
    alternative_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AnyTable:
    """An nftables table; `comment` as its maker wrote it."""

    family: str
    name: str
    comment: str = ""


@dataclass(frozen=True, slots=True)
class AnyChain:
    """An nftables chain; `hook` None for one that only others jump to. `accepts`: its policy."""

    family: str
    table: str
    name: str
    hook: int | None = None
    priority: int = 0
    type: str = ""
    accepts: bool = True


def rules() -> list[AnyRule]:
    """Of both families, the kernel's own too. Raises `HostError`, as all of these do."""
    found = []
    for data, start, end in _route_dumps(netlink.RTM_GETRULE, netlink.RTM_NEWRULE):
        family, dst_len, src_len, _, table, *_, flags = RTMSG.unpack_from(data, start)
        if family not in (AF_INET, AF_INET6):
            continue  # multicast routing has rules, too
        fields = dict(netlink.attributes(data, start + RTMSG.size, end))
        # FRA_DST, SRC, PRIORITY, FWMARK, TABLE, FWMASK, L3MDEV, PROTOCOL. Without a mark there is no mask.
        found.append(
            AnyRule(
                family,
                u32(fields.get(6, b"")),
                u32(fields[15]) if 15 in fields else table,
                fields[21][0] if 21 in fields else 0,
                u32(fields.get(10, b"")),
                u32(fields.get(16, b"")) if 10 in fields or 16 in fields else 0,
                _network(family, fields.get(2), src_len),
                _network(family, fields.get(1), dst_len),
                bool(flags & FIB_RULE_INVERT),
                bool(fields.get(19, b"\0")[0]),
            )
        )
    return found


def routes() -> list[AnyRoute]:
    """Of both families, in all tables."""
    found = []
    for data, start, end in _route_dumps(netlink.RTM_GETROUTE, netlink.RTM_NEWROUTE):
        family, dst_len, _, _, table, protocol, _, _, flags = RTMSG.unpack_from(data, start)
        if family not in (AF_INET, AF_INET6) or flags & RTM_F_CLONED:
            continue
        fields = dict(netlink.attributes(data, start + RTMSG.size, end))  # RTA_DST, OIF, TABLE
        table = u32(fields[15]) if 15 in fields else table
        destination = _network(family, fields.get(1), dst_len) or "default"
        found.append(AnyRoute(family, table, protocol, destination, u32(fields.get(4, b""))))
    return found


def links() -> list[AnyLink]:
    found = []
    for data, start, end in dump(
        socket.NETLINK_ROUTE, netlink.RTM_GETLINK, netlink.RTM_NEWLINK, netlink.LINKS_REQUEST
    ):
        _, _, index, _, _ = IFINFO.unpack_from(data, start)
        fields = dict(netlink.attributes(data, start + IFINFO.size, end))
        # IFLA_ADDRESS, IFNAME, MTU, LINKINFO (INFO_KIND), GROUP, PROP_LIST (ALT_IFNAME)
        info = dict(netlink.attributes(fields.get(18, b"")))
        more = tuple(text(name) for kind, name in netlink.attributes(fields.get(52, b"")) if kind == 53)
        mac, name, kind = (
            fields.get(1, b"").hex(":"),
            text(fields.get(3, b"")),
            text(info.get(1, b"")),
        )
        found.append(AnyLink(index, name, mac, u32(fields.get(4, b"")), u32(fields.get(27, b"")), kind, more))
    return found


def tables() -> list[AnyTable]:
    """Empty on a kernel without nftables."""
    found = []
    for family, fields in nft_dump(_NFT_GETTABLE, _NFT_NEWTABLE):  # NFTA_TABLE_NAME, USERDATA
        comment = ""
        userdata = fields.get(6, b"")
        while len(userdata) >= 2:  # libnftnl: type, length, value; type 0 is the comment
            kind, length = userdata[0], userdata[1]
            if kind == 0:
                comment = text(userdata[2 : 2 + length])
            userdata = userdata[2 + length :]
        found.append(AnyTable(family, text(fields.get(1, b"")), comment))
    return found


def chains() -> list[AnyChain]:
    """Empty on a kernel without nftables."""
    found = []
    for family, fields in nft_dump(_NFT_GETCHAIN, _NFT_NEWCHAIN):  # NFTA_CHAIN_TABLE, NAME, HOOK, POLICY, TYPE
        table, name = text(fields.get(1, b"")), text(fields.get(3, b""))
        hook = dict(netlink.attributes(fields.get(4, b"")))  # HOOKNUM, PRIORITY
        if 1 not in hook:
            found.append(AnyChain(family, table, name))
            continue
        (number,) = struct.unpack(">I", hook[1])
        (priority,) = struct.unpack(">i", hook[2])
        accepts = fields.get(5, b"\0\0\0\1") != b"\0\0\0\0"  # NF_DROP is 0
        found.append(AnyChain(family, table, name, number, priority, text(fields.get(7, b"")), accepts))
    return found


def nft_generation() -> int:
    """How often the nftables of this network namespace have been changed: each transaction counts one further. 0 on
    a kernel without nftables."""
    try:
        with _as_host_errors(NETLINK_NETFILTER):
            said = netlink.ask(NETLINK_NETFILTER, _NFT_GETGEN, NFGENMSG.pack(0, 0, 0), _NFT_NEWGEN)
    except NotSupportedError:
        return 0
    for data, start, end in said:
        fields = dict(netlink.attributes(data, start + NFGENMSG.size, end))  # NFTA_GEN_ID
        return int.from_bytes(fields.get(1, b""), "big")
    return 0


def nft_dump(request: int, answer: int) -> Iterator[tuple[str, dict[int, bytes]]]:
    """(family, attributes) of each object. Nothing from a kernel without nftables."""
    payload = NFGENMSG.pack(0, 0, 0)
    try:
        for data, start, end in dump(NETLINK_NETFILTER, request, answer, payload):
            family = _FAMILIES.get(data[start], str(data[start]))
            yield family, dict(netlink.attributes(data, start + NFGENMSG.size, end))
    except NotSupportedError:
        return


class NotSupportedError(HostError):
    """The kernel has no such tables."""


def dump(protocol: int, request: int, answer: int, payload: bytes) -> list[netlink.Message]:
    """`netlink.dump`, which raises `HostError` alone."""
    with _as_host_errors(protocol):
        return netlink.dump(protocol, request, payload, answer)


@contextmanager
def _as_host_errors(protocol: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # Without nfnetlink there is no such socket; without nf_tables the request is invalid.
        if protocol == NETLINK_NETFILTER and error.errno in (errno.EPROTONOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP):
            raise NotSupportedError("the kernel has no nftables") from error
        hint = ": run as root" if error.errno == errno.EPERM else ""
        raise HostError(f"the kernel does not tell its tables: {error.strerror or error}{hint}") from error


def _route_dumps(request: int, answer: int) -> Iterator[netlink.Message]:
    for family in (AF_INET, AF_INET6):
        try:
            yield from dump(socket.NETLINK_ROUTE, request, answer, RTMSG.pack(family, *(0,) * 8))
        except HostError:
            if family == AF_INET or Path("/proc/sys/net/ipv6").exists():
                raise


def _network(family: int, packed: bytes | None, length: int) -> str:
    return f"{socket.inet_ntop(family, packed)}/{length}" if packed else ""
