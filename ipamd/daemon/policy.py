"""Begins the work with AWS's network policy agent where `policy.mode` asks for it; without that nothing of it is
imported."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

from ipamd.cloud.port import Identity
from ipamd.daemon.surroundings import Surroundings
from ipamd.pool.model import Attachment
from ipamd.process.supervision import keep, keep_running
from ipamd.shell.turn import PoolRunner

if TYPE_CHECKING:
    from ipamd.policy.enforcement import Enforcement


def begin(
    around: Surroundings,
    identity: Identity,
    runner: PoolRunner,
    gone: Iterable[Attachment],
    stack: AsyncExitStack,
    tasks: asyncio.TaskGroup,
) -> Enforcement | None:
    """`gone`: attachments whose DEL came while no daemon served. None: the daemon works with no agent."""
    settings, conditions = around.live.loaded.settings.policy, around.conditions
    if settings.mode == "off":
        return None
    from ipamd.api import policy_door as door
    from ipamd.policy.agent import Agent
    from ipamd.policy.enforcement import NOT_ENFORCED, Enforcement

    enforcement = Enforcement(settings.mode, Agent(settings.agent), conditions)
    stack.push_async_callback(enforcement.close)
    enforcement.restore(runner.view.attachments(), gone)
    runner.on_dropped(enforcement.dropped)
    serve = partial(door.serve, settings, identity)
    tasks.create_task(keep(conditions, "policy.not_served", serve, "serving AWS's network policy agent"))
    follow = enforcement.follow
    tasks.create_task(keep_running(conditions, NOT_ENFORCED, follow, "following AWS's network policy agent"))
    return enforcement
