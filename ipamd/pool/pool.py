"""The pool: every decision about addresses and ENIs, as one state machine.

Events go in, effects come out, and nothing else happens: `handle(event, now)` reads no clock and does no I/O, so
the same object runs in the daemon, under Hypothesis and in a simulator in virtual time.

    an address    free -> assigned -> cooling -> free
    an ENI        see life/states.py

After each event the pool settles: free addresses go to the longest waits, those that have cooled are made ready
for others (reuse.py), the deficit is met (growth.py), requests that nothing can serve are refused (outlook.py, and
wish.py for those that ask for one address), what has long been idle is given back (shrink.py), ENIs take their next
step, and now and then all of it is compared with EC2 and the kernel (audit.py).

    free      assignable now; a cooling address is not free
    pending   asked from EC2, not yet here
    headroom  warm_ips, or warm_enis x addresses per ENI
    deficit   max(waiting + headroom - free - pending - coming back, minimum_ips - total - pending), at least 0,
              and cut so that total + pending never exceeds pool.max_pods + cooling, nor what there is room for
              (slots.py); a call that is made for it asks for slack / 2 more
    excess    min(free - headroom - slack, total - minimum_ips), given back only after it lasted release_delay

Giving back starts with a fresh read of the ENI and ends as soon as an address is wanted again: what is on its way out
is taken back, until the call that removes it was sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import assert_never

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool import outlook, shrink, wish
from ipamd.pool.audit import Audits
from ipamd.pool.eni import Address
from ipamd.pool.life.states import Draining
from ipamd.pool.model import (
    Attachment,
    AttachmentKey,
    DropDrained,
    Limits,
    Owner,
    PutDrained,
    PutOwn,
    Reason,
    Refusal,
    Targets,
)
from ipamd.pool.queue import Waiting
from ipamd.pool.restart import restore
from ipamd.pool.state import Setup

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


class Pool(Audits):
    """The arguments are those of `Setup`."""

    def __init__(
        self,
        targets: Targets,
        limits: Limits,
        subnets: tuple[str, ...],
        random: Random,
        new_token: Callable[[], str],
    ) -> None:
        super().__init__(Setup(targets, limits, subnets, random, new_token))
        self._wake_at: float | None = None
        self._excess: _Excess | None = None

    def handle(self, event: on.Event, now: float) -> do.Turn:
        """Take notice of one event; returns the records to commit, and the effects to carry out after that."""
        if isinstance(event, on.PodRouteSeen):
            self._note_route(event)
            if not self._route_matters(event):
                return do.Turn()
        self._recount()
        match event:
            case on.Started():
                restored = restore(self, event, now)
                self._records += restored.records
                self._effects += restored.then
                self._answer_restored()
                self._judge_all(now)
                self._aim()
                self._begin_rounds(now)
            case on.AllocationRequested():
                self._request(event, now)
            case on.AllocationCancelled():
                self.queue.leave(event.request)
            case on.ReleaseRequested():
                self._release_requested(event, now)
            case on.CollectRequested():
                self._collect(event, now)
            case on.GrantsUnrecorded():
                self._take_back(event, now)
            case on.DeviceGone() | on.UseSeen() | on.UsesRead() | on.PodRouteSeen() | on.Inspected():
                self._hear_of_kernel(event, now)
            case on.TargetsChanged() | on.StopRequested() | on.NodeDrained() | on.NodeUndrained():
                self._follow(event, now)
            case on.TimePassed():
                self._wake_at = None
            case _:
                self._hear(event, now)
        self._settle(now)
        records, self._records = self._records, []
        effects, self._effects = self._effects, []
        return do.Turn(tuple(records), tuple(effects))

    def _hear_of_kernel(self, event: on.Sighted, now: float) -> None:
        match event:
            case on.DeviceGone():
                self._device_gone(event, now)
            case on.UseSeen():
                self._use_seen(event, now)
            case on.UsesRead():
                self._uses_read(event, now)
            case on.PodRouteSeen():
                self._judge(self.inventory.addresses[event.ip], now)
            case on.Inspected():
                self._inspected(event, now)
            case _:
                assert_never(event)

    def _follow(self, order: on.Order, now: float) -> None:
        match order:
            case on.TargetsChanged():
                self.configured = order.targets
                self._aim()
            case on.StopRequested():
                self.stopping = True
            case on.NodeDrained():
                if self.drained is None:
                    self._drain(now, now)
            case on.NodeUndrained():
                if self.drained is not None:
                    self._drain(None, now)
            case _:
                assert_never(order)

    def _hear(self, outcome: on.Outcome, now: float) -> None:
        match self._unbound.pop(outcome.op, None):
            case do.DescribeSubnets() as effect:
                self._subnets_read(effect, outcome, now)
            case do.Audit():
                self._audited(outcome, now)
            case do.SeekAttachments():
                self._sought(outcome, now)
            case do.ForgetFlows() as effect:
                self._flows_forgotten(effect, outcome, now)
            case _:
                self._learn(outcome, now)

    # Requests

    def _request(self, event: on.AllocationRequested, now: float) -> None:
        deadline = min(event.deadline, now + self.targets.allocate_wait)
        waiting = Waiting(event.request, event.key, event.owner, now, deadline, event.wanted, event.blocks_releases)
        held = self.inventory.attachments.get(event.key)
        if held is not None:
            self._answer(waiting, held)
        else:
            self.queue.join(waiting)

    def _answer(self, waiting: Waiting, held: Attachment) -> None:
        """The attachment has an address: this one or none, if it asks for one."""
        if waiting.wanted in ("", held.address):
            self._effects.append(do.Grant(waiting.request, held))
        else:
            self._effects.append(do.Refuse(waiting.request, wish.has_another(waiting.wanted, held)))

    def _answer_all(self, held: Attachment) -> None:
        """All that wait for this attachment, which has an address now."""
        for waiting in self.queue.leave_together(held.key):
            self._answer(waiting, held)

    def _answer_restored(self) -> None:
        for waiting in list(self.waiting.values()):
            held = self.inventory.attachments.get(waiting.key)
            if held is not None:
                self._answer_all(held)

    @property
    def _closed(self) -> bool:
        """Nothing new is granted."""
        return self.stopping or self.drained is not None

    def _drain(self, since: float | None, now: float) -> None:
        self.drained = since
        self._aim()
        self._excess = None  # it was measured by other targets
        self._write(DropDrained() if since is None else PutDrained(since))
        counts = self.counts()
        self._note("node.undrained" if since is None else "node.drained", "info", assigned=counts.assigned)

    @property
    def shrink_at(self) -> float | None:
        """When the excess will have lasted, if there is one."""
        return None if self._excess is None else self._excess.since + self.targets.release_delay

    def _release_requested(self, event: on.ReleaseRequested, now: float) -> None:
        held = self.inventory.attachments.get(event.key)
        if held is None and event.recovered_as is not None:
            held = self.inventory.attachments.get(event.recovered_as)
        if held is not None:
            self._release(held, now, event.key)
        # Its ADD was given up: an address that came for it now would be nobody's.
        for waiting in self.queue.of(event.key):
            refusal = Refusal(Reason.RELEASED, "the attachment was released while it waited for an address")
            self._send_away(waiting, refusal)
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

    def _take_back(self, event: on.GrantsUnrecorded, now: float) -> None:
        for grant in event.grants:
            attachment = grant.attachment
            if self.inventory.attachments.get(attachment.key) == attachment:
                address = self.inventory.addresses.get(attachment.address)
                if address is not None and address.last_key == attachment.key:
                    self._release(attachment, now)  # perhaps it cooled: it was free for nobody else
                elif (address := self.inventory.unassign(attachment)) is not None:
                    self.inventory.free_again(address, now)
            self._effects.append(do.Refuse(grant.request, outlook.unwritable(event.message)))

    # Settling

    def _settle(self, now: float) -> None:
        active = self.started and not self.stopping
        self._end_cooldowns(now)
        if active:
            self._take_back_leaving(now)
        self._serve(now)
        if active:
            self._forget_flows(now)
        self._tell_found_used(now)
        if active:
            self._grow(now)
        self._refuse(now)
        if active:
            self._shrink(now)
            self._drive(now)
            self._make_rounds(now)
        else:
            self._grow_at = self._excess = None
        for eni in self.inventory.altered.values():
            self._write(PutOwn(eni.own()))
        self.inventory.altered.clear()
        self._wish_to_wake(now)
        self._recount()

    # Serving

    def _serve(self, now: float) -> None:
        if self._closed:
            return
        wished = self.queue.wished
        for waiting in list(self.waiting.values()):
            if len(self.inventory.attachments) >= self.pod_limit:
                return
            if waiting.request not in self.waiting:
                continue  # its attachment was asked for twice
            wanted, key = waiting.wanted, waiting.key
            address = wish.find(self, wanted, key) if wanted else self.inventory.take(wished)
            if address is not None:
                self._answer_all(self._assign(address, key, waiting.owner, now))
                self._recount()
            elif not wished:
                return  # nor is there one for the others

    def _assign(self, address: Address, key: AttachmentKey, owner: Owner, now: float) -> Attachment:
        """`address` is free, or cools and was the attachment's own."""
        held = Attachment(key, address.ip, address.eni.id, now, owner)
        self._hold(address, held, now)
        return held

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
            self.inventory.leave_all(eni, now)
            eni.become(Draining(), now)
            eni.retry_at = now
        for eni, count in parts:
            self.inventory.leave(eni, count, now)
        self._recount()

    # Refusing

    def _refuse(self, now: float) -> None:
        """Answer the requests whose time is up, or that nothing can serve in time; so the queue is bounded by what
        can come."""
        if self._closed:
            refusal = Refusal(Reason.DRAINING, "the daemon is stopping; ask again once it is back", 1.0)
            for waiting in list(self.waiting.values()):
                self._send_away(waiting, refusal if self.stopping else outlook.drained())
        while (due := self.queue.next_due()) is not None and due.deadline <= now:
            self._send_away(due, outlook.why_late(self, due, self._slowest(now), now))
        if self.waiting and self.started:
            self._refuse_wishes(now)
            self._refuse_hopeless(now)

    def _refuse_wishes(self, now: float) -> None:
        for waiting in list(self.queue.wishes()) if self.queue.wished else ():
            refusal = outlook.why_never(self, waiting, now)
            if refusal is not None:
                self._send_away(waiting, refusal)

    def _refuse_hopeless(self, now: float) -> None:
        supply = outlook.Supply(self, now)
        if supply.at_least >= len(self.waiting):
            return
        hoped_for = min(supply.room, self.capacity_alone - len(self.inventory.attachments))
        looking = hoped_for > 0 and self._look_who_holds_slots(now)
        line = outlook.Line()
        for waiting in list(self.waiting.values()):
            if waiting.wanted or supply.for_one(waiting, hoped_for if looking else 0, line.ends) > line.before:
                line.let_in(waiting, self, now)
            else:
                self._send_away(waiting, outlook.why_nothing(self, waiting, line.before, now))

    def _send_away(self, waiting: Waiting, refusal: Refusal) -> None:
        self.queue.leave(waiting.request)
        self._recount()
        self._effects.append(do.Refuse(waiting.request, refusal))

    def _wish_to_wake(self, now: float) -> None:
        enis = self.inventory.enis.values()
        times = [at for eni in enis for at in (eni.retry_at, eni.modify_at) if at > now]
        due = self.queue.next_due()
        if due is not None:
            times.append(due.deadline)
        if self._grow_at is not None:
            times.append(self._grow_at)
        if self.started and not self.stopping:
            times += self._round_times(now) + self._reuse_times(now)
        if (shrink_at := self.shrink_at) is not None:
            times.append(shrink_at)
        end = self.backoffs.next_end(now)
        if end is not None:
            times.append(end)
        at = min(times, default=None)
        if at != self._wake_at:
            self._wake_at = at
            self._effects.append(do.Wake(at))
