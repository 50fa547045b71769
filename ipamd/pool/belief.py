"""Which addresses of an EC2 reply may be believed.

An address that a reply names is granted to pods soon after. A reply that passed through a faulty proxy, a mock or an
inconsistent part of EC2 may name the ENI's own address, one of another ENI, or no address at all: a pod that got it
would take the node's or another pod's packets. What is doubted enters no list; the ENI is read again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from ipamd.pool.eni import Address, Eni
from ipamd.pool.inventory import Inventory
from ipamd.pool.model import AddressState, ObservedEni

# The first four addresses of a subnet and the last are EC2's ("Subnet CIDR blocks" in the Amazon VPC User Guide).
RESERVED_FIRST = 4

# An event names so many doubted addresses, each cut to so many characters.
NAMED, NAMED_LENGTH = 5, 40


@dataclass(frozen=True, slots=True)
class Reply:
    """`contradicted` are addresses that are on record on another ENI."""

    believed: tuple[str, ...]
    doubts: tuple[str, ...] = ()
    contradicted: tuple[Address, ...] = ()

    @property
    def doubted(self) -> str:
        """The doubts in words."""
        more = len(self.doubts) - NAMED
        return "; ".join(self.doubts[:NAMED]) + (f"; and {more} more" if more > 0 else "")


def is_address(text: str) -> bool:
    try:
        IPv4Address(text)
    except ValueError:
        return False
    return True


def is_usable(ip: str, subnet: IPv4Network | None) -> bool:
    """Whether EC2 could give this address to anybody in the subnet; a subnet that is not known yet has all."""
    if subnet is None:
        return True
    offset = int(IPv4Address(ip)) - int(subnet.network_address)
    return RESERVED_FIRST <= offset < subnet.num_addresses - 1


def brought(addresses: Iterable[str], asked: int, eni: Eni, inventory: Inventory) -> Reply:
    """Of what a call that asked for so many new addresses says that it has brought. Where one item is doubted, none
    is believed: the next reading of the ENI shows what is there."""
    believed: dict[str, None] = {}
    doubts, contradicted = [], []
    for ip in addresses:
        known = inventory.addresses.get(ip)
        doubt = _doubt(ip, eni, inventory)
        if not doubt and ip in believed:
            doubt = "named twice"
        elif not doubt and known is not None and _contradicts(known, eni):
            doubt = f"on record on {known.eni.id}"
            if known.eni is not eni:
                contradicted.append(known)
        elif not doubt and len(believed) == asked:
            doubt = f"more than the {asked} that were asked for"
        if doubt:
            doubts.append(f"{_cut(ip)}: {doubt}")
        else:
            believed[ip] = None
    return Reply(() if doubts else tuple(believed), tuple(doubts), tuple(contradicted))


def shown(observed: ObservedEni, eni: Eni | None, inventory: Inventory) -> Reply:
    """Of what a reading shows on an ENI. An address that is on record elsewhere may have been moved here."""
    believed, doubts = [], []
    for ip in dict.fromkeys(observed.addresses):
        doubt = _doubt(ip, eni, inventory) or ("the ENI's own address" if ip == observed.primary_ip else "")
        if doubt:
            doubts.append(f"{_cut(ip)}: {doubt}")
        else:
            believed.append(ip)
    return Reply(tuple(believed), tuple(doubts))


def _contradicts(known: Address, eni: Eni) -> bool:
    """Whether an address on record is no new one of this ENI: neither on its way back to EC2, nor of the same ENI
    as it was known before the answer to its creation came."""
    same = known.eni is not eni and known.eni.id == eni.id
    return not same and known.state is not AddressState.RELEASING


def _doubt(ip: str, eni: Eni | None, inventory: Inventory) -> str:
    """Empty: none."""
    if not is_address(ip):
        return "not an IPv4 address"
    if eni is not None and not is_usable(ip, eni.subnet):
        return f"not an address for {eni.subnet}"
    owner = inventory.owner_of(ip)
    if owner is None:
        return ""
    return "the ENI's own address" if owner is eni else f"{owner.id}'s own address"


def _cut(text: str) -> str:
    return ascii(text[:NAMED_LENGTH])[1:-1]
