"""The daemon on nodes where others fill slots: /28 prefixes of the AWS VPC CNI, ENIs on other network cards."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ipamd.api.v1 import introspection_pb2 as pb
from tests.netns.boxed import Daemon, box, calls, cloud_enis, control, ec2, until

pytestmark = pytest.mark.netns


async def enis(daemon: Daemon) -> list[pb.Eni]:
    reply = await daemon.introspection.ListEnis(pb.ListEnisRequest(), timeout=5)
    return list(reply.enis)


async def test_prefixes_of_before_leave_five_of_nine_addresses(tmp_path: Path) -> None:
    async with box(tmp_path, "pre", POOL_WARM_IPS=5) as (daemon, vpc):
        (primary,) = await cloud_enis(vpc)
        await ec2(vpc, "AssignPrivateIpAddresses", NetworkInterfaceId=primary, Ipv4PrefixCount=4)
        await daemon.ready()
        await daemon.settled(free=5)
        assert await calls(vpc, "AssignPrivateIpAddresses") == 2, "the prefixes, and one that asks for what fits"
        assert not await calls(vpc, "CreateNetworkInterface") and not daemon.events("ec2.failed")
        (eni,) = await enis(daemon)
        assert (eni.free, eni.room, len(eni.prefixes)) == (5, 0, 4)
        explained = await daemon.introspection.Explain(pb.ExplainRequest(pool=pb.PoolSubject()), timeout=5)
        assert any("4 /28 prefixes" in line for line in explained.because)


async def test_prefixes_given_up_while_a_pod_waits_are_room_at_once(tmp_path: Path) -> None:
    async with box(tmp_path, "pgo", type="t3.nano", POOL_WARM_IPS=0, POOL_MAX_ENIS=1) as (daemon, vpc):
        (primary,) = await cloud_enis(vpc)
        given = await ec2(vpc, "AssignPrivateIpAddresses", NetworkInterfaceId=primary, Ipv4PrefixCount=1)
        prefix = given["AssignedIpv4Prefixes"][0]["Ipv4Prefix"]
        await daemon.ready()
        assert [eni.room for eni in await enis(daemon)] == [0]
        await ec2(vpc, "UnassignPrivateIpAddresses", NetworkInterfaceId=primary, Ipv4Prefixes=[prefix])
        assert await daemon.address("a")


async def test_enis_of_other_cards_cost_no_pod_its_address(tmp_path: Path) -> None:
    """A p5.48xlarge has 32 cards with two ENIs each."""
    async with box(tmp_path, "crd", type="p5.48xlarge", POOL_WARM_IPS=49) as (daemon, vpc):
        state = await control(vpc, "state")
        instance, subnet = state["instances"][0]["id"], state["subnets"][0]["id"]
        for card in range(1, 5):
            made = await ec2(vpc, "CreateNetworkInterface", SubnetId=subnet)
            eni = made["NetworkInterface"]["NetworkInterfaceId"]
            await ec2(
                vpc, "AttachNetworkInterface",
                NetworkInterfaceId=eni, InstanceId=instance, DeviceIndex=1, NetworkCardIndex=card,
            )  # fmt: skip
        await daemon.ready()

        async def full() -> bool:
            return (await daemon.counts()).free == 49

        await until(full, "the primary ENI is full")
        names = [f"p{n}" for n in range(50)]
        addresses = await asyncio.gather(*(daemon.address(name) for name in names))
        assert len(set(addresses)) == 50
        own = [eni for eni in await enis(daemon) if eni.state == "ready"]
        assert sorted((eni.network_card, eni.device_index) for eni in own) == [(0, 0), (0, 1)]
        node = await daemon.introspection.GetNode(pb.GetNodeRequest(), timeout=5)
        assert (node.slots.enis, node.slots.foreign, node.targets.max_pods) == (2, 0, 98)
