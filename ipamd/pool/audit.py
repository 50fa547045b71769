"""Two slow rounds that compare what the pool believes with what is.

The audit, once an hour, reads EC2 and the kernel afresh. Every disagreement has to show in two audits that are at
least a minute apart before anything follows from it: one reading may be older than the pool's own news, and it may be
EC2's eventual consistency that speaks. What is found then is noted as an event, with what was done:

    an attached ENI with our tag             served
    an unattached ENI with our tag           deleted, if it is ten minutes old (one that nobody remembers)
    that of a gone instance of our cluster   likewise, where EC2 was asked for them
    an ENI that is not there any more        read by itself; it is attached again, or forgotten
    an address that we did not ask for       foreign: shown, and left alone
    an address that we don't have any more   forgotten; a pod's record stays until the pod goes
    a pod's route to an address of nobody    recorded as that pod's

What others use in the kernel is judged at once (in_use.py). Somebody else's ENIs and the /28 prefixes on ours are
counted at once, since they take slots.

The search, once a minute while there are attachments, looks for those whose namespace and veth are both gone: the
runtime never sent their DEL. They, too, have to be gone twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.backoff import SLOTS, action_scope
from ipamd.pool.belief import shown
from ipamd.pool.eni import Eni
from ipamd.pool.growth import Growth
from ipamd.pool.life.states import Attaching, Deleting
from ipamd.pool.model import (
    AddressState,
    AttachmentKey,
    DropLimit,
    EniState,
    LearntLimit,
    ObservedEni,
    PutIntent,
    PutLimit,
)
from ipamd.pool.restart import adopt, adopt_attached
from ipamd.pool.state import LOOK_AGAIN, LOOK_AGAIN_CAP, Setup, attach_intent

# Seconds. The first audit comes sooner than the others: a start may have read what was not up to date.
AUDIT_INTERVAL, AUDIT_JITTER = 3600.0, 0.25
AUDIT_AGAIN = 600.0  # after one that failed
# How long a disagreement has to last.
DOUBT_LASTS = 60.0
LEAK_AGE = 600.0
# A learnt limit is tried again after a day, that of a single ENI, on which others may give up slots, sooner.
LIMIT_LASTS, ENI_LIMIT_LASTS = 86400.0, 600.0

SEARCH_INTERVAL = 60.0


@dataclass(frozen=True, slots=True)
class _Finding:
    """`what` and `of` make out the disagreement; `resolve` is what follows once it has lasted: for `DOUBT_LASTS`, or
    `at_least` so many seconds."""

    what: str
    of: str
    resolve: Callable[[], None]
    at_least: float = 0.0

    @property
    def lasts(self) -> float:
        return max(self.at_least, DOUBT_LASTS)


class Audits(Growth):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._doubts: dict[tuple[str, str], float] = {}
        self._search_at = math.inf
        self._gone_since: dict[AttachmentKey, float] = {}

    def _begin_rounds(self, now: float) -> None:
        self.audit_at = now + AUDIT_INTERVAL * self._random.uniform(0.5, 1.0)

    def _make_rounds(self, now: float) -> None:
        if now >= self.audit_at and not self._under_way(do.Audit):
            self.audit_at = math.inf
            self._send_unbound(do.Audit(self._next_op()))
        if self._under_way(do.SeekAttachments):
            return
        if not self.inventory.attachments:
            self._search_at = math.inf
        elif self._search_at == math.inf:
            self._search_at = now + SEARCH_INTERVAL
        elif now >= self._search_at:
            self._search_at = math.inf
            self._send_unbound(do.SeekAttachments(self._next_op()))

    def _look_who_holds_slots(self, now: float) -> bool:
        """Whether that is being found out, for somebody who can't be served as things were when last seen."""
        auditing = self._under_way(do.Audit)
        if self.backoffs.active(now, action_scope(do.Audit.action)):
            return auditing
        if self.taken_by_others():
            if self.eni_slots() > 0:
                return False
            if not auditing and now - self.audited_at >= self.look_again:
                self.audit_at = now
        elif not self.limit_met:
            return False
        return auditing or self.audit_at <= now

    def _round_times(self, now: float) -> list[float]:
        times = [math.inf if self._under_way(do.Audit) else self.audit_at, self._search_at]
        look_at = self.audited_at + self.look_again
        if self.waiting and look_at > now and self.taken_by_others() and self.eni_slots() <= 0:
            times.append(look_at)
        return [at for at in times if at < math.inf]

    # The search

    def _sought(self, event: on.Outcome, now: float) -> None:
        if not isinstance(event, on.AttachmentsSought):
            return
        before, self._gone_since = self._gone_since, {}
        for key in event.gone:
            attachment = self.inventory.attachments.get(key)
            if attachment is None:
                continue
            since = before.get(key, now)
            if since < attachment.since:
                since = now  # that was another one of the same name
            if now - since >= SEARCH_INTERVAL:
                self._release(attachment, now)
                self._note("attachment.collected", "warning", key=str(key), ip=attachment.address, cause="gone")
            else:
                self._gone_since[key] = since

    # The audit

    def _audited(self, event: on.Outcome, now: float) -> None:
        if not isinstance(event, on.Audited):
            again = now + AUDIT_AGAIN * self._random.uniform(0.5, 1.5)
            if isinstance(event, on.OperationFailed):
                backoff = self._failed(action_scope(do.Audit.action), event.failure, now)
                again = backoff.until if self.limit_met else again
            self.audit_at = min(self.audit_at, again)
            return
        self.audited_at = now
        self.backoffs.succeeded(action_scope(do.Audit.action))
        self._count_what_others_have(event, now)
        self._settle_limit(now)
        for subnet_id, available in event.available:
            self.subnets.noted(subnet_id, available, now)
        findings = {(finding.what, finding.of): finding for finding in self._findings(event, now)}
        self._doubts = {found: self._doubts.get(found, now) for found in findings}
        for found, since in list(self._doubts.items()):
            if now - since >= findings[found].lasts:
                del self._doubts[found]
                findings.pop(found).resolve()
        interval = AUDIT_INTERVAL * self._random.uniform(1 - AUDIT_JITTER, 1 + AUDIT_JITTER)
        lasting = [self._doubts[found] + finding.lasts for found, finding in findings.items()]
        self.audit_at = min(self.audit_at, max(min(lasting, default=now + interval), now + DOUBT_LASTS))

    def _count_what_others_have(self, event: on.Audited, now: float) -> None:
        """Without a doubt: a reading that is out of date costs a call in vain at worst."""
        before = self._of_others()
        self._count_foreign_enis(event, now)
        for observed in event.enis:
            eni = self.inventory.enis.get(observed.id)
            if eni is not None and eni.state is EniState.READY:
                self._prefixes_seen(eni, observed)
                if now - eni.refused_at > ENI_LIMIT_LASTS:
                    eni.refused = None
        unchanged = self._of_others() == before
        self.look_again = min(self.look_again * 2, LOOK_AGAIN_CAP) if unchanged else LOOK_AGAIN

    def _of_others(self) -> set[str]:
        found = {eni.id for eni in self.foreign_enis()}
        return found.union(*(eni.prefixes for eni in self.inventory.enis.values()))

    def _count_foreign_enis(self, event: on.Audited, now: float) -> None:
        seen = {eni.id: eni for eni in event.enis if eni.device_index is not None}
        for observed in seen.values():
            if observed.id not in self.inventory.enis and not (observed.owned or observed.primary):
                eni = adopt_attached(self, observed, now)
                self._note("eni.foreign", "info", eni=eni.id, device_index=eni.device_index, network_card=eni.card)
        for eni in list(self.inventory.enis.values()):
            if eni.state is EniState.FOREIGN and eni.id not in seen:
                self.inventory.remove_eni(eni)
                self._note("eni.foreign_gone", "info", eni=eni.id)
                self.backoffs.succeeded(SLOTS)  # what kept ENIs from being attached may be over

    def _settle_limit(self, now: float) -> None:
        """Now that all that are attached are known: does the instance take fewer than the table says?"""
        limit = self.learnt_limit
        if limit is not None and (now - limit.at > LIMIT_LASTS or self.attached() > limit.max_enis):
            self.learnt_limit = None
            self._write(DropLimit())
        if now - self.too_many_at > LIMIT_LASTS:
            self.too_many = None
        if not self.limit_met:
            return
        self.limit_met = False
        on_their_way = sum(e.state is EniState.ATTACHING and e.busy != 0 for e in self.inventory.enis.values())
        most = max(self.attached() + on_their_way, 1)
        if most < self.max_enis:
            self.learnt_limit = LearntLimit(most, now)
            self._write(PutLimit(self.learnt_limit))
            self._note("limit.learnt", "warning", max_enis=most, by_type=self.limits.max_enis)

    def _findings(self, event: on.Audited, now: float) -> Iterator[_Finding]:
        known = self.inventory.enis
        seen = {eni.id: eni for eni in event.enis}
        for observed in event.enis:
            eni = known.get(observed.id)
            if eni is None:
                yield from self._unknown_eni(observed, event, now)
            elif eni.quiet:
                yield from self._address_findings(eni, observed, event, now)
        for observed in event.abandoned:
            if observed.id not in known and not self._too_young(observed, now):
                yield self._leak(observed, now)
        for eni in known.values():
            there = seen.get(eni.id)
            if there is not None and there.device_index is not None:
                continue
            if eni.state is EniState.READY and not eni.busy:
                yield _Finding("missing ENI", eni.id, partial(self._miss_eni, eni, now))

    def _unknown_eni(self, observed: ObservedEni, event: on.Audited, now: float) -> Iterator[_Finding]:
        if observed.device_index is not None:  # ours, or it would be known
            yield _Finding("unknown ENI", observed.id, partial(self._find_eni, observed, event, now))
        elif observed.owned and not self._too_young(observed, now):
            yield self._leak(observed, now)

    def _address_findings(self, eni: Eni, seen: ObservedEni, event: on.Audited, now: float) -> Iterator[_Finding]:
        routed, observed = dict(event.routed), self._believe(eni, seen, now)
        unknown = tuple(sorted(set(observed.addresses) - eni.addresses.keys()))
        if unknown:
            yield _Finding("unknown addresses", " ".join(unknown), partial(self._account, eni, unknown, now))
        if eni.unaccounted:
            yield _Finding("unanswered assignment", eni.id, partial(self._close_accounts, eni, math.inf))
        for ip, address in eni.addresses.items():
            if ip not in observed.addresses:
                yield _Finding("missing address", ip, partial(self._miss_address, ip, eni, now))
            elif address.state not in (AddressState.FREE, AddressState.COOLING):
                continue
            elif ip in routed:
                yield _Finding("routed address", ip, partial(self._find_routed, ip, routed[ip], now))

    def _inspected(self, event: on.Inspected, now: float) -> None:
        """That a pod is cut off, or no longer is, counts at once; all else is left to our own audits."""
        seen = {eni.id: eni for eni in event.enis}
        for eni in list(self.inventory.enis.values()):
            if not eni.quiet or eni.leaving:
                continue
            there = seen.get(eni.id)
            if there is None or there.device_index is None:
                eni.unsure = True
                continue
            observed = self._believe(eni, there, now)
            for address in list(eni.addresses.values()):
                if address.state is AddressState.ASSIGNED and address.ip in event.missing - set(observed.addresses):
                    self._miss_address(address.ip, eni, now)
            for ip in observed.addresses:
                if ip not in eni.addresses and ip in self.inventory.holders:
                    self._find_held(ip, eni, now)

    def _leak(self, observed: ObservedEni, now: float) -> _Finding:
        """One whose age nobody knows is watched for as long as the others have to be old."""
        at_least = LEAK_AGE if observed.created_at is None else 0.0
        return _Finding("leaked ENI", observed.id, partial(self._find_leaked, observed, now), at_least)

    def _too_young(self, observed: ObservedEni, now: float) -> bool:
        return observed.created_at is not None and now - observed.created_at < LEAK_AGE

    # What follows. A resolution may come after another one that changed its ground: each looks again.

    def _find_eni(self, observed: ObservedEni, event: on.Audited, now: float) -> None:
        eni, routed = adopt_attached(self, observed, now), dict(event.routed)
        for ip in shown(observed, eni, self.inventory).believed:
            self.inventory.add(ip, eni, now)
            if ip in routed:
                self._find_routed(ip, routed[ip], now)
        self._note("eni.found", "warning", eni=eni.id, state=eni.state.value, device_index=eni.device_index)

    def _find_leaked(self, observed: ObservedEni, now: float) -> None:
        if not self.inventory.holders.keys().isdisjoint(observed.addresses):
            # Pods have its addresses: it was detached behind our back, and is wanted.
            eni = adopt(self, observed, Attaching(), self.free_index(), now)
            eni.created_at = now
            for ip in observed.addresses:
                self.inventory.add(ip, eni, now)
            self._write(PutIntent(attach_intent(eni, now)))
            self._note("eni.found_detached", "warning", eni=eni.id)
            return
        eni = adopt(self, observed, Deleting(), -1, now)
        self._note("eni.leaked", "warning", eni=eni.id)

    def _miss_eni(self, eni: Eni, now: float) -> None:
        eni.unsure = True

    def _miss_address(self, ip: str, eni: Eni, now: float) -> None:
        address = eni.addresses.get(ip)
        if address is None or address.state is AddressState.RELEASING:
            return  # the read before its removal will tell
        self._lose(address, f"EC2 has taken {ip} from {eni.id}", now)

    def _find_routed(self, ip: str, link: str, now: float) -> None:
        address = self.inventory.addresses.get(ip)
        if address is None or address.state in (AddressState.ASSIGNED, AddressState.RELEASING):
            return
        self._recover(address, link, now)
