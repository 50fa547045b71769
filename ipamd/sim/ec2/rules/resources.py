"""What a VPC is made of: security groups, ENIs, attachments, instances. Their state, and rules of one thing.

Rules that span several of them are those of `Ec2Rules`. Addresses are dotted strings; the first of an ENI is its
primary one. Times are in seconds of the clock whose time the calls are given.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from ipamd.pool.model import Limits
from ipamd.sim.ec2.rules.errors import Ec2Error
from ipamd.sim.ec2.rules.subnet import Subnet

_MAX_TAGS: Final = 50  # AWS, "Tag restrictions"


@dataclass(frozen=True, slots=True)
class SecurityGroup:
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Ask:
    """What one call wants for an ENI, beside the primary address of a new one: `addresses` and `prefixes` by count,
    or prefixes by name. A call may ask for one of the three kinds only."""

    addresses: int = 0
    prefixes: int = 0
    named_prefixes: tuple[str, ...] = ()

    @property
    def slots(self) -> int:
        """Each address and each prefix takes one of the ENI's slots."""
        return self.addresses + self.prefixes + len(self.named_prefixes)

    @property
    def blocks(self) -> int:
        """The number of prefixes."""
        return self.prefixes + len(self.named_prefixes)

    def check(self) -> None:
        """Raises `Ec2Error`."""
        for count in (self.addresses, self.prefixes):
            if count < 0:
                raise Ec2Error("InvalidParameterValue", f"Invalid value '{count}' for the number of addresses")
        if sum(map(bool, (self.addresses, self.prefixes, self.named_prefixes))) > 1:
            # botocore's model, CreateNetworkInterfaceRequest
            raise Ec2Error("InvalidParameterCombination", "Addresses and prefixes can't be asked for in one request.")


NOTHING: Final = Ask()


@dataclass(slots=True)
class Attachment:
    """`status` is EC2's: attaching, attached, detaching. Device indexes are counted for each network card."""

    id: str
    instance_id: str
    device_index: int
    delete_on_termination: bool
    since: float
    status: str = "attaching"
    network_card: int = 0

    @property
    def primary(self) -> bool:
        """Whether it is that of the ENI with which the instance was launched, which stays."""
        return self.device_index == self.network_card == 0


@dataclass(slots=True, eq=False)
class Eni:
    """`plugged` tells whether its link is on an instance."""

    id: str
    subnet: Subnet
    mac: str
    addresses: list[str]
    groups: tuple[SecurityGroup, ...]
    created: float
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    attachment: Attachment | None = None
    plugged: bool = False
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


@dataclass(slots=True, eq=False)
class Instance:
    """`limits` are those of each of its network `cards`. `state` is EC2's: running, shutting-down, terminated.
    `enis` are those that hold a place on it, by id, whatever the state of their attachment. `ended` is when it was
    terminated."""

    id: str
    name: str
    type: str
    limits: Limits
    primary: Eni
    launched: float
    cards: int = 1
    state: str = "running"
    enis: dict[str, Eni] = field(default_factory=dict)
    ended: float = math.inf


def check_tags(present: Mapping[str, str], new: Mapping[str, str]) -> None:
    """Raises `Ec2Error` for tags that a resource which has `present` can't get."""
    for key in new:
        if not key or key.lower().startswith("aws:"):
            raise Ec2Error("InvalidParameterValue", f"Tag key '{key}' is empty or begins with the reserved 'aws:'.")
    if len({**present, **new}) > _MAX_TAGS:
        raise Ec2Error("TagLimitExceeded", f"A resource has at most {_MAX_TAGS} tags.")
