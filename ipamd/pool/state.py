"""The pool's memory: what it aims at, what it has, who waits, and the sums over it. Changed by `Pool` alone."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from ipamd.pool import effects as do
from ipamd.pool.backoff import NEW_ENI, Backoff, Backoffs, action_scope, eni_scope, subnet_scope
from ipamd.pool.inventory import Eni, Inventory
from ipamd.pool.model import AttachmentKey, Counts, EniState, Intent, Limits, Owner, Targets

CREATE, ATTACH, ASSIGN = do.CreateEni.action, do.AttachEni.action, do.AssignAddresses.action
UNASSIGN, DETACH = do.UnassignAddresses.action, do.DetachEni.action

# An ENI in one of these states will bring its addresses soon.
ARRIVING = (EniState.CREATING, EniState.ATTACHING, EniState.CONFIGURING)


@dataclass(slots=True)
class Waiting:
    request: str
    key: AttachmentKey
    owner: Owner
    since: float
    deadline: float


class State:
    def __init__(self, targets: Targets, limits: Limits, subnets: tuple[str, ...], random: Random) -> None:
        self.targets = targets
        self.limits = limits
        self.subnets = subnets
        self.inventory = Inventory()
        self.waiting: dict[str, Waiting] = {}
        self.backoffs = Backoffs(random)
        self._portions: dict[str, int] = {}
        self.started = False
        self.draining = False

    def counts(self) -> Counts:
        inventory = self.inventory
        free = pending = assigned = releasing = 0
        for eni in inventory.enis.values():
            assigned += eni.assigned
            releasing += eni.releasing
            if eni.state is EniState.READY:
                free += len(eni.free)
                pending += eni.pending
            elif eni.state in ARRIVING and not eni.unfulfilled:
                pending += len(eni.free) + eni.pending
        cooling = len(inventory.cooling)
        total = free + assigned + cooling + releasing
        return Counts(free, assigned, cooling, releasing, pending, len(self.waiting), total)

    @property
    def max_pods(self) -> int:
        """Most addresses in use at once: the setting, and what fits on the ENIs that the node may have."""
        most = self.max_enis * self.limits.secondary_per_eni
        return min(self.targets.max_pods or most, most)

    @property
    def max_enis(self) -> int:
        return min(self.targets.max_enis or self.limits.max_enis, self.limits.max_enis)

    @property
    def headroom(self) -> int:
        """Addresses to keep free beyond what is asked for."""
        targets = self.targets
        return targets.warm_enis * self.limits.secondary_per_eni if targets.warm_enis else targets.warm_ips

    def can_serve(self) -> bool:
        """Whether the node is worth offering to a runtime: an address is free, or all that are wanted are in use."""
        counts = self.counts()
        arriving = any(eni.state in ARRIVING for eni in self.inventory.enis.values())
        settled = not arriving and counts.pending == 0
        return self.started and (counts.free > 0 or (settled and (counts.assigned > 0 or self.deficit() == 0)))

    def deficit(self) -> int:
        """Addresses to ask for now; the arithmetic stands at the top of pool.py."""
        counts, targets = self.counts(), self.targets
        wanted = max(
            counts.waiting + self.headroom - counts.free - counts.pending,
            targets.minimum_ips - self._staying(counts) - counts.pending,
        )
        return max(min(wanted, self.allowance(counts)), 0)

    def allowance(self, counts: Counts) -> int:
        """How many more addresses the node may hold. A cooling one does not count: it can't be granted yet."""
        return self.max_pods + counts.cooling - self._staying(counts) - counts.pending

    def _staying(self, counts: Counts) -> int:
        return counts.total - counts.releasing

    def excess(self) -> int:
        """Free addresses that are not worth keeping; given back once they have lasted."""
        counts, targets = self.counts(), self.targets
        spare = counts.free - self.headroom - targets.slack
        return max(min(spare, self._staying(counts) - targets.minimum_ips), 0)

    def eni_slots(self) -> int:
        """How many more ENIs the instance takes. One that was never attached holds no slot; one that was detached
        holds its own until it is gone."""
        taken = sum(eni.state is not EniState.DELETING or eni.detached for eni in self.inventory.enis.values())
        return self.max_enis - taken

    def free_index(self) -> int:
        taken = {eni.device_index for eni in self.inventory.enis.values()}
        return next(index for index in range(1, len(taken) + 2) if index not in taken)

    def other_index(self, eni: Eni) -> int:
        """Another device index for an ENI that EC2 did not attach at its own: something unknown may sit there."""
        taken = {other.device_index for other in self.inventory.enis.values()}
        end = 2 * self.limits.max_enis
        candidates = (*range(eni.device_index + 1, end), *range(1, eni.device_index))
        return next((index for index in candidates if index not in taken), eni.device_index)

    # A subnet gives all that is asked for in a call or nothing. One that is nearly full is asked for half as much
    # each time, down to a single address, so that its last ones are used.

    def portion(self, subnet_id: str, wanted: int) -> int:
        return min(wanted, self._portions.get(subnet_id, wanted))

    def ask_for_less(self, subnet_id: str, refused: int) -> bool:
        """False when there is no less: the subnet is full."""
        if refused <= 1:
            self._portions.pop(subnet_id, None)
            return False
        self._portions[subnet_id] = self.portion(subnet_id, refused // 2)
        return True

    def ask_for_more(self, subnet_id: str) -> None:
        portion = self._portions.pop(subnet_id, None)
        if portion is not None and portion < self.limits.secondary_per_eni:
            self._portions[subnet_id] = portion * 2

    def assign_backoff(self, eni: Eni, now: float) -> Backoff | None:
        return self.backoffs.active(now, action_scope(ASSIGN), subnet_scope(eni.subnet_id), eni_scope(eni.id))

    def open_subnet(self, now: float) -> str | None:
        """Where a new ENI may be created now; None while something holds that back."""
        if self.backoffs.active(now, action_scope(CREATE), action_scope(ATTACH), NEW_ENI) is not None:
            return None
        return next((s for s in self.subnets if self.backoffs.active(now, subnet_scope(s)) is None), None)


def attach_token(eni_id: str) -> str:
    """AttachNetworkInterface takes no ClientToken; an ENI is attached once, so its id will do."""
    return f"attach {eni_id}"


def release_token(eni_id: str) -> str:
    """An ENI gives back addresses, or goes, one call at a time."""
    return f"release {eni_id}"


def attach_intent(eni: Eni, now: float) -> Intent:
    return Intent(attach_token(eni.id), ATTACH, now, eni_id=eni.id, device_index=eni.device_index)
