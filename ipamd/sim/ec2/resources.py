"""What a VPC is made of: subnets, security groups, ENIs, attachments, instances. Their state, and rules of one thing.

Rules that span several of them are `SimulatedCloud`'s. Addresses are dotted strings; the first of an ENI is its
primary one.
"""

from __future__ import annotations

import asyncio
import heapq
import ipaddress
import math
import secrets
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from ipamd.pool.model import Limits
from ipamd.sim.ec2.errors import Ec2Error

_MAX_TAGS: Final = 50  # AWS, "Tag restrictions"
_PREFIX_LENGTH: Final = 28  # of all that EC2 assigns: AWS, "Prefix delegation for Amazon EC2 network interfaces"
_RESERVED_FIRST: Final = 4  # network, router, DNS, future use; and the last: AWS, "Subnet sizing for IPv4"


def new_id(prefix: str) -> str:
    """A resource id as EC2 makes them: prefix, hyphen, 17 hexadecimal digits."""
    return f"{prefix}-{secrets.token_hex(9)[:17]}"


@dataclass(frozen=True, slots=True)
class Delays:
    """How long the cloud takes, in seconds.

    `create` and `assign` until the call is answered; `attach` and `detach` until the attachment is `attached` or
    gone; `link` from then until the device is on the node; `imds_lag` is how far metadata is behind EC2.
    `terminate` until an instance that shuts down is `terminated`, `forget` from then until EC2 does not know it any
    more: an hour, as a rule (AWS, "Terminate Amazon EC2 instances").
    """

    create: float = 0.1
    attach: float = 0.5
    detach: float = 0.5
    assign: float = 0.05
    link: float = 0.1
    imds_lag: float = 1.0
    terminate: float = 0.5
    forget: float = 3600.0


@dataclass(frozen=True, slots=True)
class SecurityGroup:
    id: str
    name: str


class Subnet:
    """Hands out the lowest free address, so one that was given back is soon in use again: the harshest order for
    whoever reuses addresses too early."""

    def __init__(self, id: str, cidr: str, zone: str) -> None:
        self.id = id
        self.network = ipaddress.IPv4Network(cidr)
        self.zone = zone
        first, last = int(self.network[0]), int(self.network[-1])
        self._free = list(range(first + _RESERVED_FIRST, last))  # sorted, therefore a heap
        self._others: list[str] = []

    @property
    def available(self) -> int:
        """EC2's AvailableIpAddressCount."""
        return len(self._free)

    @property
    def others(self) -> int:
        """How many addresses somebody has of whom the double knows nothing else."""
        return len(self._others)

    @others.setter
    def others(self, count: int) -> None:
        """They take the next free addresses, like anybody. Raises `Ec2Error`."""
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
        return [str(ipaddress.IPv4Address(heapq.heappop(self._free))) for _ in range(count)]

    def take_prefixes(self, count: int) -> list[str]:
        """All or none: whole, aligned blocks of which no address is taken."""
        free = set(self._free)
        found: list[ipaddress.IPv4Network] = []
        for block in self.network.subnets(new_prefix=max(_PREFIX_LENGTH, self.network.prefixlen)):
            if len(found) < count and block.prefixlen == _PREFIX_LENGTH and free.issuperset(map(int, block)):
                found.append(block)
        if len(found) < count:
            raise Ec2Error(
                "InsufficientCidrBlocks",
                "The specified subnet does not have enough free cidr blocks to satisfy the request.",
            )
        return self._take_blocks(found)

    def take_named_prefixes(self, prefixes: Iterable[str]) -> list[str]:
        """All or none."""
        blocks = []
        for text in prefixes:
            try:
                block = ipaddress.IPv4Network(text)
            except ValueError:
                raise Ec2Error("InvalidParameterValue", f"Invalid IPv4 prefix '{text}'") from None
            if block.prefixlen != _PREFIX_LENGTH or not block.subnet_of(self.network):
                raise Ec2Error("InvalidParameterValue", f"'{text}' is no /{_PREFIX_LENGTH} of subnet {self.id}")
            if not set(self._free).issuperset(map(int, block)) or block in blocks:
                raise Ec2Error("InvalidIPAddress.InUse", f"Addresses of '{text}' are in use.")
            blocks.append(block)
        return self._take_blocks(blocks)

    def _take_blocks(self, blocks: list[ipaddress.IPv4Network]) -> list[str]:
        taken = {int(address) for block in blocks for address in block}
        self._free = sorted(set(self._free) - taken)
        return [str(block) for block in blocks]

    def give_back_prefixes(self, prefixes: Iterable[str]) -> None:
        for prefix in prefixes:
            self.give_back(map(str, ipaddress.IPv4Network(prefix)))

    def give_back(self, addresses: Iterable[str]) -> None:
        for address in addresses:
            heapq.heappush(self._free, int(ipaddress.IPv4Address(address)))


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass(slots=True)
class Attachment:
    """`status` is EC2's: attaching, attached, detaching. While `unstuck` is not set it stays what it is. Device
    indexes are counted for each network card."""

    id: str
    instance_id: str
    device_index: int
    delete_on_termination: bool
    since: datetime
    status: str = "attaching"
    network_card: int = 0
    unstuck: asyncio.Event = field(default_factory=_set_event)


