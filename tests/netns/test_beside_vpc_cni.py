"""Two node groups in one VPC, the AWS VPC CNI's and ipamd's; then a node moved from one to the other, and back.

The VPC CNI's node has what its agent and its plugin write (v1.23), by hand, as in test_coexistence.py: a secondary
ENI with its tag, rules, a routing table, chains, and for each pod a veth, a route and rules. The fabric drops what
leaves by an ENI that has not its source: each connection below has taken a right way both ways.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ipamd.install.plugin import install_plugin
from ipamd.sim import netns
from ipamd.sim.fabric import INTERNET_HOSTS
from ipamd.sim.runtimes.direct import direct
from ipamd.sim.runtimes.process import inside
from ipamd.sim.vpc import SimulatedNode, SimulatedVpc
from tests.netns.boxed import QUICK, Daemon, cloud_enis, ec2, secondary, until
from tests.netns.flows import Place, tcp
from tests.netns.test_coexistence import _AWS_COMMON, _AWS_NFT

pytestmark = pytest.mark.netns

GATEWAY = "10.0.0.1"


class VpcCni:
    """The VPC CNI on one node: its agent's part is `begin`, its plugin's is `add` and `remove`."""

    def __init__(self, vpc: SimulatedVpc, node: SimulatedNode) -> None:
        self.vpc, self.node = vpc, node
        self.second = ""
        self.pods: dict[Place, str] = {}  # -> the host's end of its veth
        self._free: list[tuple[str, bool]] = []  # and whether it is the secondary ENI's

    async def run(self, script: str, stdin: str = "") -> str:
        argv = inside(self.node.netns, "sh", "-ec", script)
        done = await asyncio.to_thread(subprocess.run, argv, input=stdin, capture_output=True, text=True)
        assert done.returncode == 0, f"{script}: {done.stderr}"
        return str(done.stdout)

    async def begin(self) -> None:
        """An ENI more, two addresses on each, and what belongs to the node rather than to a pod."""
        primary = next(
            eni for eni in (await cloud_enis(self.vpc)).values() if eni["primary_ip"] == str(self.node.primary_ip)
        )
        tags = [{"Key": "node.k8s.amazonaws.com/instance_id", "Value": self.node.instance_id}]
        made = await ec2(
            self.vpc,
            "CreateNetworkInterface",
            SubnetId=primary["subnet_id"],
            TagSpecifications=[{"ResourceType": "network-interface", "Tags": tags}],
        )
        self.second = made["NetworkInterface"]["NetworkInterfaceId"]
        await ec2(
            self.vpc,
            "AttachNetworkInterface",
            NetworkInterfaceId=self.second,
            InstanceId=self.node.instance_id,
            DeviceIndex=1,
        )
        self._free = []
        for eni in (primary["id"], self.second):
            await ec2(self.vpc, "AssignPrivateIpAddresses", NetworkInterfaceId=eni, SecondaryPrivateIpAddressCount=2)
            found = (await cloud_enis(self.vpc))[eni]
            self._free += [(ip, eni == self.second) for ip in sorted(secondary({eni: found}))]
        link = await self._link(made["NetworkInterface"]["MacAddress"])
        own = made["NetworkInterface"]["PrivateIpAddress"]
        netns.write_sysctls(self.node.netns, {"ipv4/ip_forward": 1})
        await self.run(
            f"""
            echo 2 > /proc/sys/net/ipv4/conf/eth0/rp_filter
            ip link set {link} up; ip addr add {own}/24 dev {link}; ip route del 10.0.0.0/24 dev {link}
            ip route add {GATEWAY} dev {link} scope link table 2
            ip route add default via {GATEWAY} dev {link} table 2
            ip rule add fwmark 0x80/0x80 lookup main priority 1024
            ip rule add from {own} lookup 2 priority 32765
            """
        )
        await self.run(_AWS_COMMON.format(ipt="iptables-nft -w").replace("10.0.0.10", str(self.node.primary_ip)))
        await self.run("nft -f -", _AWS_NFT)

    async def _link(self, mac: str) -> str:
        found: list[dict[str, Any]] = []

        async def there() -> bool:
            nonlocal found
            links = json.loads(await self.run("ip -j link show"))
            found = [each for each in links if each.get("address") == mac]
            return bool(found)

        await until(there, "the ENI's link is there")
        return str(found[0]["ifname"])

    async def add(self, name: str) -> Place:
        address, second = self._free.pop(0)
        pod = Place(name, f"{self.node.netns}-{name}", address)
        link = f"eni{name}"
        await netns.create(pod.netns)
        self.pods[pod] = link
        await self.run(
            f"""
            ip link add {link} type veth peer name eth0 netns {pod.netns}; ip link set {link} up
            ip route add {address} dev {link} scope link
            ip rule add to {address} lookup main priority 512
            {f"ip rule add from {address} lookup 2 priority 1536" if second else ""}
            """
        )
        mac = next(
            each["address"] for each in json.loads(await self.run("ip -j link show")) if each["ifname"] == link
        )
        await netns.ip_batch(
            pod.netns,
            [
                "link set lo up",
                f"addr add {address}/32 dev eth0",
                "link set eth0 up",
                "route add 169.254.1.1 dev eth0 scope link",
                "route add default via 169.254.1.1 dev eth0",
                f"neigh add 169.254.1.1 lladdr {mac} dev eth0 nud permanent",
            ],
        )
        return pod

    async def remove(self, pod: Place) -> None:
        """Its plugin's DEL takes the pod's rules away, too, except where the agent has crashed: that is left here."""
        await self.run(f"ip link delete {self.pods.pop(pod)}")
        await netns.delete(pod.netns)

    async def end(self) -> None:
        for pod in list(self.pods):
            await self.remove(pod)

    async def detach(self) -> None:
        """What docs/eks.md has the operator do with its interfaces."""
        described = await ec2(self.vpc, "DescribeNetworkInterfaces", NetworkInterfaceIds=[self.second])
        attachment = described["NetworkInterfaces"][0]["Attachment"]["AttachmentId"]
        await ec2(self.vpc, "DetachNetworkInterface", AttachmentId=attachment)

        async def available() -> bool:
            found = await ec2(self.vpc, "DescribeNetworkInterfaces", NetworkInterfaceIds=[self.second])
            return bool(found["NetworkInterfaces"][0]["Status"] == "available")

        await until(available, "the ENI is detached")
        await ec2(self.vpc, "DeleteNetworkInterface", NetworkInterfaceId=self.second)


class Ipamd:
    """ipamd on one node: the daemon and its plugin."""

    def __init__(self, vpc: SimulatedVpc, node: SimulatedNode, stack: AsyncExitStack) -> None:
        self.daemon = Daemon(vpc, node, POOL_WARM_IPS=2, POOL_COOLDOWN=0.5)
        self._stack = stack
        self._runtime: Any = None
        self._pods: list[tuple[Any, Place]] = []

    async def begin(self) -> None:
        files = self.daemon.node
        await asyncio.to_thread(
            install_plugin, files.dir / "bin", files.socket, files.dir / "released", add_seconds=30
        )
        self._stack.push_async_callback(self.daemon.kill)
        await self.daemon.ready()
        self._runtime = await self._stack.enter_async_context(
            direct(files.netns, files.dir / "bin", files.dir / "net.d")
        )

    async def add(self, name: str) -> Place:
        pod = await self._runtime.run_pod(name)
        place = Place(name, pod.netns.name, pod.ip)
        self._pods.append((pod, place))
        return place

    async def end(self) -> None:
        for pod, _ in self._pods:
            await self._runtime.remove_pod(pod)
        self._pods.clear()
        await self.daemon.stop()

    async def audit(self) -> list[Any]:
        argv = (sys.executable, "-m", "ipamd.ctl", "audit", "-o", "json", "--socket", str(self.daemon.node.socket))
        found: dict[str, Any] = json.loads(await netns.command(*argv))
        return list(found["mismatches"])


@asynccontextmanager
async def two_groups(
    tmp_path: Path, prefix: str
) -> AsyncIterator[tuple[SimulatedVpc, VpcCni, Ipamd, AsyncExitStack]]:
    async with (
        SimulatedVpc.build(
            dir=tmp_path, nodes={"old": "m5.large", "new": "m5.large"}, delays=QUICK, prefix=prefix
        ) as vpc,
        AsyncExitStack() as stack,
    ):
        old, new = vpc.nodes
        theirs = VpcCni(vpc, old)
        stack.push_async_callback(theirs.end)
        await theirs.begin()
        ours = Ipamd(vpc, new, stack)
        await ours.begin()
        yield vpc, theirs, ours, stack


async def meet(vpc: SimulatedVpc, *pods: Place) -> None:
    """Each reaches each with its own address, and a host outside by its node's."""

    def all_of_them() -> None:
        for client, server in itertools.permutations(pods, 2):
            assert tcp(client, server).address == client.address, f"{client} to {server}"
        outside = Place("outside", vpc.fabric.internet, INTERNET_HOSTS[0])
        for client in pods:
            assert tcp(client, outside).address in {str(node.primary_ip) for node in vpc.nodes}

    await asyncio.to_thread(all_of_them)
    assert set((await vpc.fabric.dropped()).values()) == {0}


