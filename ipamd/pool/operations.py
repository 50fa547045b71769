"""What the pool learns from the outcome of each operation that it asked of EC2.

The states of an ENI and the transitions between them stand in life/states.py; what a reading and a failure mean is
decided in life/seen.py and life/failed.py.

Whenever an outcome shows that EC2 and the pool disagree about an ENI, the ENI is `unsure`: it is read before anything
else is done to it.
"""

from __future__ import annotations

from typing import assert_never

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.backoff import NEW_ENI, action_scope, eni_scope, release_scope, subnet_scope
from ipamd.pool.life.states import Attaching
from ipamd.pool.model import DropIntent, EniState, PutIntent
from ipamd.pool.readings import Readings
from ipamd.pool.state import ASSIGN, CREATE, attach_intent, release_token
from ipamd.pool.underway import Operation


class Operations(Readings):
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
            case on.SubnetsObserved() | on.Audited() | on.AttachmentsSought():
                pass  # these answer operations on no single ENI, and the operation is not one of them (`_hear`)
            case _:
                assert_never(event)

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
            case (
                do.CreateEni() | do.AttachEni() | do.AssignAddresses() | do.DescribeEni() | do.ConfigureLink()
            ) as effect:
                raise ValueError(f"{effect.action} answers with what it has brought, not just that it is done")
            case _:
                assert_never(operation.effect)

    def _given_back(self, operation: Operation) -> None:
        self._write(DropIntent(release_token(operation.eni.id)))
        operation.eni.busy = 0
        self.backoffs.succeeded(action_scope(operation.effect.action), release_scope(operation.eni.id))
