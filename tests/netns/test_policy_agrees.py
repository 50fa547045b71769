"""What `ipamd simulate policy` says of a trace is what the real daemon does with it, on the VPC in a box."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from ipamd.pool.model import Targets
from ipamd.sim.policy.replay import beginning, replay
from ipamd.sim.virtual.ec2 import Latencies
from ipamd.workload.trace import TraceEvent
from tests.netns.boxed import QUICK, box, control

pytestmark = pytest.mark.netns

# Each burst comes within `coalesce` however slow the machine is, and is over before the next one.
TARGETS = Targets(warm_ips=2, slack=0, cooldown=0.3, coalesce=1.0)
BURSTS = ((0.0, "add", range(3)), (0.5, "add", range(3, 7)), (3.0, "add", range(7, 17)), (5.0, "del", range(2, 8)))
END = 7.5
TRACE = [TraceEvent(t, kind, f"c{n}") for t, kind, numbers in BURSTS for n in numbers]
TRACE += [TraceEvent(6.0, "add", f"late{n}") for n in range(5)]

# Here what EC2 needs is its own work and the way through HTTP.
NEARLY_NOTHING = 0.01
LATENCIES = Latencies(
    **dict.fromkeys(("create", "attach", "assign", "unassign", "delete", "modify", "read"), NEARLY_NOTHING),
    detach=QUICK.detach,
    link=QUICK.attach + QUICK.link,
)


async def test_the_daemon_calls_ec2_as_the_simulation_says(tmp_path: Path) -> None:
    expected = replay(TRACE, END, "m5.large", TARGETS, LATENCIES, seed=1)
    settings = {f"POOL_{name.upper()}": getattr(TARGETS, name) for name in TARGETS.__slots__}
    async with box(tmp_path, "agree", **settings) as (daemon, vpc):
        await daemon.ready()
        there, rest = beginning(TRACE)
        await asyncio.gather(*(daemon.allocate(id) for id in there))
        await daemon.settled(free=TARGETS.warm_ips)
        before = len(await control(vpc, "calls"))

        loop = asyncio.get_running_loop()
        begin = loop.time()
        async with asyncio.TaskGroup() as pods:
            for event in rest:
                await asyncio.sleep(max(begin + event.t - loop.time(), 0))
                pods.create_task(daemon.allocate(event.id) if event.event == "add" else daemon.release(event.id))
        await asyncio.sleep(max(begin + END - loop.time(), 0))

        calls = Counter(call["action"] for call in (await control(vpc, "calls"))[before:])
        counts = await daemon.counts()
    assert len(expected.waits) == 19 and expected.calls["CreateNetworkInterface"] == 2
    assert calls == expected.calls
    last = expected.samples[-1]
    assert (counts.assigned, counts.free, counts.cooling) == (last.used, last.free, last.cooling)
