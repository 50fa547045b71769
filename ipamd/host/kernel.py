"""Reading and writing rules, routes, addresses, links and sysctls. Knows how, not what: that is `desired`'s.

Everything written carries our rtm_protocol; whatever carries another is never seen here, let alone touched.
"""

from __future__ import annotations

from pathlib import Path
from socket import AF_INET
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ipamd.host.desired import Device, Route, Rule
from ipamd.host.errors import HostError
from ipamd.host.links import Link

# linux/rtnetlink.h
RT_SCOPE_LINK = 253
RT_SCOPE_UNIVERSE = 0
RTNH_F_ONLINK = 4

SYSCTL = Path("/proc/sys/net/ipv4")

# A dump that another change interrupted (NLM_F_DUMP_INTR) shows neither the old state nor the new one.
DUMP_ATTEMPTS = 10


class Kernel:
    """One rtnetlink socket in the current network namespace."""

    def __init__(self, protocol: int) -> None:
        self._protocol = protocol
        self._route = AsyncIPRoute(groups=0, strict_check=True)

    async def close(self) -> None:
        await self._route.close()

    async def rules(self) -> frozenset[Rule]:
        found = set()
        for message in await self._dump(self._route.rule, family=AF_INET):
            if message.get("protocol") != self._protocol:
                continue
            source = f"{message.get('src')}" if message["src_len"] else ""
            found.add(
                Rule(
                    message.get("priority") or 0,
                    message.get("table") or 0,
                    message.get("fwmark") or 0,
                    message.get("fwmask") or 0 if message.get("fwmark") else 0,
                    source,
                )
            )
        return frozenset(found)

    async def add_rule(self, rule: Rule) -> None:
        await self._do(f"ip rule {rule}", self._route.rule("add", **self._rule(rule)))

    async def delete_rule(self, rule: Rule) -> None:
        await self._do(f"ip rule {rule}", self._route.rule("del", **self._rule(rule)))

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

    async def routes(self, table: int) -> list[tuple[str, str, int]]:
        """(destination, gateway, link index) of each of our routes in the table; "" for default and for none."""
        return [
            (message.get("dst") or "", message.get("gateway") or "", message.get("oif") or 0)
            for message in await self._dump(self._route.route, family=AF_INET, table=table)
            if message["proto"] == self._protocol and (message.get("table") or message["table"]) == table
        ]

    async def add_route(self, route: Route, link: Link) -> None:
        words: dict[str, Any] = {"table": route.table, "oif": link.index, "proto": self._protocol}
        if route.gateway:
            words |= {"dst": "default", "gateway": route.gateway, "flags": RTNH_F_ONLINK, "scope": RT_SCOPE_UNIVERSE}
        else:
            words |= {"dst": f"{route.destination}/32", "scope": RT_SCOPE_LINK}
        await self._do(f"route {route} dev {link.name}", self._route.route("replace", **words))

    async def delete_route(self, table: int, destination: str, index: int) -> None:
        words: dict[str, Any] = {"table": table, "oif": index, "proto": self._protocol}
        words["dst"] = f"{destination}/32" if destination else "default"
        await self._do(f"route {destination or 'default'} table {table}", self._route.route("del", **words))

    async def addresses(self) -> set[tuple[int, str]]:
        """(link index, address/prefix length), IPv4."""
        return {
            (message["index"], f"{message.get('local') or message.get('address')}/{message['prefixlen']}")
            for message in await self._dump(self._route.addr, family=AF_INET)
        }

    async def add_address(self, device: Device, link: Link) -> None:
        # /32: no route to the subnet appears in the main table, where it would pull the host's own traffic over.
        work = self._route.addr("add", index=link.index, address=device.address, prefixlen=32)
        await self._do(f"address {device.address}/32 dev {link.name}", work)

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
                return [message async for message in await method("dump", **words)]
            except NetlinkError as error:
                # NetlinkDumpInterrupted carries code -1; an absent table is an empty one (ENOENT, strict dumps).
                if error.code == 2:
                    return []
                if error.code != -1:
                    raise HostError(f"the kernel does not tell: {error}") from error
        raise HostError(f"the kernel's tables changed during each of {DUMP_ATTEMPTS} reads")

    async def _do(self, what: str, work: Any) -> None:
        try:
            await work
        except NetlinkError as error:
            raise HostError(f"{what}: {error}") from error


def read_sysctl(name: str) -> str:
    return (SYSCTL / name).read_text().strip()


def write_sysctl(name: str, value: str) -> None:
    try:
        (SYSCTL / name).write_text(value)
    except OSError as error:
        message = (
            f"sysctl net/ipv4/{name}={value}: {error.strerror}: the daemon must run as root with /proc/sys writable"
        )
        raise HostError(message) from error
