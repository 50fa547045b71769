"""Plain data types that the pool and the parts around it share.

Everything here is a value: frozen, comparable, without behaviour that needs a clock or a system call. Times are
seconds since the epoch as `float`; addresses are dotted strings, as EC2 writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

from ipamd.pool.quoting import LONGEST, cut


class Reason(StrEnum):
    """Why a request was refused; the values are those of `Reason` in proto/ipamd/v1/ipam.proto."""

    SUBNET_EXHAUSTED = "SUBNET_EXHAUSTED"
    ENI_LIMIT = "ENI_LIMIT"
    ADDRESS_LIMIT = "ADDRESS_LIMIT"
    POD_LIMIT = "POD_LIMIT"
    ALL_COOLING = "ALL_COOLING"
    THROTTLED = "THROTTLED"
    NOT_AUTHORIZED = "NOT_AUTHORIZED"
    SECURITY_GROUP_INVALID = "SECURITY_GROUP_INVALID"
    REQUEST_REFUSED = "REQUEST_REFUSED"
    DRAINING = "DRAINING"
    DRAINED = "DRAINED"
    TIMEOUT = "TIMEOUT"
    CLOUD_UNAVAILABLE = "CLOUD_UNAVAILABLE"
    LEDGER_UNWRITABLE = "LEDGER_UNWRITABLE"
    NOT_READY = "NOT_READY"
    RELEASED = "RELEASED"
    ADDRESS_UNAVAILABLE = "ADDRESS_UNAVAILABLE"


class AddressState(StrEnum):
    FREE = "free"
    ASSIGNED = "assigned"
    COOLING = "cooling"
    RELEASING = "releasing"
    FOREIGN = "foreign"  # somebody else put it on an ENI of ours: shown, never touched


class EniState(StrEnum):
    CREATING = "creating"
    ATTACHING = "attaching"
    CONFIGURING = "configuring"
    READY = "ready"
    DRAINING = "draining"
    DETACHING = "detaching"
    DELETING = "deleting"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True, order=True)
class AttachmentKey:
    """Identity of one interface of one container, as CNI defines it (SPEC.md, section 2, "ADD")."""

    network: str
    container_id: str
    ifname: str

    def __str__(self) -> str:
        return f"{self.network}/{self.container_id}/{self.ifname}"


@dataclass(frozen=True, slots=True)
class Owner:
    """Who asks: shown to operators, never used in a decision."""

    netns: str = ""
    pod_name: str = ""
    pod_namespace: str = ""
    pod_uid: str = ""


@dataclass(frozen=True, slots=True)
class Attachment:
    """An address in use: what the ledger records and what a restart restores."""

    key: AttachmentKey
    address: str
    eni_id: str
    since: float
    owner: Owner = Owner()


@dataclass(frozen=True, slots=True)
class Cooling:
    """An address that was released at `released_at` and may not be reused before its cooldown ends."""

    address: str
    released_at: float


@dataclass(frozen=True, slots=True)
class Use:
    """Something in the node's kernel, or in EC2, that leads to an address and that ipamd did not make: `text` names
    it as ip(8) does. `link` is the name of the link that it leads to, empty where it names none."""

    kind: Literal["address", "route", "rule", "neighbour", "eni"]
    text: str
    link: str = ""


@dataclass(frozen=True, slots=True)
class Uses:
    """Everything of that kind in the kernel at one moment: by address, and by network for what leads to a range."""

    hosts: Mapping[str, Use] = field(default_factory=dict)
    networks: Mapping[IPv4Network, Use] = field(default_factory=dict)

    def of(self, ip: str, subnet: IPv4Network | None) -> Use | None:
        """Who uses the address. A network counts if it is a part of the subnet: a way to the whole subnet, or to
        more, says nothing of one address in it."""
        if (use := self.hosts.get(ip)) is not None or subnet is None:
            return use
        for network, use in self.networks.items():
            if network.prefixlen > subnet.prefixlen and network.subnet_of(subnet) and IPv4Address(ip) in network:
                return use
        return None

    def having(self, network: IPv4Network, use: Use) -> Uses:
        """The same and one more."""
        if network.prefixlen == 32:
            return Uses({**self.hosts, str(network.network_address): use}, self.networks)
        return Uses(self.hosts, {**self.networks, network: use})


@dataclass(frozen=True, slots=True)
class Limits:
    """What the instance type allows.

    `max_enis` counts the primary ENI; `addresses_per_eni` counts the ENI's own primary address (EC2's
    Ipv4AddressesPerInterface), so an ENI holds one secondary address fewer.
    """

    max_enis: int
    addresses_per_eni: int

    @property
    def secondary_per_eni(self) -> int:
        return max(self.addresses_per_eni - 1, 0)

    @property
    def max_pods(self) -> int:
        return self.max_enis * self.secondary_per_eni


@dataclass(frozen=True, slots=True)
class ObservedEni:
    """One ENI as EC2 describes it (DescribeNetworkInterfaces).

    `owned` is true when it carries our tag with this instance's id. `attachment_id` is empty and `device_index`
    is None while it is not attached. `addresses` are the secondary private IPv4 addresses, `prefixes` the /28 ones.
    `device_index` counts within `network_card`; pods' ENIs are on card 0, so one on another card is never `owned`.
    `created_at` is what our tag says, in seconds since the epoch; None where there is no such tag.
    """

    id: str
    mac: str
    subnet_id: str
    primary_ip: str
    addresses: tuple[str, ...]
    device_index: int | None
    attachment_id: str
    attachment_status: str
    owned: bool
    primary: bool = False
    delete_on_termination: bool = True
    created_at: float | None = None
    network_card: int = 0
    prefixes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CreatedEni:
    """What CreateNetworkInterface answered."""

    id: str
    mac: str
    subnet_id: str
    primary_ip: str
    addresses: tuple[str, ...]


class CloudErrorKind(StrEnum):
    """Classes of EC2 errors: what a failure means for the pool, whatever EC2 called it."""

    THROTTLED = "throttled"  # RequestLimitExceeded: back off, scope: the action in the account
    TRANSIENT = "transient"  # 5xx, connection refused or reset before anything was sent
    UNKNOWN_OUTCOME = "unknown-outcome"  # time-out or reset after sending: it may have taken effect
    SUBNET_FULL = "subnet-full"  # InsufficientFreeAddressesInSubnet, InsufficientCidrBlocks
    ENI_ADDRESS_LIMIT = "eni-address-limit"  # PrivateIpAddressLimitExceeded: our view of the ENI is wrong
    ATTACHMENT_LIMIT = "attachment-limit"  # AttachmentLimitExceeded: the instance takes no more ENIs
    ACCOUNT_ENI_LIMIT = "account-eni-limit"  # NetworkInterfaceLimitExceeded
    NOT_FOUND = "not-found"  # Invalid...ID.NotFound
    INCORRECT_STATE = "incorrect-state"  # IncorrectState, InvalidParameterValue of a busy device index, ...
    NOT_AUTHORIZED = "not-authorized"  # UnauthorizedOperation, AuthFailure, expired or missing credentials
    SECURITY_GROUP_INVALID = "security-group-invalid"
    SUBNET_INVALID = "subnet-invalid"  # InvalidSubnetID.NotFound, ZonesMismatched: this one subnet can't be used
    INVALID = "invalid"  # any other permanent refusal
    IN_USE = "in-use"  # our own objection: a host route still leads to an address that the pool gives back
    UNRECORDED = "unrecorded"  # never sent: the ledger did not take its intent


@dataclass(frozen=True, slots=True)
class CloudFailure:
    """An EC2 call that failed. `code` and `message` are EC2's own words, cut, for people; decisions use `kind`.
    `ec2_request` is EC2's id of the call, for AWS's support; empty when EC2 did not answer. `advice` is a sentence on
    what an operator can do; empty where nothing better is known than for the class."""

    kind: CloudErrorKind
    action: str
    code: str
    message: str
    ec2_request: str = ""
    advice: str = ""

    def __post_init__(self) -> None:
        for name, longest in (("code", 128), ("message", LONGEST), ("ec2_request", 128), ("advice", LONGEST)):
            object.__setattr__(self, name, cut(getattr(self, name), longest))


@dataclass(frozen=True, slots=True)
class Intent:
    """An EC2 mutation that is about to be sent, so that a restart can find out what became of it.

    `action` is EC2's name of the call; `token` is its ClientToken where EC2 takes one and a unique id otherwise.
    `addresses` are those that it takes away.
    """

    token: str
    action: str
    at: float
    eni_id: str = ""
    subnet_id: str = ""
    count: int = 0
    device_index: int | None = None
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OwnAddresses:
    """An ENI's secondary addresses that were assigned for the pool, and those known to be somebody else's."""

    eni_id: str
    addresses: tuple[str, ...]
    foreign: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LearntLimit:
    """EC2 refused an attachment with so many ENIs attached, whatever the table of instance types says."""

    max_enis: int
    at: float


@dataclass(frozen=True, slots=True)
class PutAttachment:
    attachment: Attachment


@dataclass(frozen=True, slots=True)
class DropAttachment:
    key: AttachmentKey


@dataclass(frozen=True, slots=True)
class PutCooling:
    cooling: Cooling


@dataclass(frozen=True, slots=True)
class DropCooling:
    address: str


@dataclass(frozen=True, slots=True)
class PutIntent:
    intent: Intent


@dataclass(frozen=True, slots=True)
class DropIntent:
    token: str


@dataclass(frozen=True, slots=True)
class PutOwn:
    own: OwnAddresses


@dataclass(frozen=True, slots=True)
class DropOwn:
    eni_id: str


@dataclass(frozen=True, slots=True)
class PutLimit:
    limit: LearntLimit


@dataclass(frozen=True, slots=True)
class DropLimit:
    pass


@dataclass(frozen=True, slots=True)
class PutDrained:
    """An operator has drained the node, at this time."""

    at: float


@dataclass(frozen=True, slots=True)
class DropDrained:
    pass


Record = (
    PutAttachment
    | DropAttachment
    | PutCooling
    | DropCooling
    | PutIntent
    | DropIntent
    | PutOwn
    | DropOwn
    | PutLimit
    | DropLimit
    | PutDrained
    | DropDrained
)


@dataclass(frozen=True, slots=True)
class Targets:
    """What the pool aims at. Durations in seconds; `max_pods` and `max_enis` 0: as many as the instance type
    allows; `warm_enis` above 0 takes the place of `warm_ips`."""

    warm_ips: int = 5
    warm_enis: int = 0
    minimum_ips: int = 0
    max_pods: int = 0
    max_enis: int = 0
    slack: int = 8
    release_delay: float = 7200.0
    cooldown: float = 30.0
    reuse_cooling_after: float = 10.0
    allocate_wait: float = 60.0
    coalesce: float = 0.05


@dataclass(frozen=True, slots=True)
class Refusal:
    """The typed answer to an allocation that can't be served.

    `retry_after` is in seconds, and None when trying again can't help until an operator acts. `numbers` are the
    counts that explain the reason.
    """

    reason: Reason
    message: str
    retry_after: float | None = None
    numbers: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Counts:
    """Addresses by state; `total` = free + assigned + cooling + releasing. Those of ENIs that are not ready yet are
    pending."""

    free: int
    assigned: int
    cooling: int
    releasing: int
    pending: int
    waiting: int
    total: int
