"""Changing rules, routes, addresses, links and sysctls. Knows how, not what: that is `difference`'s.

Every rule and route written carries our rtm_protocol; whatever carries another is never changed.

The messages are written by hand: it is six kinds of them, and pyroute2, which the tests compare them with, takes
9 MiB and 70 ms of each start.
"""

from __future__ import annotations

import errno
from pathlib import Path
from socket import AF_INET6, AF_UNSPEC, NETLINK_ROUTE, inet_pton

from ipamd.host import netlink
from ipamd.host.desired import Address, FoundRoute, Route, Rule
from ipamd.host.difference import LinkChange
from ipamd.host.errors import HostError
from ipamd.host.netlink import (
    FIB_RULE,
    FR_ACT_TO_TBL,
    FRA_FWMARK,
    FRA_FWMASK,
    FRA_PRIORITY,
    FRA_PROTOCOL,
    FRA_SRC,
    FRA_TABLE,
    IFA_ADDRESS,
    IFA_F_NODAD,
    IFA_LOCAL,
    IFADDR,
    IFF_UP,
    IFINFO,
    IFLA_GROUP,
    IFLA_MTU,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RT_SCOPE_LINK,
    RT_SCOPE_NOWHERE,
    RT_SCOPE_UNIVERSE,
    RTA_DST,
    RTA_GATEWAY,
    RTA_OIF,
    RTA_PRIORITY,
    RTA_TABLE,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTM_NEWRULE,
    RTMSG,
    RTN_UNICAST,
    RTNH_F_ONLINK,
    attribute,
    number,
)


class Kernel:
    """Of the network namespace that its methods are called in. They take microseconds, unless others keep the kernel
    busy; each raises `HostError`."""

    def __init__(self, protocol: int) -> None:
        self._protocol = protocol

    def add_rule(self, rule: Rule) -> None:
        _do(f"ip {rule}", RTM_NEWRULE, self._rule(rule), NLM_F_CREATE | NLM_F_EXCL)

    def delete_rule(self, rule: Rule) -> None:
        _undo(f"ip {rule}", RTM_DELRULE, self._rule(rule))

    def _rule(self, rule: Rule) -> bytes:
        source, length = _network(rule.family, rule.source)
        message = FIB_RULE.pack(rule.family, 0, length, 0, 0, 0, 0, FR_ACT_TO_TBL, 0)
        message += number(FRA_PRIORITY, rule.priority) + number(FRA_TABLE, rule.table)
        message += attribute(FRA_PROTOCOL, bytes((self._protocol,)))
        if rule.mask:
            message += number(FRA_FWMARK, rule.mark) + number(FRA_FWMASK, rule.mask)
        return message + (attribute(FRA_SRC, source) if source else b"")

    def add_route(self, route: Route) -> None:
        """Replaces a route in the same place."""
        scope, flags = (RT_SCOPE_UNIVERSE, RTNH_F_ONLINK) if route.gateway else (RT_SCOPE_LINK, 0)
        message = _route(route, self._protocol, scope, RTN_UNICAST, flags)
        _do(f"ip {route}", RTM_NEWROUTE, message, NLM_F_CREATE | NLM_F_REPLACE)

    def delete_route(self, found: FoundRoute) -> None:
        # Of any scope: a message that names another finds nothing.
        message = _route(found.route, found.protocol, RT_SCOPE_NOWHERE, found.kind, 0)
        _undo(f"ip {found.route}", RTM_DELROUTE, message)

    def add_address(self, address: Address) -> None:
        # A single address: no route to the subnet appears in the main table, where it would pull the host's own
        # traffic over. EC2 gave it to this ENI alone, so no duplicate detection is needed.
        packed, length = _network(address.family, address.address)
        flags = IFA_F_NODAD if address.family == AF_INET6 else 0
        message = IFADDR.pack(address.family, length, flags, RT_SCOPE_UNIVERSE, address.index)
        message += attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
        _do(str(address), RTM_NEWADDR, message, NLM_F_CREATE | NLM_F_EXCL)

    def set_link(self, change: LinkChange) -> None:
        up = IFF_UP if change.key == "up" else 0
        message = IFINFO.pack(AF_UNSPEC, 0, change.link.index, up, up)
        if change.key != "up":
            message += number(IFLA_MTU if change.key == "mtu" else IFLA_GROUP, change.value)
        _do(str(change), RTM_NEWLINK, message)


def _route(route: Route, protocol: int, scope: int, kind: int, flags: int) -> bytes:
    destination, length = _network(route.family, route.destination)
    message = RTMSG.pack(route.family, length, 0, 0, 0, protocol, scope, kind, flags) + number(RTA_TABLE, route.table)
    if destination:
        message += attribute(RTA_DST, destination)
    if route.index:
        message += number(RTA_OIF, route.index)
    if route.gateway:
        message += attribute(RTA_GATEWAY, inet_pton(route.family, route.gateway))
    if route.metric:
        message += number(RTA_PRIORITY, route.metric)
    return message


def _network(family: int, text: str) -> tuple[bytes, int]:
    """An address, with or without the length of a prefix, and that length; for no address nothing and 0."""
    address, _, length = text.partition("/")
    packed = inet_pton(family, address) if address else b""
    return packed, int(length or 8 * len(packed))


def _do(what: str, kind: int, message: bytes, flags: int = 0) -> None:
    try:
        netlink.change(NETLINK_ROUTE, kind, message, flags)
    except OSError as error:
        hint = ""
        if error.errno == errno.EEXIST:
            hint = "; another program holds that place: give ipamd other numbers (host.table, host.rule_*)"
        raise HostError(f"{what}: {error.strerror or error}{hint}") from error


def _undo(what: str, kind: int, message: bytes) -> None:
    try:
        netlink.change(NETLINK_ROUTE, kind, message)
    except OSError as error:
        # Gone already is fine: with its link, or removed by another program.
        if error.errno not in (errno.ENOENT, errno.ESRCH, errno.ENODEV):
            raise HostError(f"removing {what}: {error.strerror or error}") from error


def read_sysctl(folder: Path, name: str) -> str:
    """`folder` is /proc/sys/net or where it is mounted, `name` the path below. Raises `HostError`."""
    try:
        return (folder / name).read_text().strip()
    except OSError as error:
        raise _sysctl_error(folder, name, error) from error


def write_sysctl(folder: Path, name: str, value: str) -> None:
    """Raises `HostError`."""
    try:
        (folder / name).write_text(value)
    except OSError as error:
        raise _sysctl_error(folder, f"{name}={value}", error) from error


def _sysctl_error(folder: Path, what: str, error: OSError) -> HostError:
    if not (folder / "ipv4").is_dir():
        return HostError(f"sysctl net/{what}: host.sysctl_dir {folder} does not hold the kernel's network settings")
    if isinstance(error, FileNotFoundError):
        return HostError(f"sysctl net/{what}: not there: its network device is gone or was just renamed")
    return HostError(f"sysctl net/{what}: {error.strerror}: the daemon needs root and a writable host.sysctl_dir")
