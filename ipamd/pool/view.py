"""What the pool shows: values that do not change, for all who look at it from outside of the core.

A caller that keeps one keeps a moment of the pool. Nothing here can be used to change it, and the parts of the pool
can change without a word to those who look. The values are named tuples: a frozen dataclass takes four times as long
to define, which each start of the daemon would pay.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ipamd.pool.awaited import waits
from ipamd.pool.backoff import Backoff
from ipamd.pool.eni import Address, Eni
from ipamd.pool.explain import Explanation, explain_attachment, explain_pool, explain_waiting
from ipamd.pool.explain_address import explain_address
from ipamd.pool.model import (
    AddressState,
    Attachment,
    AttachmentKey,
    Counts,
    EniState,
    Limits,
    Owner,
    Refusal,
    Targets,
    Use,
)
from ipamd.pool.outlook import Supply, would_refuse
from ipamd.pool.pool import Pool
from ipamd.pool.queue import WaitsFor
from ipamd.pool.serving import NotServing, not_serving
from ipamd.pool.trouble import Trouble, trouble_of, troubles

# ENIs that the node's network is to serve, those to be configured among them.
_SERVED = (EniState.CONFIGURING, EniState.READY, EniState.DRAINING)


class EniPlace(NamedTuple):
    """Where an ENI is on the host. `link` is the interface's name, empty until it is known."""

    id: str
    mac: str
    device_index: int
    primary: bool
    primary_ip: str
    subnet_id: str
    link: str


class EniView(NamedTuple):
    """`free`, `assigned`, `cooling`, `releasing`, `pending` and `foreign` count
    addresses, `capacity` and `room` slots. `settled`: it serves pods, and nothing is under way or in doubt."""

    place: EniPlace
    card: int
    state: EniState
    free: int
    assigned: int
    cooling: int
    releasing: int
    pending: int
    foreign: int
    held: int
    capacity: int
    room: int
    prefixes: tuple[str, ...]
    settled: bool

    @property
    def id(self) -> str:
        """Empty until EC2 has given one."""
        return "" if self.state is EniState.CREATING else self.place.id


class AddressView(NamedTuple):
    """`since` in seconds since the epoch. `use`: what else in the kernel leads to it, and `contested` whether a pod
    has it as well. `withheld`: why it is granted to nobody, though it is ours and no pod has it."""

    ip: str
    eni_id: str
    state: AddressState
    since: float
    use: Use | None
    contested: bool
    withheld: Use | None


class SubnetView(NamedTuple):
    """`available` addresses as EC2 showed them at `read_at`, in seconds since the epoch; None: not read yet."""

    id: str
    available: int | None
    read_at: float


class WaitingView(NamedTuple):
    """`since` and `deadline` in seconds since the epoch."""

    request: str
    key: AttachmentKey
    owner: Owner
    since: float
    deadline: float
    waits_for: WaitsFor


class Summary(NamedTuple):
    """The pool at one moment. `max_pods` and `max_enis` are in force, `targets` what was asked for. `attached` counts
    ENIs that hold a slot of the instance, `foreign_enis` somebody else's among them; `by_state` counts those of the
    card that pods' ENIs are on. `room`: how many more pods could have an address. `oldest_cooling`: when it was
    released."""

    started: bool
    drained: float | None
    counts: Counts
    targets: Targets
    limits: Limits
    max_pods: int
    max_enis: int
    headroom: int
    attached: int
    foreign_enis: int
    by_state: tuple[tuple[EniState, int], ...]
    room: int
    attachments: int
    backoffs: tuple[Backoff, ...]
    withheld: tuple[tuple[str, Use], ...]
    reused_early: int
    oldest_cooling: float | None


