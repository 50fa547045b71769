"""The composition root: builds the parts, starts them in order, stops them in reverse.

What can't be served as it is set (settings, ledger, api.socket, somebody else's rules) ends the daemon before EC2 is
asked anything. From then on nothing ends it but a fault of its core: IMDS and EC2 are asked until they answer, the
socket says meanwhile how far the start is, and tasks beside the main job are tried again (`process.supervision`).
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import structlog

import ipamd
from cni_shim.names import SPOOL
from ipamd.api.place import claim
from ipamd.api.spool import Spool
from ipamd.cloud import model
from ipamd.cloud.acquaintance import Acquaintance
from ipamd.cloud.budget import RateBudget
from ipamd.cloud.ec2 import Ec2
from ipamd.cloud.imds import Imds
from ipamd.cloud.permissions import Node, Permissions
from ipamd.cloud.port import Identity
from ipamd.cloud.token import new_token
from ipamd.cloud.vpc import Vpc
from ipamd.host import HostNetwork
from ipamd.host.strays import Strays
from ipamd.ledger import Ledger
from ipamd.metrics.sources import Sources
from ipamd.pool import events as on
from ipamd.pool.model import Limits, ObservedEni, Targets
from ipamd.pool.pool import Pool
from ipamd.process import clashes, policy
from ipamd.process.announcing import announce, follow_serving
from ipamd.process.doors import Doors
from ipamd.process.event_loop import EventLoop
from ipamd.process.heartbeat import heartbeat
from ipamd.process.releases import SpooledReleases, settle
from ipamd.process.reload import LiveSettings
from ipamd.process.service_manager import ServiceManager
from ipamd.process.start import Phase, Start
from ipamd.process.supervision import keep, keep_running
from ipamd.process.surroundings import Surroundings
from ipamd.settings import Ec2Settings, HostSettings, PoolSettings
from ipamd.shell import assembly
from ipamd.shell.assembly import Shell
from ipamd.shell.readings import Readings
from ipamd.shell.serving import Record, Serving
from ipamd.shell.turn import Clock, PoolRunner
from ipamd.telemetry.conditions import Conditions
from ipamd.telemetry.history import History
from ipamd.telemetry.tracing import NoTraces, Tracer, Traces, TracingUnavailable, to_collector

if TYPE_CHECKING:
    from ipamd.policy.enforcement import Enforcement

log = structlog.get_logger("ipamd.daemon")

# Seconds that answers and EC2 calls under way get at the end; systemd's TimeoutStopSec is longer.
STOP_GRACE = 5.0


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
        if isinstance(loop, EventLoop):
            loop.give_up_names()
        if not serving.done():
            log.info("daemon.stopping")
            ServiceManager().notify("STOPPING=1")
            serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        if not serving.cancelled() and (error := serving.exception()) is not None:
            # Of tasks in a group the first failure is the cause; the others were only cancelled.
            raise error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error


@dataclass(frozen=True, slots=True)
class _World:
    """What this node is and has, as others say."""

    identity: Identity
    imds: Imds
    limits: Limits
    enis: tuple[ObservedEni, ...]
    cloud: Ec2
    budget: RateBudget
    network: HostNetwork


async def _serve(live: LiveSettings, history: History, conditions: Conditions, stack: AsyncExitStack) -> None:
    settings = live.loaded.settings
    manager = ServiceManager()
    log.info("daemon.starting", version=ipamd.__version__, pid=os.getpid(), socket=str(settings.api.socket))
    clock = Clock()
    ledger = Ledger.open(settings.ledger.path, clock.lead)
    stack.callback(ledger.close)
    claim(settings.api)
    spool = Spool(settings.cni.spool_dir, settings.api.socket.parent / SPOOL)
    spool.make()
    around = Surroundings(live, history, ledger, clock, conditions, manager, Start(manager))
    doors = Doors(around)
    async with asyncio.TaskGroup() as tasks:
        world = await _learn(around, doors, stack, tasks)
        shell = _build(around, world, stack)
        gone = settle(ledger, spool, clock())
        await _restore(shell.runner, ledger, world)
        enforcement = policy.begin(around, world.identity, shell.runner, gone, stack, tasks)
        await _open(around, doors, world, shell, spool, enforcement, stack, tasks)


async def _learn(around: Surroundings, doors: Doors, stack: AsyncExitStack, tasks: asyncio.TaskGroup) -> _World:
    """Find out who this node is and what it has, however long that takes. Raises `HostError`, `LedgerError` and
    `SocketUnusable`, before EC2 is asked."""
    settings, start = around.live.loaded.settings, around.start
    network = HostNetwork(settings.host)
    stack.push_async_callback(network.close)
    opened = tasks.create_task(doors.open(stack, STOP_GRACE))
    taken = tasks.create_task(_take(settings.host, network, around.conditions))
    # What the client of EC2 is made from: read while others are asked.
    asyncio.get_running_loop().run_in_executor(None, model.warm)
    imds = await stack.enter_async_context(Imds(settings.imds.endpoint))
    asking = tasks.create_task(start.until_answered("imds", imds.identity))
    await asyncio.gather(opened, taken)
    doors.keep_open(tasks)
    identity = await asking
    log.info("node.identified", instance=identity.instance_id, type=identity.instance_type, ip=identity.primary_ip)

    start.enter(Phase.EC2)
    budget = RateBudget()
    acquaintance = Acquaintance(
        imds, identity, lambda who: Ec2(settings.ec2, settings.imds, who, budget, around.conditions)
    )
    await stack.enter_async_context(acquaintance)
    stack.callback(budget.close)  # what has not been sent yet is not waited for
    known = await start.until_answered("ec2", acquaintance.make)
    around.ledger.belongs_to(known.identity.instance_id)
    return _World(known.identity, imds, known.limits, known.enis, known.cloud, budget, network)


async def _take(settings: HostSettings, network: HostNetwork, conditions: Conditions) -> None:
    """Raises `HostError` when something of somebody else is where ours is to be."""
    await network.open()
    await clashes.refuse(settings, network, conditions)


def _build(around: Surroundings, world: _World, stack: AsyncExitStack) -> Shell:
    settings, identity = around.live.loaded.settings, world.identity
    clock = around.clock
    around.start.enter(Phase.HOST)
    subnets = _subnets(settings.ec2, identity)
    pool = Pool(_targets(settings.pool), world.limits, subnets, Random(), lambda: new_token(clock()))
    tracer = _tracer(around, identity)
    if isinstance(tracer, Traces):
        stack.push_async_callback(_hand_in, tracer)
    groups = _groups(settings.ec2, identity)
    on_change = around.changed.set
    vpc = Vpc(identity, partial(world.imds.vpc_cidrs, identity.primary_mac), around.conditions, clock)
    shell = assembly.around(pool, around.ledger, world.cloud, world.network, vpc, groups, clock, on_change, tracer)
    stack.push_async_callback(shell.runner.stop, STOP_GRACE)
    stack.callback(world.budget.close)  # before that: what has not been sent yet is not waited for
    return shell


def _tracer(around: Surroundings, identity: Identity) -> Tracer:
    """None of it is worth the daemon's end."""
    endpoint = around.live.loaded.settings.tracing.endpoint
    if not endpoint:
        return NoTraces()
    try:
        host = {
            "host.id": identity.instance_id,
            "cloud.region": identity.region,
            "cloud.availability_zone": identity.availability_zone,
        }
        return to_collector(endpoint, host)
    except TracingUnavailable as error:
        reason = str(error)
    except Exception as error:  # the packages' own, for instance about their environment variables
        reason = f"{type(error).__name__}: {error}"
    around.conditions.begin("tracing.off", f"No traces are sent to {endpoint}: {reason}. A restart tries it again.")
    return NoTraces()


