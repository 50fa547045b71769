"""Starts the daemon phase by phase, and ends it in reverse.

What can't be served as it is set (settings, ledger, api.socket, somebody else's rules) ends the daemon before EC2 is
asked anything. From then on nothing ends it but a fault of its core: IMDS and EC2 are asked until they answer, the
socket says meanwhile how far the start is, and tasks beside the main job are tried again (`process.supervision`).
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack

import structlog

import ipamd
from cni_shim.names import SPOOL
from ipamd.api.place import claim
from ipamd.api.spool import Spool
from ipamd.daemon import core, ongoing, policy
from ipamd.daemon.doors import Doors
from ipamd.daemon.learning import learn
from ipamd.daemon.opening import open_services
from ipamd.daemon.releases import settle
from ipamd.daemon.surroundings import Surroundings
from ipamd.ledger import Ledger
from ipamd.process.event_loop import EventLoop
from ipamd.process.reload import LiveSettings
from ipamd.process.service_manager import ServiceManager
from ipamd.process.start import Start
from ipamd.shell.turn import Clock
from ipamd.telemetry.conditions import Conditions
from ipamd.telemetry.history import History

log = structlog.get_logger("ipamd.daemon")


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


async def _serve(live: LiveSettings, history: History, conditions: Conditions, stack: AsyncExitStack) -> None:
    """The phases of a start in their order; then until a task fails or this is cancelled."""
    around = _take(live, history, conditions, stack)
    doors = Doors(around)
    async with asyncio.TaskGroup() as tasks:
        world = await learn(around, doors, stack, tasks)
        shell = core.build(around, world, stack)
        gone = settle(around.ledger, around.spool, around.clock())
        core.restore(shell.runner, around.ledger, world)
        enforcement = policy.begin(around, world.identity, shell.runner, gone, stack, tasks)
        opened = open_services(around, doors, world, shell, enforcement, stack)
        ongoing.begin(around, doors, world, shell, opened, tasks)


def _take(live: LiveSettings, history: History, conditions: Conditions, stack: AsyncExitStack) -> Surroundings:
    """The ledger, the socket's place and the spool: nothing of it asks anybody. Raises `LedgerError` and
    `SocketUnusable`."""
    settings = live.loaded.settings
    manager = ServiceManager()
    log.info("daemon.starting", version=ipamd.__version__, pid=os.getpid(), socket=str(settings.api.socket))
    clock = Clock()
    ledger = Ledger.open(settings.ledger.path, clock.lead)
    stack.callback(ledger.close)
    claim(settings.api)
    spool = Spool(settings.cni.spool_dir, settings.api.socket.parent / SPOOL)
    spool.make()
    return Surroundings(live, history, ledger, spool, clock, conditions, manager, Start(manager))
