"""A new process picks up where the old one was cut off.

Three witnesses, each with its own authority: EC2 says which ENIs and addresses are here, the ledger says who holds
them and which calls were under way, and the kernel says which addresses lead to a pod, whatever the ledger lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.belief import shown
from ipamd.pool.eni import Eni
from ipamd.pool.in_use import recovered
from ipamd.pool.inventory import Lost
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


def restore(state: State, event: on.Started, now: float) -> list[do.Effect]:
    """Fill the empty state; returns the records and notes that follow."""
    state.started = True
    state.learnt_limit = event.limit
    state.drained = event.drained
    effects: list[do.Effect] = []
    # What lies in the future was timed by a clock that has been set back since.
    attachments = {a.address: replace(a, since=min(a.since, now)) for a in event.attachments}
    for attachment in event.attachments:
        if attachment.since > now:
            _write(effects, PutAttachment(attachments[attachment.address]))
    cooling = {c.address: min(c.released_at, now) for c in event.cooling}
    in_use = attachments.keys() | dict(event.routed).keys()
    attaching = {i.eni_id for i in event.intents if i.action == ATTACH}
    creating = [i for i in event.intents if i.action == CREATE]
    kept = _Kept(attachments, cooling, dict(event.routed), {own.eni_id: own for own in event.own})
    state.inventory.uses, state.inventory.routed = event.uses, dict(event.routed)
    releasing = [i for i in event.intents if i.action in (UNASSIGN, DETACH)]
    assigning = [i for i in event.intents if i.action == ASSIGN]
    for intent in event.intents:
        if intent.action not in (CREATE, ASSIGN, UNASSIGN, DETACH):
            _write(effects, DropIntent(intent.token))
    for observed in event.enis:
        if observed.device_index is not None:
            eni = adopt_attached(state, observed, now)
        elif observed.owned and (observed.id in attaching or in_use.intersection(observed.addresses)):
            # Cut off between creation and attachment; or somebody detached it while pods have its addresses.
            eni = adopt(state, observed, Attaching(), -1, now)
            eni.created_at = now  # perhaps young: EC2 is given time to know it everywhere
        elif observed.owned:
            # Created but never attached, and nobody remembers why: undo. A creation that is still on record
            # below gets its ENI back by its token, which cancels this.
            eni = adopt(state, observed, Deleting(), -1, now)
        else:
            continue
        if eni.state is not EniState.FOREIGN:
            if eni.prefixes:
                _note(effects, "eni.prefixes", "info", eni=eni.id, prefixes=len(eni.prefixes), room=eni.room)
            eni.unaccounted = {i.token: replace(i, at=now) for i in assigning if i.eni_id == eni.id}
            seen = shown(observed, eni, state.inventory)
            if seen.doubts:
                _note(effects, "ec2.reply_doubted", "warning", eni=eni.id, doubts=seen.doubted)
            new = tuple(ip for ip in seen.believed if ip not in state.inventory.addresses)
            eni.unsure = eni.unsure or len(new) < len(observed.addresses)  # two ENIs can't have the same
            _restore_addresses(state, effects, eni, new, kept, now)
            state.inventory.altered[eni.id] = eni  # on record from now on, also with no address
    for intent in releasing:
        _go_on_giving_back(state, effects, intent, now)
    for intent in assigning:
        if intent.eni_id not in state.inventory.enis:
            _write(effects, DropIntent(intent.token))
    for own in event.own:
        if own.eni_id not in state.inventory.enis:
            _write(effects, DropOwn(own.eni_id))
    for eni in state.inventory.enis.values():
        if eni.state is EniState.ATTACHING:
            eni.device_index = state.free_index()
            _write(effects, PutIntent(attach_intent(eni, now)))
    for intent in creating:
        capacity = state.limits.secondary_per_eni
        eni = Eni(intent.token, Creating(intent.token), state.free_index(), capacity, intent.subnet_id, now)
        eni.pending, eni.unsure = intent.count, True
        state.inventory.add_eni(eni)
    _restore_stranded(state, effects, kept, now)
    state.unflushed = dict.fromkeys(state.inventory.cooling)
    for address in cooling:
        if address not in state.inventory.cooling:
            _write(effects, DropCooling(address))
    return effects


def _restore_stranded(state: State, effects: list[do.Effect], kept: _Kept, now: float) -> None:
    """Pods whose address no ENI of ours has: on record, or told by their route alone where the record is lost."""
    stranded = [a for a in kept.attachments.values() if a.key not in state.inventory.attachments]
    known = {*state.inventory.attachments, *(a.key for a in stranded)}
    for ip, link in kept.routed.items():
        attachment = recovered(ip, link, "", now)
        if ip in kept.attachments or ip in state.inventory.addresses or attachment.key in known:
            continue
        known.add(attachment.key)
        stranded.append(attachment)
        _write(effects, PutAttachment(attachment))
        _note(effects, "attachment.recovered", "warning", ip=ip, link=link)
    for attachment in stranded:
        state.inventory.add_stranded(attachment)
        state.inventory.lost[attachment.address] = Lost(now, _whereabouts(state, attachment.address))
        _note(effects, "attachment.address_missing", "error", ip=attachment.address, key=str(attachment.key))


def _whereabouts(state: State, ip: str) -> str:
    """Of a pod's address that is not among those for pods."""
    owner = next((eni.id for eni in state.inventory.enis.values() if eni.primary_ip == ip), "")
    if owner:
        return f"EC2 has given {ip} to {owner} as its own address"
    return f"EC2 shows {ip} on no ENI of this node"


