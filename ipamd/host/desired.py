"""What the node's kernel should hold, as plain data: computed, never read.

The layout has one host route per pod and a constant number of rules per ENI (docs/network.md). With i the ENI's
device index:

    table 1500         a route to each pod, on the host's end of its veth
    priority 500       lookup table 1500                      pods, whatever ENI their address is on
    priority 1100      main bit in the mark, lookup main      what leaves by the primary ENI
    priority 1500 + i  mark i, lookup table 1500 + i          what leaves by secondary ENI i
    priority 32000     from the ENI's own address, the same   the host's own traffic from that address
    table 1500 + i     the subnet's gateway on that ENI, and the default route through it

IPv6 has the same rules, tables and marks as soon as an ENI has an IPv6 address; nothing of it is written before.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from socket import AF_INET, AF_INET6
from typing import Protocol

from cni_shim.names import DISCARDED_GROUP
from ipamd.host.errors import HostError
from ipamd.host.links import Link
from ipamd.host.nftables import Exit, Table
from ipamd.settings import HostSettings

MAIN_TABLE = 254  # RT_TABLE_MAIN, linux/rtnetlink.h

# How the plugin names the host's end of a pod's veth (`cni_shim.names`).
POD_LINK_PREFIX = "ipm"

# The VPC's router answers to this address on every link (AWS, "IPv6 addressing": the router of a subnet).
IPV6_GATEWAY = "fe80:ec2::1"

# For every ENI. Loose reverse-path check: replies may come in by another ENI than the main table would choose.
# Each ENI answers ARP for its own address alone, and asks with its own.
_ENI_SYSCTLS = {"rp_filter": "2", "arp_ignore": "1", "arp_announce": "2"}

# The kernel forwards IPv4 that comes in by a link whose own switch is on. A write that turns this one on turns on all
# of them; links to come take theirs from conf/default (Documentation/networking/ip-sysctl.rst).
FORWARDING = "ipv4/ip_forward"


@dataclass(frozen=True, slots=True)
class EniNetwork:
    """One attached ENI as the host must serve it. `subnet_cidr` is that of its subnet; `primary_ip6` its first IPv6
    address, empty for none."""

    eni_id: str
    mac: str
    device_index: int
    primary: bool
    primary_ip: str
    subnet_cidr: str
    primary_ip6: str = ""


@dataclass(frozen=True, slots=True)
class PodNetwork:
    """One address of a pod: IPv4 or IPv6, the name of the host's end of its veth, the index of the address's ENI."""

    address: str
    link: str
    device_index: int


@dataclass(frozen=True, slots=True)
class NodeNetwork:
    """All ENIs that the node serves, the primary among them, the IPv4 CIDRs of the VPC, and what pods hold."""

    enis: tuple[EniNetwork, ...]
    vpc_cidrs: tuple[str, ...]
    pods: tuple[PodNetwork, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """`mark` and `mask` 0: any mark; `source` empty: from anywhere, else a single address, or a network with its
    prefix length."""

    priority: int
    table: int
    mark: int = 0
    mask: int = 0
    source: str = ""
    family: int = AF_INET

    def __str__(self) -> str:
        return f"{_flag(self.family)}rule {self.priority} lookup {self.table}"


@dataclass(frozen=True, slots=True, order=True)
class Route:
    """`destination` empty: default; else a single address, or a network with its prefix length. `gateway` empty: on
    the link itself. `index` is the link's, 0 for a route to none. `metric` 0: what the kernel takes unasked."""

    table: int
    index: int
    destination: str = ""
    gateway: str = ""
    family: int = AF_INET
    metric: int = 0

    @property
    def place(self) -> tuple[int, int, str, int]:
        """Of several routes with one place the kernel uses the first."""
        return self.family, self.table, self.destination, self.metric

    def __str__(self) -> str:
        return f"{_flag(self.family)}route {self.destination or 'default'} table {self.table}"