async def cleanup(node: SimulatedNode, *options: str, code: int = 0) -> dict[str, list[str]]:
    argv = inside(node.netns, sys.executable, "-m", "ipamd.ctl", "cleanup", "vpc-cni", *options, "-o", "json")
    done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == code, done.stderr + done.stdout
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


async def test_pods_of_both_groups_reach_each_other(tmp_path: Path, prefix: str) -> None:
    async with two_groups(tmp_path, prefix) as (vpc, theirs, ours, _):
        pods = [await theirs.add(f"a{i}") for i in range(4)]  # two of each ENI
        pods += [await ours.add(f"b{i}") for i in range(3)]
        await meet(vpc, *pods)
        assert await ours.audit() == []


async def test_a_node_moves_to_ipamd_and_back(tmp_path: Path, prefix: str) -> None:
    async with two_groups(tmp_path, prefix) as (vpc, theirs, ours, stack):
        stays = await ours.add("stays")
        pods = [await theirs.add(f"a{i}") for i in range(4)]
        refused = await cleanup(theirs.node, "--yes", code=1)
        assert refused["living"] and not refused["removed"]
        await theirs.end()
        done = await cleanup(theirs.node, "--yes")
        assert done["removed"]
        assert (await cleanup(theirs.node))["leftovers"] == []
        await theirs.detach()

        moved = Ipamd(vpc, theirs.node, stack)
        await moved.begin()
        taken = [await moved.add(f"c{i}") for i in range(11)]  # more than the primary ENI has
        await meet(vpc, stays, *taken)
        assert await moved.audit() == []
        assert {pod.address for pod in pods} & {pod.address for pod in taken}, "its addresses serve again"

        await moved.end()
        await give_back(vpc, theirs)
        again = [await theirs.add(f"d{i}") for i in range(4)]
        await meet(vpc, stays, *again)
        assert await ours.audit() == []


async def give_back(vpc: SimulatedVpc, theirs: VpcCni) -> None:
    """ipamd's ENIs leave the node, and the VPC CNI begins anew with the addresses that it then asks for."""
    primary = str(theirs.node.primary_ip)
    for id, eni in (await cloud_enis(vpc)).items():
        if eni["primary_ip"] == primary:
            for ip in sorted(secondary({id: eni})):
                await ec2(vpc, "UnassignPrivateIpAddresses", NetworkInterfaceId=id, PrivateIpAddresses=[ip])
        elif eni.get("instance_id") == theirs.node.instance_id:
            theirs.second = id
            await theirs.detach()
    await theirs.begin()