def _go_on_giving_back(state: State, effects: list[do.Effect], intent: Intent, now: float) -> None:
    """The call may have its effect yet, and what EC2 showed of it may be old: nobody gets what it takes away before
    another look."""
    eni = state.inventory.enis.get(intent.eni_id)
    leaving = [ip for ip in intent.addresses if eni is not None and ip in eni.free]
    if eni is None or eni.state is not EniState.CONFIGURING or not leaving:
        _write(effects, DropIntent(intent.token))
        return
    eni.in_limbo = True
    state.inventory.leave_these(eni, leaving, now)
    if intent.action == DETACH and len(leaving) == eni.held:
        eni.become(Detaching(), now)
        eni.retry_at = now + TAKES_EFFECT


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


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the other two witnesses say of addresses."""

    attachments: dict[str, Attachment]
    cooling: dict[str, float]
    routed: dict[str, str]
    own: dict[str, OwnAddresses]

    def foreign(self, effects: list[do.Effect], eni: Eni, addresses: tuple[str, ...]) -> set[str]:
        """Those that somebody else put there. Of an ENI without a record all are ours, as far as we can know."""
        own = self.own.get(eni.id)
        others = set(own.foreign if own else ())
        unknown = set(addresses) - set(own.addresses if own else ()) - others
        if own is None:
            explained: list[Record] | None = eni.explain_no_more(math.inf)
        else:
            explained = eni.explain(len(unknown))
        for record in explained or ():
            _write(effects, record)
        return others | unknown if explained is None else others


def _restore_addresses(
    state: State, effects: list[do.Effect], eni: Eni, addresses: tuple[str, ...], kept: _Kept, now: float
) -> None:
    foreign = kept.foreign(effects, eni, addresses)
    for ip in addresses:
        if ip in kept.attachments:
            attachment = replace(kept.attachments[ip], eni_id=eni.id)
            if attachment != kept.attachments[ip]:  # it was moved, or the record was damaged
                _write(effects, PutAttachment(attachment))
            state.inventory.add_assigned(attachment, eni)
        elif ip in kept.routed:
            attachment = recovered(ip, kept.routed[ip], eni.id, now)
            _write(effects, PutAttachment(attachment))
            state.inventory.add_assigned(attachment, eni)
            _note(effects, "attachment.recovered", "warning", ip=ip, link=kept.routed[ip])
        elif ip in foreign:
            state.inventory.add_foreign(ip, eni, now)
            _note(effects, "address.foreign", "warning", eni=eni.id, ip=ip, cause="unknown")
        elif ip in kept.cooling:  # also when that is over: its flows have to be forgotten first
            state.inventory.add_cooling(ip, eni, kept.cooling[ip])
        else:
            state.inventory.add(ip, eni, now)
    # Restored out of order: expiry relies on the order of release.
    state.inventory.cooling = dict(sorted(state.inventory.cooling.items(), key=lambda item: item[1]))


def _write(effects: list[do.Effect], record: Record) -> None:
    effects.append(do.Write(record))


def _note(effects: list[do.Effect], event: str, level: str, **fields: str | int) -> None:
    effects.append(do.Note(event, level, tuple(fields.items())))