@dataclass(frozen=True, slots=True, order=True)
class FoundRoute:
    """A route in the kernel: `protocol` says which program made it, `kind` is its type (1: unicast; others drop
    packets)."""

    route: Route
    protocol: int
    kind: int

    def __str__(self) -> str:
        return str(self.route)


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """A single address on a link, without a route to its subnet."""

    index: int
    address: str
    link: str = field(default="", compare=False)  # the link's name, for people

    @property
    def family(self) -> int:
        return family_of(self.address)

    def __str__(self) -> str:
        return f"address {self.address} dev {self.link}"


@dataclass(frozen=True, slots=True)
class LinkWish:
    """The desired state of a link. `mtu` 0 and `group` None: leave as is."""

    link: Link
    mtu: int = 0
    group: int | None = None


@dataclass(frozen=True, slots=True, order=True)
class Sysctl:
    """`name` is the path below /proc/sys/net. `forwards`: it is the forwarding switch of the link with this index."""

    name: str
    value: str
    forwards: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return f"sysctl net/{self.name}={self.value}"


@dataclass(frozen=True, slots=True)
class Desired:
    """`enis` are those that are served: whose device is on the node. `pods_table` holds routes of pods that are
    others' to remove."""

    enis: tuple[EniNetwork, ...]
    links: tuple[LinkWish, ...]
    sysctls: tuple[Sysctl, ...]
    addresses: frozenset[Address]
    routes: frozenset[Route]
    rules: frozenset[Rule]
    table: Table
    pods_table: int

    @property
    def ipv6(self) -> bool:
        return any(rule.family == AF_INET6 for rule in self.rules)


class LinkTable(Protocol):
    """The links of the host."""

    def by_mac(self, mac: str) -> Link | None: ...

    def by_name(self, name: str) -> Link | None: ...


def link_group(settings: HostSettings, device_index: int) -> int:
    """The link group of the host's end of a pod's veth: tells nftables which ENI the pod's packets leave by."""
    return settings.table + device_index


def mark(settings: HostSettings, device_index: int) -> int:
    """The packet mark of a secondary ENI: its device index in the bits of `mark_mask`. Raises `HostError` when
    they have no room for it."""
    lowest_bit = settings.mark_mask & -settings.mark_mask
    value = device_index * lowest_bit
    if value & ~settings.mark_mask:
        raise HostError(
            f"host.mark_mask {settings.mark_mask:#x} has room for device indexes up to "
            f"{settings.mark_mask // lowest_bit}, and an ENI has {device_index}: give it more bits"
        )
    return value


