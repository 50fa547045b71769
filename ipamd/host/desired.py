"""What the node's kernel should hold, as plain data: computed, never read.

The layout (design, section 6) has one host route per pod, which the plugin writes, and a constant number of rules
per ENI. With i the ENI's device index:

    priority 500       lookup table 1500                      pods, whatever ENI their address is on
    priority 1000      main bit in the mark, lookup main      what leaves by the primary ENI
    priority 1500 + i  mark i, lookup table 1500 + i          what leaves by secondary ENI i
    priority 32000     from the ENI's own address, the same   the host's own traffic from that address
    table 1500 + i     the subnet's gateway on that ENI, and the default route through it
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from ipamd.host.errors import HostError
from ipamd.host.nftables import Exit, Table
from ipamd.settings import HostSettings

MAIN_TABLE = 254  # RT_TABLE_MAIN, linux/rtnetlink.h


@dataclass(frozen=True, slots=True)
class EniNetwork:
    """One attached ENI as the host must serve it. `subnet_cidr` is that of its subnet."""

    eni_id: str
    mac: str
    device_index: int
    primary: bool
    primary_ip: str
    subnet_cidr: str


@dataclass(frozen=True, slots=True)
class NodeNetwork:
    """All ENIs that the node serves, the primary among them, and the CIDRs of the VPC."""

    enis: tuple[EniNetwork, ...]
    vpc_cidrs: tuple[str, ...]


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """`mark` and `mask` 0: any mark; `source` empty: from anywhere."""

    priority: int
    table: int
    mark: int = 0
    mask: int = 0
    source: str = ""


@dataclass(frozen=True, slots=True, order=True)
class Route:
    """`destination` empty: default, through `gateway` on the link; else that single address, on the link."""

    table: int
    mac: str
    destination: str = ""
    gateway: str = ""


@dataclass(frozen=True, slots=True)
class Device:
    """An ENI's link. `address` empty and `mtu` 0: leave as the system set it up."""

    mac: str
    address: str
    mtu: int


@dataclass(frozen=True, slots=True)
class Desired:
    devices: tuple[Device, ...]
    rules: frozenset[Rule]
    routes: frozenset[Route]


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


def desired(settings: HostSettings, node: NodeNetwork) -> Desired:
    """Raises `HostError` for an ENI that the settings have no number for."""
    main = settings.main_mark
    rules = {
        Rule(settings.rule_pods, settings.table),
        Rule(settings.rule_main, MAIN_TABLE, main, main),
    }
    routes = set()
    devices = []
    for eni in node.enis:
        if eni.primary:
            devices.append(Device(eni.mac, "", settings.mtu))
            continue
        table = settings.table + eni.device_index
        gateway = str(next(ipaddress.IPv4Network(eni.subnet_cidr).hosts()))
        devices.append(Device(eni.mac, eni.primary_ip, settings.mtu))
        rules.add(
            Rule(
                settings.rule_eni + eni.device_index,
                table,
                mark(settings, eni.device_index),
                settings.mark_mask | main,
            )
        )
        rules.add(Rule(settings.rule_from, table, source=eni.primary_ip))
        routes.add(Route(table, eni.mac, destination=gateway))
        routes.add(Route(table, eni.mac, gateway=gateway))
    return Desired(tuple(devices), frozenset(rules), frozenset(routes))


def table(settings: HostSettings, node: NodeNetwork, names: dict[str, str]) -> Table:
    """The nftables table for the node; `names` maps each ENI's MAC to its link's name."""
    bits = settings.mark_mask | settings.main_mark
    exits = []
    primary_ip = ""
    for eni in sorted(node.enis, key=lambda eni: eni.device_index):
        if eni.primary:
            primary_ip = eni.primary_ip
        value = settings.main_mark if eni.primary else mark(settings, eni.device_index)
        exits.append(Exit(names[eni.mac], link_group(settings, eni.device_index), value, eni.primary))
    inside = ipaddress.collapse_addresses(
        ipaddress.IPv4Network(cidr) for cidr in (*node.vpc_cidrs, *settings.snat_exclude)
    )
    snat_to = primary_ip if settings.snat else ""
    # nft spells a single address without its prefix length.
    spelled = tuple(str(cidr).removesuffix("/32") for cidr in inside)
    return Table(settings.nft_table, bits, tuple(exits), spelled, snat_to)
