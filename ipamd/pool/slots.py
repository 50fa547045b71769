"""The slots of the instance and of its ENIs: how many there are, who takes them, and what is left for pods.

The table of instance types says what EC2 publishes. What EC2 shows is stronger: addresses that are there are there,
whatever the table allows, and what others put on an ENI takes room that no call of ours can have. So each figure is
the sum of what is on the ENIs and of what can still come, never table x table.

    a slot of the instance  taken by an ENI on network card 0. An ENI on another card takes one of that card's, has
                            device indexes of its own, and touches nothing here
    a slot of an ENI        taken by a secondary address, ours or somebody else's, or by a /28 prefix
"""

from __future__ import annotations

import math

from ipamd.pool.eni import Eni
from ipamd.pool.inventory import Inventory
from ipamd.pool.life import states
from ipamd.pool.model import EniState, LearntLimit, Limits, Targets

# An ENI in one of these states will bring its addresses soon.
ARRIVING = tuple(kind.state for kind in states.ARRIVING)
UNATTACHED = (EniState.CREATING, EniState.ATTACHING, EniState.DELETING)
# An ENI in one of these states takes its addresses away with it.
GOING = (EniState.DETACHING, EniState.DELETING)

# The network card that pods' ENIs are on: the one of the primary ENI.
CARD = 0


class Slots:
    _targets: Targets

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.learnt_limit: LearntLimit | None = None
        self.inventory = Inventory()
        # EC2 refused an ENI for having so many secondary addresses, whatever the table says. The least that failed,
        # and when.
        self.too_many: int | None = None
        self.too_many_at = 0.0

    @property
    def max_enis(self) -> int:
        """Most ENIs on card 0, somebody else's among them."""
        most = self.limits.max_enis if self.learnt_limit is None else self.learnt_limit.max_enis
        return min(self._targets.max_enis or most, most)

    @property
    def addresses_of_new_eni(self) -> int:
        """Most secondary addresses to ask for with a new ENI."""
        most = self.limits.secondary_per_eni
        return most if self.too_many is None else min(most, self.too_many // 2)

    def enis_of_card(self) -> list[Eni]:
        """Those of card 0, in whatever state."""
        return [eni for eni in self.inventory.enis.values() if eni.card == CARD]

    def attached(self) -> int:
        """ENIs that hold a slot of the instance, somebody else's included."""
        return sum(eni.state not in UNATTACHED or eni.detached for eni in self.enis_of_card())

    def eni_slots(self) -> int:
        """How many more ENIs the instance takes, below 0 when it has more than it is allowed. One that was never
        attached holds no slot; one that was detached holds its own until it is gone."""
        taken = sum(eni.state is not EniState.DELETING or eni.detached for eni in self.enis_of_card())
        return self.max_enis - taken

    def foreign_enis(self) -> list[Eni]:
        """Somebody else's that hold slots of the instance."""
        return [eni for eni in self.enis_of_card() if eni.state is EniState.FOREIGN]

    def taken_by_others(self) -> bool:
        """Whether pods could have more addresses if somebody else gave something up: an ENI, or what is on ours."""
        enis = self.inventory.enis.values()
        return bool(self.foreign_enis()) or any(eni.foreign or eni.prefixes or eni.withheld for eni in enis)

    def free_index(self) -> int:
        taken = {eni.device_index for eni in self.enis_of_card()}
        return next(index for index in range(1, len(taken) + 2) if index not in taken)

    def other_index(self, eni: Eni) -> int:
        """Another device index for an ENI that EC2 did not attach at its own: something unknown may sit there."""
        taken = {other.device_index for other in self.enis_of_card()}
        end = 2 * self.limits.max_enis
        candidates = (*range(eni.device_index + 1, end), *range(1, eni.device_index))
        return next((index for index in candidates if index not in taken), eni.device_index)

    def obtainable(self) -> int:
        """How many more addresses there is room for, on the ENIs that are there or coming and on further ones. What
        is about to be given back counts: its room will be there, and it can be taken back. What goes with its ENI
        does not: the slot of that ENI counts."""
        room = 0
        for eni in self.inventory.enis.values():
            if eni.leaving and eni.state not in GOING:
                room += eni.releasing
            if eni.state is EniState.READY or is_coming(eni):
                room += eni.room
        return room + self._eni_slots_to_come() * self.addresses_of_new_eni

    @property
    def capacity(self) -> int:
        """Most addresses that pods can have at once, as far as is known: those that are there and those that fit
        beside them, and what further ENIs bring."""
        staying = (EniState.READY, EniState.DRAINING, *ARRIVING)
        most = sum(
            eni.held - eni.foreign + eni.pending + eni.room
            for eni in self.inventory.enis.values()
            if eni.state in staying
        )
        return most + self._eni_slots_to_come() * self.addresses_of_new_eni

    @property
    def capacity_alone(self) -> int:
        """What `capacity` would be if nobody else had anything here."""
        return max(self.capacity, self.max_enis * self.limits.secondary_per_eni)

    def _eni_slots_to_come(self) -> int:
        """Free ones, and those that ENIs are about to leave."""
        leaving = sum(eni.state is EniState.DETACHING or eni.detached for eni in self.enis_of_card())
        return max(self.eni_slots() + leaving, 0)

    @property
    def max_pods(self) -> int:
        """Most addresses in use at once: what there is room for, and no more than the setting."""
        return min(self.pod_limit, self.capacity)

    @property
    def pod_limit(self) -> int:
        """What the setting alone allows."""
        return self._targets.max_pods or UNLIMITED


# More pods than any kubelet runs.
UNLIMITED = 1_000_000


def is_coming(eni: Eni) -> bool:
    """Whether its addresses are there, or will be soon."""
    return eni.state is EniState.READY or (eni.state in ARRIVING and not eni.unfulfilled)


def portion(eni: Eni, wanted: int) -> int:
    """How many addresses to ask for in one call. Where EC2 has refused some although the ENI seemed to have room, the
    limit lies somewhere between what is on it and what was refused: each call halves that."""
    return wanted if eni.refused is None else min(wanted, math.ceil(eni.room / 2))
