"""How the deficit is met: on which ENIs, in which subnets, with how few calls."""

from __future__ import annotations

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.backoff import Backoff, action_scope, subnet_scope
from ipamd.pool.eni import Eni
from ipamd.pool.in_use import InUse
from ipamd.pool.life.states import Creating, Ready
from ipamd.pool.model import CloudErrorKind, CloudFailure, EniState, Intent, PutIntent
from ipamd.pool.slots import is_coming, portion
from ipamd.pool.state import ASSIGN, CREATE, CREATION, Setup

# After so many failures in a row an ENI's room is looked for elsewhere.
PATIENCE = 3

DESCRIBE_SUBNETS = do.DescribeSubnets.action


class Growth(InUse):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._grow_at: float | None = None

    @property
    def grow_at(self) -> float | None:
        """When the deficit is met, once requests have gathered."""
        return self._grow_at

    def _take_back_leaving(self, now: float) -> None:
        """Growth goes before: what is wanted again stays, unless the call that removes it was sent."""
        wished, short = self.queue.wished, self.deficit() > 0
        if not wished and not short:
            return
        for eni in self.inventory.enis.values():
            sent = self._operations.get(eni.busy)
            if not eni.leaving or eni.in_limbo or not (short or any(ip in wished for ip in eni.leaving)):
                continue
            if sent is not None and isinstance(sent.effect, do.UnassignAddresses):
                continue
            if eni.state in (EniState.READY, EniState.DRAINING) and not eni.unsure:
                self.inventory.stay(eni, now)
                if eni.state is EniState.DRAINING:
                    eni.become(Ready(), now)
                self._recount()

    def _grow(self, now: float) -> None:
        deficit = self.deficit()
        if deficit <= 0:
            self._grow_at = None
            return
        if self._grow_at is None and self.targets.coalesce > 0:
            self._grow_at = now + self.targets.coalesce
        if self._grow_at is not None and now < self._grow_at:
            return
        self._grow_at = None
        self._settle_doubts(now)
        # What rides along with a call that is made anyway spares the next one; it would not be given back either.
        along = min(self.targets.slack // 2, self.allowance(self.counts()) - deficit)
        deficit, along = self._fill_enis(deficit, along, now)
        self._add_enis(deficit, along, now)
        self._recount()

    def _fill_enis(self, deficit: int, along: int, now: float) -> tuple[int, int]:
        """Ask for addresses on the ENIs that are there, all at once; returns what remains of both.

        The primary ENI is never given back, so it is filled first, then the fullest.
        """
        for eni in sorted(self.inventory.enis.values(), key=lambda e: (not e.primary, -e.held)):
            if deficit <= 0:
                break
            count = min(deficit, eni.room)
            if count == 0 or not is_coming(eni):
                continue
            backoff = self._growth_backoff(eni, now)
            if backoff is not None and (backoff.policy.lasting or backoff.attempts > PATIENCE):
                continue
            deficit -= count  # its room is worth waiting for: cheaper than another ENI
            if backoff is not None or not self._can_be_asked(eni):
                continue
            if deficit == 0:
                more = min(along, eni.room - count)
                count, along = count + more, along - more
            self._ask(eni, self.subnets.portion(eni.subnet_id, portion(eni, count)), now)
        return deficit, along

    def _growth_backoff(self, eni: Eni, now: float) -> Backoff | None:
        """What holds further addresses of this ENI back."""
        backoff = self.assign_backoff(eni, now)
        if backoff is None and eni.unsure:
            return self.backoffs.active(now, action_scope(do.DescribeEni.action))
        return backoff

    def _can_be_asked(self, eni: Eni) -> bool:
        """Not while its subnet is being read, nor while EC2 may hand out what is just being taken away: nobody could
        tell such an address from what was there."""
        if eni.state is not EniState.READY or eni.unsure:
            return False
        return not (self._gives_back(eni) or eni.in_limbo or self.subnets[eni.subnet_id].in_doubt)

    def _ask(self, eni: Eni, count: int, now: float) -> None:
        token = self._new_token()
        eni.pending += count
        op = self._next_op()
        self._write(PutIntent(Intent(token, ASSIGN, now, eni_id=eni.id, count=count)))
        self._send(do.AssignAddresses(op, eni.id, count), eni, now, count, token)
        self.subnets.asked(eni.subnet_id, count)

    def _add_enis(self, deficit: int, along: int, now: float) -> None:
        capacity = self.addresses_of_new_eni
        while deficit > 0 and capacity > 0 and self.eni_slots() > 0:
            count = min(deficit, capacity)
            subnet_id = self._subnet_for_eni(count + 1, now)
            if subnet_id is None:
                return
            deficit -= count
            if deficit == 0:
                count = min(count + along, capacity)
            count = self.subnets.portion(subnet_id, count + 1) - 1  # an ENI takes one for itself
            token = self._new_token()
            eni = Eni(token, Creating(token), self.free_index(), self.limits.secondary_per_eni, subnet_id, now)
            eni.pending, eni.busy = count, self._next_op()
            self.inventory.add_eni(eni)
            self._write(PutIntent(Intent(token, CREATE, now, subnet_id=subnet_id, count=count)))
            self._send(do.CreateEni(eni.busy, token, subnet_id, count), eni, now, count, token)
            self.subnets.asked(subnet_id, count + 1)
            if self.backoffs.attempts(*CREATION, subnet_scope(subnet_id)):
                return  # it failed the last time: one is enough to find out

    # Subnets

    def _subnet_for_eni(self, addresses: int, now: float) -> str | None:
        """For an ENI with so many addresses, its own included; None while none may be created, or while it is being
        found out where."""
        if self.limit_met or self.creation_backoff(now) is not None:
            return None
        candidates = []
        for subnet_id in self.subnets.ids:
            if self.subnets[subnet_id].in_doubt or self.backoffs.active(now, subnet_scope(subnet_id)):
                continue
            if self.subnets.portion(subnet_id, 2) < 2:
                self._full(subnet_id, now)
                continue
            candidates.append(subnet_id)
        if not candidates:
            return None
        unread = self.subnets.unread(now)
        if unread and self._can_read(now):
            self._read(self.subnets.ids)
        return None if unread and self._under_way(do.DescribeSubnets) else self.subnets.choose(candidates, addresses)

    def _settle_doubts(self, now: float) -> None:
        """Find out about the subnets that refused, once their back-off, if there is one, has ended."""
        doubtful = [s for s in self.subnets.doubtful() if not self.backoffs.active(now, subnet_scope(s))]
        if not doubtful or self._under_way(do.DescribeSubnets):
            return
        if self._can_read(now):
            self._read(tuple(doubtful))
            return
        for subnet_id in doubtful:
            if not self.subnets.unreadable(subnet_id):
                self._full(subnet_id, now)

    def _can_read(self, now: float) -> bool:
        return not self._under_way(do.DescribeSubnets) and not self.backoffs.active(
            now, action_scope(DESCRIBE_SUBNETS)
        )

    def _read(self, subnet_ids: tuple[str, ...]) -> None:
        self._send_unbound(do.DescribeSubnets(self._next_op(), subnet_ids))

    def _subnets_read(self, effect: do.DescribeSubnets, event: on.Outcome, now: float) -> None:
        if isinstance(event, on.OperationFailed):
            self._failed(action_scope(DESCRIBE_SUBNETS), event.failure, now)
        elif isinstance(event, on.SubnetsObserved):
            self.backoffs.succeeded(action_scope(DESCRIBE_SUBNETS))
            available = dict(event.available)
            for subnet_id in effect.subnet_ids:  # one that EC2 does not know has no room either
                if not self.subnets.observed(subnet_id, available.get(subnet_id, 0), now):
                    self._full(subnet_id, now)

    def _full(self, subnet_id: str, now: float) -> None:
        left = self.subnets[subnet_id].available
        message = f"EC2 gives no more addresses of {subnet_id}" + (f", which shows {left} free" if left else "")
        failure = CloudFailure(CloudErrorKind.SUBNET_FULL, CREATE, "InsufficientFreeAddressesInSubnet", message)
        self.subnets.full(subnet_id)
        self._failed(subnet_scope(subnet_id), failure, now)
