"""What the pool wants done about an event: a `Turn` of two parts, the records, and what follows once they are
committed. So a grant never leaves before its record, and an EC2 mutation is never sent before its intent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from ipamd.pool.model import Attachment, Record, Refusal


@dataclass(frozen=True, slots=True)
class Grant:
    request: str
    attachment: Attachment


@dataclass(frozen=True, slots=True)
class Refuse:
    request: str
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Released:
    """The answer to a release; None: nothing was held."""

    request: str
    attachment: Attachment | None


@dataclass(frozen=True, slots=True)
class Collected:
    request: str
    attachments: tuple[Attachment, ...]


# The operations. `action` is EC2's name of the call, as intents, back-offs and failures show it.


@dataclass(frozen=True, slots=True)
class CreateEni:
    action: ClassVar[str] = "CreateNetworkInterface"
    op: int
    token: str
    subnet_id: str
    count: int


@dataclass(frozen=True, slots=True)
class AttachEni:
    action: ClassVar[str] = "AttachNetworkInterface"
    op: int
    eni_id: str
    device_index: int


@dataclass(frozen=True, slots=True)
class SetDeleteOnTermination:
    action: ClassVar[str] = "ModifyNetworkInterfaceAttribute"
    op: int
    eni_id: str
    attachment_id: str


@dataclass(frozen=True, slots=True)
class DescribeEni:
    action: ClassVar[str] = "DescribeNetworkInterfaces"
    op: int
    eni_id: str


@dataclass(frozen=True, slots=True)
class ConfigureLink:
    """Wait for the ENI's interface and set the host up for it. The one EC2 call that it may take reads the subnet."""

    action: ClassVar[str] = "DescribeSubnets"
    op: int
    eni_id: str
    mac: str
    device_index: int
    subnet_id: str


@dataclass(frozen=True, slots=True)
class AssignAddresses:
    action: ClassVar[str] = "AssignPrivateIpAddresses"
    op: int
    eni_id: str
    count: int


@dataclass(frozen=True, slots=True)
class UnassignAddresses:
    """Give addresses back to their subnet, unless a host route leads to one of them (then: `IN_USE`)."""

    action: ClassVar[str] = "UnassignPrivateIpAddresses"
    op: int
    eni_id: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DetachEni:
    """Stop serving the ENI on the host, then detach it; unless a host route leads to one of its addresses."""

    action: ClassVar[str] = "DetachNetworkInterface"
    op: int
    eni_id: str
    attachment_id: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeleteEni:
    action: ClassVar[str] = "DeleteNetworkInterface"
    op: int
    eni_id: str


@dataclass(frozen=True, slots=True)
class DescribeSubnets:
    """How many addresses the subnets have left."""

    action: ClassVar[str] = "DescribeSubnets"
    op: int
    subnet_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Audit:
    """Read everything afresh that the pool believes: the node's ENIs in EC2, and the kernel."""

    action: ClassVar[str] = "DescribeNetworkInterfaces"
    op: int


# Operations on the host alone. `action` names them in failures.


@dataclass(frozen=True, slots=True)
class ForgetFlows:
    """Remove the connections that the kernel tracks for these addresses, so that the next holders inherit none."""

    action: ClassVar[str] = "conntrack"
    op: int
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SeekAttachments:
    """Find the attachments that have neither their network namespace nor the host's veth any longer."""

    action: ClassVar[str] = "netlink"
    op: int


@dataclass(frozen=True, slots=True)
class Wake:
    """Feed `TimePassed` at this time; replaces any earlier wish. None: no wish."""

    at: float | None


@dataclass(frozen=True, slots=True)
class Note:
    """Something an operator may want to know: goes to the log as one event."""

    event: str
    level: str
    fields: tuple[tuple[str, str | int | float], ...]


# Those on one ENI, and all the others.
EniOperation = (
    CreateEni
    | AttachEni
    | SetDeleteOnTermination
    | DescribeEni
    | ConfigureLink
    | AssignAddresses
    | UnassignAddresses
    | DetachEni
    | DeleteEni
)
UnboundOperation = DescribeSubnets | Audit | ForgetFlows | SeekAttachments
Operation = EniOperation | UnboundOperation
# Sent only after an intent of the same turn was committed.
RECORDED = (CreateEni, AttachEni, AssignAddresses, UnassignAddresses, DetachEni)
Effect = Grant | Refuse | Released | Collected | Operation | Wake | Note


class Turn(NamedTuple):
    """What follows from an event. The shell commits `records`, of several turns together if it likes, and carries
    `then` out, in order, after that."""

    records: tuple[Record, ...] = ()
    then: tuple[Effect, ...] = ()