def desired(settings: HostSettings, node: NodeNetwork, links: LinkTable) -> Desired:
    """The objects that the node should hold, given its links. A secondary ENI without a device is skipped, so that
    one that was pulled off does not block the others; a pod without a link is skipped, too. Raises `HostError`
    without the primary ENI's device, and for an ENI that the settings have no number for."""
    served = _served(node, links)
    families = (AF_INET, AF_INET6) if any(eni.primary_ip6 for eni, _ in served) else (AF_INET,)
    main = settings.main_mark
    rules: set[Rule] = set()
    for family in families:
        rules.add(Rule(settings.rule_pods, settings.table, family=family))
        rules.add(Rule(settings.rule_main, MAIN_TABLE, main, main, family=family))
    wishes = [LinkWish(link, mtu=settings.mtu) for _, link in served]
    sysctls = [Sysctl(FORWARDING, "1")]
    addresses: set[Address] = set()
    routes: set[Route] = set()
    for eni, link in served:
        sysctls += _eni_sysctls(eni, link)
        if eni.primary:
            continue  # the system configures its addresses and routes
        number = settings.table + eni.device_index
        priority, bits = settings.rule_eni + eni.device_index, mark(settings, eni.device_index)
        gateway = str(next(ipaddress.IPv4Network(eni.subnet_cidr).hosts()))
        for family, address, router in (
            (AF_INET, eni.primary_ip, gateway),
            (AF_INET6, eni.primary_ip6, IPV6_GATEWAY),
        ):
            if not address:
                continue
            addresses.add(Address(link.index, address, link.name))
            rules.add(Rule(priority, number, bits, settings.mark_mask | main, family=family))
            rules.add(Rule(settings.rule_from, number, source=address, family=family))
            routes.add(Route(number, link.index, destination=router, family=family))
            routes.add(Route(number, link.index, gateway=router, family=family))
    if AF_INET6 in families:
        # After those of the ENIs: a router that does not accept advertisements yet drops its default route.
        sysctls.append(Sysctl("ipv6/conf/all/forwarding", "1"))
    for pod in node.pods:
        veth = links.by_name(pod.link)
        if veth is not None and veth.group != DISCARDED_GROUP:  # else its DEL is on the way to the daemon
            wishes.append(LinkWish(veth, group=link_group(settings, pod.device_index)))
            kind = family_of(pod.address)
            routes.add(Route(settings.table, veth.index, pod.address, family=kind))
            if kind == AF_INET:  # IPv6 is forwarded by one switch for all links
                sysctls.append(forwarding(veth))
    return Desired(
        tuple(eni for eni, _ in served),
        tuple(wishes),
        tuple(sysctls),
        frozenset(addresses),
        frozenset(routes),
        frozenset(rules),
        table(settings, node, links),
        settings.table,
    )


def _served(node: NodeNetwork, links: LinkTable) -> list[tuple[EniNetwork, Link]]:
    return [(eni, link) for eni in node.enis if (link := _device(eni, links)) is not None]


def _device(eni: EniNetwork, links: LinkTable) -> Link | None:
    link = links.by_mac(eni.mac)
    if link is None and eni.primary:
        raise HostError(f"the primary ENI's network device, with MAC {eni.mac}, is gone")
    return link


def forwarding(link: Link) -> Sysctl:
    return Sysctl(f"ipv4/conf/{link.name}/forwarding", "1", link.index)


def _eni_sysctls(eni: EniNetwork, link: Link) -> list[Sysctl]:
    sysctls = [Sysctl(f"ipv4/conf/{link.name}/{name}", value) for name, value in _ENI_SYSCTLS.items()]
    sysctls.append(forwarding(link))
    if eni.primary_ip6:
        # A router accepts advertisements only with accept_ra 2, and the primary's default route comes from one. A
        # secondary's would become a second default route of the host.
        sysctls.append(Sysctl(f"ipv6/conf/{link.name}/disable_ipv6", "0"))
        sysctls.append(Sysctl(f"ipv6/conf/{link.name}/accept_ra", "2" if eni.primary else "0"))
    return sysctls


def table(settings: HostSettings, node: NodeNetwork, links: LinkTable) -> Table:
    """The nftables table alone. Raises as `desired` does."""
    exits = []
    snat_to = ""
    for eni, link in sorted(_served(node, links), key=lambda each: each[0].device_index):
        if eni.primary and settings.snat:
            snat_to = eni.primary_ip
        value = settings.main_mark if eni.primary else mark(settings, eni.device_index)
        exits.append(Exit(link.name, link_group(settings, eni.device_index), value, eni.primary))
    inside = ipaddress.collapse_addresses(
        ipaddress.IPv4Network(cidr) for cidr in (*node.vpc_cidrs, *settings.snat_exclude)
    )
    return Table(
        settings.nft_table,
        settings.mark_mask | settings.main_mark,
        tuple(exits),
        # nft spells a single address without its prefix length.
        tuple(str(cidr).removesuffix("/32") for cidr in inside),
        snat_to,
        metadata_blocked=settings.pod_imds == "block",
    )


def family_of(address: str) -> int:
    return AF_INET6 if ":" in address else AF_INET


def _flag(family: int) -> str:
    """As ip(8) wants it."""
    return "-6 " if family == AF_INET6 else ""
