"""The pool: every decision about addresses and ENIs, as one state machine.

Events go in, effects come out, and nothing else happens: `handle(event, now)` reads no clock and does no I/O, so
the same object runs in the daemon, under Hypothesis and in a simulator in virtual time.

    an address    free -> assigned -> cooling -> free
    an ENI        see operations.py

After each event the pool settles: cooled addresses become free, free ones go to whoever waits longest, ENIs take
their next step, the deficit is met, and requests that nothing can serve are refused.

    free      assignable now; a cooling address is not free
    pending   asked from EC2, not yet here
    headroom  warm_ips, or warm_enis x addresses per ENI
    deficit   max(waiting + headroom - free - pending, minimum_ips - total - pending), at least 0, and cut so that
              total + pending never exceeds max_pods + cooling nor what the instance type allows
    excess    min(free - headroom - slack, total - minimum_ips), given back only after it lasted release_delay

Giving back starts with a fresh read of the ENI and ends as soon as an address is wanted again: what is on its way out
is taken back, until the call that removes it was sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool import outlook, shrink
from ipamd.pool.inventory import Eni
from ipamd.pool.model import (
    Attachment,
    Cooling,
    DropAttachment,
    DropCooling,
    EniState,
    Intent,
    Limits,
    PutAttachment,
    PutCooling,
    PutIntent,
    Reason,
    Refusal,
    Targets,
)
from ipamd.pool.operations import Operations
from ipamd.pool.restart import restore
from ipamd.pool.state import ARRIVING, ASSIGN, CREATE, DETACH, UNASSIGN, Waiting, release_token

# Attachments younger than this survive a collection: their ADD may have overtaken the runtime's list (CNI
# SPEC.md, "GC").
COLLECT_MINIMUM_AGE = 60.0

# How long what should be given back, but can't be now, is left before the next look, in seconds.
SHRINK_RETRY = 30.0


@dataclass(slots=True)
class _Excess:
    """Since when there has been one, and the least that it was since: only that much has lasted."""

    since: float
    least: int


class Pool(Operations):
    """`subnets` are the subnets for new ENIs in order of preference; `new_token` makes ClientTokens."""

    def __init__(
        self,
        targets: Targets,
        limits: Limits,
        subnets: tuple[str, ...],
        random: Random,
        new_token: Callable[[], str],
    ) -> None:
        super().__init__(targets, limits, subnets, random)
        self._new_token = new_token
        self._grow_at: float | None = None
        self._wake_at: float | None = None
        self._excess: _Excess | None = None

    def handle(self, event: on.Event, now: float) -> list[do.Effect]:
        """Take notice of one event; returns what is to be done about it, in order."""
        match event:
            case on.Started():
                self._effects += restore(self, event, now)
            case on.AllocationRequested():
                self._request(event, now)
            case on.AllocationCancelled():
                self.waiting.pop(event.request, None)
            case on.ReleaseRequested():
                self._release_requested(event, now)
            case on.CollectRequested():
                self._collect(event, now)
            case on.GrantsUnrecorded():
                self._take_back(event, now)
            case on.TargetsChanged():
                self.targets = event.targets
            case on.DrainRequested():
                self.draining = True
            case on.TimePassed():
                self._wake_at = None
            case _:
                self._learn(event, now)
        self._settle(now)
        effects, self._effects = self._effects, []
        return effects

    # Requests

    def _request(self, event: on.AllocationRequested, now: float) -> None:
        held = self.inventory.attachments.get(event.key)
        if held is not None:
            self._effects.append(do.Grant(event.request, held))
            return
        deadline = min(event.deadline, now + self.targets.allocate_wait)
        self.waiting[event.request] = Waiting(event.request, event.key, event.owner, now, deadline)

    def _release_requested(self, event: on.ReleaseRequested, now: float) -> None:
        held = self.inventory.attachments.get(event.key)
        if held is None and event.recovered_as is not None:
            held = self.inventory.attachments.get(event.recovered_as)
        if held is not None:
            self._release(held, now)
        # Its ADD was given up: an address that came for it now would be nobody's.
        for waiting in [w for w in self.waiting.values() if w.key == event.key]:
            del self.waiting[waiting.request]
            refusal = Refusal(Reason.RELEASED, "the attachment was released while it waited for an address")
            self._effects.append(do.Refuse(waiting.request, refusal))
        self._effects.append(do.Released(event.request, held))

    def _collect(self, event: on.CollectRequested, now: float) -> None:
        gone = tuple(
            a
            for a in self.inventory.attachments.values()
            if a.key.network == event.network
            and (a.key.container_id, a.key.ifname) not in event.valid
            and now - a.since > COLLECT_MINIMUM_AGE
        )
        for attachment in gone:
            self._release(attachment, now)
        self._effects.append(do.Collected(event.request, gone))

    def _release(self, attachment: Attachment, now: float) -> None:
        address = self.inventory.unassign(attachment)
        self._write(DropAttachment(attachment.key))
        if address is None:
            return
        self.inventory.cool(address, now)
        self._write(PutCooling(Cooling(address.ip, now)))

    def _take_back(self, event: on.GrantsUnrecorded, now: float) -> None:
        for grant in event.grants:
            attachment = grant.attachment
            if self.inventory.attachments.get(attachment.key) == attachment:
                address = self.inventory.unassign(attachment)
                if address is not None:
                    self.inventory.free_again(address, now)
            refusal = Refusal(Reason.LEDGER_UNWRITABLE, f"the grant can't be recorded: {event.message}", 5.0)
            self._effects.append(do.Refuse(grant.request, refusal))

    # Settling

    def _settle(self, now: float) -> None:
        active = self.started and not self.draining
        self._expire_cooling(now)
        if active:
            self._take_back_leaving(now)
        self._serve(now)
        if active:
            self._grow(now)
        self._refuse(now)
        if active:
            self._shrink(now)
            self._drive(now)
        else:
            self._grow_at = self._excess = None
        self._wish_to_wake(now)

    def _expire_cooling(self, now: float) -> None:
        cooling = self.inventory.cooling
        while cooling:
            ip, released_at = next(iter(cooling.items()))
            if released_at + self.targets.cooldown > now:
                return
            self.inventory.free_again(self.inventory.addresses[ip], now)
            self._write(DropCooling(ip))

    def _serve(self, now: float) -> None:
        if self.draining:
            return
        for waiting in list(self.waiting.values()):
            held = self.inventory.attachments.get(waiting.key)
            if held is None:
                if len(self.inventory.attachments) >= self.max_pods:
                    return
                address = self.inventory.take(now)
                if address is None:
                    return
                held = Attachment(waiting.key, address.ip, address.eni.id, now, waiting.owner)
                self.inventory.assign(address, held, now)
                self._write(PutAttachment(held))
            del self.waiting[waiting.request]
            self._effects.append(do.Grant(waiting.request, held))

    def _drive(self, now: float) -> None:
        """Each ENI takes the next step of its life cycle."""
        for eni in self.inventory.enis.values():
            if now < eni.retry_at:
                continue
            serving = eni.state in (EniState.CONFIGURING, EniState.READY)
            if eni.keep_on_termination and serving and not eni.modifying:
                eni.modifying = op = self._next_op()
                self._send(do.SetDeleteOnTermination(op, eni.id, eni.attachment_id), eni)
            if eni.busy:
                continue
            op = self._next_op()
            match eni.state:
                case EniState.CREATING:
                    self._send(do.CreateEni(op, eni.token, eni.subnet_id, eni.pending), eni, eni.pending)
                case EniState.ATTACHING | EniState.CONFIGURING | EniState.READY | EniState.DELETING if eni.unsure:
                    self._send(do.DescribeEni(op, eni.id), eni)
                case EniState.READY if eni.leaving and eni.verified:
                    self._write(PutIntent(Intent(release_token(eni.id), UNASSIGN, now, eni.id, count=eni.releasing)))
                    self._send(do.UnassignAddresses(op, eni.id, tuple(eni.leaving)), eni)
                case EniState.DRAINING if eni.verified:
                    eni.state = EniState.DETACHING
                    self._write(PutIntent(Intent(release_token(eni.id), DETACH, now, eni.id)))
                    self._send(do.DetachEni(op, eni.id, eni.attachment_id, tuple(eni.leaving)), eni)
                case EniState.READY if eni.leaving:
                    self._send(do.DescribeEni(op, eni.id), eni)
                case EniState.DRAINING | EniState.DETACHING:
                    self._send(do.DescribeEni(op, eni.id), eni)
                case EniState.ATTACHING:
                    self._send(do.AttachEni(op, eni.id, eni.device_index), eni)
                case EniState.CONFIGURING:
                    self._send(do.ConfigureLink(op, eni.id, eni.mac, eni.device_index, eni.subnet_id), eni)
                case EniState.DELETING if eni.detached or not self._creation_pending():
                    self._send(do.DeleteEni(op, eni.id), eni)
                case _:
                    continue
            eni.busy = op

    def _creation_pending(self) -> bool:
        """While a creation may still turn out to have made one of the ENIs that nobody remembers, none of those
        is deleted."""
        return any(eni.state is EniState.CREATING for eni in self.inventory.enis.values())

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
        deficit = self._fill_enis(deficit, now)
        self._add_enis(deficit, now)

    def _shrink(self, now: float) -> None:
        excess = 0 if self.waiting else self.excess()
        if excess == 0:
            self._excess = None
            return
        if self._excess is None:
            self._excess = _Excess(now, excess)
        self._excess.least = min(self._excess.least, excess)
        if now < self._excess.since + self.targets.release_delay:
            return
        whole, parts = shrink.plan(self, self._excess.least, now)
        self._excess = None if whole or parts else _Excess(now + SHRINK_RETRY, excess)
        for eni in whole:
            self.inventory.leave(eni, len(eni.free), now)
            eni.state, eni.retry_at = EniState.DRAINING, now
        for eni, count in parts:
            self.inventory.leave(eni, count, now)

    def _take_back_leaving(self, now: float) -> None:
        """Growth goes before: what is wanted again stays, unless the call that removes it was sent."""
        if self.deficit() <= 0:
            return
        for eni in self.inventory.enis.values():
            sent = self._operations.get(eni.busy)
            if not eni.leaving or (sent is not None and isinstance(sent.effect, do.UnassignAddresses)):
                continue
            if eni.state in (EniState.READY, EniState.DRAINING) and not eni.unsure:
                self.inventory.stay(eni, now)
                eni.state = EniState.READY

    def _fill_enis(self, deficit: int, now: float) -> int:
        """Ask for addresses on the ENIs that are there, all at once; returns what remains to be found.

        The primary ENI is never given back, so it is filled first, then the fullest.
        """
        for eni in sorted(self.inventory.enis.values(), key=lambda e: (not e.primary, -e.held)):
            if deficit <= 0:
                break
            count = min(deficit, eni.room)
            if count == 0 or eni.unfulfilled or (eni.state is not EniState.READY and eni.state not in ARRIVING):
                continue
            backoff = self.assign_backoff(eni, now)
            if backoff is not None and backoff.policy.lasting:
                continue
            deficit -= count
            if eni.state is not EniState.READY or eni.unsure or backoff is not None:
                continue  # its room is worth waiting for: cheaper than another ENI
            count = self.portion(eni.subnet_id, count)
            token = self._new_token()
            eni.pending += count
            op = self._next_op()
            self._write(PutIntent(Intent(token, ASSIGN, now, eni_id=eni.id, count=count)))
            self._send(do.AssignAddresses(op, eni.id, count), eni, count, token)
        return deficit

    def _add_enis(self, deficit: int, now: float) -> None:
        capacity = self.limits.secondary_per_eni
        while deficit > 0 and capacity > 0 and self.eni_slots() > 0:
            subnet_id = self.open_subnet(now)
            if subnet_id is None:
                return
            count = self.portion(subnet_id, min(deficit, capacity))
            token = self._new_token()
            eni = Eni(token, EniState.CREATING, self.free_index(), capacity, subnet_id)
            eni.token, eni.pending = token, count
            eni.busy = self._next_op()
            self.inventory.add_eni(eni)
            self._write(PutIntent(Intent(token, CREATE, now, subnet_id=subnet_id, count=count)))
            self._send(do.CreateEni(eni.busy, token, subnet_id, count), eni, count)
            deficit -= capacity

    # Refusing

    def _refuse(self, now: float) -> None:
        """Answer everybody whose time is up, or for whom nothing can come in time."""
        if not self.waiting:
            return
        position, supply = 0, outlook.Supply(self, now)
        for waiting in list(self.waiting.values()):
            refusal = None
            if self.draining:
                refusal = Refusal(Reason.DRAINING, "the daemon is stopping; ask again once it is back", 1.0)
            elif waiting.deadline <= now:
                refusal = outlook.why_late(self, waiting, now)
            elif self.started and supply.until(waiting.deadline) <= position:
                refusal = outlook.why(self, now)
            if refusal is None:
                position += 1
                continue
            del self.waiting[waiting.request]
            self._effects.append(do.Refuse(waiting.request, refusal))

    def _wish_to_wake(self, now: float) -> None:
        times = [eni.retry_at for eni in self.inventory.enis.values() if eni.retry_at > now]
        times += [waiting.deadline for waiting in self.waiting.values()]
        if self._grow_at is not None:
            times.append(self._grow_at)
        if self.inventory.cooling:
            times.append(next(iter(self.inventory.cooling.values())) + self.targets.cooldown)
        if self._excess is not None:
            times.append(self._excess.since + self.targets.release_delay)
        end = self.backoffs.next_end(now)
        if end is not None:
            times.append(end)
        at = min(times, default=None)
        if at != self._wake_at:
            self._wake_at = at
            self._effects.append(do.Wake(at))
