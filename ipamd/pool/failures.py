"""What follows when a call on an ENI fails. What the failure means is decided by the table in life/failed.py."""

from __future__ import annotations

from typing import assert_never

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.backoff import POLICIES, scope_of
from ipamd.pool.eni import Eni
from ipamd.pool.life.failed import Failed, failed
from ipamd.pool.life.seen import APPEARS_WITHIN
from ipamd.pool.model import CloudErrorKind, CloudFailure, DropIntent, EniState, Intent, PutIntent
from ipamd.pool.stages import Stages
from ipamd.pool.state import ASSIGN, attach_intent, release_token
from ipamd.pool.underway import TAKES_EFFECT, Operation

# An ENI that takes longer than this to come is not counted on any more, and one that can't be attached for so long is
# given up, in seconds.
ARRIVES_WITHIN, GIVEN_UP_AFTER = 20.0, 300.0


class Failures(Stages):
    def _operation_failed(self, event: on.OperationFailed, now: float) -> None:
        operation, failure = self._operations.pop(event.op), event.failure
        verdict = failed(operation.effect, failure.kind)
        if verdict is Failed.GONE:
            if now >= operation.eni.created_at + APPEARS_WITHIN:
                self._deleted(operation.eni)
                return
            verdict = Failed.AGAIN  # EC2 may not know it everywhere yet
        retry_at = self._hold_back(operation, failure, now)
        eni = operation.eni
        match operation.effect:
            case do.AssignAddresses():
                self._assignment_failed(operation, verdict, now)
            case do.CreateEni():
                eni.busy, eni.retry_at = 0, retry_at
                eni.unfulfilled = POLICIES[failure.kind].lasting or now > eni.since + ARRIVES_WITHIN
                self._creation_failed(operation, verdict)
            case do.AttachEni():
                eni.busy, eni.retry_at = 0, retry_at
                self._attachment_failed(eni, verdict, now)
            case do.UnassignAddresses() | do.DetachEni():
                eni.busy = 0
                self._return_failed(eni, verdict, retry_at, now)
            case do.DeleteEni():
                # READ: attached after all; its attachment was not to be seen yet when this process started.
                eni.busy, eni.retry_at = 0, retry_at
                eni.unsure = verdict is Failed.READ or eni.detached
            case do.ConfigureLink():
                eni.busy, eni.retry_at = 0, retry_at
                eni.unfulfilled = POLICIES[failure.kind].lasting
            case do.DescribeEni():
                eni.busy, eni.retry_at = 0, retry_at
            case do.SetDeleteOnTermination():
                if eni.modifying == event.op:
                    eni.modifying, eni.modify_at = 0, retry_at
            case _:
                assert_never(operation.effect)

    def _hold_back(self, operation: Operation, failure: CloudFailure, now: float) -> float:
        """Leave the failure's scope alone for a while; returns until when the ENI is."""
        eni, kind = operation.eni, failure.kind
        if kind is CloudErrorKind.SUBNET_FULL:
            asked = operation.count + isinstance(operation.effect, do.CreateEni)  # an ENI takes one for itself
            self.subnets.refused(eni.subnet_id, asked)
            self._note("subnet.low", "warning", subnet=eni.subnet_id, asked=asked)
            return now
        eni_id = "" if eni.state is EniState.CREATING else eni.id
        scope = scope_of(failure, subnet_id=eni.subnet_id, eni_id=eni_id)
        until = self._failed(scope, failure, now, operation.requests).until
        if kind is CloudErrorKind.ENI_ADDRESS_LIMIT:
            self._too_many_addresses(operation, now)
        return until

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

    def _assignment_failed(self, operation: Operation, verdict: Failed, now: float) -> None:
        eni, token = operation.eni, operation.token
        eni.pending -= operation.count
        eni.unsure = eni.unsure or verdict is not Failed.REFUSED
        if verdict is Failed.UNANSWERED and eni.id in self.inventory.enis:
            # Its intent stays until a reading explains it, or an audit finds nothing to explain.
            eni.unaccounted[token] = Intent(token, ASSIGN, now, eni.id, count=operation.count)
        else:
            self._write(DropIntent(token))

    def _creation_failed(self, operation: Operation, verdict: Failed) -> None:
        """After a creation of unknown outcome the same ClientToken is sent again until EC2 shows the ENI or refuses
        it for a cause that it checks only for a token it has not seen."""
        eni = operation.eni
        eni.unsure = eni.unsure or verdict is Failed.UNANSWERED
        if verdict is Failed.REFUSED or not eni.unsure:
            self._write(DropIntent(operation.token))
            self.inventory.remove_eni(eni)

    def _attachment_failed(self, eni: Eni, verdict: Failed, now: float) -> None:
        """An ENI that has pods' addresses is never given up."""
        eni.unfulfilled = now > eni.since + ARRIVES_WITHIN
        if verdict is Failed.NO_SLOT:
            self.limit_met, self.audit_at = True, now
        if now > eni.since + GIVEN_UP_AFTER and not eni.assigned:
            self._give_up(eni, now)
        elif verdict is Failed.INDEX_TAKEN:
            eni.unsure, eni.device_index = True, self.other_index(eni)
            self._write(PutIntent(attach_intent(eni, now)))
        elif verdict in (Failed.READ, Failed.UNANSWERED):
            eni.unsure = True
        elif verdict is not Failed.AGAIN and not eni.assigned:
            self._give_up(eni, now)
            eni.retry_at = now

    def _return_failed(self, eni: Eni, verdict: Failed, retry_at: float, now: float) -> None:
        """A call that gives back addresses, or the ENI with all of them."""
        eni.unverify()
        if verdict is Failed.UNANSWERED:
            eni.unsure = eni.in_limbo = True
            eni.retry_at = max(retry_at, now + TAKES_EFFECT)
            return
        self._write(DropIntent(release_token(eni.id)))
        if verdict is Failed.READ:
            eni.unsure, eni.retry_at = True, retry_at
        elif eni.state is EniState.DETACHING:
            self._stay(eni, now)
        else:
            self.inventory.stay(eni, now)
