"""The pool's memory: what it aims at, what it has, who waits, and the sums over it. Changed by `Pool` alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from ipamd.pool import effects as do
from ipamd.pool.backoff import NEW_ENI, SLOTS, Backoff, Backoffs, action_scope, eni_scope, subnet_scope
from ipamd.pool.eni import Eni
from ipamd.pool.model import Counts, EniState, Intent, Limits, Targets
from ipamd.pool.queue import Queue
from ipamd.pool.slots import ARRIVING, Slots
from ipamd.pool.subnets import Subnets

CREATE, ATTACH, ASSIGN = do.CreateEni.action, do.AttachEni.action, do.AssignAddresses.action
FORGET = do.ForgetFlows.action
UNASSIGN, DETACH = do.UnassignAddresses.action, do.DetachEni.action

# What holds new ENIs back.
CREATION = (action_scope(CREATE), action_scope(ATTACH), NEW_ENI, SLOTS)

# While somebody else's ENIs keep pods from an address, how often is looked whether they still do, in seconds; half as
# often each time that they do.
LOOK_AGAIN, LOOK_AGAIN_CAP = 5.0, 300.0


@dataclass(frozen=True, slots=True)
class Setup:
    """`subnets` are those for new ENIs in order of preference; `new_token` makes ClientTokens."""

    targets: Targets
    limits: Limits
    subnets: tuple[str, ...]
    random: Random
    new_token: Callable[[], str]


class State(Slots):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup.limits)
        self.configured = setup.targets
        self.drained: float | None = None  # when an operator drained the node
        self._random = setup.random
        self._new_token = setup.new_token
        self.subnets = Subnets(setup.subnets, setup.random)
        self.queue = Queue()
        self.waiting = self.queue.waiting
        self.backoffs = Backoffs(setup.random)
        # See reuse.py. Cooling addresses that become free when the flush that is under way has succeeded, and their
        # releases; how many more have cooled to the end; and what was released since the last flush.
        self.forgetting: dict[str, float] = {}
        self.cooled = 0
        self.unflushed: dict[str, None] = {}
        self.audit_at = math.inf  # when everything is read afresh
        self.audited_at = -math.inf  # when it last was
        self.limit_met = False  # EC2 refused to attach one more ENI, and it is not known yet who holds the slots
        self.look_again = LOOK_AGAIN
        self.started = False
        self.stopping = False
        self._counts: Counts | None = None
        self._aim()

    @property
    def targets(self) -> Targets:
        """What is aimed at now: on a drained node nothing but what pods have."""
        return self._targets

    def _aim(self) -> None:
        self._targets = self.configured
        if self.drained is not None:
            self._targets = replace(
                self.configured, warm_ips=0, warm_enis=0, minimum_ips=0, slack=0, release_delay=0.0
            )

    def counts(self) -> Counts:
        """Summed up once after each change (`_recount`)."""
        if self._counts is None:
            self._counts = self._count()
        return self._counts

    def _recount(self) -> None:
        self._counts = None

    def _count(self) -> Counts:
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

    def reusable_after(self, now: float) -> float:
        """Seconds from its release until an address can be granted again when pods wait for one."""
        if self.backoffs.active(now, action_scope(FORGET)):
            return self.targets.cooldown
        return min(self.targets.cooldown, self.targets.reuse_cooling_after)

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
        """Addresses to ask for now; the arithmetic stands at the top of pool.py. None for those that wait for one
        address alone: EC2 chooses which ones it gives."""
        counts, targets = self.counts(), self.targets
        wanted = max(
            self.queue.for_any + self.headroom - counts.free - counts.pending - len(self.forgetting) - self.cooled,
            targets.minimum_ips - self._staying(counts) - counts.pending,
        )
        return max(min(wanted, self.allowance(counts)), 0)

    def allowance(self, counts: Counts) -> int:
        """How many more addresses the node may hold, below 0 when it has more than it may. A cooling one does not
        count for pool.max_pods: it can't be granted yet."""
        return min(self.pod_limit + counts.cooling - self._staying(counts) - counts.pending, self.obtainable())

    def _staying(self, counts: Counts) -> int:
        return counts.total - counts.releasing

    def excess(self) -> int:
        """Free addresses that are not worth keeping; given back once they have lasted."""
        counts, targets = self.counts(), self.targets
        spare = counts.free - self.headroom - targets.slack
        return max(min(spare, self._staying(counts) - targets.minimum_ips), 0)

    def assign_backoff(self, eni: Eni, now: float) -> Backoff | None:
        return self.backoffs.active(now, action_scope(ASSIGN), subnet_scope(eni.subnet_id), eni_scope(eni.id))

    def creation_backoff(self, now: float) -> Backoff | None:
        """What holds new ENIs back, whatever their subnet."""
        return self.backoffs.active(now, *CREATION)


def attach_token(eni_id: str) -> str:
    """AttachNetworkInterface takes no ClientToken; an ENI is attached once, so its id will do."""
    return f"attach {eni_id}"


def release_token(eni_id: str) -> str:
    """An ENI gives back addresses, or goes, one call at a time."""
    return f"release {eni_id}"


def release_intent(eni: Eni, action: str, now: float) -> Intent:
    return Intent(release_token(eni.id), action, now, eni_id=eni.id, addresses=tuple(eni.leaving))


def attach_intent(eni: Eni, now: float) -> Intent:
    return Intent(attach_token(eni.id), ATTACH, now, eni_id=eni.id, device_index=eni.device_index)
