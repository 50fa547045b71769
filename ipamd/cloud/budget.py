"""How often this node may call EC2: a bucket of tokens for each action, so that no node takes what all of them share.

EC2 counts calls by action, for the account and region as a whole, and every controller in it draws on the same
tokens. A node can't see what the others do; it can only begin with a cautious share and listen. So each action's rate
follows additive increase and multiplicative decrease, as TCP does for the same reason: controllers that share a
bottleneck, each blind to the others, converge to equal shares of it (Chiu and Jain, "Analysis of the Increase and
Decrease Algorithms for Congestion Avoidance", 1989).

- A call that EC2 throttled halves the rate and empties the bucket: the account's is empty, too. Of calls that were
  under way together only the first one counts.
- A success adds so much that a rate in full use grows by the same amount each second. Above the share only calls that
  had to wait count: a rate that was not used up proves nothing (RFC 7661 says the same of TCP).
- Ten minutes after the last change what was learnt is forgotten, and the rate is the share again.

Among those that wait, waiting pods go before warm fill and warm fill before what is given back; first in, first out
within a class. Nobody starves: a class that was passed over nine times running gets the next token, so each one that
waits has at least a tenth of the rate, however little that is.

`Bucket` is pure, with the time as an argument. `RateBudget` is its face in asyncio.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

from ipamd.cloud.port import CloudError, Priority
from ipamd.pool.model import CloudErrorKind


@dataclass(frozen=True, slots=True)
class Share:
    """What one node takes of an action. `burst` in calls, rates in calls per second.

    `rate` is where it starts; throttling takes it down to `floor` at most, success up to `ceiling`. `increase` is the
    additive one, in calls per second for each second in which the rate is used up.
    """

    burst: float
    rate: float
    floor: float
    ceiling: float
    increase: float


# Tokens, and tokens per second, of an account in one region by default. Attaching and detaching have the limits of
# all actions that change something. DescribeNetworkInterfaces has the smaller limits of reads without filter and
# page, because ids are neither.
# https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html
_OWN_LIMITS: Final = dict.fromkeys(
    (
        "AssignPrivateIpAddresses",
        "CreateNetworkInterface",
        "DeleteNetworkInterface",
        "ModifyNetworkInterfaceAttribute",
        "UnassignPrivateIpAddresses",
    ),
    (100, 5),
) | {"DescribeNetworkInterfaces": (50, 10)}
_READS: Final = (100, 20)
_CHANGES: Final = (50, 5)

# A fifth of the tokens lets a node of the common types attach all its ENIs at once, and five nodes do so in the same
# moment. A tenth of the refill keeps ten busy nodes within it. Half of it is the most that any node ever takes, since
# the account has other users. At a hundredth, which is a call in 20 s, even a hundred busy nodes are within it.
_BURST_PART: Final = 0.2
_RATE_PART: Final = 0.1
_CEILING_PART: Final = 0.5
_FLOOR_PART: Final = 0.01
_RAMP: Final = 20.0  # seconds in which a rate in full use grows by one share

DECREASE: Final = 0.5
LEAP: Final = 0.25
MEMORY: Final = 600.0  # seconds
PASSED_OVER_AT_MOST: Final = 9

# Seconds since the epoch are floats with steps of a quarter of a microsecond. What a token lacks for that at the time
# for which an alarm was set must not be waited for: it would be for ever in a simulation.
_WHOLE: Final = 1 - 1e-5


def share_of(action: str) -> Share:
    """A cautious share of the published limits of an EC2 action, by its name in the API."""
    reads = action.startswith(("Describe", "Get"))
    tokens, refill = _OWN_LIMITS.get(action, _READS if reads else _CHANGES)
    return Share(
        burst=tokens * _BURST_PART,
        rate=refill * _RATE_PART,
        floor=refill * _FLOOR_PART,
        ceiling=refill * _CEILING_PART,
        increase=refill * _RATE_PART / _RAMP,
    )


@dataclass(slots=True)
class Waits:
    """What calls of one priority have waited for their tokens. Times in seconds.

    `count` is of all calls that asked and wait no longer, those that did not have to wait included; `delayed` of
    those that had to; `abandoned` of those that were cancelled before they were sent, whose time counts as well.
    """

    count: int = 0
    delayed: int = 0
    abandoned: int = 0
    total: float = 0.0
    longest: float = 0.0


@dataclass(frozen=True, slots=True)
class BucketView:
    """A bucket at one moment, to be shown. `waiting` are calls in the queue."""

    action: str
    share: Share
    rate: float
    tokens: float
    throttled: int
    waiting: dict[Priority, int]
    waits: dict[Priority, Waits]


@dataclass(slots=True, eq=False)
class Ticket:
    """One call's place in the queue, and later its leave to be sent."""

    priority: Priority
    asked_at: float
    admitted: bool = False
    delayed: bool = False
    decreases: int = 0  # that the bucket had seen when the call was admitted


