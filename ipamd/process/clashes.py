"""What the daemon does about a table, priority, mark bit or name of ours that somebody else holds (`host.clashes`).

On an empty node the daemon ends: pods would have no network, and the operator learns of it at once. On a node with
pods an end would help nobody: the clash is there with or without a daemon, and without one nothing repairs the pods'
network. There the daemon goes on, and a condition says what is wrong.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import structlog

from ipamd.host import HostError, HostNetwork
from ipamd.host.clashes import Clash, Weight, find_clashes
from ipamd.settings import HostSettings
from ipamd.telemetry.conditions import Conditions

log = structlog.get_logger("ipamd.daemon")

SHARED = "host.shared"

# Seconds between looks while nobody else changes anything, for what no event tells.
AGAIN = 3600.0
# Seconds from a change to a look: who changes one thing changes more.
GATHER = 1.0
# Seconds from one look to the next at least, and how many times as long as it took: some seconds of a thread on a
# host with very many nftables rules, where somebody may change them all the time.
PAUSE, SHARE = 30.0, 100


async def refuse(settings: HostSettings, network: HostNetwork, conditions: Conditions) -> None:
    """Call this before anything is written. Raises `HostError` if a foreign object is in the place of one of ours."""
    clashes = await find_clashes(settings)
    ends = ending(clashes, pods=bool(clashes) and bool(await network.pod_routes()))
    for clash in ends:
        log.error("host.clash", what=clash.what, owner=clash.owner, setting=clash.setting, remedy=clash.remedy)
    if ends:
        raise HostError("something on this host is in the way:\n" + "\n".join(map(str, ends)))
    tell(clashes, conditions)


def ending(clashes: list[Clash], *, pods: bool) -> list[Clash]:
    """Those that the daemon does not start with. `pods`: some are running on the node."""
    borne = {Weight.SHARED, Weight.SERVED} if pods else {Weight.SHARED}
    return [clash for clash in clashes if clash.weight not in borne]


def tell(clashes: list[Clash], conditions: Conditions) -> None:
    if not clashes:
        conditions.end(SHARED)
        return
    found = "; ".join(map(str, clashes))
    end = "" if not ending(clashes, pods=False) else " Without pods on the node the daemon would not start."
    conditions.begin(SHARED, f"Others on this host use what is ours by the settings: {found}.{end}")


async def follow(settings: HostSettings, network: HostNetwork, conditions: Conditions) -> None:
    """Look again until cancelled: others come and go while the daemon runs."""
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(AGAIN):
                await network.others_changed.wait()
        await asyncio.sleep(GATHER)
        network.others_changed.clear()
        began = time.monotonic()
        with suppress(HostError):  # the reconciler tells of a kernel that can't be read
            tell(await find_clashes(settings), conditions)
        await asyncio.sleep(max(PAUSE, SHARE * (time.monotonic() - began)))
