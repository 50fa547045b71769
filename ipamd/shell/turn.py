"""Feeds events to the pool, records what it decides, and then carries it out.

All events of one turn of the event loop share one ledger transaction. The order within a turn is the promise that
everything else rests on: first the records are committed, then answers leave and EC2 calls are sent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from ipamd.ledger import Ledger, LedgerError
from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import (
    Attachment,
    AttachmentKey,
    CloudErrorKind,
    CloudFailure,
    DropAttachment,
    DropCooling,
    Owner,
    PutAttachment,
    Reason,
    Record,
    Refusal,
)
from ipamd.pool.pool import Pool
from ipamd.pool.view import View
from ipamd.telemetry.histogram import MILLISECONDS, Histogram

log = structlog.get_logger("ipamd.pool")

# Seconds between tries to write what is owed to a ledger that refused it.
LEDGER_RETRY = 1.0

GIVEN_UP = Refusal(
    Reason.DRAINING, "the daemon met a fault of its own and starts again; its log has the details", 1.0
)


class Refused(Exception):
    """The pool can't serve the request."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.reason}: {refusal.message}")
        self.refusal = refusal


class Clock:
    """Seconds since the epoch that never jump: the wall clock is read once, then the monotonic clock goes on."""

    def __init__(self) -> None:
        self.lead = time.time() - time.monotonic()

    def __call__(self) -> float:
        return time.monotonic() + self.lead


