"""What can happen to the pool. Each is a plain value that the shell around the pool feeds to `Pool.handle`.

`request` and `op` are opaque: the shell chooses the first to recognise a caller, the pool chooses the second to
recognise the outcome of an effect.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network

from ipamd.pool.effects import Grant
from ipamd.pool.model import (
    Attachment,
    AttachmentKey,
    CloudFailure,
    Cooling,
    CreatedEni,
    Intent,
    LearntLimit,
    ObservedEni,
    OwnAddresses,
    Owner,
    Targets,
    Use,
    Uses,
)


@dataclass(frozen=True, slots=True)
class Started:
    """The first event: what the ledger remembers and what EC2 and the kernel show.

    `routed` are addresses that a pod's host route leads to: in use whether or not the ledger knows them. The
    value names the route's interface. `uses` is what others have in the kernel. `own` has no entry for an ENI of
    which the ledger knows nothing. `drained` is when an operator drained the node.
    """

    enis: tuple[ObservedEni, ...]
    attachments: tuple[Attachment, ...] = ()
    cooling: tuple[Cooling, ...] = ()
    intents: tuple[Intent, ...] = ()
    routed: tuple[tuple[str, str], ...] = ()
    uses: Uses = field(default_factory=Uses)
    own: tuple[OwnAddresses, ...] = ()
    limit: LearntLimit | None = None
    drained: float | None = None


@dataclass(frozen=True, slots=True)
class AllocationRequested:
    """`wanted` is the address that it has to be (wish.py); empty for any.

    `blocks_releases`: the caller's runtime makes no other call while this one lasts, so no release can come to it.
    """

    request: str
    key: AttachmentKey
    owner: Owner
    deadline: float
    wanted: str = ""
    blocks_releases: bool = False


@dataclass(frozen=True, slots=True)
class AllocationCancelled:
    """The caller went away before it was answered."""

    request: str


@dataclass(frozen=True, slots=True)
class ReleaseRequested:
    """`recovered_as` is the key under which the attachment stands if it was recovered from the kernel alone."""

    request: str
    key: AttachmentKey
    recovered_as: AttachmentKey | None = None


@dataclass(frozen=True, slots=True)
class CollectRequested:
    """Release what the runtime no longer knows: all of `network` that is not in `valid` (CNI GC)."""

    request: str
    network: str
    valid: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class GrantsUnrecorded:
    """The ledger refused the records of these grants: none of them was sent."""

    grants: tuple[Grant, ...]
    message: str


@dataclass(frozen=True, slots=True)
class EniCreated:
    op: int
    eni: CreatedEni


@dataclass(frozen=True, slots=True)
class EniAttached:
    op: int
    attachment_id: str


@dataclass(frozen=True, slots=True)
class EniObserved:
    """The answer to `DescribeEni`; None when EC2 does not know it."""

    op: int
    eni: ObservedEni | None


@dataclass(frozen=True, slots=True)
class LinkReady:
    """The ENI's interface is there and the host is set up for it. `subnet` is that of the ENI."""

    op: int
    link: str
    subnet: IPv4Network


@dataclass(frozen=True, slots=True)
class LinkFailed:
    op: int
    message: str


@dataclass(frozen=True, slots=True)
class DeviceGone:
    """The kernel no longer has an ENI's interface, though the daemon did not remove it. The event may be repeated."""

    eni_id: str


@dataclass(frozen=True, slots=True)
class UseSeen:
    """Somebody else has just made something in the kernel that leads to an address, or to a network of them."""

    network: IPv4Network
    use: Use


@dataclass(frozen=True, slots=True)
class UsesRead:
    """All that others have in the kernel, and all routes of ours to pods (address, link), read afresh."""

    uses: Uses
    routed: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class PodRouteSeen:
    """A route of ours to a pod has come, by the link of that name, or has gone (empty)."""

    ip: str
    link: str


@dataclass(frozen=True, slots=True)
class Inspected:
    """What an operator's audit has found in EC2: `enis` as the second of two looks showed them, `missing` are
    addresses that neither look showed where they should be."""

    enis: tuple[ObservedEni, ...]
    missing: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class AddressesAssigned:
    op: int
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SubnetsObserved:
    """`available`: (subnet id, free addresses) of each subnet that EC2 knows."""

    op: int
    available: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Audited:
    """`enis` and `routed` as in `Started`; `abandoned` are unattached ENIs of instances of the same cluster
    that are gone; `available` as in `SubnetsObserved`, empty where that could not be read; `not_forwarding` are links
    whose packets the host does not forward."""

    op: int
    enis: tuple[ObservedEni, ...]
    abandoned: tuple[ObservedEni, ...]
    routed: tuple[tuple[str, str], ...]
    available: tuple[tuple[str, int], ...] = ()
    not_forwarding: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class AttachmentsSought:
    op: int
    gone: frozenset[AttachmentKey]


@dataclass(frozen=True, slots=True)
class OperationDone:
    """An operation without a result of its own succeeded."""

    op: int


@dataclass(frozen=True, slots=True)
class OperationFailed:
    op: int
    failure: CloudFailure


@dataclass(frozen=True, slots=True)
class TargetsChanged:
    targets: Targets


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The daemon is about to stop: nothing new is granted, waiting requests are refused."""


@dataclass(frozen=True, slots=True)
class NodeDrained:
    """An operator wants the node empty: nothing new is granted, and what is free goes back to EC2 at once."""


@dataclass(frozen=True, slots=True)
class NodeUndrained:
    pass


@dataclass(frozen=True, slots=True)
class TimePassed:
    """The time that `Wake` asked for has come."""


Outcome = (
    EniCreated
    | EniAttached
    | EniObserved
    | LinkReady
    | LinkFailed
    | AddressesAssigned
    | SubnetsObserved
    | Audited
    | AttachmentsSought
    | OperationDone
    | OperationFailed
)

# What the kernel shows, or a look at it.
Sighted = DeviceGone | UseSeen | UsesRead | PodRouteSeen | Inspected
# What an operator, or the end of the daemon, wants of the whole node.
Order = TargetsChanged | StopRequested | NodeDrained | NodeUndrained

Event = (
    Started
    | AllocationRequested
    | AllocationCancelled
    | ReleaseRequested
    | CollectRequested
    | GrantsUnrecorded
    | Sighted
    | Outcome
    | Order
    | TimePassed
)
