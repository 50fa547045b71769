"""`kill -9` while a call that changes something at EC2 is under way, for each of these calls, and a new daemon.

Each call is caught before it took effect, after that, and "late": on its way when its sender dies, so that it takes
effect when the successor is up already. What must hold afterwards: no ENI is leaked, each is attached
and goes with the instance, pods keep their addresses, and the pool reaches its target.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from ipamd.sim.vpc import SimulatedVpc
from tests.netns.boxed import Daemon, box, cloud_enis, control, secondary, text, until

pytestmark = pytest.mark.netns

TYPE = "t3.small"  # 3 ENIs with 3 secondary addresses each
FEW, MANY = 1, 6

GROWTH = (
    "CreateNetworkInterface",
    "AttachNetworkInterface",
    "ModifyNetworkInterfaceAttribute",
    "AssignPrivateIpAddresses",
)
SHRINKING = ("UnassignPrivateIpAddresses", "DetachNetworkInterface", "DeleteNetworkInterface")

# A call that is never answered ends, when its client is gone, with what it has done until then.
CAUGHT: dict[str, dict[str, object]] = {
    "before": {"error": "timeout"},
    "after": {"error": "timeout", "after_effect": True},
    "late": {"error": "held", "times": 1},
}


class Killed:
    """A node whose daemon dies in the middle of a call."""

    def __init__(self, daemon: Daemon, vpc: SimulatedVpc) -> None:
        self.daemon = daemon
        self.vpc = vpc
        self._settings = daemon.node.config.read_text()

    def aim(self, free: int) -> None:
        """So many free addresses, soon."""
        pool = f"[pool]\nwarm_ips = {free}\nslack = 0\nrelease_delay = 0.2\ncooldown = 0.5\n"
        self.daemon.node.config.write_text(self._settings + pool)

    async def catch(self, action: str, how: str, free: int) -> None:
        """Aim at so many free addresses, and SIGKILL as soon as a call of that action is held up at EC2 for it."""
        await control(self.vpc, "clear", {"calls": True})
        await control(self.vpc, "faults", {"action": action, **CAUGHT[how]})
        self.aim(free)

        async def under_way() -> bool:
            armed = await control(self.vpc, "faults")
            return not armed or armed[0]["struck"] > 0  # not there any more: it has struck once, and may no more

        await until(under_way, f"{action} is under way")
        await self.daemon.kill()
        self._killed = time.time()
        if how != "late":
            await self.let_go(action)

    async def let_go(self, action: str) -> None:
        """What was caught goes on, and is over."""
        await control(self.vpc, "clear", {})

        async def over() -> bool:
            calls = await control(self.vpc, "calls")
            return any(call["action"] == action and call["time"] < self._killed for call in calls)

        await until(over, f"{action} is over")

    async def sound(self, held: dict[str, str]) -> list[dict[str, Any]]:
        """The ENIs, once each is attached for good."""
        enis: dict[str, dict[str, Any]] = {}  # of one reading: the next may show one that is just being made

        async def attached() -> bool:
            nonlocal enis
            enis = await cloud_enis(self.vpc)
            return all(
                eni["attachment_status"] == "attached" and eni["delete_on_termination"] for eni in enis.values()
            )

        await until(attached, "every ENI is attached and goes with the instance")
        assert {eni["instance_id"] for eni in enis.values()} == {self.daemon.node.instance_id}
        assert await self.daemon.held() == held
        assert set(held.values()) <= secondary(enis)
        return list(enis.values())


@pytest.mark.parametrize("how", CAUGHT)
@pytest.mark.parametrize("action", GROWTH)
async def test_killed_while_growing(tmp_path: Path, prefix: str, action: str, how: str) -> None:
    async with box(tmp_path, prefix, type=TYPE) as (daemon, vpc):
        node = Killed(daemon, vpc)
        node.aim(FEW)
        await daemon.ready()
        held = {"a": await daemon.address("a")}
        await daemon.settled(free=FEW)
        await node.catch(action, how, MANY)

        await daemon.ready()
        held["b"] = await daemon.address("b")
        assert held["a"] != held["b"]
        if how == "late":
            await node.let_go(action)
        await daemon.settled(free=MANY)
        assert len(await node.sound(held)) == 3
        known = len(held) + MANY
        assert (await daemon.counts()).total == known == len(secondary(await cloud_enis(vpc)))


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize("action", SHRINKING)
async def test_killed_while_shrinking(tmp_path: Path, prefix: str, action: str, how: str) -> None:
    async with box(tmp_path, prefix, type=TYPE) as (daemon, vpc):
        node = Killed(daemon, vpc)
        node.aim(MANY)
        await daemon.ready()
        held = {"a": await daemon.address("a")}
        await daemon.settled(free=MANY)
        await node.catch(action, how, FEW)

        await daemon.ready()
        held["b"] = await daemon.address("b")
        await daemon.settled(free=FEW)
        await node.sound(held)
        assert (await daemon.counts()).total == len(held) + FEW == len(secondary(await cloud_enis(vpc)))


@pytest.mark.parametrize("how", ["late", "stale"])
@pytest.mark.parametrize(
    ("action", "many", "few"),
    [("UnassignPrivateIpAddresses", 2, 0), ("DetachNetworkInterface", 5, 2)],  # of the primary ENI; the second ENI
    ids=["unassign", "detach"],
)
async def test_what_was_being_given_back_is_no_pods(
    tmp_path: Path, prefix: str, action: str, many: int, few: int, how: str
) -> None:
    """The successor finds it there still, and wants it; but the call may yet have its effect, or the view is old."""
    async with box(tmp_path, prefix, type=TYPE) as (daemon, vpc):
        node = Killed(daemon, vpc)
        node.aim(many)
        await daemon.ready()
        held = {"a": await daemon.address("a")}
        await daemon.settled(free=many)
        if how == "stale":
            await control(vpc, "lags", {"gone_address": 600, "attachment": 600})
        await node.catch(action, "late" if how == "late" else "after", few)

        node.aim(many)
        await daemon.ready()
        names = [f"b-{number}" for number in range(many)]
        asking = asyncio.gather(*(daemon.allocate(name, deadline=10) for name in names))
        await asyncio.sleep(1)  # a daemon that trusts that view has granted by now
        if how == "late":
            await node.let_go(action)
        else:
            await control(vpc, "lags", {})
        held |= {name: text(reply.address) for name, reply in zip(names, await asking, strict=True)}
        await node.sound(held)