class Bucket:
    """The tokens of one action, full at first. Each `now` is in seconds of a clock that never goes back."""

    def __init__(self, action: str, share: Share, now: float) -> None:
        self.action = action
        self.share = share
        self.rate = share.rate
        self.throttled_calls = 0
        self._tokens = self.capacity
        self._filled_at = now
        self._learnt_at = now
        self._decreases = 0
        self._queues: dict[Priority, deque[Ticket]] = {priority: deque() for priority in Priority}
        self._passed_over = dict.fromkeys(Priority, 0)
        self._waits = {priority: Waits() for priority in Priority}

    @property
    def capacity(self) -> float:
        """A bucket whose rate was cut saves up less as well, but always a whole token."""
        return max(1.0, self.share.burst * min(1.0, self.rate / self.share.rate))

    def ask(self, priority: Priority, now: float) -> Ticket:
        """Join the queue; `admit` says who is served."""
        ticket = Ticket(priority, now)
        self._queues[priority].append(ticket)
        return ticket

    def abandon(self, ticket: Ticket, now: float) -> None:
        """The call will not be sent. One that was admitted a moment ago gives its token back."""
        if ticket.admitted:
            self._refill(now)
            self._tokens = min(self.capacity, self._tokens + 1)
        else:
            queue = self._queues[ticket.priority]
            queue.remove(ticket)
            if not queue:
                self._passed_over[ticket.priority] = 0
            ticket.delayed = True
            self._measure(ticket, now)
        self._waits[ticket.priority].abandoned += 1

    def admit(self, now: float) -> list[Ticket]:
        """Who may send now, in order. To be called after every other method, and again at `due`."""
        self._refill(now)
        admitted = []
        while self._tokens >= _WHOLE and (priority := self._next()) is not None:
            self._tokens = max(0.0, self._tokens - 1)
            ticket = self._queues[priority].popleft()
            ticket.admitted = True
            ticket.delayed = now > ticket.asked_at
            ticket.decreases = self._decreases
            self._measure(ticket, now)
            admitted.append(ticket)
        return admitted

    def due(self, now: float) -> float | None:
        """When the next token is whole, if somebody waits for it."""
        if not any(self._queues.values()):
            return None
        self._refill(now)
        return now + max(0.0, 1 - self._tokens) / self.rate

    def throttled(self, ticket: Ticket, now: float) -> None:
        """EC2 refused the call for its rate."""
        self._refill(now)
        self.throttled_calls += 1
        self._tokens = 0.0
        if ticket.decreases == self._decreases:
            self._decreases += 1
            self._learn(max(self.share.floor, self.rate * DECREASE), now)

    def succeeded(self, ticket: Ticket, now: float) -> None:
        """EC2 carried the call out."""
        self._refill(now)
        if ticket.decreases == self._decreases and (ticket.delayed or self.rate < self.share.rate):
            # Calls come `rate` times a second, so this is `increase` each second. At low rates that would be a leap.
            step = min(self.share.increase / self.rate, self.rate * LEAP)
            most = self.share.ceiling if ticket.delayed else self.share.rate
            self._learn(min(most, self.rate + step), now)

    def view(self, now: float) -> BucketView:
        self._refill(now)
        return BucketView(
            self.action,
            self.share,
            self.rate,
            self._tokens,
            self.throttled_calls,
            {priority: len(queue) for priority, queue in self._queues.items()},
            {priority: replace(waits) for priority, waits in self._waits.items()},
        )

    def _refill(self, now: float) -> None:
        elapsed = max(0.0, now - self._filled_at)
        self._filled_at = max(now, self._filled_at)
        self._tokens = min(self.capacity, self._tokens + elapsed * self.rate)
        if now - self._learnt_at >= MEMORY:
            self._learn(self.share.rate, now)

    def _learn(self, rate: float, now: float) -> None:
        self.rate = rate
        self._learnt_at = now
        self._tokens = min(self._tokens, self.capacity)

    def _next(self) -> Priority | None:
        """Whose turn it is, with the score of who was passed over."""
        waiting = [priority for priority in Priority if self._queues[priority]]
        if not waiting:
            return None
        patient = [p for p in waiting[1:] if self._passed_over[p] >= PASSED_OVER_AT_MOST]
        chosen = max(patient, key=lambda p: self._passed_over[p]) if patient else waiting[0]
        for priority in Priority:
            passed = priority is not chosen and priority in waiting
            self._passed_over[priority] = self._passed_over[priority] + 1 if passed else 0
        return chosen

    def _measure(self, ticket: Ticket, now: float) -> None:
        waits, waited = self._waits[ticket.priority], now - ticket.asked_at
        waits.count += 1
        waits.delayed += ticket.delayed
        waits.total += waited
        waits.longest = max(waits.longest, waited)


