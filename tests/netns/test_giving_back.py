"""What lies idle goes back to EC2: the real daemon on a node of the VPC in a box."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from ipamd.api.v1 import ipam_pb2
from ipamd.api.v1.ipam_pb2_grpc import IpamStub
from ipamd.sim import netns
from ipamd.sim.demo.node import Node
from ipamd.sim.vpc import SimulatedVpc

pytestmark = pytest.mark.netns

TARGETS = "\n[pool]\nwarm_ips = 1\nslack = 0\nrelease_delay = 0.5\ncooldown = 0.5\n"
PATIENCE = 30.0


@pytest.fixture
async def vpc(tmp_path: Path, prefix: str) -> AsyncIterator[SimulatedVpc]:
    async with SimulatedVpc.build(
        dir=tmp_path, nodes={"n1": "m5.large"}, subnets=["10.0.0.0/24"], prefix=prefix
    ) as built:
        yield built


@pytest.fixture
async def node(vpc: SimulatedVpc) -> AsyncIterator[Node]:
    node = Node(vpc.nodes[0])
    with node.spec.config.open("a") as config:
        config.write(TARGETS)
    await node.start()
    try:
        await node.wait_until_ready()
        yield node
    finally:
        await node.stop()
        node.close()


async def control(vpc: SimulatedVpc, path: str) -> Any:
    def get() -> Any:
        with urllib.request.urlopen(f"{vpc.control_url}/_control/{path}", timeout=5) as reply:
            return json.load(reply)

    return await asyncio.to_thread(get)


async def enis(vpc: SimulatedVpc) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await control(vpc, "state"))["enis"]
    return found


async def until(condition: Callable[[], Any], what: str) -> None:
    end = asyncio.get_running_loop().time() + PATIENCE
    while not await condition():
        assert asyncio.get_running_loop().time() < end, what
        await asyncio.sleep(0.1)


def attachment(name: str) -> ipam_pb2.Attachment:
    return ipam_pb2.Attachment(container_id=name, ifname="eth0", netns="/run/netns/none")


async def test_idle_addresses_and_enis_go_and_come_again(vpc: SimulatedVpc, node: Node) -> None:
    async with grpc.aio.insecure_channel(f"unix:{node.spec.socket}") as channel:
        ipam = IpamStub(channel)
        names = [f"c{number}" for number in range(12)]
        for _ in range(2):
            await asyncio.gather(
                *(ipam.Allocate(ipam_pb2.AllocateRequest(attachment=attachment(name))) for name in names)
            )
            assert len(await enis(vpc)) == 2
            assert "lookup 1501" in await netns.command("ip", "-n", node.spec.netns, "rule")
            for name in names:
                await ipam.Release(ipam_pb2.ReleaseRequest(attachment=attachment(name)))

            async def back() -> bool:
                found = await enis(vpc)
                return len(found) == 1 and len(found[0]["private_ips"]) == 2

            await until(back, "the second ENI and all but one address are given back")
            rules = await netns.command("ip", "-n", node.spec.netns, "rule")
            assert "lookup 1501" not in rules and "lookup 1500" in rules
        calls = await control(vpc, "calls")
        assert {call["outcome"] for call in calls} <= {"ok", "InvalidParameterValue"}, "at most a deletion too early"
        before = len(calls)
        await asyncio.sleep(2)
        assert len(await control(vpc, "calls")) == before, "a steady node asks nothing"


async def test_an_address_with_a_route_is_kept(vpc: SimulatedVpc, node: Node) -> None:
    """A pod that the ledger does not know, however that came about, keeps its address."""
    async with grpc.aio.insecure_channel(f"unix:{node.spec.socket}") as channel:
        ipam = IpamStub(channel)
        names = [f"c{number}" for number in range(4)]
        for name in names:
            reply = await ipam.Allocate(ipam_pb2.AllocateRequest(attachment=attachment(name)))
        kept = ".".join(map(str, reply.address))
        route = ["route", "add", f"{kept}/32", "dev", "eth0", "table", "1500", "proto", "158", "scope", "link"]
        await netns.command("ip", "-n", node.spec.netns, *route)
        for name in names:
            await ipam.Release(ipam_pb2.ReleaseRequest(attachment=attachment(name)))

        async def recovered() -> bool:
            return "attachment.recovered" in node.log.read_text()

        await until(recovered, "the address is on record as that pod's")
        (eni,) = await enis(vpc)
        assert kept in eni["private_ips"]