async def _hand_in(traces: Traces) -> None:
    """At the end, for what a collector may not want any more."""
    try:
        await asyncio.to_thread(traces.close)
    except Exception as error:
        log.warning("tracing.lost", error=f"{type(error).__name__}: {error}")


async def _restore(runner: PoolRunner, ledger: Ledger, world: _World) -> None:
    """Let the pool begin with what EC2, the ledger and the kernel say. Raises `LedgerError`."""
    kept = ledger.contents()
    world.network.catch_up()
    uses, routed = world.network.uses.now()
    runner.feed(
        on.Started(
            world.enis,
            kept.attachments,
            kept.cooling,
            kept.intents,
            tuple(routed.items()),
            uses,
            own=kept.own,
            limit=kept.limit,
            drained=kept.drained,
        )
    )
    log.info("pool.restored", enis=len(world.enis), attachments=len(kept.attachments), cooling=len(kept.cooling))


async def _open(
    around: Surroundings,
    doors: Doors,
    world: _World,
    shell: Shell,
    spool: Spool,
    enforcement: Enforcement | None,
    stack: AsyncExitStack,
    tasks: asyncio.TaskGroup,
) -> None:
    """Serve, and begin all that goes on from now on."""
    from ipamd.api.administration import AdministrationService
    from ipamd.api.introspection import IntrospectionService
    from ipamd.api.ipam import IpamService
    from ipamd.api.server import Services

    settings, conditions, identity = around.live.loaded.settings, around.conditions, world.identity
    runner = shell.runner
    permissions = Permissions()
    serving = Serving(runner, shell.reconciler, Record(settings.api.socket), conditions, around.changed)
    releases = SpooledReleases(spool, runner, conditions)
    ipam = IpamService(
        runner,
        world.network,
        settings.host,
        serving,
        releases.before_grant,
        doors.refusals,
        shell.tracer,
        enforcement,
    )
    introspection = IntrospectionService(
        shell,
        world.network,
        identity,
        around.live,
        world.budget,
        around.history,
        permissions,
        conditions,
        around.start,
        serving,
    )
    sources = Sources(runner, shell.reconciler, ipam, world.cloud, world.budget, identity, serving, runner.clock())
    doors.hand_over(Services(ipam, introspection, AdministrationService(runner, shell.inspection)), sources)
    # First of all whoever waits is told to ask the successor, while the server can still say it.
    stack.callback(runner.feed, on.DrainRequested())
    stack.callback(around.history.close)

    tasks.create_task(_watch(runner))
    tasks.create_task(
        keep_running(conditions, "host.not_watched", shell.reconciler.run, "repairing the node's network")
    )
    strays = Strays(world.network, settings.host, shell.wanted.attached_links, runner.clock)
    remove = partial(_remove_links, world.network, strays)
    tasks.create_task(keep_running(conditions, "host.links_left", remove, "removing the interfaces of gone pods"))
    tasks.create_task(_look_at_vpc(around.live, shell.readings))
    tasks.create_task(clashes.follow(settings.host, world.network, conditions))
    tasks.create_task(keep(conditions, "spool.unusable", releases.run, "reading the spool"))
    follow = partial(_follow, around.live, runner)
    tasks.create_task(keep_running(conditions, "settings.not_followed", follow, "following the settings file"))
    announced = tasks.create_task(announce(around, runner, serving, doors.server, identity, tasks))
    tasks.create_task(follow_serving(announced, serving, doors.server, around.manager, identity, tasks))
    if settings.ec2.check_permissions:
        node = Node(
            identity,
            world.enis,
            _subnets(settings.ec2, identity)[0],
            _groups(settings.ec2, identity),
            settings.ec2.cluster,
        )
        examine = partial(_examine, announced, permissions, world.cloud, node)
        tasks.create_task(
            keep_running(conditions, "iam.unexamined", examine, "the dry run of the role's permissions")
        )
    if around.manager.watchdog_interval is not None:
        tasks.create_task(heartbeat(around.manager, around.manager.watchdog_interval, runner, around.ledger))


