"""What follows when EC2 shows an ENI. What the reading means is decided by the table in life/seen.py."""

from __future__ import annotations

from typing import assert_never

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.backoff import action_scope, eni_scope, release_scope
from ipamd.pool.eni import Eni
from ipamd.pool.failures import ARRIVES_WITHIN, Failures
from ipamd.pool.life.seen import APPEARS_WITHIN, Seen, seen
from ipamd.pool.life.states import Attaching, Configuring, Deleting, Detached, Draining, Ready
from ipamd.pool.links import LINK_RETRY
from ipamd.pool.model import AddressState, CloudErrorKind, CloudFailure, DropIntent, EniState, ObservedEni, PutIntent
from ipamd.pool.stages import DETACH_TIME
from ipamd.pool.state import attach_intent, attach_token, release_token

_SHARED = CloudFailure(
    CloudErrorKind.IN_USE, do.DetachEni.action, "AddressOfAnother", "an address that is not the pool's is on it"
)


class Readings(Failures):
    def _eni_observed(self, event: on.EniObserved, now: float) -> None:
        eni = self._operations.pop(event.op).eni
        if self._is_replaced(eni):
            return
        observed = None if event.eni is None else self._believe(eni, event.eni, now)
        eni.busy, eni.unsure = 0, event.op <= eni.last_op_before_loss
        if eni.unsure:
            return  # it was asked before the interface vanished
        self.backoffs.succeeded(action_scope(do.DescribeEni.action))
        self._end_limbo(eni, observed)
        verdict = seen(eni, observed, now)
        if observed is None:
            self._absent(eni, verdict, now)
        else:
            self._follow_reading(eni, verdict, observed, now)

    def _end_limbo(self, eni: Eni, observed: ObservedEni | None) -> None:
        """The call that was under way before this process started has had its effect by now, or never will; while the
        ENI is being set up there is a later reading to tell."""
        attached = observed is not None and observed.device_index is not None
        if eni.in_limbo and not (attached and isinstance(eni.life, Configuring)):
            eni.in_limbo = False
            self._write(DropIntent(release_token(eni.id)))

    def _absent(self, eni: Eni, verdict: Seen, now: float) -> None:
        if verdict is Seen.FORGET:
            self._gone(eni, None, now)
            return
        eni.unsure, eni.retry_at = True, now + min(max(1.0, (now - eni.created_at) / 2), APPEARS_WITHIN)
        if eni.state is EniState.ATTACHING:
            eni.unfulfilled = now > eni.since + ARRIVES_WITHIN

    def _follow_reading(self, eni: Eni, verdict: Seen, observed: ObservedEni, now: float) -> None:
        match verdict:
            case Seen.FORGET:
                self._gone(eni, observed, now)
            case Seen.NOT_YET | Seen.AS_EXPECTED:
                pass
            case Seen.READ_AGAIN:
                eni.unsure, eni.retry_at = True, now + LINK_RETRY
            case Seen.ATTACHED:
                self._found_attached(eni, observed, now)
            case Seen.ATTACH:
                self._attach_again(eni, observed, now)
            case Seen.NO_INTERFACE:
                eni.unfulfilled, eni.unsure, eni.retry_at = True, True, now + self._link_pause(eni)
            case Seen.SERVING:
                self._compare(eni, observed, now)
            case Seen.MAY_GO:
                self._let_it_go(eni, observed, now)
            case Seen.STAYS:
                self._stay(eni, now)
            case Seen.DETACHED:
                self._detached(eni, now)
            case Seen.SLOT_HELD:
                self._wait_for_slot(eni, now)
            case Seen.SLOT_FREE:
                eni.become(Deleting(), now)
            case _:
                assert_never(verdict)

    def _gone(self, eni: Eni, observed: ObservedEni | None, now: float) -> None:
        elsewhere = observed is not None and observed.attachment_id
        cause = f"{eni.id} " + ("is attached to another instance" if elsewhere else "does not exist any more")
        self._note("eni.gone", "warning", eni=eni.id, state=eni.state.value)
        self._write(DropIntent(attach_token(eni.id)))
        for address in [a for a in eni.addresses.values() if a.state is AddressState.ASSIGNED]:
            self._lose(address, cause, now)
        self._forget(eni)

    def _found_attached(self, eni: Eni, observed: ObservedEni, now: float) -> None:
        assert observed.device_index is not None
        eni.device_index = observed.device_index
        self._attached(eni, observed.attachment_id, now)

    def _wait_for_slot(self, eni: Eni, now: float) -> None:
        if not eni.detached:
            eni.become(Detached(), now)
        eni.retry_at = now + DETACH_TIME

    def _attach_again(self, eni: Eni, observed: ObservedEni, now: float) -> None:
        self.inventory.gone(eni, [ip for ip in eni.leaving if ip not in observed.addresses])
        self.inventory.stay(eni, now)
        eni.become(Attaching(), now)
        self._write(PutIntent(attach_intent(eni, now)))
        self._note("eni.found_detached", "warning", eni=eni.id)

    def _compare(self, eni: Eni, observed: ObservedEni, now: float) -> None:
        self._prefixes_seen(eni, observed)
        if eni.pending:
            # What is under way may be on it already: only its answer shows whose an address is.
            eni.unsure = bool(eni.asked_too_much) or not eni.addresses.keys() >= set(observed.addresses)
        else:
            self._account(eni, observed.addresses, now)
            self._close_accounts(eni, now - APPEARS_WITHIN)
            self._learn_room(eni, now)
        self.inventory.gone(eni, [ip for ip in eni.leaving if ip not in observed.addresses])
        if isinstance(eni.life, Ready):  # it is not, if a pod's address has turned up on it
            eni.life.verified = bool(eni.leaving)

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

    def _let_it_go(self, eni: Eni, observed: ObservedEni, now: float) -> None:
        """Unless somebody else put an address or a prefix on it: then it is in use, though not by us."""
        others = set(observed.addresses) - set(eni.leaving)
        if not (others or observed.prefixes):
            if isinstance(eni.life, Draining):
                eni.life.verified = True
            return
        self._prefixes_seen(eni, observed)
        self._stay(eni, now)
        for ip in sorted(others - eni.addresses.keys()):
            self._find_foreign(ip, eni, now)
        self.backoffs.failed(release_scope(eni.id), _SHARED, now)
