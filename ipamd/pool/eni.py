"""One ENI: what EC2 and the kernel say of it, where it stands in its life, and the addresses on it."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from ipaddress import IPv4Network

from ipamd.pool.life.states import (
    ARRIVING,
    ATTACHED,
    GONE_WITH_ENI,
    LEAVING,
    TRANSITIONS,
    Detached,
    Draining,
    IllegalTransition,
    Life,
    Ready,
)
from ipamd.pool.model import AddressState, AttachmentKey, DropIntent, EniState, Intent, OwnAddresses, Record

# An ENI remembers so many of its last states, for the message of an error.
STORY = 16


@dataclass(slots=True)
class Address:
    """`last_key` is the attachment that released it last, while this daemon ran. `theirs`: somebody else had EC2 put
    it on the ENI. One that is foreign and not theirs is used by somebody in the kernel."""

    ip: str
    eni: Eni
    state: AddressState
    since: float
    last_key: AttachmentKey | None = None
    theirs: bool = False


@dataclass(slots=True, eq=False)
class Eni:
    """`id` is EC2's id, or the ClientToken while the ENI is being created. `pending` counts addresses that were
    asked for and have not come. `addresses` are all that are on it; of them, `free` keeps the order in which they
    became free, longest first, and `leaving` are those on their way back to EC2. `life` is its state with the data
    of that state, `state` the name of it, and `since` when it began; `become` alone sets them. `capacity` is how
    many slots the instance type gives it, its own address not counted; a /28 prefix that somebody put on it takes
    one as well."""

    id: str
    life: Life
    device_index: int
    capacity: int
    subnet_id: str
    since: float = 0.0
    state: EniState = field(init=False)
    story: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=STORY), repr=False)
    primary: bool = False
    card: int = 0  # the network card, which has device indexes of its own
    mac: str = ""
    primary_ip: str = ""
    subnet: IPv4Network | None = None  # None: not known yet
    read_at: float = -math.inf  # when EC2 last showed it
    attachment_id: str = ""
    link: str = ""
    pending: int = 0
    addresses: dict[str, Address] = field(default_factory=dict)
    free: dict[str, Address] = field(default_factory=dict)
    assigned: int = 0
    cooling: int = 0
    foreign: int = 0
    prefixes: tuple[str, ...] = ()
    # The least number of slots in use that EC2 refused, though `capacity` allows it, and since when that is known.
    refused: int | None = None
    refused_at: float = 0.0
    asked_too_much: int = 0  # EC2 refused so many addresses, and it is not known yet what fills the ENI
    leaving: dict[str, Address] = field(default_factory=dict)
    # Addresses on it that EC2 has named on another ENI, and that one's id: until it is read again.
    contradicted: dict[str, str] = field(default_factory=dict)
    # Assignments whose answer never came: they may have brought so many addresses more.
    unaccounted: dict[str, Intent] = field(default_factory=dict)
    # The one operation of its life cycle that is under way (0: none) and when it may be tried again.
    busy: int = 0
    retry_at: float = 0.0
    unsure: bool = False  # a call's outcome is unknown: describe before anything else is done to it
    unfulfilled: bool = False  # its link could not be set up: don't count on its addresses
    keep_on_termination: bool = False  # DeleteOnTermination is still to be set
    modifying: int = 0
    modify_at: float = 0.0
    created_at: float = 0.0  # not before; 0: long ago
    link_failures: int = 0
    # Its interface vanished: when it last did, how often in short order, and the last operation of before.
    device_gone_at: float = -math.inf
    device_losses: int = 0
    last_op_before_loss: int = 0
    in_limbo: bool = False  # a call that gives it, or what is leaving, back may have its effect yet

    def __post_init__(self) -> None:
        self._enter(None, self.life, self.since)

    def become(self, life: Life, now: float) -> None:
        """The only setter of the state. Raises `IllegalTransition`."""
        self._enter(type(self.life), life, now)

    def _enter(self, before: type[Life] | None, life: Life, now: float) -> None:
        if (before, type(life)) not in TRANSITIONS:
            raise IllegalTransition(self._told(f"can't become {type(life).__name__}"))
        if self.leaving and not isinstance(life, LEAVING):
            raise IllegalTransition(self._told(f"{len(self.leaving)} of its addresses are still leaving"))
        if self.free and isinstance(life, GONE_WITH_ENI):
            raise IllegalTransition(self._told(f"{len(self.free)} of its addresses are still free"))
        self.life, self.state, self.since = life, life.state, now
        self.story.append((now, type(life).__name__))
        if not isinstance(life, ATTACHED):
            self.attachment_id, self.keep_on_termination, self.in_limbo = "", False, False
            self.modifying, self.modify_at = 0, 0.0
        if not isinstance(life, ARRIVING):
            self.unfulfilled = False

    def _told(self, fault: str) -> str:
        states = ", ".join(f"{name} at {at:.3f}" for at, name in self.story)
        return f"{self.id}: {fault}; its states until now: {states}"

    def unverify(self) -> None:
        """What leaves it is read again before it goes."""
        if isinstance(self.life, Ready | Draining):
            self.life.verified = False

    @property
    def detached(self) -> bool:
        """EC2 accepted to detach it, and it holds its slot still."""
        return type(self.life) is Detached

    @property
    def releasing(self) -> int:
        return len(self.leaving)

    @property
    def at_rest(self) -> bool:
        """It needs no step."""
        if self.state is EniState.READY:
            return not (self.leaving or self.unsure or self.keep_on_termination)
        return self.state is EniState.FOREIGN

    @property
    def quiet(self) -> bool:
        """It serves pods, and nothing is under way or in doubt about it."""
        return self.state is EniState.READY and not (self.busy or self.pending or self.unsure)

    @property
    def held(self) -> int:
        """Somebody else's addresses included: they take room as well."""
        return len(self.addresses)

    @property
    def occupied(self) -> int:
        """Slots in use, by anybody."""
        return len(self.addresses) + len(self.prefixes)

    @property
    def withheld(self) -> int:
        """Slots that EC2 does not give, though the type has them and nothing that it shows takes them."""
        return 0 if self.refused is None else self.capacity - self.refused + 1

    @property
    def room(self) -> int:
        """How many more addresses fit, as far as is known."""
        return max(self.capacity - self.withheld - self.occupied - self.pending, 0)

    def explain(self, count: int) -> list[Record] | None:
        """What to record if calls of unknown outcome have brought exactly so many addresses; None if they can't have.

        EC2 assigns all that a call asks for, or none.
        """
        sums: dict[int, tuple[str, ...]] = {0: ()}
        for token, intent in self.unaccounted.items():
            for total, tokens in list(sums.items()):
                sums.setdefault(total + intent.count, (*tokens, token))
        if count not in sums:
            return None
        for token in sums[count]:
            del self.unaccounted[token]
        return [DropIntent(token) for token in sums[count]]

    def explain_no_more(self, asked_before: float) -> list[Record]:
        """What to record once a reading has not shown what was asked for so long ago: it will never be there."""
        late = [token for token, intent in self.unaccounted.items() if intent.at <= asked_before]
        for token in late:
            del self.unaccounted[token]
        return [DropIntent(token) for token in late]

    def own(self) -> OwnAddresses:
        foreign = [ip for ip, address in self.addresses.items() if address.theirs]
        return OwnAddresses(self.id, tuple(ip for ip in self.addresses if ip not in foreign), tuple(foreign))