@dataclass(slots=True, eq=False)
class Eni:
    """`plugged` tells whether its link is on an instance; `moving` is held while it is being attached or detached.

    `created` is in seconds of the monotonic clock.
    """

    id: str
    subnet: Subnet
    mac: str
    addresses: list[str]
    groups: tuple[SecurityGroup, ...]
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    attachment: Attachment | None = None
    plugged: bool = False
    moving: asyncio.Lock = field(default_factory=asyncio.Lock)
    created: float = field(default_factory=time.monotonic)
    prefixes: list[str] = field(default_factory=list)

    @property
    def slots(self) -> int:
        """Addresses and prefixes: each takes one (AWS, "Prefix delegation for Amazon EC2 network interfaces")."""
        return len(self.addresses) + len(self.prefixes)

    @property
    def delivered(self) -> list[str]:
        """All addresses whose packets it gets, the primary one first."""
        return self.addresses + [str(one) for prefix in self.prefixes for one in ipaddress.IPv4Network(prefix)]

    @property
    def status(self) -> str:
        return "in-use" if self.attachment else "available"


@dataclass(frozen=True, slots=True)
class EniMetadata:
    """One ENI as instance metadata shows it."""

    id: str
    mac: str
    device_index: int
    addresses: tuple[str, ...]
    subnet: Subnet
    groups: tuple[SecurityGroup, ...]
    network_card: int = 0
    prefixes: tuple[str, ...] = ()

    @property
    def primary(self) -> bool:
        return self.device_index == self.network_card == 0


class Lagging:
    """The ENIs of one instance as seen with a delay: what was true `lag` seconds ago."""

    def __init__(self, lag: float) -> None:
        self._lag = lag
        self._history: deque[tuple[float, tuple[EniMetadata, ...]]] = deque()

    def record(self, now: float, enis: tuple[EniMetadata, ...]) -> None:
        self._history.append((now, enis))

    def read(self, now: float) -> tuple[EniMetadata, ...]:
        """The first record is there from the start: an instance that boots finds its primary ENI."""
        while len(self._history) > 1 and self._history[1][0] + self._lag <= now:
            self._history.popleft()
        return self._history[0][1] if self._history else ()


@dataclass(slots=True)
class Instance:
    """`limits` are those of each of its network `cards`. `state` is EC2's: running, shutting-down, terminated.
    `forced_off` are ENIs, by id, that metadata goes on showing. `ended` is when it was terminated, in seconds of the
    monotonic clock."""

    id: str
    name: str
    type: str
    limits: Limits
    primary: Eni
    launched: datetime
    metadata: Lagging
    cards: int = 1
    state: str = "running"
    forced_off: dict[str, EniMetadata] = field(default_factory=dict)
    ended: float = math.inf


def check_tags(present: Mapping[str, str], new: Mapping[str, str]) -> None:
    """Raises `Ec2Error` for tags that a resource which has `present` can't get."""
    for key in new:
        if not key or key.lower().startswith("aws:"):
            raise Ec2Error("InvalidParameterValue", f"Tag key '{key}' is empty or begins with the reserved 'aws:'.")
    if len({**present, **new}) > _MAX_TAGS:
        raise Ec2Error("TagLimitExceeded", f"A resource has at most {_MAX_TAGS} tags.")