class View:
    """For the thread of the event loop alone. `now` is always in seconds since the epoch."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    # The pool

    @property
    def started(self) -> bool:
        return self._pool.started

    @property
    def drained(self) -> float | None:
        """When an operator drained the node."""
        return self._pool.drained

    @property
    def targets(self) -> Targets:
        return self._pool.targets

    def counts(self) -> Counts:
        return self._pool.counts()

    def summary(self, now: float) -> Summary:
        pool, of_card = self._pool, self._pool.enis_of_card()
        states = [eni.state for eni in of_card]
        return Summary(
            started=pool.started,
            drained=pool.drained,
            counts=pool.counts(),
            targets=pool.targets,
            limits=pool.limits,
            max_pods=pool.max_pods,
            max_enis=pool.max_enis,
            headroom=pool.headroom,
            attached=pool.attached(),
            foreign_enis=len(pool.foreign_enis()),
            by_state=tuple((state, states.count(state)) for state in EniState),
            room=max(Supply(pool, now).at_least, 0) if pool.started else 0,
            attachments=len(pool.inventory.attachments),
            backoffs=tuple(pool.backoffs.all_active(now)),
            withheld=tuple(pool.inventory.withheld().items()),
            reused_early=pool.reused_early,
            oldest_cooling=next(iter(pool.inventory.cooling.values()), None),
        )

    def subnets(self) -> tuple[SubnetView, ...]:
        """Those for new ENIs."""
        known = (self._pool.subnets[subnet_id] for subnet_id in self._pool.subnets.ids)
        return tuple(SubnetView(subnet.id, subnet.available, subnet.read_at) for subnet in known)

    def would_refuse(self, now: float, unrecorded: str) -> Refusal | None:
        """As `outlook.would_refuse`."""
        return would_refuse(self._pool, now, unrecorded)

    def not_serving(self, served: bool, broken: str, now: float) -> NotServing | None:
        """As `serving.not_serving`."""
        return not_serving(self._pool, served, broken, now)

    # ENIs and addresses

    def enis(self) -> tuple[EniView, ...]:
        """By card and device index."""
        enis = sorted(self._pool.inventory.enis.values(), key=lambda eni: (eni.card, eni.device_index))
        return tuple(_eni(eni) for eni in enis)

    def place_of(self, eni_id: str) -> EniPlace | None:
        eni = self._pool.inventory.enis.get(eni_id)
        return None if eni is None else _place(eni)

    def served(self) -> tuple[EniPlace, ...]:
        """The ENIs that the node's network is to serve, also those that are yet to be configured."""
        return tuple(_place(eni) for eni in self._pool.inventory.enis.values() if eni.state in _SERVED)

    def addresses(self) -> Iterator[AddressView]:
        inventory = self._pool.inventory
        withheld = inventory.withheld()
        for address in inventory.addresses.values():
            yield self._address(address, withheld.get(address.ip))

    def _address(self, address: Address, withheld: Use | None) -> AddressView:
        use = self._pool.inventory.uses.of(address.ip, address.eni.subnet)
        contested = address.ip in self._pool.contested
        return AddressView(address.ip, address.eni.id, address.state, address.since, use, contested, withheld)

    def released_at(self, ip: str) -> float | None:
        """Of an address that cools."""
        return self._pool.inventory.cooling.get(ip)

    # Pods

    def attachments(self) -> tuple[Attachment, ...]:
        return tuple(self._pool.inventory.attachments.values())

    def attachment(self, key: AttachmentKey) -> Attachment | None:
        return self._pool.inventory.attachments.get(key)

    def held(self) -> tuple[str, ...]:
        """The addresses of all attachments."""
        return tuple(self._pool.inventory.holders)

    def pod_at(self, ip: str) -> tuple[AttachmentKey, int] | None:
        """Whose address it is, and the device index of its ENI. None for an address that nobody has, or that is on no
        ENI of the node any more."""
        inventory = self._pool.inventory
        key, address = inventory.holders.get(ip), inventory.addresses.get(ip)
        return None if key is None or address is None else (key, address.eni.device_index)

    def is_lost(self, ip: str) -> bool:
        """A pod has it on record, and EC2 has taken it away."""
        return ip in self._pool.inventory.lost

    def troubles(self) -> tuple[Trouble, ...]:
        return tuple(troubles(self._pool))

    def trouble_of(self, attachment: Attachment) -> Trouble | None:
        return trouble_of(self._pool, attachment)

    # The queue

    def requests(self) -> tuple[str, ...]:
        """That wait, in order."""
        return tuple(self._pool.waiting)

    def waiting(self, now: float) -> tuple[WaitingView, ...]:
        """In order."""
        return tuple(
            WaitingView(w.request, w.key, w.owner, w.since, w.deadline, what) for w, what in waits(self._pool, now)
        )

    # Explanations

    def explain_pool(self, now: float, unrecorded: str) -> Explanation:
        return explain_pool(self._pool, now, unrecorded)

    def explain_waiting(self, request: str, who: str, now: float) -> Explanation:
        """Raises KeyError when the request waits no longer."""
        return explain_waiting(self._pool, self._pool.waiting[request], who, now)

    def explain_attachment(self, attachment: Attachment, who: str, now: float) -> Explanation:
        return explain_attachment(self._pool, attachment, who, now)

    def explain_address(self, ip: str, now: float) -> Explanation | None:
        return explain_address(self._pool, ip, now)


def _place(eni: Eni) -> EniPlace:
    return EniPlace(eni.id, eni.mac, eni.device_index, eni.primary, eni.primary_ip, eni.subnet_id, eni.link)


def _eni(eni: Eni) -> EniView:
    return EniView(
        place=_place(eni),
        card=eni.card,
        state=eni.state,
        free=len(eni.free),
        assigned=eni.assigned,
        cooling=eni.cooling,
        releasing=eni.releasing,
        pending=eni.pending,
        foreign=eni.foreign,
        held=eni.held,
        capacity=max(eni.capacity, eni.occupied),
        room=eni.room,
        prefixes=eni.prefixes,
        settled=eni.quiet and not eni.leaving,
    )
