"""Brings the kernel from what it holds to what it should hold, and says what it changed.

Observe, compare, write the difference: a second run with the same wish finds nothing to do.
"""

from __future__ import annotations

from dataclasses import dataclass

from ipamd.host.desired import Desired, Device, NodeNetwork, desired, table
from ipamd.host.errors import HostError
from ipamd.host.kernel import Kernel, read_sysctl, write_sysctl
from ipamd.host.links import Link, Links
from ipamd.host.nftables import Nftables
from ipamd.settings import HostSettings

# For every ENI. Loose reverse-path check: replies may come in by another ENI than the main table would choose.
# Each ENI answers ARP for its own address alone, and asks with its own.
ENI_SYSCTLS = {"rp_filter": "2", "arp_ignore": "1", "arp_announce": "2"}


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
        self._kernel = Kernel(settings.route_protocol)
        self._nftables = Nftables()

    async def open(self) -> None:
        """Raises `HostError`."""
        await self._links.open()

    async def close(self) -> None:
        await self._links.close()
        await self._kernel.close()

    async def wait_for_link(self, mac: str, timeout: float) -> Link:
        """Raises `LinkTimeout` after `timeout` seconds."""
        return await self._links.wait_for(mac, timeout)

    def mtu(self, mac: str) -> int:
        """The MTU of the ENI's link. Raises `HostError` when it is gone."""
        return self._link(mac).mtu

    async def pod_routes(self) -> dict[str, str]:
        """Address -> name of the veth that the host route of a pod leads to."""
        routes = await self._kernel.routes(self._settings.table)
        return {address: name for address, _, index in routes if (name := self._links.name_of(index))}

    async def apply(self, node: NodeNetwork) -> list[Change]:
        """Make the kernel serve these ENIs; what is ours and belongs to no ENI of them goes. The links must be
        there. Raises `HostError`."""
        wish = desired(self._settings, node)
        changes = self._set_sysctl("ip_forward", "1")
        addresses = await self._kernel.addresses()
        for device in wish.devices:
            changes += await self._set_up(device, addresses)
        changes += await self._route(wish)
        names = {device.mac: self._link(device.mac).name for device in wish.devices}
        nft_table = table(self._settings, node, names)
        if await self._nftables.apply(nft_table):
            changes.append(Change("set", f"nft table inet {nft_table.name}"))
        return changes

    async def _set_up(self, device: Device, addresses: set[tuple[int, str]]) -> list[Change]:
        link = self._link(device.mac)
        changes = []
        for name, value in ENI_SYSCTLS.items():
            changes += self._set_sysctl(f"conf/{link.name}/{name}", value)
        if device.mtu and device.mtu != link.mtu:
            await self._kernel.set_link(link, mtu=device.mtu)
            changes.append(Change("set", f"link {link.name} mtu {device.mtu}"))
        if not link.up:
            await self._kernel.set_link(link, up=True)
            changes.append(Change("set", f"link {link.name} up"))
        if device.address and (link.index, f"{device.address}/32") not in addresses:
            await self._kernel.add_address(device, link)
            changes.append(Change("added", f"address {device.address}/32 dev {link.name}"))
        return changes

    async def _route(self, wish: Desired) -> list[Change]:
        """Routes before the rules that lead to them, and the other way round for what goes: no packet meets a rule
        without its route."""
        changes = []
        found = await self._kernel.rules()
        stale = found - wish.rules
        for rule in sorted(stale):
            await self._kernel.delete_rule(rule)
            changes.append(Change("removed", f"rule {rule.priority} lookup {rule.table}"))
        tables = {route.table for route in wish.routes} | {rule.table for rule in stale}
        for number in sorted(tables - {self._settings.table}):
            changes += await self._routes_of(number, wish)
        for rule in sorted(wish.rules - found):
            await self._kernel.add_rule(rule)
            changes.append(Change("added", f"rule {rule.priority} lookup {rule.table}"))
        return changes

    async def _routes_of(self, number: int, wish: Desired) -> list[Change]:
        changes = []
        wanted = {
            (route.destination, route.gateway, self._link(route.mac).index): route
            for route in wish.routes
            if route.table == number
        }
        found = await self._kernel.routes(number)
        for destination, gateway, index in found:
            if (destination, gateway, index) not in wanted:
                await self._kernel.delete_route(number, destination, index)
                changes.append(Change("removed", f"route {destination or 'default'} table {number}"))
        # On-link routes first: the default route's gateway must be reachable.
        for key, route in sorted(wanted.items(), key=lambda item: item[1].gateway):
            if key not in found:
                await self._kernel.add_route(route, self._link(route.mac))
                changes.append(Change("added", f"route {route.destination or 'default'} table {number}"))
        return changes

    def _link(self, mac: str) -> Link:
        link = self._links.by_mac(mac)
        if link is None:
            raise HostError(f"the network device with MAC {mac} is gone")
        return link

    def _set_sysctl(self, name: str, value: str) -> list[Change]:
        if read_sysctl(name) == value:
            return []
        write_sysctl(name, value)
        return [Change("set", f"sysctl net.ipv4.{name.replace('/', '.')}={value}")]
