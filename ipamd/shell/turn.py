"""The shell around the pool: carries its effects out and feeds the outcomes back.

All events of one turn of the event loop share one ledger transaction. The order within a turn is the promise that
everything else rests on: first the records are committed, then answers leave and EC2 calls are sent.

An EC2 call may wait in the node's rate budget before it is sent. Whom it is for decides how long, and what the kernel
has to say about it is asked after that wait.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Network
from typing import Any

import structlog

from ipamd.cloud.port import Cloud, CloudError, Priority
from ipamd.cloud.vpc import Vpc
from ipamd.host import EniNetwork, HostError, HostNetwork, NodeNetwork, PodNetwork, Reconciler
from ipamd.host.veth import host_link
from ipamd.ledger import Ledger, LedgerError
from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.inventory import Eni
from ipamd.pool.model import (
    Attachment,
    AttachmentKey,
    CloudErrorKind,
    CloudFailure,
    DropAttachment,
    DropCooling,
    EniState,
    ObservedEni,
    Owner,
    PutAttachment,
    Reason,
    Record,
    Refusal,
    Use,
    Uses,
)
from ipamd.pool.outlook import would_refuse
from ipamd.pool.pool import COLLECT_MINIMUM_AGE, Pool
from ipamd.shell.comparison import Compared, compare
from ipamd.shell.urgency import priority_of
from ipamd.telemetry.histogram import MILLISECONDS, Histogram
from ipamd.telemetry.tracing import NoTraces, Tracer

log = structlog.get_logger("ipamd.pool")

# A Nitro instance shows the device within a second or two of the attachment; past this it is worth an alarm.
LINK_TIMEOUT = 60.0

# Seconds between tries to write what is owed to a ledger that refused it.
LEDGER_RETRY = 1.0

# Seconds between the two looks of an audit: longer than a change takes to show everywhere, as a rule.
SECOND_LOOK = 2.0

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
    """Owns the pool, its timers and the EC2 and host operations under way.

    `failed` gets an exception when the pool or this shell contradicts itself. What they hold in memory is not
    trusted any further then; the records are, and a new process starts from them.
    """

    def __init__(
        self,
        pool: Pool,
        ledger: Ledger,
        cloud: Cloud,
        network: HostNetwork,
        vpc: Vpc,
        security_groups: tuple[str, ...],
        clock: Clock,
        on_change: Callable[[], None],
        tracer: Tracer | None = None,
    ) -> None:
        self.pool = pool
        self.clock = clock
        self._ledger = ledger
        self._cloud = cloud
        self._network = network
        self._vpc = vpc
        self._security_groups = security_groups
        self._on_change = on_change
        self._dropped: Callable[[AttachmentKey], None] | None = None
        self.tracer = tracer or NoTraces()
        self.lag = Histogram(MILLISECONDS)  # how late the loop came to what was due
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answers: dict[str, asyncio.Future[Any]] = {}
        self._batch: list[do.Effect] = []
        self._owed: list[Record] = []
        self._flush_scheduled = False
        self._turns = 0
        self._wake: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        network.uses.listen(self)
        self.reconciler = Reconciler(network, self._node_network, self._pod_at, self._device_gone, clock, on_change)
        self.unrecorded: LedgerError | None = None  # why the ledger refuses records, while it does
        self._retry: asyncio.TimerHandle | None = None  # set as long
        self._cluster_unread = False  # what gone nodes have left could not be read the last time

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
        await self._tell(on.Drained())

    async def undrain(self) -> None:
        await self._tell(on.Undrained())

    async def _tell(self, event: on.Event) -> None:
        """Raises `Refused` when the runner has failed."""
        if self.failed.done():
            raise Refused(GIVEN_UP)
        await self._feed_through(event)

    def would_refuse(self) -> Refusal | None:
        """What an ADD that came now would be told; None when it would get an address."""
        return would_refuse(self.pool, self.clock(), "" if self.unrecorded is None else str(self.unrecorded))

    async def vanished(self) -> list[Attachment]:
        """Attachments that have left no trace, and are old enough not to be in the middle of their ADD. Raises
        `HostError`."""
        gone = await self._gone()
        held = (self.pool.inventory.attachments.get(key) for key in gone)
        return [a for a in held if a is not None and self.clock() - a.since > COLLECT_MINIMUM_AGE]

    async def compare(self) -> Compared:
        """What EC2, the ledger and the kernel say differently, in each of two looks. Raises `CloudError`, `HostError`
        or `LedgerError`."""
        first, _ = await self._compare_once()
        if not first.mismatches:
            return first
        await asyncio.sleep(SECOND_LOOK)
        second, seen = await self._compare_once()
        before = {(mismatch.kind, mismatch.subject) for mismatch in first.mismatches}
        lasting = tuple(m for m in second.mismatches if (m.kind, m.subject) in before)
        # What an operator has found is the pool's knowledge from now on, too.
        self.feed(on.Inspected(seen.enis, frozenset(m.subject for m in lasting if m.kind == "address_missing")))
        return replace(second, mismatches=lasting)

    async def _compare_once(self) -> tuple[Compared, on.Audited]:
        seen = await self._read_all(self._cloud.at(Priority.WARM))
        return compare(self.pool, self._ledger.load().attachments, seen, self.clock()), seen

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
        self._network.catch_up()
        self._tell_pool(event)

    def _tell_pool(self, event: on.Event) -> None:
        try:
            effects = self.pool.handle(event, self.clock())
        except Exception as error:
            self._give_up(error)
            return
        if not effects and isinstance(event, on.PodRouteSeen):
            return  # one for each ADD and DEL, from which nothing follows
        self._batch += effects
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush_in_turn, time.monotonic())

    # What the kernel tells of addresses in use

    def use_seen(self, network: IPv4Network, use: Use) -> None:
        if self._vpc.overlaps(network):
            self._tell_pool(on.UseSeen(network, use))

    def pod_route_seen(self, ip: str, link: str) -> None:
        self._tell_pool(on.PodRouteSeen(ip, link))

    def uses_read(self, uses: Uses, routed: dict[str, str]) -> None:
        networks = {network: use for network, use in uses.networks.items() if self._vpc.overlaps(network)}
        self._tell_pool(on.UsesRead(Uses(uses.hosts, networks), tuple(routed.items())))

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
        batch, self._batch = self._batch, []
        self._owed += [effect.record for effect in batch if isinstance(effect, do.Write)]
        # The end of a cooldown is worth no commit of its own: a restart drops what has expired in the ledger as well.
        # It goes with the next records, and so before any that gives the address to somebody.
        needed = any(not isinstance(record, DropCooling) for record in self._owed)
        try:
            if needed:
                self._ledger.commit(self._owed)
                self._owed.clear()
                self._ledger_works()
        except LedgerError as error:
            self._carry_out_unrecorded(batch, error)
        else:
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
            case do.Write(DropAttachment(key)):
                if self._dropped is not None:
                    self._dropped(key)
            case do.Write():
                pass
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

    # Operations

    async def _operate(self, effect: do.Operation) -> None:
        try:
            with self.tracer.operation(effect.action, self.pool.waiting):
                event = await self._perform(effect)
        except CloudError as error:
            event = on.OperationFailed(effect.op, error.failure)
        except HostError as error:
            event = on.LinkFailed(effect.op, str(error))
            if not isinstance(effect, do.ConfigureLink):
                failure = CloudFailure(CloudErrorKind.TRANSIENT, effect.action, "HostError", str(error))
                event = on.OperationFailed(effect.op, failure)
        except Exception as error:
            log.exception("operation.crashed", effect=type(effect).__name__)
            failure = CloudFailure(
                CloudErrorKind.UNKNOWN_OUTCOME, effect.action, type(error).__name__, f"{error} (see the log)"
            )
            event = on.OperationFailed(effect.op, failure)
        self.feed(event)

    async def _perform(self, effect: do.Operation) -> on.Event:
        priority = priority_of(effect, bool(self.pool.waiting))
        cloud = self._cloud.at(priority)
        match effect:
            case do.CreateEni(op, token, subnet_id, count):
                groups = self._security_groups
                eni = await cloud.create_eni(
                    token=token, subnet_id=subnet_id, security_groups=groups, address_count=count
                )
                return on.EniCreated(op, eni)
            case do.AttachEni(op, eni_id, device_index):
                return on.EniAttached(op, await cloud.attach_eni(eni_id, device_index))
            case do.SetDeleteOnTermination(op, eni_id, attachment_id):
                await cloud.set_delete_on_termination(eni_id, attachment_id)
                return on.OperationDone(op)
            case do.DescribeEni(op, eni_id):
                return on.EniObserved(op, await cloud.describe_eni(eni_id))
            case do.AssignAddresses(op, eni_id, count):
                return on.AddressesAssigned(op, await cloud.assign_addresses(eni_id, count))
            case do.UnassignAddresses(op, eni_id, addresses):
                check = partial(self._check_unrouted, effect.action, addresses)
                await self._cloud.at(priority, check).unassign_addresses(eni_id, addresses)
                return on.OperationDone(op)
            case do.DetachEni(op, _, attachment_id):
                await self._cloud.at(priority, partial(self._stop_serving, effect)).detach_eni(attachment_id)
                return on.OperationDone(op)
            case do.DeleteEni(op, eni_id):
                await cloud.delete_eni(eni_id)
                return on.OperationDone(op)
            case do.ConfigureLink():
                link = await self._configure_link(effect)
                subnet = IPv4Network(self._vpc.subnets[effect.subnet_id])
                self._network.uses.read()
                return on.LinkReady(effect.op, link, subnet)
            case do.DescribeSubnets(op, subnet_ids):
                available = await cloud.available_addresses(subnet_ids)
                return on.SubnetsObserved(op, tuple(available.items()))
            case do.Audit(op):
                return await self._audit(op, cloud)
            case do.ForgetFlows(op, addresses):
                await self._network.forget_flows(addresses)
                return on.OperationDone(op)
            case do.SeekAttachments(op):
                return on.AttachmentsSought(op, await self._gone())

    async def _audit(self, op: int, cloud: Cloud) -> on.Audited:
        abandoned = await self._abandoned(cloud)
        return replace(await self._read_all(cloud, abandoned, self.pool.subnets.ids), op=op)

    async def _read_all(
        self, cloud: Cloud, abandoned: Iterable[ObservedEni] = (), subnets: tuple[str, ...] = ()
    ) -> on.Audited:
        await self.look_at_vpc()
        enis = await cloud.describe_enis()
        available = await self._available(cloud, subnets) if subnets else ()
        # The kernel last: an address that a pod has by now must not look unused.
        _, routed = self._network.uses.read()
        deaf = await self._network.not_forwarding()
        return on.Audited(0, tuple(enis), tuple(abandoned), tuple(routed.items()), available, deaf)

    async def look_at_vpc(self) -> None:
        """Whether the VPC has got a CIDR, or lost one, since the last look."""
        if await self._vpc.look():
            with suppress(HostError):  # told already, and tried again
                await self.reconciler.apply()

    async def _available(self, cloud: Cloud, subnets: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
        """What is left in the subnets, for whoever watches them: growth itself asks only when it has to know."""
        try:
            return tuple((await cloud.available_addresses(subnets)).items())
        except CloudError as error:
            log.debug("audit.subnets_unread", code=error.failure.code, error=error.failure.message)
            return ()

    async def _abandoned(self, cloud: Cloud) -> list[ObservedEni]:
        """What gone nodes of the cluster have left. It takes a permission more than this node's own ENIs do, so the
        audit goes on without it."""
        try:
            found = await cloud.describe_abandoned()
        except CloudError as error:
            failure = error.failure
            if not self._cluster_unread:
                log.warning("audit.cluster_unread", action=failure.action, code=failure.code, error=failure.message)
            self._cluster_unread = True
            return []
        self._cluster_unread = False
        return found

    async def _gone(self) -> frozenset[AttachmentKey]:
        """The attachments that have left no trace."""
        attachments = tuple(self.pool.inventory.attachments.values())
        links = await self._network.host_links()
        linkless = [attachment for attachment in attachments if host_link(attachment.key) not in links]
        return await asyncio.to_thread(_without_netns, linkless)

    def _node_network(self) -> NodeNetwork:
        """All ENIs on the node, also those that are yet to be configured: after a restart none of them may be taken
        for one that is gone."""
        enis = [
            EniNetwork(
                eni.id, eni.mac, eni.device_index, eni.primary, eni.primary_ip, self._vpc.subnets[eni.subnet_id]
            )
            for eni in self._served()
            if eni.subnet_id in self._vpc.subnets
        ]
        pods = [pod for address in self.pool.inventory.holders if (pod := self._pod_at(address))]
        return NodeNetwork(tuple(enis), self._vpc.networks, tuple(pods))

    def _served(self) -> list[Eni]:
        states = (EniState.CONFIGURING, EniState.READY, EniState.DRAINING)
        return [eni for eni in self.pool.inventory.enis.values() if eni.state in states]

    async def _learn_subnets(self) -> None:
        """Before the network is touched, so that nothing of it waits for EC2. Raises `CloudError`."""
        for eni in self._served():
            if eni.subnet_id not in self._vpc.subnets:
                self._vpc.learn(eni.subnet_id, await self._cloud.subnet_cidr(eni.subnet_id))

    def attached_links(self) -> frozenset[str]:
        """The host's ends of all attachments, also of those whose address no ENI has any more."""
        return frozenset(host_link(key) for key in self.pool.inventory.attachments)

    def _pod_at(self, address: str) -> PodNetwork | None:
        """None for an address that nobody has, or that no ENI of the node has any more."""
        inventory = self.pool.inventory
        key, held = inventory.holders.get(address), inventory.addresses.get(address)
        if key is None or held is None:
            return None
        return PodNetwork(address, host_link(key), held.eni.device_index)

    def _device_gone(self, eni_id: str) -> None:
        self.feed(on.DeviceGone(eni_id))

    async def _configure_link(self, effect: do.ConfigureLink) -> str:
        link = await self._network.wait_for_link(effect.mac, LINK_TIMEOUT)
        await self._learn_subnets()
        await self.reconciler.apply(effect.eni_id)
        return link.name

    async def _check_unrouted(self, action: str, addresses: tuple[str, ...]) -> None:
        """The kernel's word before anything is removed: nobody may be reached by one of these addresses."""
        uses, routed = self._network.uses.read()
        used = sorted(set(addresses) & (routed.keys() | uses.hosts.keys()))
        if used:
            message = f"something on this host still leads to {', '.join(used)}"
            raise CloudError(CloudFailure(CloudErrorKind.IN_USE, action, "RouteExists", message))

    async def _stop_serving(self, effect: do.DetachEni) -> None:
        """Take down what the host does for the ENI, if nobody needs it; nobody may have come to meanwhile."""
        await self._check_unrouted(effect.action, effect.addresses)
        await self.reconciler.apply(effect.eni_id)  # the pool no longer counts it among those that serve
        await self._check_unrouted(effect.action, effect.addresses)

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


def _without_netns(attachments: Iterable[Attachment]) -> frozenset[AttachmentKey]:
    """Those whose network namespace is not there. It looks into the file system, which may take its time."""
    return frozenset(a.key for a in attachments if not a.owner.netns or _is_gone(a.owner.netns))


def _is_gone(path: str) -> bool:
    """Only what is known to be gone: a path that may not be looked at is there. What it leads to is not asked, as
    the kernel tells that of /proc/<pid>/ns/net only to those who may trace the process (ptrace(2))."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
