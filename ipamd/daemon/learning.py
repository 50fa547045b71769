"""The phases of a start that ask others: who is this node (IMDS), and what does it have (EC2)?

The doors are opened and the host's rules are taken meanwhile, so that callers learn how far the start is.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass

import structlog

from ipamd.cloud import model
from ipamd.cloud.acquaintance import Acquaintance
from ipamd.cloud.budget import RateBudget
from ipamd.cloud.ec2 import Ec2
from ipamd.cloud.imds import Imds
from ipamd.cloud.port import Identity
from ipamd.daemon.doors import Doors
from ipamd.daemon.surroundings import STOP_GRACE, Surroundings
from ipamd.host import HostNetwork
from ipamd.pool.model import Limits, ObservedEni
from ipamd.process import clashes
from ipamd.process.start import Phase
from ipamd.settings import Ec2Settings, HostSettings
from ipamd.telemetry.conditions import Conditions

log = structlog.get_logger("ipamd.daemon")


@dataclass(frozen=True, slots=True)
class World:
    """What this node is and has, as others say."""

    identity: Identity
    imds: Imds
    limits: Limits
    enis: tuple[ObservedEni, ...]
    cloud: Ec2
    budget: RateBudget
    network: HostNetwork

    def subnets(self, settings: Ec2Settings) -> tuple[str, ...]:
        """For new ENIs."""
        return tuple(settings.subnets) or (self.identity.subnet_id,)

    def security_groups(self, settings: Ec2Settings) -> tuple[str, ...]:
        """Of new ENIs."""
        return tuple(settings.security_groups) or self.identity.security_groups


async def learn(around: Surroundings, doors: Doors, stack: AsyncExitStack, tasks: asyncio.TaskGroup) -> World:
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
    return World(known.identity, imds, known.limits, known.enis, known.cloud, budget, network)


async def _take(settings: HostSettings, network: HostNetwork, conditions: Conditions) -> None:
    """Raises `HostError` when an object of another program stands where ours belongs."""
    await network.open()
    await clashes.refuse(settings, network, conditions)
