"""A DEL that crosses with a repair leaves no link behind, and what is left behind is collected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from ipamd.host import HostNetwork, PodNetwork
from ipamd.host.difference import AddRoute, LinkChange, SetLink, Step
from ipamd.host.discarded import discard
from ipamd.host.kernel import Kernel
from ipamd.host.strays import LASTS, Strays
from tests.netns.node_stage import NODE, Topology

pytestmark = pytest.mark.netns

SERVED = replace(NODE, pods=(PodNetwork("10.0.1.50", "ipm1", 1),))


@pytest.fixture
def stage(prefix: str) -> Iterator[Topology]:
    with Topology(prefix) as topology:
        yield topology


@asynccontextmanager
async def removing(network: HostNetwork) -> AsyncIterator[None]:
    task = asyncio.create_task(network.discarded.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def gone(network: HostNetwork, name: str) -> None:
    async with asyncio.timeout(10):
        while name in await network.host_links():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("moment", [SetLink, AddRoute])
def test_del_during_a_repair_leaves_no_link(stage: Topology, moment: type) -> None:
    """The repair wants the pod's group and route as they were; the DEL comes right before that step."""
    stage.apply(SERVED)
    stage.ip(stage.node, "link set ipm1 group 7", "route delete 10.0.1.50 table 1500")

    async def steps(network: HostNetwork) -> None:
        def deleting(step: Step) -> bool:
            if isinstance(step, moment):
                discard("ipm1")
            return False

        async with removing(network):
            applied = await network.apply(SERVED, deleting)
            assert applied.failed == []
            assert not any(isinstance(step, moment) for step in applied.done)
            await gone(network, "ipm1")

    stage.host(steps)


def test_step_that_undoes_a_del_is_undone(stage: Topology) -> None:
    """What can't be prevented: the kernel takes the DEL's message between our look and our step."""
    kernel = Kernel(stage.settings.route_protocol)

    async def steps(network: HostNetwork) -> None:
        await network.apply(SERVED)
        link = next(link for link in network.host_veths() if link.name == "ipm1")
        discard("ipm1")
        for change in (LinkChange(link, "group", 1501), LinkChange(link, "up", 1)):
            kernel.set_link(change)
        async with removing(network):
            await gone(network, "ipm1")

    stage.host(steps)


def test_link_on_no_record_is_collected(stage: Topology) -> None:
    for name, group in (("ipm0123456789ab", 1501), ("ipmaaaaaaaaaaaa", 1501), ("ipmbbbbbbbbbbbb", 7)):
        stage.ip(stage.node, f"link add {name} group {group} type veth peer p{name[3:]}", f"link set {name} up")
    now = [0.0]

    async def steps(network: HostNetwork) -> None:
        strays = Strays(network, stage.settings, lambda: {"ipmaaaaaaaaaaaa"}, lambda: now[0])
        async with removing(network):
            await strays.look()
            now[0] += LASTS
            with capture_logs() as logs:
                await strays.look()
            assert [(entry["event"], entry["link"]) for entry in logs] == [("link.collected", "ipm0123456789ab")]
            await gone(network, "ipm0123456789ab")
        assert {"ipmaaaaaaaaaaaa", "ipmbbbbbbbbbbbb", "ipm1"} <= await network.host_links()

    stage.host(steps)


@pytest.mark.parametrize("how", ["discarded", "deleted"])
def test_a_pods_route_is_not_believed_after_its_del(stage: Topology, how: str) -> None:
    """ADD and DEL, both over before the daemon has heard of either: the kernel announces the route on another socket
    than the link's end, and does not announce the route's end at all."""

    async def steps(network: HostNetwork) -> tuple[dict[str, str], dict[str, str]]:
        stage.ip(
            stage.node,
            "link add ipm9 type veth peer name x9",
            "link set ipm9 up",
            "route add 10.0.1.77/32 dev ipm9 scope link table 1500 protocol 158",
        )
        if how == "discarded":
            discard("ipm9")
        else:
            stage.ip(stage.node, "link delete ipm9")
        network.catch_up()
        _, heard = network.uses.now()
        _, read = network.uses.read()
        return heard, read

    heard, read = stage.host(steps)
    assert heard == read and "10.0.1.77" not in heard
