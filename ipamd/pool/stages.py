"""The next steps of the ENIs, and the records, notes and back-offs that go with a change of their states.

Why a state changes is decided by what a reading shows (readings.py) and how a call ends (failures.py, operations.py).
"""

from __future__ import annotations

import math
from typing import assert_never

from ipamd.pool import effects as do
from ipamd.pool.backoff import SLOTS, Backoff, action_scope, eni_scope, release_scope
from ipamd.pool.eni import Eni
from ipamd.pool.life.states import Configuring, Deleting, Detached, Detaching
from ipamd.pool.life.steps import Step, next_step, termination_step
from ipamd.pool.model import CloudFailure, DropCooling, DropIntent, DropOwn, EniState, PutIntent
from ipamd.pool.replies import Replies
from ipamd.pool.state import ATTACH, DETACH, UNASSIGN, attach_token, release_intent

# A detached ENI can be deleted after this many seconds, as a rule; sooner, EC2 calls it in use.
DETACH_TIME = 3.0


class Stages(Replies):
    def _drive(self, now: float) -> None:
        """Each ENI takes the next step of its life."""
        for eni in self.inventory.enis.values():
            if eni.at_rest:
                continue
            if (setting := termination_step(eni, self._last_op + 1, now)) is not None:
                eni.modifying = self._next_op()
                self._send(setting, eni, now)
            if (step := next_step(eni, self._last_op + 1, self._creation_pending(), now)) is not None:
                eni.busy = self._next_op()
                self._take_step(eni, step, now)

    def _take_step(self, eni: Eni, step: Step, now: float) -> None:
        match step:
            case do.CreateEni(token=token, count=count):
                self._send(step, eni, now, count, token)
                return
            case do.UnassignAddresses():
                self._write(PutIntent(release_intent(eni, UNASSIGN, now)))
            case do.DetachEni():
                eni.become(Detaching(), now)
                self._write(PutIntent(release_intent(eni, DETACH, now)))
            case do.AttachEni() | do.ConfigureLink() | do.DescribeEni() | do.DeleteEni():
                pass
            case _:
                assert_never(step)
        self._send(step, eni, now)

    def _creation_pending(self) -> bool:
        """While a creation may still turn out to have made one of the ENIs that nobody remembers, none of those
        is deleted."""
        return any(eni.state is EniState.CREATING for eni in self.inventory.enis.values())

    def _attached(self, eni: Eni, attachment_id: str, now: float) -> None:
        self._write(DropIntent(attach_token(eni.id)))
        self.backoffs.succeeded(action_scope(ATTACH), SLOTS)
        eni.become(Configuring(), now)
        eni.busy, eni.unsure, eni.unfulfilled = 0, False, False
        eni.attachment_id = attachment_id
        self.inventory.stay(eni, now)
        eni.keep_on_termination = True
        self._note("eni.attached", "info", eni=eni.id, device_index=eni.device_index)

    def _stay(self, eni: Eni, now: float) -> None:
        """An ENI that was to go stays; its host set-up may have been taken down and is made again."""
        self.inventory.stay(eni, now)
        if eni.state is not EniState.CONFIGURING:
            eni.become(Configuring(), now)

    def _give_up(self, eni: Eni, now: float) -> None:
        """It can't be attached: it is deleted, with all that is on it. No pod has an address of it."""
        self._write(DropIntent(attach_token(eni.id)))
        self.inventory.leave_all(eni, now)
        eni.become(Deleting(), now)

    def _detached(self, eni: Eni, now: float) -> None:
        self.inventory.leave_all(eni, now)  # what was taken back because it is used leaves with the ENI all the same
        eni.become(Detached(), now)
        eni.retry_at = now + DETACH_TIME
        self._note("eni.detached", "info", eni=eni.id)

    def _is_replaced(self, eni: Eni) -> bool:
        """Whether a creation has brought the ENI that this is an older record of: the answers to calls that were sent
        for that record say nothing of the ENI as it is known now."""
        return self.inventory.enis.get(eni.id) is not eni

    def _deleted(self, eni: Eni) -> None:
        if self._is_replaced(eni):
            if (present := self.inventory.enis.get(eni.id)) is not None:
                present.unsure = True
            return
        self._forget(eni)
        self._note("eni.deleted", "info", eni=eni.id)

    def _forget(self, eni: Eni) -> None:
        """EC2 no longer has it."""
        for ip in self.inventory.remove_eni(eni):
            self._write(DropCooling(ip))
        self._write(DropOwn(eni.id))
        self._close_accounts(eni, math.inf)
        self.backoffs.succeeded(eni_scope(eni.id), release_scope(eni.id))

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
