"""A new process picks up where the old one was cut off.

Three witnesses, each with its own authority: EC2 says which ENIs and addresses are here, the ledger says who holds
them and which calls were under way, and the kernel says which addresses lead to a pod, whatever the ledger lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.belief import shown
from ipamd.pool.eni import Eni
from ipamd.pool.in_use import recovered
from ipamd.pool.inventory import Inventory, Lost
from ipamd.pool.life.states import Attaching, Configuring, Creating, Deleting, Detaching, Foreign, Life
from ipamd.pool.model import (
    Attachment,
    DropCooling,
    DropIntent,
    DropOwn,
    EniState,
    Intent,
    ObservedEni,
    OwnAddresses,
    PutAttachment,
    PutIntent,
    Record,
)
from ipamd.pool.state import ASSIGN, ATTACH, CREATE, DETACH, UNASSIGN, State, attach_intent
from ipamd.pool.underway import TAKES_EFFECT


def restore(state: State, event: on.Started, now: float) -> do.Turn:
    """Fill the empty state; returns the records and notes that follow."""
    state.started = True
    state.learnt_limit, state.drained = event.limit, event.drained
    state.inventory.uses, state.inventory.routed = event.uses, dict(event.routed)
    restart = _Restart(state, event, _kept(event, now), now)
    restart.correct_times()
    restart.drop_other_intents()
    for observed in event.enis:
        restart.adopt(observed)
    restart.go_on_giving_back()
    restart.forget_records_of_gone_enis()
    restart.go_on_attaching()
    restart.go_on_creating()
    restart.restore_stranded()
    restart.forget_what_cools_elsewhere()
    return do.Turn(tuple(restart.records), tuple(restart.notes))


@dataclass(frozen=True, slots=True)
class _Kept:
    """What ledger and kernel say of addresses. What lies in the future was timed by a clock that has been set back
    since."""

    attachments: dict[str, Attachment]
    cooling: dict[str, float]
    routed: dict[str, str]
    own: dict[str, OwnAddresses]

    def in_use(self, addresses: tuple[str, ...]) -> bool:
        return any(ip in self.attachments or ip in self.routed for ip in addresses)


def _kept(event: on.Started, now: float) -> _Kept:
    return _Kept(
        {a.address: replace(a, since=min(a.since, now)) for a in event.attachments},
        {c.address: min(c.released_at, now) for c in event.cooling},
        dict(event.routed),
        {own.eni_id: own for own in event.own},
    )


@dataclass(slots=True)
class _Restart:
    """The steps of `restore`, in its order, over what it has been given."""

    state: State
    event: on.Started
    kept: _Kept
    now: float
    records: list[Record] = field(default_factory=list)
    notes: list[do.Note] = field(default_factory=list)

    @property
    def _inventory(self) -> Inventory:
        return self.state.inventory

    def _write(self, record: Record) -> None:
        self.records.append(record)

    def _note(self, event: str, level: str, **fields: str | int) -> None:
        self.notes.append(do.Note(event, level, tuple(fields.items())))

    def _intents(self, *actions: str) -> list[Intent]:
        return [intent for intent in self.event.intents if intent.action in actions]

    def drop_other_intents(self) -> None:
        """An attachment that was under way shows at its ENI; whatever else is on record means nothing today."""
        for intent in self.event.intents:
            if intent.action not in (CREATE, ASSIGN, UNASSIGN, DETACH):
                self._write(DropIntent(intent.token))

    def correct_times(self) -> None:
        for attachment in self.event.attachments:
            if attachment.since > self.now:
                self._write(PutAttachment(self.kept.attachments[attachment.address]))

    # ENIs that EC2 shows

    def adopt(self, observed: ObservedEni) -> None:
        eni = self._adopted(observed)
        if eni is None or eni.state is EniState.FOREIGN:
            return
        if eni.prefixes:
            self._note("eni.prefixes", "info", eni=eni.id, prefixes=len(eni.prefixes), room=eni.room)
        assigning = [intent for intent in self._intents(ASSIGN) if intent.eni_id == eni.id]
        eni.unaccounted = {intent.token: replace(intent, at=self.now) for intent in assigning}
        seen = shown(observed, eni, self._inventory)
        if seen.doubts:
            self._note("ec2.reply_doubted", "warning", eni=eni.id, doubts=seen.doubted)
        new = tuple(ip for ip in seen.believed if ip not in self._inventory.addresses)
        eni.unsure = eni.unsure or len(new) < len(observed.addresses)  # two ENIs can't have the same
        self._restore_addresses(eni, new)
        self._inventory.altered[eni.id] = eni  # on record from now on, also with no address

    def _adopted(self, observed: ObservedEni) -> Eni | None:
        """None: it is unattached and not ours."""
        if observed.device_index is not None:
            return adopt_attached(self.state, observed, self.now)
        if not observed.owned:
            return None
        attaching = any(intent.eni_id == observed.id for intent in self._intents(ATTACH))
        if not (attaching or self.kept.in_use(observed.addresses)):
            # Created but never attached, and nobody remembers why: undo. A creation that is still on record gets its
            # ENI back by its token, which cancels this.
            return adopt(self.state, observed, Deleting(), -1, self.now)
        # Cut off between creation and attachment; or somebody detached it while pods have its addresses.
        eni = adopt(self.state, observed, Attaching(), -1, self.now)
        eni.created_at = self.now  # perhaps young: EC2 is given time to know it everywhere
        return eni

    def _restore_addresses(self, eni: Eni, addresses: tuple[str, ...]) -> None:
        foreign = self._foreign(eni, addresses)
        for ip in addresses:
            if ip in self.kept.attachments:
                self._restore_attachment(ip, eni)
            elif ip in self.kept.routed:
                self._recover(ip, eni)
            elif ip in foreign:
                self._inventory.add_foreign(ip, eni, self.now)
                self._note("address.foreign", "warning", eni=eni.id, ip=ip, cause="unknown")
            elif ip in self.kept.cooling:  # also when that is over: its flows have to be forgotten first
                self._inventory.add_cooling(ip, eni, self.kept.cooling[ip])
            else:
                self._inventory.add(ip, eni, self.now)
        # Restored out of order: expiry relies on the order of release.
        self._inventory.cooling = dict(sorted(self._inventory.cooling.items(), key=lambda item: item[1]))

    def _foreign(self, eni: Eni, addresses: tuple[str, ...]) -> set[str]:
        """Those that somebody else put there. Of an ENI without a record all are ours, as far as we can know."""
        own = self.kept.own.get(eni.id)
        if own is None:
            for record in eni.explain_no_more(math.inf):
                self._write(record)
            return set()
        unknown = set(addresses).difference(own.addresses, own.foreign)
        explained = eni.explain(len(unknown))
        for record in explained or ():
            self._write(record)
        return {*own.foreign, *unknown} if explained is None else set(own.foreign)

    def _restore_attachment(self, ip: str, eni: Eni) -> None:
        attachment = replace(self.kept.attachments[ip], eni_id=eni.id)
        if attachment != self.kept.attachments[ip]:  # it was moved, or the record was damaged
            self._write(PutAttachment(attachment))
        self._inventory.add_assigned(attachment, eni)

    def _recover(self, ip: str, eni: Eni) -> None:
        link = self.kept.routed[ip]
        attachment = recovered(ip, link, eni.id, self.now)
        self._write(PutAttachment(attachment))
        self._inventory.add_assigned(attachment, eni)
        self._note("attachment.recovered", "warning", ip=ip, link=link)

    # Calls that were under way

    def go_on_giving_back(self) -> None:
        """Such a call may have its effect yet, and what EC2 showed of it may be old: nobody gets what it takes away
        before another look."""
        for intent in self._intents(UNASSIGN, DETACH):
            eni = self._inventory.enis.get(intent.eni_id)
            leaving = [ip for ip in intent.addresses if eni is not None and ip in eni.free]
            if eni is None or not leaving or eni.state is not EniState.CONFIGURING:
                self._write(DropIntent(intent.token))
                continue
            eni.in_limbo = True
            self._inventory.leave_these(eni, leaving, self.now)
            if intent.action == DETACH and len(leaving) == eni.held:
                eni.become(Detaching(), self.now)
                eni.retry_at = self.now + TAKES_EFFECT

    def forget_records_of_gone_enis(self) -> None:
        for intent in self._intents(ASSIGN):
            if intent.eni_id not in self._inventory.enis:
                self._write(DropIntent(intent.token))
        for own in self.event.own:
            if own.eni_id not in self._inventory.enis:
                self._write(DropOwn(own.eni_id))

    def go_on_attaching(self) -> None:
        for eni in self._inventory.enis.values():
            if eni.state is EniState.ATTACHING:
                eni.device_index = self.state.free_index()
                self._write(PutIntent(attach_intent(eni, self.now)))

    def go_on_creating(self) -> None:
        capacity = self.state.limits.secondary_per_eni
        for intent in self._intents(CREATE):
            index = self.state.free_index()
            eni = Eni(intent.token, Creating(intent.token), index, capacity, intent.subnet_id, self.now)
            eni.pending, eni.unsure = intent.count, True
            self._inventory.add_eni(eni)

    # Addresses that no ENI has

    def restore_stranded(self) -> None:
        """Pods whose address no ENI of ours has: on record, or told by their route alone where the record is lost."""
        held = self._inventory.attachments
        stranded = [a for a in self.kept.attachments.values() if a.key not in held]
        known = {*held, *(a.key for a in stranded)}
        for ip, link in self.kept.routed.items():
            attachment = recovered(ip, link, "", self.now)
            if ip in self.kept.attachments or ip in self._inventory.addresses or attachment.key in known:
                continue
            known.add(attachment.key)
            stranded.append(attachment)
            self._write(PutAttachment(attachment))
            self._note("attachment.recovered", "warning", ip=ip, link=link)
        for attachment in stranded:
            self._inventory.add_stranded(attachment)
            self._inventory.lost[attachment.address] = Lost(self.now, self._whereabouts(attachment.address))
            self._note("attachment.address_missing", "error", ip=attachment.address, key=str(attachment.key))

    def _whereabouts(self, ip: str) -> str:
        """Of a pod's address that is not among those for pods."""
        if (owner := self._inventory.owner_of(ip)) is not None:
            return f"EC2 has given {ip} to {owner.id} as its own address"
        return f"EC2 shows {ip} on no ENI of this node"

    def forget_what_cools_elsewhere(self) -> None:
        self.state.unflushed = dict.fromkeys(self._inventory.cooling)
        for address in self.kept.cooling:
            if address not in self._inventory.cooling:
                self._write(DropCooling(address))


def adopt_attached(state: State, observed: ObservedEni, now: float) -> Eni:
    ours = observed.owned or observed.primary
    assert observed.device_index is not None
    eni = adopt(state, observed, Configuring() if ours else Foreign(), observed.device_index, now)
    eni.primary = observed.primary
    eni.keep_on_termination = ours and not observed.primary and not observed.delete_on_termination
    return eni


def adopt(state: State, observed: ObservedEni, life: Life, device_index: int, now: float) -> Eni:
    capacity = 0 if isinstance(life, Foreign) else state.limits.secondary_per_eni
    eni = Eni(observed.id, life, device_index, capacity, observed.subnet_id, now)
    eni.card, eni.prefixes = observed.network_card, observed.prefixes
    eni.mac, eni.primary_ip, eni.attachment_id = observed.mac, observed.primary_ip, observed.attachment_id
    eni.read_at = now
    state.inventory.add_eni(eni)
    return eni
