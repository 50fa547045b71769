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

    def give_back(self, addresses: Iterable[str]) -> None:
        for address in addresses:
            heapq.heappush(self._free, int(ipaddress.IPv4Address(address)))


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass(slots=True)
class Attachment:
    """`status` is EC2's: attaching, attached, detaching. While `unstuck` is not set it stays what it is."""

    id: str
    instance_id: str
    device_index: int
    delete_on_termination: bool
    since: datetime
    status: str = "attaching"
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
    """`state` is EC2's: running, shutting-down, terminated. `forced_off` are ENIs, by id, that metadata goes on
    showing. `ended` is when it was terminated, in seconds of the monotonic clock."""

    id: str
    name: str
    type: str
    limits: Limits
    primary: Eni
    launched: datetime
    metadata: Lagging
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
