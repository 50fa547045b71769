"""What goes on from the start to the end of the daemon, beside the calls that it answers."""

from __future__ import annotations

import asyncio
from functools import partial

from ipamd.cloud.ec2 import Ec2
from ipamd.cloud.permissions import Node, Permissions
from ipamd.daemon.announcing import announce, follow_serving
from ipamd.daemon.core import targets
from ipamd.daemon.doors import Doors
from ipamd.daemon.learning import World
from ipamd.daemon.opening import Opened
from ipamd.daemon.surroundings import Surroundings
from ipamd.host import HostNetwork
from ipamd.host.strays import Strays
from ipamd.pool import events as on
from ipamd.process import clashes
from ipamd.process.heartbeat import heartbeat
from ipamd.process.reload import LiveSettings
from ipamd.process.supervision import keep, keep_running
from ipamd.shell.assembly import Shell
from ipamd.shell.readings import Readings
from ipamd.shell.turn import PoolRunner


def begin(
    around: Surroundings, doors: Doors, world: World, shell: Shell, opened: Opened, tasks: asyncio.TaskGroup
) -> None:
    runner, manager = shell.runner, around.manager
    tasks.create_task(_watch(runner))
    _keep_host(around, world, shell, tasks)
    _keep_followed(around, shell, opened, tasks)
    announced = tasks.create_task(announce(around, runner, opened.serving, doors.server, world.identity, tasks))
    tasks.create_task(follow_serving(announced, opened.serving, doors.server, manager, world.identity, tasks))
    _examine_role(around, world, opened.permissions, announced, tasks)
    if manager.watchdog_interval is not None:
        tasks.create_task(heartbeat(manager, manager.watchdog_interval, runner, around.ledger))


def _keep_host(around: Surroundings, world: World, shell: Shell, tasks: asyncio.TaskGroup) -> None:
    settings, conditions = around.live.loaded.settings.host, around.conditions
    tasks.create_task(
        keep_running(conditions, "host.not_watched", shell.reconciler.run, "repairing the node's network")
    )
    strays = Strays(world.network, settings, shell.wanted.attached_links, around.clock)
    remove = partial(_remove_links, world.network, strays)
    tasks.create_task(keep_running(conditions, "host.links_left", remove, "removing the interfaces of gone pods"))
    tasks.create_task(clashes.follow(settings, world.network, conditions))


def _keep_followed(around: Surroundings, shell: Shell, opened: Opened, tasks: asyncio.TaskGroup) -> None:
    """What others change: the VPC, the spool, the settings file."""
    conditions = around.conditions
    tasks.create_task(_look_at_vpc(around.live, shell.readings))
    tasks.create_task(keep(conditions, "spool.unusable", opened.releases.run, "reading the spool"))
    follow = partial(_follow, around.live, shell.runner)
    tasks.create_task(keep_running(conditions, "settings.not_followed", follow, "following the settings file"))


def _examine_role(
    around: Surroundings,
    world: World,
    permissions: Permissions,
    announced: asyncio.Task[None],
    tasks: asyncio.TaskGroup,
) -> None:
    settings = around.live.loaded.settings.ec2
    if not settings.check_permissions:
        return
    subnet, groups = world.subnets(settings)[0], world.security_groups(settings)
    node = Node(world.identity, world.enis, subnet, groups, settings.cluster)
    examine = partial(_examine, announced, permissions, world.cloud, node)
    tasks.create_task(
        keep_running(around.conditions, "iam.unexamined", examine, "the dry run of the role's permissions")
    )


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
        runner.feed(on.TargetsChanged(targets(loaded.settings.pool)))


async def _examine(ready: asyncio.Task[None], permissions: Permissions, cloud: Ec2, node: Node) -> None:
    """Off the way to the first address: once pods can be served."""
    await asyncio.wait((ready,))
    await permissions.examine(cloud, node)
