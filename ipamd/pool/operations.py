"""What the pool learns from the outcome of each operation that it asked of EC2.

The states of an ENI and the transitions between them stand in life/states.py.

Whenever an outcome shows that EC2 and the pool disagree about an ENI, the ENI is `unsure`: it is read before anything
else is done to it.
"""

from __future__ import annotations

import math

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.backoff import (
    NEW_ENI,
    POLICIES,
    SLOTS,
    Backoff,
    action_scope,
    eni_scope,
    release_scope,
    scope_of,
    subnet_scope,
)
from ipamd.pool.eni import Eni
from ipamd.pool.life.states import Attaching, Configuring, Deleting, Detached, Draining, Ready
from ipamd.pool.links import LINK_RETRY
from ipamd.pool.model import (
    AddressState,
    CloudErrorKind,
    CloudFailure,
    DropCooling,
    DropIntent,
    DropOwn,
    EniState,
    Intent,
    PutIntent,
)
from ipamd.pool.replies import Replies
from ipamd.pool.state import ASSIGN, ATTACH, CREATE, attach_intent, attach_token, release_token
from ipamd.pool.underway import TAKES_EFFECT, Operation

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

# An ENI that takes longer than this to come is not counted on any more, and one that can't be attached for so long is
# given up, in seconds.
ARRIVES_WITHIN, GIVEN_UP_AFTER = 20.0, 300.0

# A detached ENI can be deleted after this many seconds, as a rule; sooner, EC2 calls it in use.
DETACH_TIME = 3.0

_SHARED = CloudFailure(
    CloudErrorKind.IN_USE, do.DetachEni.action, "AddressOfAnother", "an address that is not the pool's is on it"
)


