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

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.backoff import NEW_ENI, Backoff, Backoffs, action_scope, eni_scope, scope_of, subnet_scope
from ipamd.pool.inventory import Eni, Inventory
from ipamd.pool.model import (
    Attachment,
    AttachmentKey,
    CloudErrorKind,
    Cooling,
    Counts,
    DropAttachment,
    DropCooling,
    DropIntent,
    EniState,
    Intent,
    Limits,
    ObservedEni,
    Owner,
    PutAttachment,
    PutCooling,
    PutIntent,
    Reason,
    Record,
    Refusal,
    Targets,
)

# EC2's names of the calls, as intents and back-offs show them.
CREATE, ATTACH, ASSIGN = "CreateNetworkInterface", "AttachNetworkInterface", "AssignPrivateIpAddresses"

# An ENI in one of these states will bring its addresses soon.
ARRIVING = (EniState.CREATING, EniState.ATTACHING, EniState.CONFIGURING)

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
)

# How long an ENI whose link did not come is left before its set-up is tried again, in seconds.
LINK_RETRY = 5.0


@dataclass(slots=True)
class Waiting:
    request: str
    key: AttachmentKey
    owner: Owner
    since: float
    deadline: float


@dataclass(slots=True)
class _Operation:
    effect: do.Operation
    eni: Eni
    count: int = 0
    token: str = ""