class RateBudget:
    """All actions' buckets, each made when it is first used.

    `clock` is in seconds and never goes back; `share` says what the node takes of an action.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, share: Callable[[str], Share] = share_of) -> None:
        self._clock = clock
        self._share = share
        self._buckets: dict[str, Bucket] = {}
        self._answers: dict[Ticket, asyncio.Future[None]] = {}
        self._alarms: dict[str, asyncio.TimerHandle] = {}
        self._closed = False

    @asynccontextmanager
    async def admit(self, action: str, priority: Priority) -> AsyncIterator[None]:
        """Around one EC2 call: waits for its token, and learns from how the call ends.

        A `CloudError` that passes through and says THROTTLED lowers the rate; no exception is a success; anything
        else says nothing about the rate. A call that is cancelled while it waits costs nothing.
        """
        bucket = self._buckets.get(action)
        if bucket is None:
            bucket = self._buckets[action] = Bucket(action, self._share(action), self._clock())
        ticket = await self._wait(bucket, priority)
        try:
            yield
        except CloudError as error:
            if error.failure.kind is CloudErrorKind.THROTTLED:
                now = self._clock()
                bucket.throttled(ticket, now)
                self._serve(bucket, now)
            raise
        now = self._clock()
        bucket.succeeded(ticket, now)
        self._serve(bucket, now)

    def view(self) -> list[BucketView]:
        """Every bucket that was used, by action."""
        now = self._clock()
        return [bucket.view(now) for _, bucket in sorted(self._buckets.items())]

    def close(self) -> None:
        """Send nothing more: calls that wait for a token are cancelled, and so is each later call."""
        self._closed = True
        for answer in self._answers.values():
            answer.cancel()

    async def _wait(self, bucket: Bucket, priority: Priority) -> Ticket:
        now = self._clock()
        ticket = bucket.ask(priority, now)
        answer = self._answers[ticket] = asyncio.get_running_loop().create_future()
        if self._closed:
            answer.cancel()
        else:
            self._serve(bucket, now)
        try:
            await answer
        except asyncio.CancelledError:
            self._answers.pop(ticket, None)
            now = self._clock()
            bucket.abandon(ticket, now)
            self._serve(bucket, now)
            raise
        return ticket

    def _serve(self, bucket: Bucket, now: float) -> None:
        """Let those go whose turn it is, and come back for the next one."""
        for ticket in bucket.admit(now):
            answer = self._answers.pop(ticket)
            if not answer.done():  # else it was cancelled, and will abandon the ticket
                answer.set_result(None)
        if (alarm := self._alarms.pop(bucket.action, None)) is not None:
            alarm.cancel()
        due = bucket.due(now)
        if due is not None:
            loop = asyncio.get_running_loop()
            self._alarms[bucket.action] = loop.call_later(due - now, lambda: self._serve(bucket, self._clock()))
