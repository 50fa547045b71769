"""The packet half of the VPC in a box: network namespaces wired as EC2's fabric wires instances.

One namespace is the router (the fabric itself), each node is one; one is the internet, and one a network that is
peered with the VPC (or behind a transit gateway, or a direct connection). An ENI is a veth pair:

    node namespace                 router namespace                       internet namespace
    eth<device index>, ENI's MAC --- port<n>                  internet --- eth0 198.51.100.10, 203.0.113.10
                                     lo: every subnet's .1,               peer namespace
                                     169.254.169.254, 198.51.100.2
                                                               peering --- eth0 192.0.2.10

What makes it a VPC rather than a network is what the router does not do:

- An address is delivered only to the ENI that EC2 assigned it to: a host route to that ENI's port by way of a next
  hop whose one permanent neighbour entry is the ENI's MAC. So nothing on the node has to answer ARP for a pod.
- A packet from an ENI is dropped unless its source is an address of that ENI (the source/destination check).
- What is bound for the internet passes only from the primary address of a primary ENI, the one that has a public
  address at the internet gateway; what comes from there passes only to it. In packets of at most 1500 bytes: larger
  ones are answered by ICMP (AWS, "Network MTU for your EC2 instance").
- Every address of the VPC reaches the peered network, and is reached from there.
- Addresses of the VPC that nobody has are answered for in ARP, and their packets vanish.

IPv6 is there for the VPC's own addresses, not for the internet: the router is fe80:ec2::1 on every link.

The rules are one nftables table with sets of (port, address) pairs, so that a change of an ENI's addresses is one
transaction. All that they drop is counted: on a node that works as it should, nothing is. Port names are never used
twice. Nothing is written to the namespace of the caller.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import secrets
import socket
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from ipamd.sim import netns

MTU: Final = 9001  # jumbo frames inside a VPC: AWS, "Network maximum transmission unit (MTU) for your EC2 instance"
IMDS_ADDRESS: Final = "169.254.169.254"
EC2_ADDRESS: Final = "198.51.100.2"  # TEST-NET-2 and -3 (RFC 5737) stand for the internet
INTERNET_HOSTS: Final = ("198.51.100.10", "203.0.113.10")
INTERNET_MTU: Final = 1500
PEER_NETWORK: Final = "192.0.2.0/24"  # TEST-NET-1
PEER_HOST: Final = "192.0.2.10"
IPV6_ROUTER: Final = "fe80:ec2::1"  # AWS, "VPC and subnet basics": the router's IPv6 address

_INTERNET_GATEWAY: Final = "198.51.100.1"
_PEERING: Final = "192.0.2.1"
_ELSEWHERE: Final = tuple(ipaddress.IPv4Network(n) for n in ("198.51.100.0/24", "203.0.113.0/24", PEER_NETWORK))
_NEXT_HOP: Final = "169.254.0.1"  # stands for the ENI behind a port; never seen in a packet
_NEXT_HOP_IPV6: Final = "fe80::1"
_PORT_MAC: Final = "02:00:00:00:00:01"  # what nodes see as the MAC of everything, at every port

_RULES: Final = """
table inet vpc {{
  set inside {{ type ipv4_addr; flags interval; elements = {{ {vpc_cidr}, {peer} }}; }}
  set assigned {{ typeof iifname . ip saddr; }}
  set assigned_ipv6 {{ typeof iifname . ip6 saddr; }}
  set public {{ typeof iifname . ip saddr; }}
  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
    iifname {{ "lo", "internet", "peering" }} accept
    iifname . ip saddr != @assigned counter drop comment "source check"
    ip6 saddr {{ ::, fe80::/10 }} accept
    iifname . ip6 saddr != @assigned_ipv6 counter drop comment "source check, IPv6"
    ip daddr {imds} accept
    ip daddr != @inside iifname . ip saddr != @public counter drop comment "internet gateway, outward"
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "internet" oifname . ip daddr != @public counter drop comment "internet gateway, inward"
    oifname "internet" ip daddr @inside counter drop comment "address without an ENI"
  }}
}}
"""

_ROUTER_SYSCTLS: Final = {
    "ipv4/ip_forward": 1,
    "ipv4/conf/all/proxy_arp": 1,
    # A packet may well leave by another port than the one its answer comes from, or by the very same one.
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/default/rp_filter": 0,
    "ipv4/conf/all/send_redirects": 0,
    "ipv4/conf/default/send_redirects": 0,
    "ipv6/conf/all/forwarding": 1,
    "ipv6/conf/default/addr_gen_mode": 1,  # none: the ports have the address that they are given, and no other
    "ipv6/conf/default/accept_dad": 0,
}

# A new namespace inherits IPv4 settings from the machine it is made on; these are what an instance boots with
# (systemd's 50-default.conf, the kernel's own default).
_NODE_SYSCTLS: Final = {
    "ipv4/ip_forward": 0,
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/default/rp_filter": 2,
}


class FabricError(Exception):
    """The fabric was asked for something that can't be: an unknown node, a second ENI in the same place, ..."""


