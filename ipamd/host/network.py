"""Brings the kernel from what it holds to what it should hold, and says what it changed.

Observe, compare, write the difference: a second run with the same wish finds nothing to do. New ways are built from
their end (links, routes, rules, marks) and old ones taken down from their start, so that no packet is sent on a way
that is not there.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import structlog

from ipamd.host.conntrack import Conntrack
from ipamd.host.desired import Desired, Device, NodeNetwork, Route, desired, table
from ipamd.host.errors import HostError
from ipamd.host.kernel import FoundRoute, Kernel, read_sysctl, write_sysctl
from ipamd.host.links import Link, Links, link_names
from ipamd.host.nftables import Nftables
from ipamd.settings import HostSettings

log = structlog.get_logger("ipamd.host")

# For every ENI. Loose reverse-path check: replies may come in by another ENI than the main table would choose.
# Each ENI answers ARP for its own address alone, and asks with its own.
ENI_SYSCTLS = {"rp_filter": "2", "arp_ignore": "1", "arp_announce": "2"}

# How the plugin names the host's end of a pod's veth.
POD_LINK_PREFIX = "ipm"


@dataclass(frozen=True, slots=True)
class Change:
    """`verb` is "added", "removed" or "set"; `what` names the object as the ip, nft and sysctl commands would."""

    verb: str
    what: str

    def __str__(self) -> str:
        return f"{self.verb} {self.what}"


class HostNetwork:
    """The daemon's hand on the kernel of the network namespace it runs in."""

    def __init__(self, settings: HostSettings) -> None:
        self._settings = settings
        self._links = Links()
        self._nftables = Nftables()
        self._conntrack = Conntrack()

    async def open(self) -> None:
        """Raises `HostError`."""
        self._nftables.require()
        await self._links.open()

    async def close(self) -> None:
        self._links.close()

    async def wait_for_link(self, mac: str, timeout: float) -> Link:
        """Raises `LinkTimeout` after `timeout` seconds."""
        return await self._links.wait_for(mac, timeout)

    def mtu(self, mac: str) -> int:
        """The MTU of the ENI's link. Raises `HostError` when it is gone."""
        return self._link(mac).mtu

    def host_veths(self) -> tuple[Link, ...]:
        """The host's ends of the pods' veths."""
        return self._links.by_prefix(POD_LINK_PREFIX)

    async def pod_routes(self) -> dict[str, str]:
        """Address -> name of the veth that the host route of a pod leads to. Raises `HostError`."""
        async with Kernel(self._settings.route_protocol) as kernel:
            routes = await kernel.routes(self._settings.table)
        return {route.destination: name for route in routes if (name := self._links.name_of(route.index))}

    async def local_addresses(self) -> frozenset[str]:
        """The IPv4 addresses configured on links here, whoever put them there. Raises `HostError`."""
        async with Kernel(self._settings.route_protocol) as kernel:
            return frozenset(address.partition("/")[0] for _index, address in await kernel.addresses())

    async def host_links(self) -> frozenset[str]:
        """The names of all links here, read from the kernel itself: what is missing may be given up for good.
        Raises `HostError`."""
        return link_names()

    async def forget_flows(self, addresses: Collection[str]) -> int:
        """Remove every tracked connection that has one of the addresses at either end, before or after NAT. Returns
        how many there were. Raises `HostError`; what was removed until then stays removed."""
        return await self._conntrack.forget(addresses)

    async def apply(self, node: NodeNetwork) -> list[Change]:
        """Make the kernel serve these ENIs; what is ours and belongs to none of them goes.

        A secondary ENI whose device is not on the node is passed over, so that one that was pulled off does not
        stand in the way of the others. Raises `HostError`; what was done until then stays, and the next call goes on
        from there.
        """
        node = self._without_absent(node)
        wish = desired(self._settings, node)
        names = {device.mac: self._link(device.mac).name for device in wish.devices}
        async with Kernel(self._settings.route_protocol) as kernel:
            changes = _set_sysctl("ip_forward", "1")
            addresses = await kernel.addresses()
            for device in wish.devices:
                changes += await self._set_up(kernel, device, addresses)
            rules = await kernel.rules()
            routes = {r for r in await kernel.routes() if r.table != self._settings.table}
            changes += await self._add_routes(kernel, wish, routes)
            for rule in sorted(wish.rules - rules):
                await kernel.add_rule(rule)
                changes.append(Change("added", f"rule {rule.priority} lookup {rule.table}"))

            if await self._nftables.apply(table(self._settings, node, names)):
                changes.append(Change("set", f"nft table inet {self._settings.nft_table}"))

            for rule in sorted(rules - wish.rules):
                await kernel.delete_rule(rule)
                changes.append(Change("removed", f"rule {rule.priority} lookup {rule.table}"))
            changes += await self._remove_routes(kernel, wish, routes)
        return changes

    def _without_absent(self, node: NodeNetwork) -> NodeNetwork:
        present = []
        for eni in node.enis:
            if eni.primary or self._links.by_mac(eni.mac) is not None:
                present.append(eni)
            else:
                log.warning("host.eni_without_device", eni=eni.eni_id, mac=eni.mac)
        return replace(node, enis=tuple(present))

    async def _set_up(self, kernel: Kernel, device: Device, addresses: set[tuple[int, str]]) -> list[Change]:
        link = self._link(device.mac)
        changes = []
        for name, value in ENI_SYSCTLS.items():
            changes += _set_sysctl(f"conf/{link.name}/{name}", value)
        if device.mtu and device.mtu != link.mtu:
            await kernel.set_link(link, mtu=device.mtu)
            changes.append(Change("set", f"link {link.name} mtu {device.mtu}"))
        if not link.up:
            await kernel.set_link(link, up=True)
            changes.append(Change("set", f"link {link.name} up"))
        if device.address and (link.index, f"{device.address}/32") not in addresses:
            await kernel.add_address(device.address, link)
            changes.append(Change("added", f"address {device.address}/32 dev {link.name}"))
        return changes

    async def _add_routes(self, kernel: Kernel, wish: Desired, found: set[FoundRoute]) -> list[Change]:
        changes = []
        places = {(route.table, route.destination) for route in found}
        # On-link routes first: the default route's gateway must be reachable.
        for route in sorted(wish.routes, key=lambda route: (route.gateway, route)):
            if self._as_found(route) in found:
                continue
            taken = (route.table, route.destination) in places
            await kernel.add_route(route, self._link(route.mac), replace=taken)
            changes.append(Change("added", f"route {route.destination or 'default'} table {route.table}"))
        return changes

    async def _remove_routes(self, kernel: Kernel, wish: Desired, found: set[FoundRoute]) -> list[Change]:
        changes = []
        # A wanted route in the same place has replaced what was found there.
        kept = {(route.table, route.destination) for route in wish.routes}
        for route in sorted(found):
            if (route.table, route.destination) not in kept:
                await kernel.delete_route(route)
                changes.append(Change("removed", f"route {route.destination or 'default'} table {route.table}"))
        return changes

    def _as_found(self, route: Route) -> FoundRoute:
        return FoundRoute(route.table, route.destination, route.gateway, self._link(route.mac).index)

    def _link(self, mac: str) -> Link:
        link = self._links.by_mac(mac)
        if link is None:
            raise HostError(f"the network device with MAC {mac} is gone")
        return link


def _set_sysctl(name: str, value: str) -> list[Change]:
    if read_sysctl(name) == value:
        return []
    write_sysctl(name, value)
    return [Change("set", f"sysctl net/ipv4/{name}={value}")]
