"""What a reading of an ENI means for it: a table of states and sightings in which every cell is decided.

A reading may be older than the pool's own last step, since EC2 is eventually consistent. So it counts how long the
ENI has been in its state: "early" is within `APPEARS_WITHIN`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

from ipamd.pool.eni import Eni
from ipamd.pool.life.states import (
    Attaching,
    Configuring,
    Deleting,
    Detached,
    Detaching,
    Draining,
    Life,
    Ready,
)
from ipamd.pool.model import ObservedEni

# EC2 is eventually consistent: for so many seconds a new ENI may be unknown to it without being gone ("Ensuring
# idempotency" and "Eventual consistency" in the Amazon EC2 Developer Guide).
APPEARS_WITHIN = 60.0


class Sighting(Enum):
    """The values are the meanings, as docs/life.md shows them."""

    ABSENT_EARLY = "EC2 does not show it, and it is young, or the primary ENI, which can't be gone"
    ABSENT = "EC2 does not show it"
    NOT_OURS = "without our tag: attached to another instance, or another program's now"
    UNATTACHED_EARLY = "not attached, and its state began within the last minute"
    UNATTACHED = "not attached"
    DETACHING = "attached, and being detached"
    ATTACHED_EARLY = "attached, and its state began within the last minute"
    ATTACHED = "attached"


class Seen(Enum):
    """The values are the meanings, as docs/life.md shows them."""

    AS_EXPECTED = "nothing follows; the state has its next step"
    NOT_YET = "EC2 does not know it everywhere yet: read it again, the later the older it is"
    READ_AGAIN = "the reading is probably older than the last step: read it again"
    FORGET = "EC2 no longer has it, or it is no longer ours: forget it, and name the pods that are cut off"
    ATTACHED = "it is attached: set the host up for it"
    ATTACH = "somebody detached it; pods may hold its addresses: attach it again"
    NO_INTERFACE = "it has lost its interface and can't be attached yet: read it again"
    SERVING = "compare what is on it with the records; the addresses that are leaving may go"
    MAY_GO = "it may go if nothing is on it but the addresses that are leaving; else it stays"
    STAYS = "it is not being detached: back into service"
    DETACHED = "it is detached: delete it"
    SLOT_HELD = "it is being detached: delete it once that is over"
    SLOT_FREE = "its slot is free; delete it"


_FIRST: Final = (Sighting.ABSENT_EARLY, Sighting.ABSENT, Sighting.NOT_OURS)
_OTHERS: Final = (
    Sighting.UNATTACHED_EARLY,
    Sighting.UNATTACHED,
    Sighting.DETACHING,
    Sighting.ATTACHED_EARLY,
    Sighting.ATTACHED,
)
# The first three sightings mean the same in every state; the columns are the others, in the order above. An ENI that
# is being created has no id to be read by, and a foreign one is not read by itself.
_TABLE: Final[dict[type[Life], tuple[Seen, Seen, Seen, Seen, Seen]]] = {
    #            unattached early  unattached        detaching          attached early     attached
    Attaching:   (Seen.AS_EXPECTED, Seen.AS_EXPECTED, Seen.ATTACHED,     Seen.ATTACHED,     Seen.ATTACHED),
    Configuring: (Seen.ATTACH,      Seen.ATTACH,      Seen.NO_INTERFACE, Seen.AS_EXPECTED,  Seen.AS_EXPECTED),
    Ready:       (Seen.READ_AGAIN,  Seen.ATTACH,      Seen.SERVING,      Seen.SERVING,      Seen.SERVING),
    Draining:    (Seen.MAY_GO,      Seen.MAY_GO,      Seen.MAY_GO,       Seen.MAY_GO,       Seen.MAY_GO),
    Detaching:   (Seen.DETACHED,    Seen.DETACHED,    Seen.DETACHED,     Seen.STAYS,        Seen.STAYS),
    Detached:    (Seen.SLOT_FREE,   Seen.SLOT_FREE,   Seen.SLOT_HELD,    Seen.SLOT_HELD,    Seen.ATTACHED),
    Deleting:    (Seen.AS_EXPECTED, Seen.AS_EXPECTED, Seen.SLOT_HELD,    Seen.ATTACHED,     Seen.ATTACHED),
}  # fmt: skip
_IN_EVERY_STATE: Final = (Seen.NOT_YET, Seen.FORGET, Seen.FORGET)

SEEN: Final[Mapping[tuple[type[Life], Sighting], Seen]] = MappingProxyType(
    {
        (state, sighting): verdict
        for state, row in _TABLE.items()
        for sighting, verdict in zip((*_FIRST, *_OTHERS), (*_IN_EVERY_STATE, *row), strict=True)
    }
)


def sighting(eni: Eni, observed: ObservedEni | None, now: float) -> Sighting:
    if observed is None:
        young = eni.primary or now < eni.created_at + APPEARS_WITHIN
        return Sighting.ABSENT_EARLY if young else Sighting.ABSENT
    if not (observed.owned or observed.primary):
        return Sighting.NOT_OURS
    early = now < eni.since + APPEARS_WITHIN
    if observed.device_index is None:
        return Sighting.UNATTACHED_EARLY if early else Sighting.UNATTACHED
    if observed.attachment_status == "detaching":
        return Sighting.DETACHING
    return Sighting.ATTACHED_EARLY if early else Sighting.ATTACHED


def seen(eni: Eni, observed: ObservedEni | None, now: float) -> Seen:
    return SEEN[type(eni.life), sighting(eni, observed, now)]