class Pool:
    """`subnets` are the subnets for new ENIs in order of preference; `new_token` makes ClientTokens."""

    def __init__(
        self,
        targets: Targets,
        limits: Limits,
        subnets: tuple[str, ...],
        random: Random,
        new_token: Callable[[], str],
    ) -> None:
        self.targets = targets
        self.limits = limits
        self.inventory = Inventory()
        self.waiting: dict[str, Waiting] = {}
        self.backoffs = Backoffs(random)
        self.started = False
        self.draining = False
        self._subnets = subnets
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
                self._start(event, now)
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

    # What others may look at

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
        return min(self.targets.max_pods or self.limits.max_pods, self.limits.max_pods)

    def unready_reason(self, now: float) -> Refusal | None:
        """Why an allocation that came now could not be served; None when it could, at once or after a wait."""
        if not self.started:
            return Refusal(Reason.NOT_READY, "the daemon has not learnt its ENIs yet", 1.0)
        if self.draining:
            return Refusal(Reason.DRAINING, "the daemon is stopping", 1.0)
        if self.counts().free or self._supply(now, now + self.targets.allocate_wait) > len(self.waiting):
            return None
        return self._why(now)

    # Start

    def _start(self, event: on.Started, now: float) -> None:
        self.started = True
        attachments = {a.address: a for a in event.attachments}
        cooling = {c.address: c for c in event.cooling}
        attaching = {i.eni_id: i for i in event.intents if i.action == ATTACH}
        creating = [i for i in event.intents if i.action == CREATE]
        for intent in event.intents:
            if intent.action != CREATE:
                self._write(DropIntent(intent.token))
        for observed in event.enis:
            if observed.device_index is not None:
                eni = self._adopt_attached(observed)
            elif observed.owned and observed.id in attaching:
                index = attaching[observed.id].device_index
                eni = self._adopt(observed, EniState.ATTACHING, self._free_index() if index is None else index)
                self._write(PutIntent(self._attach_intent(eni, now)))
            elif observed.owned:
                # Created but never attached, and nobody remembers why: undo. A creation that is still on record
                # below gets its ENI back by its token, which cancels this.
                eni = self._adopt(observed, EniState.DELETING, -1)
            else:
                continue
            if eni.state is not EniState.FOREIGN:
                self._restore_addresses(eni, observed.addresses, attachments, cooling, dict(event.routed), now)
        for intent in creating:
            eni = Eni(
                intent.token, EniState.CREATING, self._free_index(), self.limits.secondary_per_eni, intent.subnet_id
            )
            eni.token, eni.pending, eni.unsure = intent.token, intent.count, True
            self.inventory.add_eni(eni)
        for attachment in event.attachments:
            if attachment.key not in self.inventory.attachments:
                self.inventory.add_stranded(attachment)
                self._note("attachment.address_missing", "warning", ip=attachment.address, key=str(attachment.key))
        for address in cooling:
            if address not in self.inventory.cooling:
                self._write(DropCooling(address))

    def _adopt_attached(self, observed: ObservedEni) -> Eni:
        ours = observed.owned or observed.primary
        assert observed.device_index is not None
        state = EniState.CONFIGURING if ours else EniState.FOREIGN
        eni = self._adopt(observed, state, observed.device_index)
        eni.primary = observed.primary
        eni.keep_on_termination = ours and not observed.primary and not observed.delete_on_termination
        return eni

    def _adopt(self, observed: ObservedEni, state: EniState, device_index: int) -> Eni:
        eni = Eni(observed.id, state, device_index, self.limits.secondary_per_eni, observed.subnet_id)
        eni.mac, eni.primary_ip, eni.attachment_id = observed.mac, observed.primary_ip, observed.attachment_id
        self.inventory.add_eni(eni)
        return eni

    def _restore_addresses(
        self,
        eni: Eni,
        addresses: tuple[str, ...],
        attachments: dict[str, Attachment],
        cooling: dict[str, Cooling],
        routed: dict[str, str],
        now: float,
    ) -> None:
        for ip in addresses:
            if ip in attachments:
                self.inventory.add_assigned(attachments[ip], eni)
            elif ip in routed:
                # The ledger was lost, the pod was not: keep the address for whoever has it. Its DEL will name
                # the same host interface.
                key = AttachmentKey("", routed[ip], "")
                attachment = Attachment(key, ip, eni.id, now)
                self._write(PutAttachment(attachment))
                self.inventory.add_assigned(attachment, eni)
                self._note("attachment.recovered", "warning", ip=ip, link=routed[ip])
            elif ip in cooling and cooling[ip].released_at + self.targets.cooldown > now:
                self.inventory.add_cooling(ip, eni, cooling[ip].released_at)
            else:
                self.inventory.add_free(ip, eni, now)
        # Restored out of order: expiry relies on the order of release.
        self.inventory.cooling = dict(sorted(self.inventory.cooling.items(), key=lambda item: item[1]))

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
        known = self.inventory.enis.get(created.id)
        if known is not None and known.state is not EniState.DELETING:
            # A repeated ClientToken: the ENI had come through before a restart and is served already.
            self.inventory.remove_eni(eni)
            return
        if known is not None:
            self.inventory.remove_eni(known)
        self.inventory.name_eni(eni, created.id)
        eni.state, eni.busy, eni.pending, eni.unsure = EniState.ATTACHING, 0, 0, False
        eni.mac, eni.primary_ip = created.mac, created.primary_ip
        for ip in created.addresses:
            self.inventory.add_free(ip, eni, now)
        self._write(PutIntent(self._attach_intent(eni, now)))
        self._note("eni.created", "info", eni=eni.id, addresses=len(created.addresses), subnet=eni.subnet_id)

    def _eni_attached(self, event: on.EniAttached) -> None:
        self._attached(self._operations.pop(event.op).eni, event.attachment_id)

    def _attached(self, eni: Eni, attachment_id: str) -> None:
        self._write(DropIntent(_attach_token(eni)))
        self.backoffs.succeeded(action_scope(ATTACH), NEW_ENI)
        eni.state, eni.busy, eni.unsure = EniState.CONFIGURING, 0, False
        eni.attachment_id = attachment_id
        eni.keep_on_termination = True
        self._note("eni.attached", "info", eni=eni.id, device_index=eni.device_index)

    def _eni_observed(self, event: on.EniObserved, now: float) -> None:
        eni, observed = self._operations.pop(event.op).eni, event.eni
        eni.busy, eni.unsure = 0, False
        self.backoffs.succeeded(action_scope("DescribeNetworkInterfaces"))
        if observed is None:
            self._note("eni.gone", "warning", eni=eni.id, state=eni.state.value)
            self._write(DropIntent(_attach_token(eni)))
            self.inventory.remove_eni(eni)
        elif eni.state is EniState.ATTACHING:
            if observed.device_index is not None:
                eni.device_index = observed.device_index
                self._attached(eni, observed.attachment_id)
        elif eni.state is EniState.READY:
            for ip in observed.addresses:
                if ip not in self.inventory.addresses:
                    self.inventory.add_free(ip, eni, now)

    def _link_ready(self, event: on.LinkReady, now: float) -> None:
        eni = self._operations.pop(event.op).eni
        eni.state, eni.busy, eni.unfulfilled = EniState.READY, 0, False
        eni.link = event.link
        self._note("eni.ready", "info", eni=eni.id, link=event.link, addresses=eni.held)

    def _link_failed(self, event: on.LinkFailed, now: float) -> None:
        eni = self._operations.pop(event.op).eni
        eni.busy, eni.unfulfilled, eni.retry_at = 0, True, now + LINK_RETRY
        self._note("eni.link_failed", "error", eni=eni.id, mac=eni.mac, error=event.message)

    def _addresses_assigned(self, event: on.AddressesAssigned, now: float) -> None:
        operation = self._operations.pop(event.op)
        eni = operation.eni
        eni.pending -= operation.count
        self._write(DropIntent(operation.token))
        self.backoffs.succeeded(action_scope(ASSIGN), subnet_scope(eni.subnet_id), eni_scope(eni.id))
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
        self._write(DropIntent(_attach_token(eni)))
        self.inventory.remove_eni(eni)
        self._note("eni.deleted", "info", eni=eni.id)

    def _operation_failed(self, event: on.OperationFailed, now: float) -> None:
        operation, failure = self._operations.pop(event.op), event.failure
        eni, kind = operation.eni, failure.kind
        if isinstance(operation.effect, do.DeleteEni) and kind is CloudErrorKind.NOT_FOUND:
            self._deleted(eni)
            return
        scope = scope_of(failure, subnet_id=eni.subnet_id, eni_id="" if eni.id == eni.token else eni.id)
        backoff = self.backoffs.failed(scope, failure, now)
        self._note(
            "ec2.failed",
            "error" if backoff.policy.lasting else "warning",
            action=failure.action,
            code=failure.code,
            kind=kind.value,
            scope=scope,
            error=failure.message,
            retry_in=round(backoff.until - now, 1),
        )
        match operation.effect:
            case do.AssignAddresses():
                eni.pending -= operation.count
                self._write(DropIntent(operation.token))
                eni.unsure = kind in (
                    CloudErrorKind.UNKNOWN_OUTCOME,
                    CloudErrorKind.ENI_ADDRESS_LIMIT,
                    CloudErrorKind.NOT_FOUND,
                )
            case do.CreateEni():
                eni.busy, eni.retry_at = 0, backoff.until
                eni.unsure = eni.unsure or kind is CloudErrorKind.UNKNOWN_OUTCOME
                if not eni.unsure or kind not in SAYS_NOTHING_OF_EARLIER_TRIES:
                    self._write(DropIntent(eni.token))
                    self.inventory.remove_eni(eni)
            case do.AttachEni():
                eni.busy, eni.retry_at = 0, backoff.until
                if kind is CloudErrorKind.UNKNOWN_OUTCOME:
                    eni.unsure = True
                elif kind not in (CloudErrorKind.TRANSIENT, CloudErrorKind.THROTTLED, CloudErrorKind.INCORRECT_STATE):
                    eni.state = EniState.DELETING
            case do.SetDeleteOnTermination():
                eni.modifying, eni.retry_at = 0, backoff.until
            case _:
                eni.busy, eni.retry_at = 0, backoff.until

    # Settling

    def _settle(self, now: float) -> None:
        self._expire_cooling(now)
        self._serve(now)
        if self.started and not self.draining:
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
                    self._send(do.CreateEni(op, eni.token, eni.subnet_id, eni.pending), eni)
                case EniState.ATTACHING | EniState.READY if eni.unsure:
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
        deficit = self._deficit()
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

    def _deficit(self) -> int:
        counts, targets = self.counts(), self.targets
        wanted = max(
            counts.waiting + targets.warm_ips - counts.free - counts.pending,
            targets.minimum_ips - counts.total - counts.pending,
        )
        return max(min(wanted, self.max_pods + counts.cooling - counts.total - counts.pending), 0)

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
            backoff = self._assign_backoff(eni, now)
            if backoff is not None and backoff.policy.lasting:
                continue
            deficit -= count
            if eni.state is not EniState.READY or eni.unsure or backoff is not None:
                continue  # its room is worth waiting for: cheaper than another ENI
            token = self._new_token()
            eni.pending += count
            op = self._next_op()
            self._write(PutIntent(Intent(token, ASSIGN, now, eni_id=eni.id, count=count)))
            self._send(do.AssignAddresses(op, eni.id, count), eni, count, token)
        return deficit

    def _add_enis(self, deficit: int, now: float) -> None:
        capacity = self.limits.secondary_per_eni
        while deficit > 0 and capacity > 0 and self._eni_slots() > 0:
            subnet_id = self._open_subnet(now)
            if subnet_id is None:
                return
            count = min(deficit, capacity)
            token = self._new_token()
            eni = Eni(token, EniState.CREATING, self._free_index(), capacity, subnet_id)
            eni.token, eni.pending = token, count
            eni.busy = self._next_op()
            self.inventory.add_eni(eni)
            self._write(PutIntent(Intent(token, CREATE, now, subnet_id=subnet_id, count=count)))
            self._send(do.CreateEni(eni.busy, token, subnet_id, count), eni)
            deficit -= count

    def _assign_backoff(self, eni: Eni, now: float) -> Backoff | None:
        return self.backoffs.active(now, action_scope(ASSIGN), subnet_scope(eni.subnet_id), eni_scope(eni.id))

    def _open_subnet(self, now: float) -> str | None:
        if self.backoffs.active(now, action_scope(CREATE), action_scope(ATTACH), NEW_ENI) is not None:
            return None
        return next((s for s in self._subnets if self.backoffs.active(now, subnet_scope(s)) is None), None)

    def _eni_slots(self) -> int:
        return self.limits.max_enis - sum(eni.state is not EniState.DELETING for eni in self.inventory.enis.values())

    def _free_index(self) -> int:
        taken = {eni.device_index for eni in self.inventory.enis.values()}
        return next(index for index in range(1, len(taken) + 2) if index not in taken)

    # Refusing

    def _refuse(self, now: float) -> None:
        """Answer everybody whose time is up, or for whom nothing can come in time."""
        if not self.waiting:
            return
        position = 0
        for waiting in list(self.waiting.values()):
            refusal = None
            if self.draining:
                refusal = Refusal(Reason.DRAINING, "the daemon is stopping; ask again once it is back", 1.0)
            elif waiting.deadline <= now:
                refusal = self._why_late(waiting, now)
            elif self.started and self._supply(now, waiting.deadline) <= position:
                refusal = self._why(now)
            if refusal is None:
                position += 1
                continue
            del self.waiting[waiting.request]
            self._effects.append(do.Refuse(waiting.request, refusal))

    def _supply(self, now: float, deadline: float) -> int:
        """How many more requests could be served until `deadline`, at most."""
        counts = self.counts()
        cooled = bisect_right(list(self.inventory.cooling.values()), deadline - self.targets.cooldown)
        growable = self._growable(now)
        room = self.max_pods - len(self.inventory.attachments)
        return min(counts.free + counts.pending + cooled + growable, room)

    def _growable(self, now: float) -> int:
        """Addresses that could still be asked for, unless something lasting is in the way."""
        counts = self.counts()
        found = 0
        for eni in self.inventory.enis.values():
            if eni.state is EniState.READY or (eni.state in ARRIVING and not eni.unfulfilled):
                backoff = self._assign_backoff(eni, now)
                if backoff is None or not backoff.policy.lasting:
                    found += eni.room
        if self._creation_blocked(now) is None:
            found += max(self._eni_slots(), 0) * self.limits.secondary_per_eni
        return max(min(found, self.max_pods + counts.cooling - counts.total - counts.pending), 0)

    def _creation_blocked(self, now: float) -> Backoff | None:
        """The lasting back-off that keeps new ENIs from coming."""
        general = self.backoffs.active(now, action_scope(CREATE), action_scope(ATTACH), NEW_ENI)
        if general is not None:
            return general if general.policy.lasting else None
        subnets = [self.backoffs.active(now, subnet_scope(s)) for s in self._subnets]
        full = [b for b in subnets if b is not None]
        return full[0] if full and len(full) == len(subnets) else None

    def _why(self, now: float) -> Refusal:
        """Nothing can come: say what stands in the way, the most useful to know first."""
        counts = self.counts()
        numbers = self._numbers(counts)
        slots = self._eni_slots()
        blocked = self._creation_blocked(now) if slots > 0 else None
        if blocked is None:
            blocked = next(
                (
                    backoff
                    for eni in self.inventory.ready()
                    if eni.room > 0
                    and (backoff := self._assign_backoff(eni, now)) is not None
                    and backoff.policy.lasting
                ),
                None,
            )
        if blocked is not None:
            return self._blocked(blocked, now, numbers)
        if counts.cooling:
            wait = max(next(iter(self.inventory.cooling.values())) + self.targets.cooldown - now, 0.1)
            message = f"all {counts.total} addresses are in use or cooling; the next one is free in {wait:.0f} s"
            return Refusal(Reason.ALL_COOLING, message, wait, numbers)
        if self.max_pods < self.limits.max_pods and len(self.inventory.attachments) >= self.max_pods:
            message = f"{self.max_pods} addresses are in use, as many as pool.max_pods allows"
            return Refusal(Reason.POD_LIMIT, message, self.targets.cooldown or 1.0, numbers)
        message = (
            f"all {counts.total} addresses are in use, and the instance type takes no more: "
            f"{self.limits.max_enis} ENIs with {self.limits.secondary_per_eni} secondary addresses each"
        )
        return Refusal(Reason.ENI_LIMIT, message, self.targets.cooldown or 1.0, numbers)

    def _why_late(self, waiting: Waiting, now: float) -> Refusal:
        numbers = self._numbers(self.counts())
        if not self.started:
            return Refusal(Reason.NOT_READY, "the daemon has not learnt its ENIs yet: see its log", 5.0, numbers)
        worst = max(self.backoffs.all_active(now), key=lambda b: b.attempts, default=None)
        if worst is not None:
            return self._blocked(worst, now, numbers)
        waited = now - waiting.since
        return Refusal(Reason.TIMEOUT, f"no address came within {waited:.0f} s", 1.0, numbers)

    def _blocked(self, backoff: Backoff, now: float, numbers: tuple[tuple[str, int], ...]) -> Refusal:
        failure, reason = backoff.failure, backoff.policy.reason
        message = f"{failure.action}: {failure.code}: {failure.message} ({backoff.scope})"
        return Refusal(reason, message, max(backoff.until - now, 0.1), numbers)

    def _numbers(self, counts: Counts) -> tuple[tuple[str, int], ...]:
        return (
            ("free", counts.free),
            ("assigned", counts.assigned),
            ("cooling", counts.cooling),
            ("pending", counts.pending),
            ("waiting", counts.waiting),
            ("max_pods", self.max_pods),
        )

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

    def _attach_intent(self, eni: Eni, now: float) -> Intent:
        return Intent(_attach_token(eni), ATTACH, now, eni_id=eni.id, device_index=eni.device_index)


def _attach_token(eni: Eni) -> str:
    """AttachNetworkInterface takes no ClientToken; an ENI is attached once, so its id will do."""
    return f"attach {eni.id}"