@dataclass(slots=True)
class _Plug:
    """An ENI in its place. `accepted` are the addresses that the router knows for it, primary first."""

    node: str
    port: str
    device_index: int
    accepted: tuple[str, ...] = ()

    @property
    def ipv6(self) -> tuple[str, ...]:
        return tuple(address for address in self.accepted if ":" in address)

    @property
    def public(self) -> tuple[str, ...]:
        return self.accepted[:1] if self.device_index == 0 else ()


class Fabric:
    """One VPC's packets. Implements `ipamd.sim.wiring.Wiring`; use it as an asynchronous context manager.

    All its namespaces carry `prefix`, so that several fabrics, of equal CIDRs too, stand side by side. Methods raise
    `FabricError`, `netns.CommandError` when the system refuses, and OSError.
    """

    def __init__(self, vpc_cidr: str, prefix: str = "") -> None:
        self._cidr = ipaddress.IPv4Network(vpc_cidr)
        for outside in _ELSEWHERE:
            if self._cidr.overlaps(outside):
                raise FabricError(f"VPC {vpc_cidr} overlaps {outside}, which stands for other networks here")
        self.prefix = prefix or f"vpc{secrets.token_hex(3)}"
        self.router = f"{self.prefix}.router"
        self.internet = f"{self.prefix}.internet"
        self.peer = f"{self.prefix}.peer"
        self._subnets: list[ipaddress.IPv4Network] = []
        self._nodes: dict[str, str] = {}
        self._plugs: dict[str, _Plug] = {}
        self._holders: dict[str, str] = {}  # address -> the port that it is delivered to
        self._ports = 0
        self._lock = asyncio.Lock()
        self._namespaces = AsyncExitStack()

    async def __aenter__(self) -> Fabric:
        try:
            await self._build()
        except BaseException:
            await self._namespaces.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with self._lock:
            await self._namespaces.aclose()

    async def _build(self) -> None:
        for name in (self.router, self.internet, self.peer):
            await self._add_namespace(name)
        netns.write_sysctls(self.router, _ROUTER_SYSCTLS)
        await netns.nft(self.router, _RULES.format(vpc_cidr=self._cidr, imds=IMDS_ADDRESS, peer=PEER_NETWORK))
        internet = f"link add internet mtu {INTERNET_MTU} type veth peer name eth0 mtu {INTERNET_MTU}"
        peering = f"link add peering mtu {MTU} type veth peer name eth0 mtu {MTU}"
        await netns.ip_batch(
            self.router,
            [
                # Not what the router itself speaks with, in ICMP: that is a subnet's gateway.
                f"addr add {IMDS_ADDRESS}/32 dev lo scope host",
                f"addr add {EC2_ADDRESS}/32 dev lo scope host",
                f"{internet} netns {self.internet}",
                f"addr add {_INTERNET_GATEWAY}/24 dev internet",
                "link set internet up",
                f"{peering} netns {self.peer}",
                f"addr add {_PEERING}/24 dev peering",
                "link set peering up",
            ],
        )
        for name, hosts, gateway in (
            (self.internet, INTERNET_HOSTS, _INTERNET_GATEWAY),
            (self.peer, (PEER_HOST,), _PEERING),
        ):
            await netns.ip_batch(
                name,
                [
                    *(f"addr add {host}/24 dev eth0" for host in hosts),
                    "link set eth0 up",
                    f"route add default via {gateway}",
                ],
            )
        await netns.ip_batch(self.router, [f"route add default via {INTERNET_HOSTS[0]}"])

    async def _add_namespace(self, name: str) -> None:
        await netns.create(name)
        self._namespaces.push_async_callback(netns.delete, name)
        await netns.ip_batch(name, ["link set lo up"])

    async def add_subnet(self, cidr: str) -> None:
        """Make the subnet's gateway (its first host address) answer."""
        subnet = ipaddress.IPv4Network(cidr)
        async with self._lock:
            await netns.ip_batch(self.router, [f"addr add {subnet[1]}/32 dev lo"])
            self._subnets.append(subnet)

    async def add_node(self, instance_id: str, name: str) -> str:
        """Make the namespace of an instance; returns the namespace's name."""
        namespace = f"{self.prefix}-{name}"
        async with self._lock:
            if instance_id in self._nodes:
                raise FabricError(f"instance {instance_id} has a namespace already: {self._nodes[instance_id]}")
            await self._add_namespace(namespace)
            netns.write_sysctls(namespace, _NODE_SYSCTLS)
            self._nodes[instance_id] = namespace
        return namespace

    def listen(self, address: str, port: int) -> socket.socket:
        """A listening TCP socket on one of the router's own addresses (IMDS_ADDRESS, EC2_ADDRESS)."""
        return netns.listen_in(self.router, address, port)

    async def plug(self, instance_id: str, eni_id: str, mac: str, device_index: int) -> None:
        """The ENI's link appears on the node as eth<device_index>: down, with the ENI's MAC and the VPC's MTU."""
        async with self._lock:
            if (namespace := self._nodes.get(instance_id)) is None:
                raise FabricError(f"instance {instance_id} has no namespace; add_node comes first")
            if eni_id in self._plugs:
                raise FabricError(f"{eni_id} is plugged already, into {self._plugs[eni_id].node}")
            self._ports += 1
            port = f"port{self._ports}"
            ends = (
                f"link add {port} address {_PORT_MAC} mtu {MTU} type veth "
                f"peer name eth{device_index} address {mac} mtu {MTU} netns {namespace}"
            )
            await netns.ip_batch(self.router, [ends])
            try:
                # Proxy ARP delays its answers by up to 0.8 s unless told not to (arp_process in net/ipv4/arp.c).
                netns.write_sysctls(self.router, {f"ipv4/neigh/{port}/proxy_delay": 0})
                await netns.ip_batch(
                    self.router,
                    [
                        f"link set {port} up alias {eni_id}",
                        f"addr add {IPV6_ROUTER}/64 dev {port} nodad",
                        *(
                            f"neigh add {hop} lladdr {mac} dev {port} nud permanent"
                            for hop in (_NEXT_HOP, _NEXT_HOP_IPV6)
                        ),
                    ],
                )
            except BaseException:
                await netns.ip_batch(self.router, [f"link delete {port}"])
                raise
            self._plugs[eni_id] = _Plug(namespace, port, device_index)

    async def unplug(self, eni_id: str) -> None:
        """The ENI's link vanishes from the node."""
        async with self._lock:
            if (plug := self._plugs.get(eni_id)) is None:
                raise FabricError(f"{eni_id} is not plugged")
            await self._accept(plug, ())
            await netns.ip_batch(self.router, [f"link delete {plug.port}"])
            del self._plugs[eni_id]

    async def deliver(self, eni_id: str, addresses: tuple[str, ...]) -> None:
        """From now on exactly these addresses (primary first, IPv6 last) are those of the ENI, if it is plugged.

        The first time, the primary ENI (index 0) is set up as an instance's system does at boot: its link up, with
        its address and the default route; likewise when it gets its first IPv6 address.
        """
        async with self._lock:
            if (plug := self._plugs.get(eni_id)) is not None:
                await self._accept(plug, addresses)

    async def restart(self, instance_id: str) -> None:
        """The instance boots again: its namespace is a new one of the same name, with the links of its ENIs and with
        nothing that was configured in the old one. No process is in it, or all have ended."""
        async with self._lock:
            if (namespace := self._nodes.get(instance_id)) is None:
                raise FabricError(f"instance {instance_id} has no namespace; add_node comes first")
            plugs = [plug for plug in self._plugs.values() if plug.node == namespace]
            links = [f"eth{plug.device_index}" for plug in plugs]
            between = f"{namespace}.new"
            await netns.create(between)
            try:
                # A link that moves loses its addresses and routes, and is down.
                await netns.ip_batch(namespace, [f"link set {link} netns {between}" for link in links])
                await netns.delete(namespace)
                await netns.create(namespace)
                await netns.ip_batch(between, [f"link set {link} netns {namespace}" for link in links])
            finally:
                await netns.delete(between)
            await netns.ip_batch(namespace, ["link set lo up"])
            netns.write_sysctls(namespace, _NODE_SYSCTLS)
            for plug in plugs:
                if plug.device_index == 0 and plug.accepted:
                    await self._boot(plug)
                    await self._boot_ipv6(plug)

    async def _accept(self, plug: _Plug, addresses: tuple[str, ...]) -> None:
        """Make `addresses` all that the router knows for a plugged ENI."""
        if addresses == plug.accepted:
            return
        gone = [address for address in plug.accepted if address not in addresses]
        new = [address for address in addresses if address not in plug.accepted]
        primary = plug.device_index == 0
        boots, boots_ipv6 = primary and not plug.accepted, primary and not plug.ipv6
        public = plug.public
        plug.accepted = addresses
        await netns.nft(
            self.router,
            _change("assigned", plug.port, *(filter(_is_ipv4, each) for each in (gone, new)))
            + _change("assigned_ipv6", plug.port, *(filter(_is_ipv6, each) for each in (gone, new)))
            + _change("public", plug.port, set(public) - set(plug.public), set(plug.public) - set(public)),
        )
        # An address may have moved to another port before it is withdrawn here: its route is that port's then.
        routes = [f"route del {_host(a)} dev {plug.port}" for a in gone if self._holders.get(a) == plug.port]
        routes += [f"route replace {self._way_to(a, plug.port)}" for a in new]
        await netns.ip_batch(self.router, routes)
        self._holders = {a: port for a, port in self._holders.items() if port != plug.port or a not in gone}
        self._holders.update(dict.fromkeys(new, plug.port))
        if boots and addresses:
            await self._boot(plug)
        if boots_ipv6:
            await self._boot_ipv6(plug)

    def _way_to(self, address: str, port: str) -> str:
        return f"{_host(address)} via {_NEXT_HOP_IPV6 if _is_ipv6(address) else _NEXT_HOP} dev {port} onlink"

    async def limit_mtu(self, address: str, mtu: int) -> None:
        """From now on only packets of up to `mtu` bytes get to the address, be it an ENI's or outside; larger ones
        are answered by ICMP. 0 lifts the limit."""
        async with self._lock:
            if (port := self._holders.get(address)) is not None:
                way = self._way_to(address, port)
            elif address == PEER_HOST:
                way = f"{address} dev peering"
            elif address in INTERNET_HOSTS:
                way = f"{address} via {INTERNET_HOSTS[0]} dev internet onlink"
            else:
                raise FabricError(f"{address} is neither an ENI's nor a host outside")
            # A router follows only a locked MTU of a route: ip_dst_mtu_maybe_forward in the kernel's net/ip.h.
            await netns.ip_batch(self.router, [f"route replace {way}{f' mtu lock {mtu}' if mtu else ''}"])

    async def dropped(self) -> dict[str, int]:
        """How many packets the router has dropped, by rule."""
        listing = await netns.command(
            *("ip", "netns", "exec", self.router, "nft", "-j", "list", "table", "inet", "vpc")
        )
        rules = [item["rule"] for item in json.loads(listing)["nftables"] if "rule" in item]
        return {
            rule["comment"]: int(part["counter"]["packets"])
            for rule in rules
            for part in rule["expr"]
            if "counter" in part
        }

    async def _boot(self, plug: _Plug) -> None:
        address = ipaddress.IPv4Address(plug.accepted[0])
        subnet = next((subnet for subnet in self._subnets if address in subnet), None)
        if subnet is None:
            raise FabricError(f"{address} is in no subnet of the fabric; add_subnet comes first")
        await netns.ip_batch(
            plug.node,
            [
                "link set eth0 up",
                f"addr add {address}/{subnet.prefixlen} brd + dev eth0",
                f"route add default via {subnet[1]} dev eth0",
            ],
        )

    async def _boot_ipv6(self, plug: _Plug) -> None:
        if plug.ipv6:
            commands = [
                f"addr add {plug.ipv6[0]}/128 dev eth0 nodad",
                f"route add default via {IPV6_ROUTER} dev eth0",
            ]
            await netns.ip_batch(plug.node, commands)


def _change(set_name: str, port: str, gone: Iterable[str], new: Iterable[str]) -> str:
    """The nftables statements that take pairs of this port out of a set and put others in."""
    return "".join(
        f"{verb} element inet vpc {set_name} {{ {', '.join(pairs)} }}\n"
        for verb, addresses in (("delete", gone), ("add", new))
        if (pairs := [f'"{port}" . {address}' for address in addresses])
    )


def _host(address: str) -> str:
    """The address as a network of its own."""
    return str(ipaddress.ip_network(address))


def _is_ipv6(address: str) -> bool:
    return ":" in address


def _is_ipv4(address: str) -> bool:
    return not _is_ipv6(address)
