"""The composition root: builds the parts, starts them in order, stops them in reverse.

Start: settings, ledger, spool, identity from IMDS, limits, the host's network, the inventory from EC2, the pool, the
socket. IMDS and EC2 are asked until they answer, with each failure in the log; the socket appears once the pool
knows its addresses, and plugins wait for it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from importlib import import_module
from random import Random
from typing import TYPE_CHECKING, TypeVar

import structlog

import ipamd
from ipamd.api.place import claim
from ipamd.api.spool import Spool, Spooled
from ipamd.cloud import model
from ipamd.cloud.budget import RateBudget
from ipamd.cloud.ec2 import Ec2
from ipamd.cloud.imds import Imds
from ipamd.cloud.permissions import Node, Permissions
from ipamd.cloud.port import CloudError, Identity
from ipamd.cloud.token import new_token
from ipamd.conditions import Conditions
from ipamd.heartbeat import heartbeat
from ipamd.history import History
from ipamd.host import HostError, HostNetwork
from ipamd.host.clashes import find_clashes
from ipamd.install import InstallError, write_conflist
from ipamd.ledger import Ledger
from ipamd.metrics.sources import Sources
from ipamd.pool import events as on
from ipamd.pool.model import Cooling, DropAttachment, PutCooling, Record, Targets
from ipamd.pool.pool import Pool
from ipamd.reload import LiveSettings
from ipamd.runner import Clock, PoolRunner
from ipamd.service_manager import ServiceManager
from ipamd.serving import Record as ServedRecord
from ipamd.serving import Serving
from ipamd.settings import HostSettings, PoolSettings, Settings
from ipamd.startup import give_back
from ipamd.tracing import to_collector
from ipamd.veth import recovered_key

if TYPE_CHECKING:
    from ipamd.api.server import ApiServer

log = structlog.get_logger("ipamd.daemon")

# Seconds that answers and EC2 calls under way get at the end; systemd's TimeoutStopSec is longer.
STOP_GRACE = 5.0

# Seconds after which metrics are served although the node is not ready: then they are wanted most.
METRICS_AFTER = 5.0

T = TypeVar("T")


async def run(live: LiveSettings, history: History, conditions: Conditions) -> None:
    """Serve until SIGTERM or SIGINT. Raises `LedgerError`, `HostError`, `SocketUnusable`, and whatever a fault of
    the daemon's own raised."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, live.hang_up)
    async with AsyncExitStack() as stack:
        serving = asyncio.ensure_future(_serve(live, history, conditions, stack))
        until = asyncio.ensure_future(stopping.wait())
        await asyncio.wait((serving, until), return_when=asyncio.FIRST_COMPLETED)
        until.cancel()
        if not serving.done():
            log.info("daemon.stopping")
            ServiceManager().notify("STOPPING=1")
            serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        if not serving.cancelled() and (error := serving.exception()) is not None:
            # Of tasks in a group the first failure is the cause; the others were only cancelled.
            raise error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error


