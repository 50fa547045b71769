"""The pool: every decision about addresses and ENIs, as one state machine.

Events go in, effects come out, and nothing else happens: `handle(event, now)` reads no clock and does no I/O, so
the same object runs in the daemon, under Hypothesis and in a simulator in virtual time.

    an address    free -> assigned -> cooling -> free
    an ENI        creating -> attaching -> configuring -> ready
                  a failed attach: -> deleting -> gone

After each event the pool settles: cooled addresses become free, free ones go to whoever waits longest, ENIs take
their next step, the deficit is met, and requests that nothing can serve are refused.

    free      assignable now; a cooling address is not free
    pending   asked from EC2, not yet here
    headroom  warm_ips
    deficit   max(waiting + headroom - free - pending, minimum_ips - total - pending), at least 0, and cut so that
              total + pending never exceeds max_pods + cooling nor what the instance type allows
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool import outlook
from ipamd.pool.backoff import NEW_ENI, POLICIES, action_scope, eni_scope, scope_of, subnet_scope
from ipamd.pool.inventory import Eni
from ipamd.pool.model import (
    Attachment,
    CloudErrorKind,
    CloudFailure,
    Cooling,
    DropAttachment,
    DropCooling,
    DropIntent,
    EniState,
    Intent,
    Limits,
    PutAttachment,
    PutCooling,
    PutIntent,
    Reason,
    Record,
    Refusal,
    Targets,
)
from ipamd.pool.restart import restore
from ipamd.pool.state import ARRIVING, ASSIGN, ATTACH, CREATE, State, Waiting, attach_intent, attach_token

# Attachments younger than this survive a collection: their ADD may have overtaken the runtime's list (CNI
# SPEC.md, "GC").
COLLECT_MINIMUM_AGE = 60.0

# After a creation of unknown outcome the same ClientToken is sent again until EC2 shows the ENI or refuses it for a
# cause that it checks only for a token it has not seen. These causes it checks for any call.
SAYS_NOTHING_OF_EARLIER_TRIES = (
    CloudErrorKind.UNKNOWN_OUTCOME,
    CloudErrorKind.TRANSIENT,
    CloudErrorKind.THROTTLED,
    CloudErrorKind.NOT_AUTHORIZED,
    CloudErrorKind.UNRECORDED,
)

# What an attachment's failure says of its ENI: nothing, so it is tried again; or that EC2 and we disagree about it,
# so it is read first. Any other cause means that the ENI is of no use here.
ATTACH_AGAIN = (CloudErrorKind.TRANSIENT, CloudErrorKind.THROTTLED, CloudErrorKind.UNRECORDED)
ATTACH_DOUBTFUL = (CloudErrorKind.UNKNOWN_OUTCOME, CloudErrorKind.INCORRECT_STATE, CloudErrorKind.NOT_FOUND)

# EC2 is eventually consistent: for so many seconds a new ENI may be unknown to it without being gone ("Ensuring
# idempotency" and "Eventual consistency" in the Amazon EC2 Developer Guide).
APPEARS_WITHIN = 60.0

# After these we don't know which addresses the ENI has: it is read before any is asked for again.
ASSIGN_DOUBTFUL = (CloudErrorKind.UNKNOWN_OUTCOME, CloudErrorKind.ENI_ADDRESS_LIMIT, CloudErrorKind.NOT_FOUND)

# How long an ENI whose link could not be set up is left before the next try, in seconds; doubled each time.
LINK_RETRY, LINK_RETRY_CAP = 5.0, 60.0


@dataclass(slots=True)
class _Operation:
    effect: do.Operation
    eni: Eni
    count: int = 0
    token: str = ""


class Pool(State):
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
        self._operations: dict[int, _Operation] = {}
        self._last_op = 0
        self._grow_at: float | None = None
        self._wake_at: float | None = None
        self._effects: list[do.Effect] = []

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
            case on.EniCreated():
                self._eni_created(event, now)
            case on.EniAttached():
                self._eni_attached(event)
            case on.EniObserved():
                self._eni_observed(event, now)
            case on.LinkReady():
                self._link_ready(event, now)
            case on.LinkFailed():
                self._link_failed(event, now)
            case on.AddressesAssigned():
                self._addresses_assigned(event, now)
            case on.OperationDone():
                self._operation_done(event)
            case on.OperationFailed():
                self._operation_failed(event, now)
            case on.TargetsChanged():
                self.targets = event.targets
            case on.DrainRequested():
                self.draining = True
            case on.TimePassed():
                self._wake_at = None
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

    # Outcomes

    def _eni_created(self, event: on.EniCreated, now: float) -> None:
        operation = self._operations.pop(event.op)
        eni, created = operation.eni, event.eni
        self._write(DropIntent(eni.token))
        self.backoffs.succeeded(action_scope(CREATE), NEW_ENI, subnet_scope(eni.subnet_id))
        self.ask_for_more(eni.subnet_id)
        known = self.inventory.enis.get(created.id)
        if known is not None and known.state is not EniState.DELETING:
            # A repeated ClientToken: the ENI had come through before a restart and is served already.
            self.inventory.remove_eni(eni)
            return
        if known is not None:
            self.inventory.remove_eni(known)
        self.inventory.name_eni(eni, created.id)
        eni.state, eni.busy, eni.pending, eni.unsure = EniState.ATTACHING, 0, 0, False
        eni.mac, eni.primary_ip, eni.created_at = created.mac, created.primary_ip, now
        for ip in created.addresses:
            self.inventory.add_free(ip, eni, now)
        self._write(PutIntent(attach_intent(eni, now)))
        self._note("eni.created", "info", eni=eni.id, addresses=len(created.addresses), subnet=eni.subnet_id)

    def _eni_attached(self, event: on.EniAttached) -> None:
        self._attached(self._operations.pop(event.op).eni, event.attachment_id)

    def _attached(self, eni: Eni, attachment_id: str) -> None:
        self._write(DropIntent(attach_token(eni.id)))
        self.backoffs.succeeded(action_scope(ATTACH), NEW_ENI)
        eni.state, eni.busy, eni.unsure = EniState.CONFIGURING, 0, False
        eni.attachment_id = attachment_id
        eni.keep_on_termination = True
        self._note("eni.attached", "info", eni=eni.id, device_index=eni.device_index)

    def _eni_observed(self, event: on.EniObserved, now: float) -> None:
        eni, observed = self._operations.pop(event.op).eni, event.eni
        eni.busy, eni.unsure = 0, False
        self.backoffs.succeeded(action_scope(do.DescribeEni.action))
        if observed is None and eni.state is EniState.ATTACHING and now < eni.created_at + APPEARS_WITHIN:
            eni.unsure, eni.retry_at = True, now + max(1.0, (now - eni.created_at) / 2)
        elif observed is None or not (observed.owned or observed.primary):
            self._note("eni.gone", "warning", eni=eni.id, state=eni.state.value)
            self._write(DropIntent(attach_token(eni.id)))
            self._forget(eni)
        elif eni.state in (EniState.ATTACHING, EniState.DELETING) and observed.device_index is not None:
            eni.device_index = observed.device_index
            self._attached(eni, observed.attachment_id)
        elif eni.state is EniState.CONFIGURING and observed.device_index is None:
            # Somebody detached it. It is ours, and pods may hold its addresses: take it back.
            eni.state, eni.attachment_id, eni.keep_on_termination = EniState.ATTACHING, "", False
            self._write(PutIntent(attach_intent(eni, now)))
        elif eni.state is EniState.READY:
            for ip in observed.addresses:
                if ip not in self.inventory.addresses:
                    self.inventory.add_free(ip, eni, now)

    def _link_ready(self, event: on.LinkReady, now: float) -> None:
        eni = self._operations.pop(event.op).eni
        eni.state, eni.busy, eni.unfulfilled, eni.link_failures = EniState.READY, 0, False, 0
        eni.link = event.link
        self._note("eni.ready", "info", eni=eni.id, link=event.link, addresses=eni.held)

    def _link_failed(self, event: on.LinkFailed, now: float) -> None:
        eni = self._operations.pop(event.op).eni
        pause = min(LINK_RETRY * 2**eni.link_failures, LINK_RETRY_CAP)
        eni.link_failures = min(eni.link_failures + 1, 10)
        # Perhaps it has no link because it is no longer attached.
        eni.busy, eni.unfulfilled, eni.unsure, eni.retry_at = 0, True, True, now + pause
        self._note("eni.link_failed", "error", eni=eni.id, mac=eni.mac, error=event.message)

    def _addresses_assigned(self, event: on.AddressesAssigned, now: float) -> None:
        operation = self._operations.pop(event.op)
        eni = operation.eni
        eni.pending -= operation.count
        self._write(DropIntent(operation.token))
        self.backoffs.succeeded(action_scope(ASSIGN), subnet_scope(eni.subnet_id), eni_scope(eni.id))
        self.ask_for_more(eni.subnet_id)
        for ip in event.addresses:
            if ip not in self.inventory.addresses:
                self.inventory.add_free(ip, eni, now)
        self._note("addresses.assigned", "info", eni=eni.id, addresses=len(event.addresses))

    def _operation_done(self, event: on.OperationDone) -> None:
        operation = self._operations.pop(event.op)
        eni = operation.eni
        match operation.effect:
            case do.SetDeleteOnTermination():
                eni.modifying, eni.keep_on_termination = 0, False
            case do.DeleteEni():
                self._deleted(eni)

    def _deleted(self, eni: Eni) -> None:
        self._forget(eni)
        self._note("eni.deleted", "info", eni=eni.id)

    def _forget(self, eni: Eni) -> None:
        """EC2 has it no more."""
        for ip in self.inventory.remove_eni(eni):
            self._write(DropCooling(ip))
        self.backoffs.succeeded(eni_scope(eni.id))

    def _operation_failed(self, event: on.OperationFailed, now: float) -> None:
        operation, failure = self._operations.pop(event.op), event.failure
        eni, kind = operation.eni, failure.kind
        if isinstance(operation.effect, do.DeleteEni) and kind is CloudErrorKind.NOT_FOUND:
            self._deleted(eni)
            return
        if kind is CloudErrorKind.SUBNET_FULL and self.ask_for_less(eni.subnet_id, operation.count):
            self._note("subnet.low", "warning", subnet=eni.subnet_id, asked=operation.count)
            retry_at = now
        else:
            retry_at = self._back_off(eni, failure, now)
        match operation.effect:
            case do.AssignAddresses():
                eni.pending -= operation.count
                self._write(DropIntent(operation.token))
                if kind in ASSIGN_DOUBTFUL:
                    eni.unsure = True
            case do.CreateEni():
                eni.busy, eni.retry_at = 0, retry_at
                eni.unsure = eni.unsure or kind is CloudErrorKind.UNKNOWN_OUTCOME
                if not eni.unsure or kind not in SAYS_NOTHING_OF_EARLIER_TRIES:
                    self._write(DropIntent(eni.token))
                    self.inventory.remove_eni(eni)
            case do.AttachEni():
                eni.busy, eni.retry_at = 0, retry_at
                if kind in ATTACH_DOUBTFUL:
                    eni.unsure = True
                    if kind is CloudErrorKind.INCORRECT_STATE:
                        eni.device_index = self.other_index(eni)
                        self._write(PutIntent(attach_intent(eni, now)))
                elif kind not in ATTACH_AGAIN:
                    eni.state, eni.retry_at = EniState.DELETING, now
                    self._write(DropIntent(attach_token(eni.id)))
            case do.SetDeleteOnTermination():
                eni.modifying, eni.retry_at = 0, retry_at
            case do.DeleteEni():
                # Attached after all: its attachment was not to be seen yet when this process started.
                eni.busy, eni.retry_at = 0, retry_at
                eni.unsure = kind is CloudErrorKind.INCORRECT_STATE
            case do.ConfigureLink():
                eni.busy, eni.retry_at = 0, retry_at
                eni.unfulfilled = POLICIES[kind].lasting
            case _:
                eni.busy, eni.retry_at = 0, retry_at

    def _back_off(self, eni: Eni, failure: CloudFailure, now: float) -> float:
        scope = scope_of(failure, subnet_id=eni.subnet_id, eni_id="" if eni.id == eni.token else eni.id)
        backoff = self.backoffs.failed(scope, failure, now)
        self._note(
            "ec2.failed",
            "error" if backoff.policy.lasting else "warning",
            action=failure.action,
            code=failure.code,
            kind=failure.kind.value,
            scope=scope,
            error=failure.message,
            retry_in=round(backoff.until - now, 1),
        )
        return backoff.until

    # Settling

    def _settle(self, now: float) -> None:
        self._expire_cooling(now)
        self._serve(now)
        if self.draining:
            self._grow_at = None
        elif self.started:
            self._drive(now)
            self._grow(now)
        self._refuse(now)
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
            if eni.keep_on_termination and eni.attachment_id and not eni.modifying:
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
                case EniState.ATTACHING:
                    self._send(do.AttachEni(op, eni.id, eni.device_index), eni)
                case EniState.CONFIGURING:
                    self._send(
                        do.ConfigureLink(
                            op, eni.id, eni.mac, eni.device_index, eni.primary, eni.primary_ip, eni.subnet_id
                        ),
                        eni,
                    )
                case EniState.DELETING if not self._creation_pending():
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

    # Small parts

    def _wish_to_wake(self, now: float) -> None:
        times = [eni.retry_at for eni in self.inventory.enis.values() if eni.retry_at > now]
        times += [waiting.deadline for waiting in self.waiting.values()]
        if self._grow_at is not None:
            times.append(self._grow_at)
        if self.inventory.cooling:
            times.append(next(iter(self.inventory.cooling.values())) + self.targets.cooldown)
        end = self.backoffs.next_end(now)
        if end is not None:
            times.append(end)
        at = min(times, default=None)
        if at != self._wake_at:
            self._wake_at = at
            self._effects.append(do.Wake(at))

    def _next_op(self) -> int:
        self._last_op += 1
        return self._last_op

    def _send(self, effect: do.Operation, eni: Eni, count: int = 0, token: str = "") -> None:
        self._operations[effect.op] = _Operation(effect, eni, count, token)
        self._effects.append(effect)

    def _write(self, record: Record) -> None:
        self._effects.append(do.Write(record))

    def _note(self, event: str, level: str, **fields: str | int | float) -> None:
        self._effects.append(do.Note(event, level, tuple(fields.items())))
