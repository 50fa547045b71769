"""A subnet: which of its addresses are free, and which of them the next caller gets.

EC2 chooses single addresses and primary addresses of ENIs at random over the subnet, so a busy subnet has soon no
whole /28 block left (cilium/cilium#38499, aws/amazon-vpc-cni-k8s#2313). The choice here is random as well; the
generator is the caller's, so the same seed and the same calls give the same addresses.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from random import Random
from typing import Final

from ipamd.sim.ec2.rules.errors import Ec2Error

_PREFIX_LENGTH: Final = 28  # of all that EC2 assigns: AWS, "Prefix delegation for Amazon EC2 network interfaces"
_BLOCK: Final = 1 << (32 - _PREFIX_LENGTH)
# EC2 keeps the first four (network, router, DNS, future use) and the last: AWS, "Subnet sizing for IPv4".
_RESERVED_FIRST: Final = 4
RESERVED: Final = _RESERVED_FIRST + 1


class Subnet:
    """Methods raise `Ec2Error`. `random` chooses. Addresses and prefixes are strings: "10.0.0.7", "10.0.0.16/28"."""

    def __init__(self, id: str, cidr: str, zone: str, random: Random) -> None:
        self.id = id
        self.network = ipaddress.IPv4Network(cidr)
        self.zone = zone
        self.random = random
        self._free = _Shuffled(int(self.network[0]) + _RESERVED_FIRST, int(self.network[-1]))
        self._others: list[str] = []

    @property
    def available(self) -> int:
        """EC2's AvailableIpAddressCount."""
        return len(self._free)

    @property
    def others(self) -> int:
        """The number of addresses that belong to others, who are not simulated otherwise."""
        return len(self._others)

    @others.setter
    def others(self, count: int) -> None:
        if count > len(self._others):
            self._others += self.take(count - len(self._others))
        else:
            self.give_back(self._others[count:])
            del self._others[count:]

    def take(self, count: int) -> list[str]:
        """All or none: EC2's calls that take addresses by count are not known to give fewer than asked for."""
        if count > len(self._free):
            raise Ec2Error(
                "InsufficientFreeAddressesInSubnet",
                f"The subnet {self.id} has {len(self._free)} free addresses, fewer than the {count} requested.",
            )
        return [_text(self._free.pop(self.random.randrange(len(self._free)))) for _ in range(count)]

    def take_prefixes(self, count: int) -> list[str]:
        """All or none: whole, aligned blocks with every address free."""
        if not count:
            return []
        first = int(self.network[0])
        blocks = range(first, first + self.network.num_addresses - _BLOCK + 1, _BLOCK)
        whole = [block for block in blocks if self._is_free(block)]
        if len(whole) < count:
            raise Ec2Error(
                "InsufficientCidrBlocks",
                "The specified subnet does not have enough free cidr blocks to satisfy the request.",
            )
        return self._take_blocks(self.random.sample(whole, count))

    def take_named_prefixes(self, prefixes: Iterable[str]) -> list[str]:
        """All or none."""
        blocks: list[int] = []
        for text in prefixes:
            try:
                block = ipaddress.IPv4Network(text)
            except ValueError:
                raise Ec2Error("InvalidParameterValue", f"Invalid IPv4 prefix '{text}'") from None
            if block.prefixlen != _PREFIX_LENGTH or not block.subnet_of(self.network):
                raise Ec2Error("InvalidParameterValue", f"'{text}' is no /{_PREFIX_LENGTH} of subnet {self.id}")
            first = int(block[0])
            if not self._is_free(first) or first in blocks:
                raise Ec2Error("InvalidIPAddress.InUse", f"Addresses of '{text}' are in use.")
            blocks.append(first)
        return self._take_blocks(blocks)

    def give_back(self, addresses: Iterable[str]) -> None:
        for address in addresses:
            self._free.add(int(ipaddress.IPv4Address(address)))

    def give_back_prefixes(self, prefixes: Iterable[str]) -> None:
        for prefix in prefixes:
            first = int(ipaddress.IPv4Network(prefix)[0])
            for number in range(first, first + _BLOCK):
                self._free.add(number)

    def _is_free(self, block: int) -> bool:
        return self._free.has_all(block, block + _BLOCK)

    def _take_blocks(self, blocks: Iterable[int]) -> list[str]:
        taken = []
        for block in blocks:
            for number in range(block, block + _BLOCK):
                self._free.remove(number)
            taken.append(f"{_text(block)}/{_PREFIX_LENGTH}")
        return taken


class _Shuffled:
    """The free numbers of a range, each in a place of its own, so that one can be chosen by its place.

    Only those that have moved are kept: a large subnet costs nothing at first, and a step takes the same time in any.
    """

    def __init__(self, first: int, end: int) -> None:
        self._first = first
        self._end = end
        self._count = end - first
        self._taken: set[int] = set()
        self._numbers: dict[int, int] = {}  # place -> number, where that is not `first` + place
        self._places: dict[int, int] = {}  # the same the other way round

    def __len__(self) -> int:
        return self._count

    def has_all(self, first: int, end: int) -> bool:
        """Whether every number of this range is free."""
        return self._first <= first and end <= self._end and self._taken.isdisjoint(range(first, end))

    def pop(self, place: int) -> int:
        """Take what is in that place. The last one moves into it."""
        number = self._numbers.get(place, self._first + place)
        self._count -= 1
        last = self._numbers.pop(self._count, self._first + self._count)
        self._places.pop(number, None)
        self._taken.add(number)
        if last != number:
            self._put(place, last)
        return number

    def remove(self, number: int) -> None:
        self.pop(self._places.get(number, number - self._first))

    def add(self, number: int) -> None:
        assert number in self._taken, f"{_text(number)} was not taken"
        self._taken.remove(number)
        self._put(self._count, number)
        self._count += 1

    def _put(self, place: int, number: int) -> None:
        if number == self._first + place:
            self._numbers.pop(place, None)
            self._places.pop(number, None)
        else:
            self._numbers[place] = number
            self._places[number] = place


def _text(number: int) -> str:
    return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