class Operations(Replies):
    def _learn(self, event: on.Outcome, now: float) -> None:
        match event:
            case on.EniCreated():
                self._eni_created(event, now)
            case on.EniAttached():
                self._eni_attached(event, now)
            case on.EniObserved():
                self._eni_observed(event, now)
            case on.LinkReady():
                self._link_ready(event, now)
            case on.LinkFailed():
                self._link_failed(event, now)
            case on.AddressesAssigned():
                self._addresses_assigned(event, now)
            case on.OperationDone():
                self._operation_done(event, now)
            case on.OperationFailed():
                self._operation_failed(event, now)

    def _eni_created(self, event: on.EniCreated, now: float) -> None:
        operation = self._operations.pop(event.op)
        eni, created = operation.eni, event.eni
        self._write(DropIntent(operation.token))
        self.backoffs.succeeded(action_scope(CREATE), NEW_ENI, subnet_scope(eni.subnet_id))
        self.subnets.gave(eni.subnet_id)
        known = self.inventory.enis.get(created.id)
        if known is not None and known.state is not EniState.DELETING:
            # A repeated ClientToken: the ENI had come through before a restart and is served already.
            self.inventory.remove_eni(eni)
            return
        self.inventory.name_eni(eni, created.id)
        eni.become(Attaching(), now)
        eni.busy, eni.pending, eni.unsure = 0, 0, False
        eni.mac, eni.created_at, eni.read_at = created.mac, now, now
        self._own_address(eni, created.primary_ip, now)
        self._take_in(eni, created.addresses, operation, now)
        for address in [] if known is None else list(known.addresses.values()):
            self._lose(address, f"EC2 has taken {address.ip} from {eni.id}", now)
        self._write(PutIntent(attach_intent(eni, now)))
        self._note(
            "eni.created",
            "info",
            eni=eni.id,
            addresses=len(eni.addresses),
            subnet=eni.subnet_id,
            requests=operation.requests,
        )

    def _eni_attached(self, event: on.EniAttached, now: float) -> None:
        self._attached(self._operations.pop(event.op).eni, event.attachment_id, now)

    def _attached(self, eni: Eni, attachment_id: str, now: float) -> None:
        self._write(DropIntent(attach_token(eni.id)))
        self.backoffs.succeeded(action_scope(ATTACH), SLOTS)
        eni.become(Configuring(), now)
        eni.busy, eni.unsure, eni.unfulfilled = 0, False, False
        eni.attachment_id = attachment_id
        self.inventory.stay(eni, now)
        eni.keep_on_termination = True
        self._note("eni.attached", "info", eni=eni.id, device_index=eni.device_index)

    def _eni_observed(self, event: on.EniObserved, now: float) -> None:
        eni = self._operations.pop(event.op).eni
        observed = None if event.eni is None else self._believe(eni, event.eni, now)
        eni.busy, eni.unsure = 0, event.op <= eni.last_op_before_loss
        if eni.unsure:
            return  # it was asked before the interface vanished
        self.backoffs.succeeded(action_scope(do.DescribeEni.action))
        configuring = eni.state is EniState.CONFIGURING and observed is not None and observed.device_index is not None
        if eni.in_limbo and not configuring:
            eni.in_limbo = False
            self._write(DropIntent(release_token(eni.id)))
        if observed is None and (eni.primary or now < eni.created_at + APPEARS_WITHIN):
            eni.unsure, eni.retry_at = True, now + min(max(1.0, (now - eni.created_at) / 2), APPEARS_WITHIN)
            if eni.state is EniState.ATTACHING:
                eni.unfulfilled = now > eni.since + ARRIVES_WITHIN
        elif observed is None or not (observed.owned or observed.primary):
            self._note("eni.gone", "warning", eni=eni.id, state=eni.state.value)
            self._write(DropIntent(attach_token(eni.id)))
            elsewhere = observed is not None and observed.attachment_id
            cause = f"{eni.id} " + ("is attached to another instance" if elsewhere else "does not exist any more")
            for address in [a for a in eni.addresses.values() if a.state is AddressState.ASSIGNED]:
                self._lose(address, cause, now)
            self._forget(eni)
        elif (
            eni.state is EniState.DELETING
            and eni.detached
            and observed.device_index is not None
            and (observed.attachment_status == "detaching" or now < eni.since + APPEARS_WITHIN)
        ):
            eni.retry_at = now + DETACH_TIME
        elif eni.state is EniState.DELETING and observed.device_index is None:
            if eni.detached:
                eni.become(Deleting(), now)  # its slot is free, whatever becomes of it
        elif eni.state in (EniState.ATTACHING, EniState.DELETING) and observed.device_index is not None:
            eni.device_index = observed.device_index
            self._attached(eni, observed.attachment_id, now)
        elif eni.state is EniState.CONFIGURING and observed.attachment_status == "detaching":
            # It has no interface any more, and can't be attached yet.
            eni.unfulfilled, eni.unsure, eni.retry_at = True, True, now + self._link_pause(eni)
        elif eni.state is EniState.READY and observed.device_index is None and now < eni.since + APPEARS_WITHIN:
            eni.unsure, eni.retry_at = True, now + LINK_RETRY
        elif eni.state in (EniState.CONFIGURING, EniState.READY) and observed.device_index is None:
            # Somebody detached it. It is ours, and pods may hold its addresses: take it back.
            self.inventory.gone(eni, [ip for ip in eni.leaving if ip not in observed.addresses])
            self.inventory.stay(eni, now)
            eni.become(Attaching(), now)
            self._write(PutIntent(attach_intent(eni, now)))
            self._note("eni.found_detached", "warning", eni=eni.id)
        elif eni.state is EniState.READY:
            self._prefixes_seen(eni, observed)
            if eni.pending:
                # What is under way may be on it already: whose an address is can be told once that is answered.
                eni.unsure = bool(eni.asked_too_much) or not eni.addresses.keys() >= set(observed.addresses)
            else:
                self._account(eni, observed.addresses, now)
                self._close_accounts(eni, now - APPEARS_WITHIN)
                self._learn_room(eni, now)
            self.inventory.gone(eni, [ip for ip in eni.leaving if ip not in observed.addresses])
            if isinstance(eni.life, Ready):
                eni.life.verified = bool(eni.leaving)
        elif eni.state is EniState.DRAINING and (
            (others := set(observed.addresses) - set(eni.leaving)) or observed.prefixes
        ):
            # Somebody else put an address or a prefix on it: it is in use, though not by us.
            self._prefixes_seen(eni, observed)
            self._stay(eni, now)
            for ip in sorted(others - eni.addresses.keys()):
                self._find_foreign(ip, eni, now)
            self.backoffs.failed(release_scope(eni.id), _SHARED, now)
        elif isinstance(eni.life, Draining):
            eni.life.verified = True
        elif eni.state is EniState.DETACHING:
            if observed.device_index is None or observed.attachment_status == "detaching":
                self._detached(eni, now)
            else:
                self._stay(eni, now)

    def _too_many_addresses(self, operation: Operation, now: float) -> None:
        """EC2 refused so many addresses on an ENI, although there seemed to be room for them."""
        eni, count = operation.eni, operation.count
        if isinstance(operation.effect, do.AssignAddresses):
            eni.asked_too_much = min(count, eni.asked_too_much or count)
            return
        count = count or eni.held  # to create it, or to attach it
        self.too_many, self.too_many_at = min(count, self.too_many or count), now
        most, by_type = self.addresses_of_new_eni, self.limits.secondary_per_eni
        self._note("limit.addresses_learnt", "warning", addresses_per_eni=most, by_type=by_type)

    def _learn_room(self, eni: Eni, now: float) -> None:
        """The ENI was read after a refusal: either what is on it explains that, or its limit is another one."""
        asked, eni.asked_too_much = eni.asked_too_much, 0
        if not asked:
            return
        self.backoffs.succeeded(eni_scope(eni.id))  # next time it is asked for what it has room for
        if eni.occupied + asked <= eni.capacity:
            total = eni.occupied + asked
            eni.refused, eni.refused_at = min(total, eni.refused or total), now
            self._note("eni.limit_learnt", "warning", eni=eni.id, slots=eni.refused - 1, by_type=eni.capacity)

    def _stay(self, eni: Eni, now: float) -> None:
        """An ENI that was to go stays; its host set-up may have been taken down and is made again."""
        self.inventory.stay(eni, now)
        if eni.state is not EniState.CONFIGURING:
            eni.become(Configuring(), now)

    def _addresses_assigned(self, event: on.AddressesAssigned, now: float) -> None:
        operation = self._operations.pop(event.op)
        eni = operation.eni
        eni.pending -= operation.count
        self._write(DropIntent(operation.token))
        if eni.id not in self.inventory.enis:
            return  # it was found to be gone meanwhile
        self.backoffs.succeeded(action_scope(ASSIGN), subnet_scope(eni.subnet_id), eni_scope(eni.id))
        self.subnets.gave(eni.subnet_id)
        addresses = self._take_in(eni, event.addresses, operation, now)
        self._note("addresses.assigned", "info", eni=eni.id, addresses=addresses, requests=operation.requests)

    def _operation_done(self, event: on.OperationDone, now: float) -> None:
        operation = self._operations.pop(event.op)
        eni = operation.eni
        match operation.effect:
            case do.SetDeleteOnTermination():
                if eni.modifying == event.op:  # else it was for an attachment that has ended since
                    eni.modifying, eni.keep_on_termination = 0, False
                self.backoffs.succeeded(action_scope(operation.effect.action))
            case do.UnassignAddresses(addresses=addresses):
                self._given_back(operation)
                self.inventory.gone(eni, [ip for ip in addresses if ip in eni.leaving])
                self._note("addresses.unassigned", "info", eni=eni.id, addresses=len(addresses))
            case do.DetachEni():
                self._given_back(operation)
                self._detached(eni, now)
            case do.DeleteEni():
                self.backoffs.succeeded(action_scope(operation.effect.action))
                self._deleted(eni)

    def _given_back(self, operation: Operation) -> None:
        self._write(DropIntent(release_token(operation.eni.id)))
        operation.eni.busy = 0
        self.backoffs.succeeded(action_scope(operation.effect.action), release_scope(operation.eni.id))

    def _detached(self, eni: Eni, now: float) -> None:
        eni.become(Detached(), now)
        eni.retry_at = now + DETACH_TIME
        self._note("eni.detached", "info", eni=eni.id)

    def _deleted(self, eni: Eni) -> None:
        self._forget(eni)
        self._note("eni.deleted", "info", eni=eni.id)

    def _forget(self, eni: Eni) -> None:
        """EC2 has it no more."""
        for ip in self.inventory.remove_eni(eni):
            self._write(DropCooling(ip))
        self._write(DropOwn(eni.id))
        self._close_accounts(eni, math.inf)
        self.backoffs.succeeded(eni_scope(eni.id), release_scope(eni.id))

    def _operation_failed(self, event: on.OperationFailed, now: float) -> None:
        operation, failure = self._operations.pop(event.op), event.failure
        eni, kind = operation.eni, failure.kind
        young = now < eni.created_at + APPEARS_WITHIN
        if isinstance(operation.effect, do.DeleteEni) and kind is CloudErrorKind.NOT_FOUND and not young:
            self._deleted(eni)
            return
        if kind is CloudErrorKind.SUBNET_FULL:
            asked = operation.count + isinstance(operation.effect, do.CreateEni)  # an ENI takes one for itself
            self.subnets.refused(eni.subnet_id, asked)
            self._note("subnet.low", "warning", subnet=eni.subnet_id, asked=asked)
            retry_at = now
        else:
            retry_at = self._back_off(operation, failure, now)
        if kind is CloudErrorKind.ENI_ADDRESS_LIMIT:
            self._too_many_addresses(operation, now)
        match operation.effect:
            case do.AssignAddresses():
                eni.pending -= operation.count
                if kind is CloudErrorKind.UNKNOWN_OUTCOME and eni.id in self.inventory.enis:
                    # Its intent stays until a reading explains it, or an audit finds nothing to explain.
                    eni.unaccounted[operation.token] = Intent(
                        operation.token, ASSIGN, now, eni.id, count=operation.count
                    )
                else:
                    self._write(DropIntent(operation.token))
                if kind in ASSIGN_DOUBTFUL:
                    eni.unsure = True
            case do.CreateEni():
                eni.busy, eni.retry_at = 0, retry_at
                eni.unfulfilled = POLICIES[kind].lasting or now > eni.since + ARRIVES_WITHIN
                eni.unsure = eni.unsure or kind is CloudErrorKind.UNKNOWN_OUTCOME
                if not eni.unsure or kind not in SAYS_NOTHING_OF_EARLIER_TRIES:
                    self._write(DropIntent(operation.token))
                    self.inventory.remove_eni(eni)
            case do.AttachEni():
                eni.busy, eni.retry_at = 0, retry_at
                eni.unfulfilled = now > eni.since + ARRIVES_WITHIN
                if now > eni.since + GIVEN_UP_AFTER and not eni.assigned:
                    self._give_up(eni, now)
                elif kind in ATTACH_DOUBTFUL:
                    eni.unsure = True
                    if kind is CloudErrorKind.INCORRECT_STATE:
                        eni.device_index = self.other_index(eni)
                        self._write(PutIntent(attach_intent(eni, now)))
                elif kind not in ATTACH_AGAIN and not eni.assigned:  # what pods hold is never deleted
                    self._give_up(eni, now)
                    eni.retry_at = now
                if kind is CloudErrorKind.ATTACHMENT_LIMIT:
                    self.limit_met, self.audit_at = True, now
            case do.SetDeleteOnTermination():
                if eni.modifying == event.op:
                    eni.modifying, eni.modify_at = 0, retry_at
            case do.DeleteEni():
                # Attached after all: its attachment was not to be seen yet when this process started.
                eni.busy, eni.retry_at = 0, retry_at
                eni.unsure = kind is CloudErrorKind.INCORRECT_STATE or eni.detached
            case do.UnassignAddresses() | do.DetachEni():
                eni.busy = 0
                eni.unverify()
                if kind is CloudErrorKind.UNKNOWN_OUTCOME:
                    eni.unsure = eni.in_limbo = True
                    eni.retry_at = max(retry_at, now + TAKES_EFFECT)
                    return
                self._write(DropIntent(release_token(eni.id)))
                if kind in (*ASSIGN_DOUBTFUL, CloudErrorKind.INCORRECT_STATE):
                    eni.unsure, eni.retry_at = True, retry_at
                elif eni.state is EniState.READY:
                    self.inventory.stay(eni, now)
                else:
                    self._stay(eni, now)
            case do.ConfigureLink():
                eni.busy, eni.retry_at = 0, retry_at
                eni.unfulfilled = POLICIES[kind].lasting
            case _:
                eni.busy, eni.retry_at = 0, retry_at

    def _give_up(self, eni: Eni, now: float) -> None:
        """It can't be attached: it is deleted, with all that is on it. No pod has an address of it."""
        self._write(DropIntent(attach_token(eni.id)))
        self.inventory.leave_all(eni, now)
        eni.become(Deleting(), now)

    def _back_off(self, operation: Operation, failure: CloudFailure, now: float) -> float:
        eni = operation.eni
        scope = scope_of(failure, subnet_id=eni.subnet_id, eni_id="" if eni.state is EniState.CREATING else eni.id)
        return self._failed(scope, failure, now, operation.requests).until

    def _failed(self, scope: str, failure: CloudFailure, now: float, requests: str = "") -> Backoff:
        backoff = self.backoffs.failed(scope, failure, now)
        self._note(
            "ec2.failed",
            "error" if backoff.policy.lasting else "warning",
            action=failure.action,
            code=failure.code,
            kind=failure.kind.value,
            scope=scope,
            error=failure.message,
            ec2_request=failure.ec2_request,
            requests=requests,
            retry_in=round(backoff.until - now, 1),
        )
        return backoff