class PoolRunner:
    """Owns the pool, its timers and the operations under way.

    `perform` carries an operation out and answers with what came of it. `catch_up` has the kernel's news of addresses
    in use told before it returns. `on_change` is called at the end of each turn.
    `failed` gets an exception when the pool or this shell contradicts itself. What they hold in memory is not
    trusted any further then; the records are, and a new process starts from them.
    """

    def __init__(
        self,
        pool: Pool,
        ledger: Ledger,
        clock: Clock,
        perform: Callable[[do.Operation], Awaitable[on.Event]],
        catch_up: Callable[[], None],
        on_change: Callable[[], None],
    ) -> None:
        self._pool = pool
        self.view = View(pool)
        self.clock = clock
        self._ledger = ledger
        self._perform = perform
        self._catch_up = catch_up
        self._on_change = on_change
        self._dropped: Callable[[AttachmentKey], None] | None = None
        self.lag = Histogram(MILLISECONDS)  # how late the loop came to what was due
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answers: dict[str, asyncio.Future[Any]] = {}
        self._records: list[Record] = []
        self._batch: list[do.Effect] = []
        self._owed: list[Record] = []
        self._flush_scheduled = False
        self._turns = 0
        self._wake: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.unrecorded: LedgerError | None = None  # why the ledger refuses records, while it does
        self._retry: asyncio.TimerHandle | None = None  # set as long

    def on_dropped(self, tell: Callable[[AttachmentKey], None]) -> None:
        """From now on `tell` is called with each attachment that ends, in whatever way, once that is on record."""
        self._dropped = tell

    # What callers ask

    async def allocate(
        self,
        request: str,
        key: AttachmentKey,
        owner: Owner,
        wait: float,
        wanted: str = "",
        *,
        blocks_releases: bool = False,
    ) -> Attachment:
        """An address for the attachment, on record. `wanted` and `blocks_releases` as in `AllocationRequested`.
        Raises `Refused`."""
        event = on.AllocationRequested(request, key, owner, self.clock() + wait, wanted, blocks_releases)
        try:
            answer: Attachment = await self._ask(request, event)
        except asyncio.CancelledError:
            self.feed(on.AllocationCancelled(request))
            raise
        return answer

    async def release(
        self, request: str, key: AttachmentKey, recovered_as: AttachmentKey | None
    ) -> Attachment | None:
        """What was released, or None when nothing was held. Raises `Refused` when the runner has failed."""
        answer: Attachment | None = await self._ask(request, on.ReleaseRequested(request, key, recovered_as))
        return answer

    async def collect(self, request: str, network: str, valid: frozenset[tuple[str, str]]) -> tuple[Attachment, ...]:
        """What was released because the runtime no longer knows it. Raises `Refused` when the runner has failed."""
        answer: tuple[Attachment, ...] = await self._ask(request, on.CollectRequested(request, network, valid))
        return answer

    async def drain(self) -> None:
        """An operator wants the node empty; on record when this returns, unless the ledger can't be written."""
        await self._tell(on.NodeDrained())

    async def undrain(self) -> None:
        await self._tell(on.NodeUndrained())

    async def _tell(self, event: on.Event) -> None:
        """Raises `Refused` when the runner has failed."""
        if self.failed.done():
            raise Refused(GIVEN_UP)
        await self._feed_through(event)

    def would_refuse(self) -> Refusal | None:
        """How an ADD that came now would be refused; None when it would get an address."""
        return self.view.would_refuse(self.clock(), "" if self.unrecorded is None else str(self.unrecorded))

    async def _ask(self, request: str, event: on.Event) -> Any:
        if self.failed.done():
            raise Refused(GIVEN_UP)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[request] = future
        self.feed(event)
        try:
            return await future
        finally:
            self._answers.pop(request, None)

    def _answer(self, request: str, value: Any) -> None:
        future = self._answers.get(request)
        if future is not None and not future.done():
            future.set_result(value)

    def _refuse(self, request: str, refusal: Refusal) -> None:
        future = self._answers.get(request)
        if future is not None and not future.done():
            future.set_exception(Refused(refusal))

    # The turn

    def feed(self, event: on.Event) -> None:
        """Tell the pool; what it wants done is done at the end of this turn of the loop.

        What the kernel has told until now of addresses in use comes before: so nothing is granted that somebody took
        before this moment. What is taken between the grant and the plugin's work, some milliseconds, is seen after.
        """
        if self.failed.done():
            return
        self._catch_up()
        self.tell(event)

    def tell(self, event: on.Event) -> None:
        """As `feed`, for what the kernel itself has shown."""
        try:
            turn = self._pool.handle(event, self.clock())
        except Exception as error:
            self._give_up(error)
            return
        if not any(turn) and isinstance(event, on.PodRouteSeen):
            return  # one for each ADD and DEL, from which nothing follows
        self._records += turn.records
        self._batch += turn.then
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush_in_turn, time.monotonic())

    def _flush_in_turn(self, due: float) -> None:
        self.lag.observe(time.monotonic() - due)
        self._flush()

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self.failed.done():
            return
        try:
            self._end_turn()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        log.error("pool.failed", error=f"{type(error).__name__}: {error}", exc_info=error)
        self.failed.set_exception(error)
        for request in self._answers:
            self._refuse(request, GIVEN_UP)

    def _end_turn(self) -> None:
        """Commit the turn's records, then carry out the rest."""
        records, self._records = self._records, []
        batch, self._batch = self._batch, []
        self._owed += records
        # The end of a cooldown is worth no commit of its own: a restart drops what has expired in the ledger as well.
        # It goes with the next records, and so before any that gives the address to somebody.
        needed = any(not isinstance(record, DropCooling) for record in self._owed)
        try:
            if needed:
                self._ledger.commit(self._owed)
                self._owed.clear()
                self._ledger_works()
        except LedgerError as error:
            self._tell_dropped(records)
            self._carry_out_unrecorded(batch, error)
        else:
            self._tell_dropped(records)
            for effect in batch:
                self._carry_out(effect)
        self._on_change()
        self._turns += 1

    async def moves(self) -> bool:
        """Whether an event comes through: the pool takes it, and the turn that it is in comes to its end."""
        before = self._turns
        await self._feed_through(on.TimePassed())
        return self._turns > before

    async def _feed_through(self, event: on.Event) -> None:
        """The turn that the event is in has ended, and its records are committed, when this returns."""
        self.feed(event)
        await asyncio.sleep(0)  # the loop was asked for the turn's end before

    def _carry_out_unrecorded(self, batch: list[do.Effect], error: LedgerError) -> None:
        """What rests on a record does not happen: nothing is granted anew, and no EC2 call that needs an intent is
        sent. All else goes on, releases above all, and its records stay owed to the ledger. A release is answered
        once it is kept where a restart finds it, and refused else: the plugin keeps it in the spool then."""
        if self._retry is None:
            log.error("ledger.unwritable", error=str(error))
        else:
            self._retry.cancel()
        self.unrecorded = error
        self._retry = asyncio.get_running_loop().call_later(LEDGER_RETRY, self._flush)
        kept = self._ledger.owe(self._owed)
        owed = {record.attachment.key for record in self._owed if isinstance(record, PutAttachment)}
        lost: list[do.Grant] = []
        for effect in batch:
            match effect:
                case do.Grant() if effect.attachment.key in owed:
                    lost.append(effect)
                case _ if isinstance(effect, do.RECORDED):
                    failure = CloudFailure(CloudErrorKind.UNRECORDED, effect.action, "LedgerUnwritable", str(error))
                    self.feed(on.OperationFailed(effect.op, failure))
                case do.Released(request) | do.Collected(request) if not kept:
                    self._refuse(request, Refusal(Reason.LEDGER_UNWRITABLE, str(error), LEDGER_RETRY))
                case _:
                    self._carry_out(effect)
        if lost:
            unrecorded = {grant.attachment for grant in lost}
            self._owed = [
                record
                for record in self._owed
                if not (isinstance(record, PutAttachment) and record.attachment in unrecorded)
            ]
            self.feed(on.GrantsUnrecorded(tuple(lost), str(error)))

    def _tell_dropped(self, records: list[Record]) -> None:
        for record in records:
            if isinstance(record, DropAttachment) and self._dropped is not None:
                self._dropped(record.key)

    def _ledger_works(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
            self.unrecorded = None
            log.info("ledger.writable_again")

    def _carry_out(self, effect: do.Effect) -> None:
        match effect:
            case do.Grant(request, attachment):
                self._answer(request, attachment)
            case do.Refuse(request, refusal):
                self._refuse(request, refusal)
            case do.Released(request, attachment):
                self._answer(request, attachment)
            case do.Collected(request, attachments):
                self._answer(request, attachments)
            case do.Wake(at):
                self._set_alarm(at)
            case do.Note(event, level, fields):
                getattr(log, level)(event, **dict(fields))
            case _:
                task = asyncio.get_running_loop().create_task(self._operate(effect))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _set_alarm(self, at: float | None) -> None:
        if self._wake is not None:
            self._wake.cancel()
        self._wake = None
        if at is not None:
            # A millisecond late rather than a hair early, which would cost a second turn.
            delay = max(at - self.clock(), 0) + 0.001
            self._wake = asyncio.get_running_loop().call_later(delay, self.feed, on.TimePassed())

    async def _operate(self, effect: do.Operation) -> None:
        self.feed(await self._perform(effect))

    async def stop(self, grace: float) -> None:
        """Give EC2 calls under way `grace` seconds to end; their intents cover the rest. Feed nothing after this."""
        if self._tasks:
            _, unfinished = await asyncio.wait(self._tasks, timeout=grace)
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)
        self._flush()
        self._set_alarm(None)
        if self._retry is not None:
            self._retry.cancel()
