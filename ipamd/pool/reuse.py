"""When a released address may have another holder.

An address cools after its release, and the kernel forgets its flows twice: entries of its connection tracking that
outlive the pod they were made for would catch packets of the next one (ipamd/host/conntrack.py).

    on release        at once: it must not keep a client that still sends to the gone pod on a dead path
    before its reuse  once its cooldown is over, or, when pods wait, once it has cooled for `reuse_cooling_after`:
                      entries come back while it cools, as long as somebody sends to it and a service leads there

It becomes free when a flush that was asked for after its time had come has succeeded, so it never is while one that
concerns it is under way: that would cut the next holder's connections. Until then it counts as cooling, but what is
about to come back is not asked of EC2.

A flush walks through the kernel's whole table, however many addresses it is for. So there is one at a time, at most
one in `PAUSE` while nobody waits, and it takes along all that has come up since the last one. None is recorded: after
a restart all that cools is flushed anew.

Where flushes fail, they are repeated with back-off. After `TRIES` in a row the cooldown alone has to do: addresses
become free at its end, and none sooner, and an event says so once. Tries go on while anything cools, and the first
that succeeds ends this.
"""

from __future__ import annotations

import math

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.backoff import action_scope
from ipamd.pool.eni import Address
from ipamd.pool.model import (
    Attachment,
    AttachmentKey,
    Cooling,
    DropAttachment,
    DropCooling,
    PutAttachment,
    PutCooling,
)
from ipamd.pool.operations import Operations
from ipamd.pool.state import FORGET, Setup

FLUSHES = action_scope(FORGET)

# Seconds between two flushes when no pod waits for the second.
PAUSE = 0.1

# So many failures in a row mean that the kernel can't be made to forget.
TRIES = 3


