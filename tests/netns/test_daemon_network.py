"""The daemon and the kernel of its node: what it refuses to write over, and what it puts right while it runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cni_shim.names import host_ifname
from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.sim import netns
from tests.netns.boxed import Daemon, add_route, box, cloud_enis, control, until

pytestmark = pytest.mark.netns


async def ip(daemon: Daemon, *commands: str) -> str:
    return await netns.ip_batch(daemon.node.netns, list(commands))


async def shown(daemon: Daemon, *command: str) -> str:
    return await netns.command("ip", "netns", "exec", daemon.node.netns, *command)


async def ends(daemon: Daemon) -> str:
    """What a daemon that can't serve says last."""
    await daemon.start()
    assert daemon.process is not None
    try:
        async with asyncio.timeout(20):
            await daemon.process.wait()
        assert daemon.process.exit_code == 1
        return daemon.log.read_text()
    finally:
        await daemon.kill()


async def test_what_is_in_the_way_is_named_and_nothing_of_it_touched(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _vpc):
        await ip(daemon, "rule add prio 1501 from 192.0.2.0/24 lookup 77", "route add default dev eth0 table 1503")
        # Of IPv4: duplicate address detection goes on changing the other for seconds.
        routes = ("ip", "-4", "route", "show", "table", "all")
        before = await shown(daemon, "ip", "rule"), await shown(daemon, *routes)
        log = await ends(daemon)
        assert "something on this host is in the way" in log
        assert "ip rule 1501" not in log, "a priority can be shared"
        assert "table 1503 dev eth0" in log and "host.table" in log
        assert "Traceback" not in log
        after = await shown(daemon, "ip", "rule"), await shown(daemon, *routes)
        assert after == before
        moved = Daemon(daemon.vpc, daemon.node, "moved.log", HOST_TABLE=2500, HOST_RULE_ENI=2500)
        try:
            await moved.ready()
            assert "lookup 2500" in await shown(daemon, "ip", "rule")
            await moved.stop()
        finally:
            await moved.kill()


@pytest.mark.parametrize("settings", [{"HOST_TABLE": 2500}, {"HOST_ROUTE_PROTOCOL": 159}])
async def test_pods_that_other_settings_were_made_for_are_not_cut_off(
    tmp_path: Path, prefix: str, settings: dict[str, Any]
) -> None:
    async with box(tmp_path, prefix) as (daemon, vpc):
        await daemon.ready()
        await add_route(daemon.node, "a", await daemon.address("a"))
        await daemon.stop()
        log = await ends(Daemon(vpc, daemon.node, "changed.log", **settings))
        (setting,) = settings
        assert f"restore host.{setting.removeprefix('HOST_').lower()} = " in log
        await daemon.ready()  # as it was, and the pod is still served
        assert len((await shown(daemon, "ip", "route", "show", "table", "1500")).splitlines()) == 1


async def test_all_that_somebody_wiped_is_there_again_and_it_is_told(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_MINIMUM_IPS=12) as (daemon, _vpc):
        await daemon.ready()
        await daemon.settled(12)
        for name in ("a", "b"):
            await add_route(daemon.node, name, await daemon.address(name))
        await ip(daemon, f"link set {host_ifname('b', 'eth0')} group 1500")

        async def state() -> tuple[str, ...]:
            return (
                await shown(daemon, "ip", "rule"),
                await shown(daemon, "ip", "route", "show", "table", "all", "proto", "158"),
                await shown(daemon, "nft", "list", "ruleset"),
            )

        before = await state()
        assert "1501" in before[0]
        await ip(daemon, "rule flush", "rule add prio 32766 lookup main", "rule add prio 32767 lookup default")
        await ip(daemon, "route flush table 1500", "link set eth1 down")
        await shown(daemon, "nft", "flush", "ruleset")

        async def restored() -> bool:
            return await state() == before

        await until(restored, "everything is back")

        async def told() -> bool:
            node: pb.Node = await daemon.introspection.GetNode(pb.GetNodeRequest(), timeout=5)
            return node.host.repairs >= 9 and not node.host.error and not node.host.disputes

        await until(told, "the status says so")
        events = daemon.events("host.repaired")
        assert events and all(event["by"] for event in events)
        assert any("nft" in event["by"] for event in events)


async def test_pods_that_come_and_go_are_no_disturbance(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, LOG_LEVEL="debug") as (daemon, _vpc):
        await daemon.ready()
        await daemon.settled(5)
        for name in ("a", "b", "c"):
            await add_route(daemon.node, name, await daemon.address(name))
        for name in ("a", "b", "c"):
            await ip(daemon, f"link delete {host_ifname(name, 'eth0')}")
            await daemon.release(name)
        await asyncio.sleep(0.5)
        assert not [event["event"] for event in daemon.events() if event["event"].startswith("host.rep")]


async def test_an_eni_that_somebody_detached_is_looked_up_at_once(tmp_path: Path, prefix: str) -> None:
    """Not only by the hourly audit: the interface goes, EC2 is asked, and the ENI is attached again."""
    async with box(tmp_path, prefix, POOL_MINIMUM_IPS=12) as (daemon, vpc):
        await daemon.ready()
        await daemon.settled(12)
        (eni,) = [eni for eni in (await cloud_enis(vpc)).values() if eni["device_index"] == 1]
        attachment = vpc.cloud.enis.get(eni["id"]).attachment
        assert attachment is not None
        detach = {"action": "DetachNetworkInterface", "parameters": {"AttachmentId": attachment.id}}
        await control(vpc, "ec2", detach)
        assert (await daemon.seen("eni.device_gone"))["eni"] == eni["id"]
        await daemon.seen("eni.found_detached")
        await daemon.settled(15)  # three more came in the place of those that were lost, as it seemed
        assert "1501:" in await shown(daemon, "ip", "rule")


async def test_an_interface_that_comes_back_is_served_as_before(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_MINIMUM_IPS=12) as (daemon, _vpc):
        await daemon.ready()
        await daemon.settled(12)
        mac = (await shown(daemon, "cat", "/sys/class/net/eth1/address")).strip()
        await ip(daemon, "link set eth1 address 02:00:00:00:00:99")  # for all that can be seen, the device is gone
        await daemon.seen("eni.device_gone")

        async def gone() -> bool:
            return "1501" not in await shown(daemon, "ip", "rule")

        await until(gone, "its rules")
        await ip(daemon, f"link set eth1 address {mac}")

        await daemon.settled(15)  # three more came in the place of those that were lost, as it seemed
        assert "1501:" in await shown(daemon, "ip", "rule")


@pytest.mark.parametrize(
    ("settings", "pods", "enis"),
    [({}, 9001, 9001), ({"HOST_MTU": 8000}, 8000, 8000), ({"HOST_MTU": 8000, "HOST_POD_MTU": 1450}, 1450, 8000)],
)
async def test_mtu_of_enis_and_of_pods(
    tmp_path: Path, prefix: str, settings: dict[str, Any], pods: int, enis: int
) -> None:
    async with box(tmp_path, prefix, **settings) as (daemon, _vpc):
        await daemon.ready()
        assert (await daemon.allocate("a")).mtu == pods
        assert (await shown(daemon, "cat", "/sys/class/net/eth0/mtu")).strip() == str(enis)