async def _serve(live: LiveSettings, history: History, conditions: Conditions, stack: AsyncExitStack) -> None:
    settings = live.loaded.settings
    manager = ServiceManager()
    log.info("daemon.starting", version=ipamd.__version__, pid=os.getpid(), socket=str(settings.api.socket))
    ledger = Ledger.open(settings.ledger.path)
    stack.callback(ledger.close)
    if ledger.set_aside is not None:
        log.error("ledger.set_aside", file=str(ledger.set_aside), path=str(settings.ledger.path))
    claim(settings.api)
    spool = Spool(settings.cni.spool_dir)

    # What the client of EC2 is made from: read while others are asked.
    asyncio.get_running_loop().run_in_executor(None, model.warm)
    manager.notify("STATUS=asking the instance metadata service who this node is")
    imds = await stack.enter_async_context(Imds(settings.imds.endpoint))
    identity = await _until_answered("imds", imds.identity)
    log.info("node.identified", instance=identity.instance_id, type=identity.instance_type, ip=identity.primary_ip)

    manager.notify("STATUS=asking EC2 for this node's network interfaces")
    budget = RateBudget()
    cloud = await stack.enter_async_context(Ec2(settings.ec2, settings.imds, identity, budget, conditions))
    limits = await _until_answered("ec2", lambda: cloud.instance_limits(identity.instance_type))
    await _until_answered("ec2", cloud.connect)
    asking = asyncio.create_task(_until_answered("ec2", cloud.describe_enis))
    stack.callback(asking.cancel)
    # EC2 takes some tenths of a second to answer: time for what needs no answer.
    network = HostNetwork(settings.host)
    await _refuse_clashes(settings.host)
    await network.open()
    stack.push_async_callback(network.close)
    await asyncio.to_thread(import_module, "ipamd.api.server")  # 60 ms, most of them gRPC's
    enis = await asking

    clock = Clock()
    subnets = tuple(settings.ec2.subnets) or (identity.subnet_id,)
    pool = Pool(
        _targets(settings.pool),
        limits,
        subnets,
        Random(),
        lambda: new_token(clock()),
    )
    changed = asyncio.Event()
    groups = tuple(settings.ec2.security_groups) or identity.security_groups
    traces = to_collector(settings.tracing.endpoint, identity) if settings.tracing.endpoint else None
    if traces is not None:
        stack.push_async_callback(asyncio.to_thread, traces.close)
    runner = PoolRunner(pool, ledger, cloud, network, identity, groups, clock, changed.set, traces)
    stack.push_async_callback(runner.stop, STOP_GRACE)
    stack.callback(budget.close)  # before that: what has not been sent yet is not waited for

    _settle_spooled(ledger, spool)
    kept = ledger.load()
    routed = tuple((await network.pod_routes()).items())
    runner.feed(
        on.Started(
            tuple(enis),
            kept.attachments,
            kept.cooling,
            kept.intents,
            routed,
            local=await network.local_addresses(),
            own=kept.own,
            limit=kept.limit,
            drained=kept.drained,
        )
    )
    log.info("pool.restored", enis=len(enis), attachments=len(kept.attachments), cooling=len(kept.cooling))

    from ipamd.api.administration import AdministrationService
    from ipamd.api.introspection import IntrospectionService
    from ipamd.api.ipam import IpamService
    from ipamd.api.server import ApiServer
    from ipamd.api.timing import CallTimes

    permissions = Permissions()
    serving = Serving(runner, ServedRecord(settings.api.socket), conditions, changed)
    stack.callback(serving.close)
    service = IpamService(runner, network, settings.host, serving)
    times = CallTimes()
    server = ApiServer(
        settings.api,
        service,
        IntrospectionService(runner, network, identity, live, budget, history, permissions, conditions, serving),
        AdministrationService(runner),
        times,
    )
    await server.start()
    stack.push_async_callback(server.stop, STOP_GRACE)
    # First of all whoever waits is told to ask the successor, while the server can still say it.
    stack.callback(runner.feed, on.DrainRequested())
    stack.callback(history.close)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_watch(runner))
        tasks.create_task(runner.reconciler.run())
        tasks.create_task(network.discarded.run())
        tasks.create_task(_consume(spool, runner))
        tasks.create_task(_follow(live, runner))
        announced = tasks.create_task(_announce(runner, serving, server, manager, settings, identity))
        tasks.create_task(_follow_serving(announced, serving, server, manager, identity))
        if settings.ec2.check_permissions:
            node = Node(identity, enis, subnets[0], groups, settings.ec2.cluster)
            tasks.create_task(_examine(announced, permissions, cloud, node))
        if settings.metrics.listen:
            sources = Sources(runner, service, times, cloud, ledger, budget, history, identity, conditions, serving)
            tasks.create_task(_tell_metrics(settings.metrics.listen, announced, sources))
        if manager.watchdog_interval is not None:
            tasks.create_task(heartbeat(manager, manager.watchdog_interval, runner, ledger))


async def _refuse_clashes(settings: HostSettings) -> None:
    """Raises `HostError` when something of somebody else is where ours is to be."""
    clashes = await find_clashes(settings)
    for clash in clashes:
        log.error("host.clash", what=clash.what, owner=clash.owner, setting=clash.setting, remedy=clash.remedy)
    if clashes:
        raise HostError("something on this host is in the way:\n" + "\n".join(map(str, clashes)))


async def _tell_metrics(listen: str, announced: asyncio.Task[None], sources: Sources) -> None:
    """Imported only now, when pods are served: it takes 20 ms and 4 MiB."""
    await asyncio.wait((announced,), timeout=METRICS_AFTER)
    from ipamd.metrics.collector import DaemonCollector
    from ipamd.metrics.server import serving

    async with serving(listen, DaemonCollector(sources), sources.serving, sources.conditions):
        await asyncio.Event().wait()


