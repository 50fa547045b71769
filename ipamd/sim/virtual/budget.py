"""A node's rate budget in virtual time: the buckets of the real one, with the simulator's clock and alarms."""

from __future__ import annotations

from collections.abc import Callable

from ipamd.cloud.budget import Bucket, BucketView, Share, Ticket, share_of
from ipamd.cloud.port import Priority
from ipamd.sim.virtual.clock import Timer, VirtualClock

Send = Callable[[Ticket], None]


class VirtualBudget:
    def __init__(self, clock: VirtualClock, share: Callable[[str], Share] = share_of) -> None:
        self._clock = clock
        self._share = share
        self._buckets: dict[str, Bucket] = {}
        self._queued: dict[Ticket, Send] = {}
        self._alarms: dict[str, Timer] = {}

    def admit(self, action: str, priority: Priority, send: Send) -> None:
        """`send` is called when the call's turn has come, which may be at once."""
        if action not in self._buckets:
            self._buckets[action] = Bucket(action, self._share(action), self._clock())
        bucket = self._buckets[action]
        self._queued[bucket.ask(priority, self._clock())] = send
        self._serve(bucket)

    def succeeded(self, action: str, ticket: Ticket) -> None:
        bucket = self._buckets[action]
        bucket.succeeded(ticket, self._clock())
        self._serve(bucket)

    def view(self) -> list[BucketView]:
        return [bucket.view(self._clock()) for _, bucket in sorted(self._buckets.items())]

    def _serve(self, bucket: Bucket) -> None:
        now = self._clock()
        admitted = bucket.admit(now)
        if (alarm := self._alarms.pop(bucket.action, None)) is not None:
            alarm.cancel()
        if (due := bucket.due(now)) is not None:
            self._alarms[bucket.action] = self._clock.call_at(due, lambda: self._serve(bucket))
        for ticket in admitted:
            self._queued.pop(ticket)(ticket)
