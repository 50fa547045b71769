"""The phase of a start that opens the services: from here on calls are answered, and those that waited go on."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ipamd.cloud.permissions import Permissions
from ipamd.daemon.doors import Doors
from ipamd.daemon.learning import World
from ipamd.daemon.releases import SpooledReleases
from ipamd.daemon.surroundings import Surroundings
from ipamd.metrics.sources import Sources
from ipamd.pool import events as on
from ipamd.shell.assembly import Shell
from ipamd.shell.serving import Record, Serving

if TYPE_CHECKING:
    from ipamd.policy.enforcement import Enforcement


@dataclass(frozen=True, slots=True)
class Opened:
    serving: Serving
    releases: SpooledReleases
    permissions: Permissions


def open_services(
    around: Surroundings,
    doors: Doors,
    world: World,
    shell: Shell,
    enforcement: Enforcement | None,
    stack: AsyncExitStack,
) -> Opened:
    from ipamd.api.administration import AdministrationService
    from ipamd.api.introspection import IntrospectionService
    from ipamd.api.ipam import IpamService
    from ipamd.api.server import Services

    settings, conditions, runner = around.live.loaded.settings, around.conditions, shell.runner
    serving = Serving(runner, shell.reconciler, Record(settings.api.socket), conditions, around.changed)
    opened = Opened(serving, SpooledReleases(around.spool, runner, conditions), Permissions())
    ipam = IpamService(
        runner,
        world.network,
        settings.host,
        serving,
        opened.releases.before_grant,
        doors.refusals,
        shell.tracer,
        enforcement,
    )
    introspection = IntrospectionService(
        shell,
        world.network,
        world.identity,
        around.live,
        world.budget,
        around.history,
        opened.permissions,
        conditions,
        around.start,
        serving,
    )
    administration = AdministrationService(runner, shell.inspection)
    sources = Sources(
        runner, shell.reconciler, ipam, world.cloud, world.budget, world.identity, serving, runner.clock()
    )
    doors.hand_over(Services(ipam, introspection, administration), sources)
    # The callers that wait are first sent to the successor, while the server can still answer them.
    stack.callback(runner.feed, on.StopRequested())
    stack.callback(around.history.close)
    return opened