class Reuse(Operations):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._pause_ends = -math.inf
        self._cooled_at = math.inf  # when the next cooldown ends
        self.reused_early = 0  # addresses that became free before the end of their cooldown

    def _hold(self, address: Address, attachment: Attachment, now: float) -> None:
        """`address` is free or cools."""
        self._cools_no_more(address.ip)
        self.forgetting.pop(address.ip, None)
        self.inventory.assign(address, attachment, now)
        self._write(PutAttachment(attachment))

    def _release(self, attachment: Attachment, now: float, by: AttachmentKey | None = None) -> None:
        """`by`: the key that the release names, if it is another one than the attachment is recorded under."""
        address = self.inventory.unassign(attachment)
        self._write(DropAttachment(attachment.key))
        self.unflushed[attachment.address] = None
        if address is None:
            return
        address.last_key = by or address.last_key
        self.inventory.cool(address, now)
        self._write(PutCooling(Cooling(address.ip, now)))

    def _withhold_cooling(self, address: Address, now: float) -> bool:
        """Whether the address, which cools, is used by somebody: then it becomes free for nobody, and its connections
        are not ours to forget."""
        use = self.inventory.use_of(address)
        if use is None:
            return False
        self._cools_no_more(address.ip)
        self.unflushed.pop(address.ip, None)
        self.forgetting.pop(address.ip, None)
        self.inventory.withhold(address, use, now)
        return True

    def _end_cooldowns(self, now: float) -> None:
        """Find those that have cooled to the end: they wait for a flush now, where one is possible."""
        self._cooled_at = math.inf
        over = []
        for ip, released_at in self.inventory.cooling.items():
            if released_at + self.targets.cooldown > now:
                self._cooled_at = released_at + self.targets.cooldown
                break
            if ip not in self.forgetting:
                over.append(ip)
        self.cooled = len(over)
        if over and self._flushes_fail(now):
            for ip in over:
                self._end_cooling(ip, now)
            self.cooled = 0

    def _flushes_fail(self, now: float) -> bool:
        """Whether there is no use in waiting for one."""
        backoff = self.backoffs.active(now, FLUSHES)
        return backoff is not None and backoff.attempts >= TRIES

    def _end_cooling(self, ip: str, now: float) -> None:
        self.inventory.free_again(self.inventory.addresses[ip], now)
        self._write(DropCooling(ip))
        self.unflushed.pop(ip, None)
        self._recount()

    def _has_candidates(self) -> bool:
        """Whether there is anything to flush, now or when the time has come."""
        return bool(self.unflushed or self.cooled or (self.waiting and self.inventory.cooling))

    def _may_flush(self, now: float) -> bool:
        return not self._under_way(do.ForgetFlows) and self.backoffs.active(now, FLUSHES) is None

    def _forget_flows(self, now: float) -> None:
        """For all that were released since the last flush, for those that have cooled to the end, and, for
        waiting pods, for those that have cooled long enough: the one that a pod asks for, or any."""
        if not self._has_candidates():
            return
        paused = now < self._pause_ends
        wanted = self.queue.for_any
        if wanted:
            wanted = max(min(wanted, self.pod_limit - len(self.inventory.attachments)), 0)
        if (paused and not wanted and not self.queue.wished) or not self._may_flush(now):
            return
        coming = self._coming_back(wanted, now)
        if paused and not coming:
            return
        released = [ip for ip in self.unflushed if ip not in coming and self._unused(ip)]
        self.unflushed.clear()
        if coming or released:
            self.forgetting, self.cooled = coming, 0
            self._pause_ends = now + PAUSE
            self._send_unbound(do.ForgetFlows(self._next_op(), (*coming, *released)))

    def _unused(self, ip: str) -> bool:
        """Whether the flows of an address that was released are still nobody's: it cools, or left the node."""
        inventory = self.inventory
        return ip in inventory.cooling or not (ip in inventory.addresses or ip in inventory.holders)

    def _coming_back(self, wanted: int, now: float) -> dict[str, float]:
        """The addresses whose time has come, and their releases: `wanted` of them for those that take any."""
        found: dict[str, float] = {}
        for ip, released_at in list(self.inventory.cooling.items()):
            cooled = released_at + self.targets.cooldown <= now
            usable = cooled or released_at + self.targets.reuse_cooling_after <= now
            if not usable or not (cooled or len(found) < wanted or self.queue.wished):
                break
            if not (cooled or len(found) < wanted or ip in self.queue.wished):
                continue
            if not self._withhold_cooling(self.inventory.addresses[ip], now):
                found[ip] = released_at
        return found

    def _flows_forgotten(self, effect: do.ForgetFlows, outcome: on.Outcome, now: float) -> None:
        released_at, self.forgetting = self.forgetting, {}
        tries = self.backoffs.attempts(FLUSHES)
        if isinstance(outcome, on.OperationFailed):
            self.backoffs.failed(FLUSHES, outcome.failure, now)
            self.unflushed |= dict.fromkeys(ip for ip in effect.addresses if ip in self.inventory.cooling)
            if tries + 1 == TRIES:
                self._note("conntrack.unusable", "warning", error=outcome.failure.message)
            return
        self.backoffs.succeeded(FLUSHES)
        if tries >= TRIES:
            self._note("conntrack.usable_again", "info")
        for ip in effect.addresses:
            if ip in released_at and self.inventory.cooling.get(ip) == released_at[ip]:
                self.reused_early += released_at[ip] + self.targets.cooldown > now
                self._end_cooling(ip, now)

    def _reuse_times(self, now: float) -> list[float]:
        """When there is something to do about what cools. While a flush is under way its outcome comes first, and
        while none is possible the end of the back-off does."""
        times = [self._cooled_at] if self._cooled_at < math.inf else []
        if not self._has_candidates() or not self._may_flush(now):
            return times
        if self.unflushed or self.cooled:
            times.append(self._pause_ends)
        if self.waiting and self.inventory.cooling:
            awaited = [self.inventory.cooling[ip] for ip in self.queue.wished if ip in self.inventory.cooling]
            if self.queue.for_any:
                awaited.append(next(iter(self.inventory.cooling.values())))
            times += [released_at + self.targets.reuse_cooling_after for released_at in awaited]
        return [at for at in times if at > now]