async def _watch(runner: PoolRunner) -> None:
    """End the daemon when its core has failed: a service manager starts it again."""
    await asyncio.shield(runner.failed)


async def _follow(live: LiveSettings, runner: PoolRunner) -> None:
    async for loaded in live.changes():
        runner.feed(on.TargetsChanged(_targets(loaded.settings.pool)))


async def _until_answered(who: str, ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until it answers: a node whose metadata service or EC2 is away for a while must not need a restart."""
    delay = 1.0
    while True:
        try:
            return await ask()
        except CloudError as error:
            failure = error.failure
            log.error(
                f"{who}.unavailable",
                action=failure.action,
                code=failure.code,
                kind=failure.kind.value,
                error=failure.message,
                retry_in=delay,
            )
        await asyncio.sleep(delay)
        delay = min(delay * 2, 30.0)


def _targets(settings: PoolSettings) -> Targets:
    return Targets(**settings.model_dump())


def _settle_spooled(ledger: Ledger, spool: Spool) -> None:
    """Bring the ledger up to date with the DELs that came while nobody served: like replaying a journal."""
    held = {attachment.key: attachment for attachment in ledger.load().attachments}
    spooled = spool.read()
    records: list[Record] = []
    for release in spooled:
        attachment = held.get(release.key) or held.get(recovered_key(release.key))
        if attachment is not None and attachment.since <= release.released_at:
            del held[attachment.key]
            cooling = Cooling(attachment.address, release.released_at)
            records += [DropAttachment(attachment.key), PutCooling(cooling)]
            log.info("attachment.released", key=str(release.key), ip=attachment.address, spooled=True)
    ledger.commit(records)
    for release in spooled:
        spool.done(release)


async def _consume(spool: Spool, runner: PoolRunner) -> None:
    async for waiting in spool.watch():
        for spooled in waiting:
            await _release_spooled(spooled, runner)
            spool.done(spooled)


async def _release_spooled(spooled: Spooled, runner: PoolRunner) -> None:
    held = runner.pool.inventory.attachments.get(spooled.key)
    if held is not None and held.since > spooled.released_at:
        return  # the same name was attached again since: that DEL was for its predecessor
    request = f"spool {spooled.file.name}"
    attachment = await runner.release(request, spooled.key, recovered_key(spooled.key))
    if attachment is not None:
        log.info("attachment.released", key=str(spooled.key), ip=attachment.address, spooled=True)


async def _announce(
    runner: PoolRunner,
    serving: Serving,
    server: ApiServer,
    manager: ServiceManager,
    settings: Settings,
    identity: Identity,
) -> None:
    """Say that the node can serve, once it can: to systemd, to health checks, and to the runtime by the conflist."""
    async for obstacle in serving.changes():
        if obstacle is None:
            break
    counts = runner.pool.counts()
    serving.record()  # before the conflist: a runtime that has seen that asks for STATUS
    if settings.cni.conf_dir is not None:
        try:
            conflist = write_conflist(settings.cni.conf_dir)
        except InstallError as error:
            raise HostError(f"cni.conf_dir: {error}") from None
        log.info("conflist.written", file=str(conflist))
    await server.set_serving(True)
    manager.notify("READY=1", f"STATUS={identity.instance_id}: serving")
    log.info("daemon.ready", free=counts.free, assigned=counts.assigned)
    give_back()


async def _follow_serving(
    announced: asyncio.Task[None], serving: Serving, server: ApiServer, manager: ServiceManager, identity: Identity
) -> None:
    """Say each time that the daemon can do its work no longer, or again."""
    await announced
    told = True
    async for obstacle in serving.changes():
        if obstacle is None and told:
            continue
        told = obstacle is None
        serving.record()
        await server.set_serving(told)
        if obstacle is None:
            manager.notify(f"STATUS={identity.instance_id}: serving")
            log.info("daemon.serving_again")
        else:
            manager.notify(f"STATUS={identity.instance_id}: {obstacle}")
            log.error("daemon.not_serving", reason=obstacle.reason, message=obstacle.message)


async def _examine(ready: asyncio.Task[None], permissions: Permissions, cloud: Ec2, node: Node) -> None:
    """Off the way to the first address: once pods can be served."""
    await ready
    await permissions.examine(cloud, node)
