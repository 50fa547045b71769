"""Changing rules, routes, addresses, links and sysctls. Knows how, not what: that is `difference`'s.

Every rule and route written carries our rtm_protocol; whatever carries another is never changed.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from socket import AF_INET6
from types import TracebackType
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ipamd.host.desired import Address, FoundRoute, Route, Rule
from ipamd.host.difference import LinkChange
from ipamd.host.errors import HostError

# linux/rtnetlink.h, linux/if_addr.h
RT_SCOPE_UNIVERSE = 0
RT_SCOPE_LINK = 253
RT_SCOPE_NOWHERE = 255
RTNH_F_ONLINK = 4
IFA_F_NODAD = 0x2

SYSCTL = Path("/proc/sys/net")


class Kernel:
    """One rtnetlink socket for one piece of work in the current network namespace: `async with`. Opened when the
    first change is made: most looks at the kernel end in none.

    A socket of pyroute2 that lives on keeps answers nobody asked for, and never recovers from an error.
    """

    def __init__(self, protocol: int) -> None:
        self._protocol = protocol
        self._socket: AsyncIPRoute | None = None

    async def __aenter__(self) -> Kernel:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket is not None:
            self._socket.close()

    @property
    def _route(self) -> AsyncIPRoute:
        if self._socket is None:
            self._socket = AsyncIPRoute(groups=0, strict_check=True, ext_ack=True)
        return self._socket

    async def add_rule(self, rule: Rule) -> None:
        """Raises `HostError`, as all of these do."""
        await self._do(f"ip {rule}", self._route.rule("add", **self._rule(rule)))

    async def delete_rule(self, rule: Rule) -> None:
        await self._undo(f"ip {rule}", self._route.rule("del", **self._rule(rule)))

    def _rule(self, rule: Rule) -> dict[str, Any]:
        words: dict[str, Any] = {
            "family": rule.family,
            "priority": rule.priority,
            "table": rule.table,
            "protocol": self._protocol,
        }
        if rule.mask:
            words |= {"fwmark": rule.mark, "fwmask": rule.mask}
        if rule.source:
            source, _, length = rule.source.partition("/")
            words |= {"src": source, "src_len": int(length or _length(rule.family))}
        return words

    async def add_route(self, route: Route) -> None:
        """In the place of what is there."""
        words = self._place(route) | {"proto": self._protocol}
        if route.gateway:
            words |= {"gateway": route.gateway, "flags": RTNH_F_ONLINK, "scope": RT_SCOPE_UNIVERSE}
        else:
            words |= {"scope": RT_SCOPE_LINK}
        await self._do(f"ip {route}", self._route.route("replace", **words))

    async def delete_route(self, found: FoundRoute) -> None:
        words = self._place(found.route) | {"proto": found.protocol, "type": found.kind}
        words["scope"] = RT_SCOPE_NOWHERE  # of any: one that names another scope finds nothing
        if found.route.gateway:
            words["gateway"] = found.route.gateway
        await self._undo(f"ip {found.route}", self._route.route("del", **words))

    def _place(self, route: Route) -> dict[str, Any]:
        destination = route.destination or "default"
        if route.destination and "/" not in destination:
            destination += f"/{_length(route.family)}"
        words: dict[str, Any] = {"family": route.family, "table": route.table, "dst": destination}
        if route.index:
            words["oif"] = route.index
        if route.metric:
            words["priority"] = route.metric
        return words

    async def add_address(self, address: Address) -> None:
        # A single address: no route to the subnet appears in the main table, where it would pull the host's own
        # traffic over. EC2 gave it to this ENI alone, so nobody needs to be asked whether he has it.
        flags = {"flags": IFA_F_NODAD} if address.family == AF_INET6 else {}
        work = self._route.addr(
            "add", index=address.index, address=address.address, prefixlen=_length(address.family), **flags
        )
        await self._do(str(address), work)

    async def set_link(self, change: LinkChange) -> None:
        value: dict[str, Any] = {"state": "up"} if change.key == "up" else {change.key: change.value}
        await self._do(str(change), self._route.link("set", index=change.link.index, **value))

    async def _do(self, what: str, work: Any) -> None:
        try:
            await work
        except (NetlinkError, OSError) as error:
            hint = ""
            if _code(error) == errno.EEXIST:
                hint = "; another program holds that place: give ipamd other numbers (host.table, host.rule_*)"
            raise HostError(f"{what}: {_reason(error)}{hint}") from error

    async def _undo(self, what: str, work: Any) -> None:
        try:
            await work
        except (NetlinkError, OSError) as error:
            # Gone is what it should be: with its link, or by somebody else's hand.
            if _code(error) not in (errno.ENOENT, errno.ESRCH, errno.ENODEV):
                raise HostError(f"removing {what}: {_reason(error)}") from error


def _length(family: int) -> int:
    return 128 if family == AF_INET6 else 32


def _code(error: NetlinkError | OSError) -> int:
    return error.errno or 0 if isinstance(error, OSError) else int(error.code)


def _reason(error: NetlinkError | OSError) -> str:
    """In the kernel's own words where it has any (NETLINK_EXT_ACK)."""
    return str(error.args[-1] or os.strerror(_code(error)))


def read_sysctl(name: str) -> str:
    """`name` is the path below /proc/sys/net. Raises `HostError`."""
    try:
        return (SYSCTL / name).read_text().strip()
    except OSError as error:
        raise _sysctl_error(name, error) from error


def write_sysctl(name: str, value: str) -> None:
    """Raises `HostError`."""
    try:
        (SYSCTL / name).write_text(value)
    except OSError as error:
        raise _sysctl_error(f"{name}={value}", error) from error


def _sysctl_error(what: str, error: OSError) -> HostError:
    if isinstance(error, FileNotFoundError):
        return HostError(f"sysctl net/{what}: not there: its network device is gone or was just renamed")
    return HostError(f"sysctl net/{what}: {error.strerror}: the daemon needs root and a writable /proc/sys")
