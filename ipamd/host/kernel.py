"""Reading and writing rules, routes, addresses, links and sysctls. Knows how, not what: that is `desired`'s.

Every rule and route written carries our rtm_protocol; whatever carries another is never changed.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from socket import AF_INET
from types import TracebackType
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink import NLM_F_DUMP_INTR
from pyroute2.netlink.exceptions import NetlinkError

from ipamd.host.desired import Route, Rule
from ipamd.host.errors import HostError
from ipamd.host.links import Link

# linux/rtnetlink.h
RT_TABLE_UNSPEC = 0
RT_SCOPE_UNIVERSE = 0
RT_SCOPE_LINK = 253
RT_SCOPE_NOWHERE = 255
RTNH_F_ONLINK = 4

SYSCTL = Path("/proc/sys/net/ipv4")

# A dump that another change interrupted shows neither the old state nor the new one, and pyroute2 does not say so.
DUMP_ATTEMPTS = 10

# What a rule may select by besides mark and source: with any of them it is not one that we would write.
_FOREIGN_SELECTORS = ("dst", "iifname", "oifname", "uid_range", "ip_proto", "sport_range", "dport_range", "tun_id")


@dataclass(frozen=True, slots=True, order=True)
class FoundRoute:
    """A route as the kernel holds it. `destination` is empty for default, `gateway` for none."""

    table: int
    destination: str
    gateway: str
    index: int


class Kernel:
    """One rtnetlink socket for one piece of work in the current network namespace: `async with`.

    A socket of pyroute2 that lives on keeps answers nobody asked for, and never recovers from an error.
    """

    def __init__(self, protocol: int) -> None:
        self._protocol = protocol
        self._route = AsyncIPRoute(groups=0, strict_check=True, ext_ack=True)

    async def __aenter__(self) -> Kernel:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._route.close()

    async def rules(self) -> frozenset[Rule]:
        """Ours."""
        found = set()
        for message in await self._dump(self._route.rule, family=AF_INET):
            if message.get("protocol") != self._protocol or any(message.get(name) for name in _FOREIGN_SELECTORS):
                continue
            source = str(message.get("src")) if message["src_len"] else ""
            mark = message.get("fwmark") or 0
            mask = (message.get("fwmask") or 0) if mark else 0
            found.add(Rule(message.get("priority") or 0, message.get("table") or 0, mark, mask, source))
        return frozenset(found)

    async def add_rule(self, rule: Rule) -> None:
        await self._do(f"ip rule {rule}", self._route.rule("add", **self._rule(rule)))

    async def delete_rule(self, rule: Rule) -> None:
        await self._undo(f"ip rule {rule}", self._route.rule("del", **self._rule(rule)))

    def _rule(self, rule: Rule) -> dict[str, Any]:
        words: dict[str, Any] = {
            "family": AF_INET,
            "priority": rule.priority,
            "table": rule.table,
            "protocol": self._protocol,
        }
        if rule.mask:
            words |= {"fwmark": rule.mark, "fwmask": rule.mask}
        if rule.source:
            words |= {"src": rule.source, "src_len": 32}
        return words

    async def routes(self, table: int = RT_TABLE_UNSPEC) -> frozenset[FoundRoute]:
        """Ours, in that table or in all."""
        found = set()
        words = {"table": table} if table else {}
        for message in await self._dump(self._route.route, family=AF_INET, proto=self._protocol, **words):
            number = message.get("table") or message["table"]
            # Kernels without strict dumps (before 4.20) ignore the filter.
            if message["proto"] == self._protocol and table in (RT_TABLE_UNSPEC, number):
                destination, gateway = message.get("dst") or "", message.get("gateway") or ""
                found.add(FoundRoute(number, destination, gateway, message.get("oif") or 0))
        return frozenset(found)

    async def add_route(self, route: Route, link: Link, *, replace: bool) -> None:
        """`replace` only a route of ours; somebody else's in the same place is an error."""
        words: dict[str, Any] = {"family": AF_INET, "table": route.table, "oif": link.index, "proto": self._protocol}
        if route.gateway:
            words |= {"dst": "default", "gateway": route.gateway, "flags": RTNH_F_ONLINK, "scope": RT_SCOPE_UNIVERSE}
        else:
            words |= {"dst": f"{route.destination}/32", "scope": RT_SCOPE_LINK}
        await self._do(
            f"route {route.destination or 'default'} dev {link.name} in table {route.table}",
            self._route.route("replace" if replace else "add", **words),
        )

    async def delete_route(self, route: FoundRoute) -> None:
        words: dict[str, Any] = {"family": AF_INET, "table": route.table, "oif": route.index, "proto": self._protocol}
        words["scope"] = RT_SCOPE_NOWHERE  # of any scope: a deletion that names another finds nothing
        words["dst"] = f"{route.destination}/32" if route.destination else "default"
        what = f"route {route.destination or 'default'} in table {route.table}"
        await self._undo(what, self._route.route("del", **words))

    async def addresses(self) -> set[tuple[int, str]]:
        """(link index, address/prefix length), IPv4, whoever set them."""
        return {
            (message["index"], f"{message.get('local') or message.get('address')}/{message['prefixlen']}")
            for message in await self._dump(self._route.addr, family=AF_INET)
        }

    async def add_address(self, address: str, link: Link) -> None:
        # /32: no route to the subnet appears in the main table, where it would pull the host's own traffic over.
        work = self._route.addr("add", index=link.index, address=address, prefixlen=32)
        await self._do(f"address {address}/32 dev {link.name}", work)

    async def set_link(self, link: Link, *, mtu: int = 0, up: bool = False) -> None:
        words: dict[str, Any] = {"index": link.index}
        if mtu:
            words["mtu"] = mtu
        if up:
            words["state"] = "up"
        await self._do(f"link {link.name}", self._route.link("set", **words))

    async def _dump(self, method: Any, **words: Any) -> list[Any]:
        for _ in range(DUMP_ATTEMPTS):
            try:
                found = [message async for message in await method("dump", **words)]
            except (NetlinkError, OSError) as error:
                if _code(error) == errno.ENOENT:
                    return []  # a table without any route does not exist
                raise HostError(f"the kernel does not tell: {_reason(error)}") from error
            if not any(message["header"]["flags"] & NLM_F_DUMP_INTR for message in found):
                return found
        raise HostError(f"the kernel's tables changed during each of {DUMP_ATTEMPTS} reads")

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


def _code(error: NetlinkError | OSError) -> int:
    return error.errno or 0 if isinstance(error, OSError) else int(error.code)


def _reason(error: NetlinkError | OSError) -> str:
    """In the kernel's own words where it has any (NETLINK_EXT_ACK)."""
    return str(error.args[-1] or os.strerror(_code(error)))


def read_sysctl(name: str) -> str:
    """`name` is the path below net/ipv4. Raises `HostError`."""
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
        return HostError(f"sysctl net/ipv4/{what}: not there: its network device is gone or was just renamed")
    return HostError(f"sysctl net/ipv4/{what}: {error.strerror}: the daemon needs root and a writable /proc/sys")
