"""The phase of a start that builds the core: the pool and the shell around it, from what the node has learnt."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from random import Random

import structlog

from ipamd.cloud.port import Identity
from ipamd.cloud.token import new_token
from ipamd.cloud.vpc import Vpc
from ipamd.daemon.learning import World
from ipamd.daemon.surroundings import STOP_GRACE, Surroundings
from ipamd.ledger import Ledger
from ipamd.pool import events as on
from ipamd.pool.model import Targets
from ipamd.pool.pool import Pool
from ipamd.process.start import Phase
from ipamd.settings import PoolSettings
from ipamd.shell import assembly
from ipamd.shell.assembly import Shell
from ipamd.shell.turn import PoolRunner
from ipamd.telemetry.tracing import NoTraces, Tracer, Traces, TracingUnavailable, to_collector

log = structlog.get_logger("ipamd.daemon")


def build(around: Surroundings, world: World, stack: AsyncExitStack) -> Shell:
    """The pool, which knows nothing yet, and the shell around it."""
    settings, identity = around.live.loaded.settings, world.identity
    clock = around.clock
    around.start.enter(Phase.HOST)
    subnets = world.subnets(settings.ec2)
    pool = Pool(targets(settings.pool), world.limits, subnets, Random(), lambda: new_token(clock()))
    tracer = _tracer(around, identity)
    if isinstance(tracer, Traces):
        stack.push_async_callback(_hand_in, tracer)
    groups = world.security_groups(settings.ec2)
    on_change = around.changed.set
    vpc = Vpc(identity, partial(world.imds.vpc_cidrs, identity.primary_mac), around.conditions, clock)
    shell = assembly.around(pool, around.ledger, world.cloud, world.network, vpc, groups, clock, on_change, tracer)
    stack.push_async_callback(shell.runner.stop, STOP_GRACE)
    stack.callback(world.budget.close)  # before that: what has not been sent yet is not waited for
    return shell


def restore(runner: PoolRunner, ledger: Ledger, world: World) -> None:
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


def targets(settings: PoolSettings) -> Targets:
    return Targets(**settings.model_dump())


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
