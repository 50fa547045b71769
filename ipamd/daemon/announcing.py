"""Says that the node can serve: to systemd, to health checks, and to the runtime by the network configuration."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from ipamd.cloud.port import Identity
from ipamd.daemon.surroundings import Surroundings
from ipamd.process.conflist import Conflist
from ipamd.process.service_manager import ServiceManager
from ipamd.process.startup import give_back
from ipamd.process.supervision import keep, keep_running
from ipamd.shell.serving import Serving
from ipamd.shell.turn import PoolRunner
from ipamd.telemetry.conditions import Conditions

if TYPE_CHECKING:
    from ipamd.api.server import ApiServer

log = structlog.get_logger("ipamd.daemon")

# Seconds that a slow disk gets to take the network configuration.
FIRST_TRY = 1.0


async def announce(
    around: Surroundings,
    runner: PoolRunner,
    serving: Serving,
    server: ApiServer,
    identity: Identity,
    tasks: asyncio.TaskGroup,
) -> None:
    """Once the node can serve."""
    async for obstacle in serving.changes():
        if obstacle is None:
            break
        if runner.view.started and obstacle.reason == "NOT_READY":
            around.start.waits_for_address()
    counts = runner.view.counts()
    around.start.over()
    serving.record()  # before the conflist: a runtime that has seen that asks for STATUS
    cni = around.live.loaded.settings.cni
    if cni.conf_dir is not None:
        conflist = Conflist(cni, cni.conf_dir, around.conditions)
        offering = tasks.create_task(
            keep(around.conditions, "conflist.not_written", conflist.offer, "writing the conflist")
        )
        # The runtime and systemd hear of it at the same moment, unless the folder can't be written.
        await asyncio.wait((offering,), timeout=FIRST_TRY)
        tasks.create_task(_follow_conflist(offering, conflist, around.conditions))
    await server.set_serving(True)
    around.manager.notify("READY=1", f"STATUS={identity.instance_id}: serving")
    log.info("daemon.ready", free=counts.free, assigned=counts.assigned)
    give_back()


async def follow_serving(
    announced: asyncio.Task[None],
    serving: Serving,
    server: ApiServer,
    manager: ServiceManager,
    identity: Identity,
    tasks: asyncio.TaskGroup,
) -> None:
    """Say each time that the daemon can do its work no longer, or again."""
    await announced
    tasks.create_task(serving.keep_recorded())
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


async def _follow_conflist(offering: asyncio.Task[None], conflist: Conflist, conditions: Conditions) -> None:
    """Once it is written: until then `conflist.not_written` says what is wrong."""
    await asyncio.wait((offering,))
    await keep_running(conditions, "conflist.not_followed", conflist.follow, "following the folder of the conflist")