async def _remove_links(network: HostNetwork, strays: Strays) -> None:
    """Of pods that are gone: what DEL left to the daemon, and what no DEL knew of."""
    await asyncio.gather(network.discarded.run(), strays.run())


async def _watch(runner: PoolRunner) -> None:
    """End the daemon when its core has failed: a service manager starts it again."""
    await asyncio.shield(runner.failed)


async def _look_at_vpc(live: LiveSettings, readings: Readings) -> None:
    """With each SIGHUP: an operator may have given the VPC another CIDR."""
    while True:
        await live.hung_up()
        await readings.look_at_vpc()


async def _follow(live: LiveSettings, runner: PoolRunner) -> None:
    async for loaded in live.changes():
        runner.feed(on.TargetsChanged(_targets(loaded.settings.pool)))


async def _examine(ready: asyncio.Task[None], permissions: Permissions, cloud: Ec2, node: Node) -> None:
    """Off the way to the first address: once pods can be served."""
    await asyncio.wait((ready,))
    await permissions.examine(cloud, node)


def _targets(settings: PoolSettings) -> Targets:
    return Targets(**settings.model_dump())


def _subnets(settings: Ec2Settings, identity: Identity) -> tuple[str, ...]:
    return tuple(settings.subnets) or (identity.subnet_id,)


def _groups(settings: Ec2Settings, identity: Identity) -> tuple[str, ...]:
    return tuple(settings.security_groups) or identity.security_groups
