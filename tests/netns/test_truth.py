"""EC2, the kernel and the records disagree, since somebody else did something: what ipamd makes of it.

The daemon is the real one, in a hurry: its audits come after 0.6 seconds, and what they find has to last for 0.4.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from cni_shim.names import host_ifname
from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.api.v1 import ipam_pb2
from ipamd.install.plugin import install_plugin
from ipamd.sim import netns
from ipamd.sim.ec2.cloud import new_id
from ipamd.sim.runtimes import Pod
from ipamd.sim.runtimes.direct import direct
from ipamd.sim.vpc import SimulatedVpc
from tests.netns.boxed import (
    Daemon,
    add_route,
    box,
    cloud_enis,
    control,
    ec2,
    give_the_newest_address_first,
    plain,
    refused,
    secondary,
    text,
    until,
)

pytestmark = pytest.mark.netns

SMALL = "t3.small"  # 3 ENIs with 3 secondary addresses each
NANO = "t3.nano"  # 2 ENIs with 1 secondary address each
GATEWAY = "10.0.0.1"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)

READ_ENIS, READ_SUBNETS = "DescribeNetworkInterfaces", "DescribeSubnets"
CALLS_OF_AN_AUDIT = [READ_ENIS, READ_ENIS]  # tagged ones, and attached ones


def hasty(interval: float = 0.6, search: float = 3600.0) -> tuple[str, str]:
    """What the interpreter is to run: the daemon with other constants, in seconds. Most tests' attachments have no
    namespace, so that a search would collect them."""
    return (
        "-c",
        f"""
import sys
from ipamd.__main__ import main
from ipamd.cloud import budget
from ipamd.pool import audit, operations
audit.AUDIT_INTERVAL, audit.SEARCH_INTERVAL, audit.DOUBT_LASTS = {interval}, {search}, 0.4
operations.APPEARS_WITHIN = 1.0
budget._OWN_LIMITS["DescribeNetworkInterfaces"] = (500, 100)  # what real audits will never need
sys.exit(main(sys.argv[1:]))
""",
    )


@asynccontextmanager
async def node(
    dir: Path, prefix: str, type: str = SMALL, **settings: Any
) -> AsyncIterator[tuple[Daemon, SimulatedVpc]]:
    """A node with such a daemon, not started, with the plugin in place."""
    settings = {"POOL_COOLDOWN": 0.5, "POOL_COALESCE": 0, "POOL_RELEASE_DELAY": 0.3, **settings}
    async with box(dir, prefix, type=type, **settings) as (daemon, vpc):
        daemon.python = hasty()
        files = daemon.node
        await asyncio.to_thread(
            install_plugin, files.dir / "bin", files.socket, files.dir / "released", add_seconds=8
        )
        yield daemon, vpc


def pods_on(daemon: Daemon) -> Any:
    return direct(daemon.node.netns, daemon.node.dir / "bin", daemon.node.dir / "net.d")


async def new_eni(vpc: SimulatedVpc, **tags: str) -> str:
    """Somebody else's, unless its tags say otherwise."""
    listed = [{"Key": f"ipamd.io/{key}", "Value": value} for key, value in tags.items()]
    tagged = {"TagSpecifications": [{"ResourceType": "network-interface", "Tags": listed}]} if listed else {}
    subnet = (await control(vpc, "state"))["subnets"][0]["id"]
    made = await ec2(vpc, "CreateNetworkInterface", SubnetId=subnet, **tagged)
    id: str = made["NetworkInterface"]["NetworkInterfaceId"]
    return id


async def sent(vpc: SimulatedVpc, instance_id: str) -> list[str]:
    """The actions of an instance's calls, in order."""
    return [call["action"] for call in await control(vpc, "calls") if call["instance"] == instance_id]


async def audited(daemon: Daemon, vpc: SimulatedVpc, times: int = 2) -> None:
    """So many more audits were made, from their beginning to their end."""

    async def reads() -> int:
        return (await sent(vpc, daemon.node.instance_id)).count(READ_ENIS)

    # The rest of one that is under way, and the beginning of the one after them.
    enough = await reads() + len(CALLS_OF_AN_AUDIT) * times + 2

    async def there() -> bool:
        return await reads() >= enough

    await until(there, f"{times} audits")


async def states(daemon: Daemon) -> dict[str, str]:
    """By address."""
    reply = await daemon.introspection.ListAddresses(pb.ListAddressesRequest(), timeout=5)
    return {address.ip: address.state for address in reply.addresses}


async def known_enis(daemon: Daemon) -> dict[str, pb.Eni]:
    reply = await daemon.introspection.ListEnis(pb.ListEnisRequest(), timeout=5)
    return {eni.id: eni for eni in reply.enis}


async def ctl(daemon: Daemon, command: str) -> list[dict[str, Any]]:
    """What `ipamctl` shows."""
    argv = (sys.executable, "-m", "ipamd.ctl", command, "--output", "json", "--socket", str(daemon.node.socket))
    rows: list[dict[str, Any]] = json.loads(await netns.command(*argv))
    return rows


async def event(daemon: Daemon, name: str, **fields: object) -> dict[str, Any]:
    """The first event like this, waited for."""

    def matching() -> list[dict[str, Any]]:
        return [found for found in daemon.events(name) if found.items() >= fields.items()]

    async def there() -> bool:
        return bool(matching())

    await until(there, f"event {name} with {fields}")
    return matching()[0]


async def fill(daemon: Daemon, names: list[str]) -> list[str]:
    """Addresses for all of them, asked for at once; the next one is refused, since the node is full."""
    granted = [text(reply.address) for reply in await asyncio.gather(*(daemon.allocate(name) for name in names))]
    await full(daemon)
    return granted


async def full(daemon: Daemon) -> None:
    """Nobody gets an address any more."""
    request = ipam_pb2.AllocateRequest(attachment=plain("beyond"), deadline_ms=2000)
    code, info, _ = await refused(daemon.ipam.Allocate(request, timeout=7))
    assert (code, info.reason) == (StatusCode.RESOURCE_EXHAUSTED, "ENI_LIMIT"), info


# Addresses


@pytest.mark.parametrize("index", [0, 1], ids=["primary ENI", "secondary ENI"])
async def test_what_somebody_else_assigned_stays_theirs(tmp_path: Path, prefix: str, index: int) -> None:
    async with node(tmp_path, prefix, POOL_WARM_IPS=1, POOL_MAX_ENIS=2) as (daemon, vpc):
        await daemon.ready()
        pods = [f"early-{number}" for number in range(3 * index)]  # they fill the primary ENI
        for name in pods:
            await daemon.allocate(name)
        await daemon.settled(free=1)
        [eni] = [eni.id for eni in (await known_enis(daemon)).values() if eni.device_index == index]
        before = secondary(await cloud_enis(vpc))
        await ec2(vpc, "AssignPrivateIpAddresses", NetworkInterfaceId=eni, SecondaryPrivateIpAddressCount=1)
        [theirs] = secondary(await cloud_enis(vpc)) - before

        found = await event(daemon, "address.foreign", ip=theirs)
        assert (found["level"], found["eni"], found["cause"]) == ("warning", eni, "unknown")
        assert (await states(daemon))[theirs] == "foreign"
        assert {row["id"]: row["foreign"] for row in await ctl(daemon, "enis")}[eni] == 1

        more = [f"late-{number}" for number in range(5 - len(pods))]  # there is room for one fewer than 2 * 3
        assert theirs not in await fill(daemon, more)
        await daemon.kill()
        await daemon.ready()
        assert (await states(daemon))[theirs] == "foreign"
        await full(daemon)

        for name in pods + more:
            await daemon.release(name)
        await daemon.settled(free=1)
        await audited(daemon, vpc)
        enis = await cloud_enis(vpc)
        assert theirs in enis[eni]["private_ips"] and enis[eni]["attachment_status"] == "attached"

        async def given_back() -> bool:
            return len(await cloud_enis(vpc)) == index + 1

        await until(given_back, "ENIs without a foreign address are given back")
        assert (await states(daemon))[theirs] == "foreign"


async def test_removed_address_is_forgotten_once_no_pod_holds_it(tmp_path: Path, prefix: str) -> None:
    async with node(tmp_path, prefix, POOL_WARM_IPS=1, POOL_MAX_ENIS=1) as (daemon, vpc):
        await daemon.ready()
        pods = await daemon.address("a")
        await daemon.settled(free=1)
        [eni] = await known_enis(daemon)
        [free] = [ip for ip, state in (await states(daemon)).items() if state == "free"]

        give_the_newest_address_first(vpc)

        async def take_away(address: str) -> None:
            """EC2 gives it to somebody else."""
            await ec2(vpc, "UnassignPrivateIpAddresses", NetworkInterfaceId=eni, PrivateIpAddresses=[address])
            await new_eni(vpc)
            assert address not in secondary(await cloud_enis(vpc))

        await take_away(free)
        assert (await event(daemon, "address.missing", ip=free))["level"] == "warning"
        await daemon.settled(free=1)
        assert free not in await states(daemon)

        await take_away(pods)
        found = await event(daemon, "address.missing", ip=pods)
        assert (found["level"], found["state"], found["eni"]) == ("error", "assigned", eni)
        await audited(daemon, vpc)
        assert await daemon.held() == {"a": pods}
        assert [row["ip"] for row in await ctl(daemon, "pods")] == [pods]
        assert await daemon.address("a") == pods, "asked again it gets the same"
        assert len(daemon.events("address.missing")) == 2

        assert text((await daemon.release("a")).address) == pods
        assert not {free, pods} & set(await fill(daemon, ["b", "c", "d"]))
        assert not {free, pods} & (await states(daemon)).keys()


async def test_an_address_that_leads_to_a_veth_is_that_veths(tmp_path: Path, prefix: str) -> None:
    async with node(tmp_path, prefix, POOL_WARM_IPS=2, POOL_MAX_ENIS=1) as (daemon, vpc):
        await daemon.ready()
        await daemon.settled(free=2)
        routed = next(iter(await states(daemon)))
        await add_route(daemon.node, "unknown", routed)
        link = host_ifname("unknown", "eth0")

        found = await event(daemon, "attachment.recovered", ip=routed)
        assert (found["level"], found["link"]) == ("warning", link)
        assert await daemon.held() == {link: routed}
        assert routed not in await fill(daemon, ["a", "b"])
        await daemon.release("a")
        await daemon.release("b")

        await daemon.stop()
        daemon.python = hasty(search=0.6)
        await daemon.ready()
        await audited(daemon, vpc)
        assert await daemon.held() == {link: routed}, "the veth is there"
        await netns.ip_batch(daemon.node.netns, [f"link del {link}"])
        await event(daemon, "attachment.collected", ip=routed)
        assert routed in {await daemon.address(name) for name in ("c", "d", "e")}


async def test_an_address_of_the_host_itself_is_no_pods(tmp_path: Path, prefix: str) -> None:
    async with node(tmp_path, prefix, POOL_WARM_IPS=3, POOL_MAX_ENIS=1) as (daemon, _):
        await daemon.ready()
        await daemon.settled(free=3)
        later, early, rest = await states(daemon)
        await netns.ip_batch(daemon.node.netns, [f"addr add {later}/32 dev eth0"])
        found = await event(daemon, "address.foreign", ip=later)
        assert (found["level"], found["cause"]) == ("warning", f"address {later} dev eth0")

        await daemon.stop()
        await netns.ip_batch(daemon.node.netns, [f"addr add {early}/32 dev lo"])
        await daemon.ready()
        found = await event(daemon, "address.foreign", ip=early)
        assert (
            found["cause"] == f"address {early} dev lo"
            and found["timestamp"] < daemon.events("daemon.ready")[0]["timestamp"]
        )
        assert await states(daemon) == {later: "foreign", early: "foreign", rest: "free"}
        assert await fill(daemon, ["a"]) == [rest]


# ENIs


async def test_somebody_elses_eni_has_a_slot_and_is_let_alone(tmp_path: Path, prefix: str) -> None:
    async with node(tmp_path, prefix, POOL_WARM_IPS=0) as (daemon, vpc):
        await daemon.ready()
        theirs, instance = await new_eni(vpc), daemon.node.instance_id
        place = {"NetworkInterfaceId": theirs, "InstanceId": instance, "DeviceIndex": 5}
        attachment = (await ec2(vpc, "AttachNetworkInterface", **place))["AttachmentId"]
        await event(daemon, "eni.foreign", eni=theirs)
        assert {row["id"]: row["state"] for row in await ctl(daemon, "enis")}[theirs] == "foreign"

        names = [f"pod-{number}" for number in range(6)]  # two more ENIs, 3 each
        await fill(daemon, names)
        for name in names:
            await daemon.release(name)

        async def shrunk() -> bool:
            return len(await cloud_enis(vpc)) == 2

        await until(shrunk, "our own second ENI is given back")
        await audited(daemon, vpc)
        assert (await cloud_enis(vpc))[theirs]["attachment_status"] == "attached"
        assert (await known_enis(daemon))[theirs].state == "foreign"

        await ec2(vpc, "DetachNetworkInterface", AttachmentId=attachment)
        await event(daemon, "eni.foreign_gone", eni=theirs)
        assert theirs not in await known_enis(daemon)
        await fill(daemon, [f"again-{number}" for number in range(9)])
        await audited(daemon, vpc)
        assert (await cloud_enis(vpc))[theirs]["status"] == "available"
        assert theirs not in {found["eni"] for found in daemon.events("eni.detached", "eni.deleted")}


async def test_an_eni_that_somebody_detached_comes_back_with_its_pods(tmp_path: Path, prefix: str) -> None:
    async with node(tmp_path, prefix, POOL_WARM_IPS=1) as (daemon, vpc), pods_on(daemon) as runtime:
        await daemon.ready()
        for number in range(3):
            await runtime.run_pod(f"primary-{number}")
        await daemon.settled(free=1)
        pod = await runtime.run_pod("second")
        held = await daemon.held()
        [eni] = [eni for eni in (await cloud_enis(vpc)).values() if pod.ip in eni["private_ips"]]
        assert eni["device_index"] == 1
        await ping(pod)

        attachment = vpc.cloud.enis.get(eni["id"]).attachment
        assert attachment is not None
        await ec2(vpc, "DetachNetworkInterface", AttachmentId=attachment.id)
        assert (await event(daemon, "eni.found_detached", eni=eni["id"]))["level"] == "warning"
        await daemon.settled(free=1)

        enis = await cloud_enis(vpc)
        assert enis[eni["id"]]["attachment_status"] == "attached" and enis[eni["id"]]["delete_on_termination"]
        assert pod.ip in enis[eni["id"]]["private_ips"]
        assert await daemon.held() == held
        await ping(pod)


async def ping(pod: Pod) -> None:
    """Over the pod's own ENI: the gateway stands at its other end."""
    await netns.command("ip", "netns", "exec", pod.netns.name, "ping", "-n", "-q", "-c1", "-W5", GATEWAY)


async def test_a_leaked_eni_is_deleted_and_no_other(tmp_path: Path, prefix: str) -> None:
    async with node(tmp_path, prefix) as (daemon, vpc):
        await daemon.ready()
        await daemon.settled(free=5)
        old, young = LONG_AGO.isoformat(), datetime.now(UTC).isoformat()
        others = {
            await new_eni(vpc, instance=daemon.node.instance_id, created=young),
            await new_eni(vpc, instance=new_id("i"), created=old, cluster="blue"),
            await new_eni(vpc, created=old),
            await new_eni(vpc),
        }
        await control(vpc, "clear", {"calls": True})
        leaked = await new_eni(vpc, instance=daemon.node.instance_id, created=old)
        assert (await event(daemon, "eni.leaked"))["eni"] == leaked
        await event(daemon, "eni.deleted", eni=leaked)
        calls = await sent(vpc, daemon.node.instance_id)
        assert calls[: calls.index("DeleteNetworkInterface")].count(READ_ENIS) >= 2 * len(CALLS_OF_AN_AUDIT)

        await audited(daemon, vpc)
        left = await cloud_enis(vpc)
        assert leaked not in left and others <= left.keys()
        assert len(daemon.events("eni.leaked")) == 1


async def test_what_a_gone_node_of_the_cluster_left_is_deleted(tmp_path: Path, prefix: str) -> None:
    async with node(tmp_path, prefix, EC2_CLUSTER="blue") as (daemon, vpc):
        running, gone = new_id("i"), new_id("i")
        subnet = next(iter(vpc.cloud.subnets)).id
        for id, name in ((running, "n2"), (gone, "n3")):
            await vpc.fabric.add_node(id, name)
            await vpc.cloud.add_instance(name, NANO, subnet, instance_id=id)
        await vpc.cloud.terminate(gone)
        await daemon.ready()
        await daemon.settled(free=5)

        old = LONG_AGO.isoformat()
        others = {
            await new_eni(vpc, instance=running, created=old, cluster="blue"),
            await new_eni(vpc, instance=gone, created=old, cluster="green"),
            await new_eni(vpc, instance=gone, created=old),
            await new_eni(vpc, instance=gone, created=datetime.now(UTC).isoformat(), cluster="blue"),
        }
        left = await new_eni(vpc, instance=gone, created=old, cluster="blue")
        assert (await event(daemon, "eni.leaked"))["eni"] == left
        await event(daemon, "eni.deleted", eni=left)

        # A role that may not look for instances: the rest of the audit is made.
        await control(vpc, "faults", {"action": "DescribeInstances", "error": "UnauthorizedOperation"})
        own = await new_eni(vpc, instance=daemon.node.instance_id, created=old, cluster="blue")
        unread = await event(daemon, "audit.cluster_unread")
        assert (unread["level"], unread["code"]) == ("warning", "UnauthorizedOperation")
        assert "allow ec2:DescribeInstances" in unread["error"]
        await event(daemon, "eni.deleted", eni=own)
        await audited(daemon, vpc)
        assert len(daemon.events("audit.cluster_unread")) == 1

        assert others <= (await cloud_enis(vpc)).keys()
        assert [found["eni"] for found in daemon.events("eni.leaked")] == [left, own]


# Attachments


async def test_attachment_is_collected_without_namespace_and_veth(tmp_path: Path, prefix: str) -> None:
    async with node(tmp_path, prefix) as (daemon, _), pods_on(daemon) as runtime:
        daemon.python = hasty(search=0.6)
        await daemon.ready()
        vethless, nameless, gone = [await runtime.run_pod(name) for name in ("vethless", "nameless", "gone")]
        await netns.ip_batch(daemon.node.netns, [f"link del {host_ifname(vethless.id, 'eth0')}"])
        kept = os.open(nameless.netns, os.O_RDONLY)  # the namespace lives on without a name, and so does the veth
        try:
            await netns.delete(nameless.netns.name)
            await netns.delete(gone.netns.name)
            stop = asyncio.Event()
            recreating = asyncio.create_task(_recreate(daemon, "recreated", stop))
            found = await event(daemon, "attachment.collected")
            assert (found["level"], found["ip"], found["cause"]) == ("warning", gone.ip, "gone")
            assert gone.id in found["key"]

            # As long again, so that the others would have gone too.
            await daemon.allocate("next")
            await event(daemon, "attachment.collected", ip=(await daemon.held())["next"])
            stop.set()
            await recreating
            assert (await daemon.held()).keys() == {vethless.id, nameless.id, "recreated"}
            assert len(daemon.events("attachment.collected")) == 2
        finally:
            os.close(kept)


async def _recreate(daemon: Daemon, name: str, stop: asyncio.Event) -> None:
    """Its namespace is never to be seen, yet each look finds another attachment than the one before."""
    while True:
        await daemon.allocate(name)
        if stop.is_set():
            return
        await asyncio.sleep(0.1)
        await daemon.release(name)


async def test_what_is_collected_cools(tmp_path: Path, prefix: str) -> None:
    async with node(tmp_path, prefix, POOL_COOLDOWN=600) as (daemon, _), pods_on(daemon) as runtime:
        daemon.python = hasty(search=0.6)
        await daemon.ready()
        pod = await runtime.run_pod("gone")
        await netns.delete(pod.netns.name)
        await event(daemon, "attachment.collected", ip=pod.ip)
        assert await daemon.held() == {}
        assert (await states(daemon))[pod.ip] == "cooling"


# Rest


@pytest.mark.parametrize("often", [False, True], ids=["between audits", "with audits"])
async def test_at_rest_nothing_is_asked_but_by_audits_and_nothing_said(
    tmp_path: Path, prefix: str, often: bool
) -> None:
    async with node(tmp_path, prefix, LOG_LEVEL="debug") as (daemon, vpc):
        daemon.python = hasty(0.6 if often else 3600.0, search=0.6)
        await daemon.ready()
        lives = ipam_pb2.Attachment(container_id="a", ifname="eth0", netns=str(tmp_path))  # searches find it
        await daemon.ipam.Allocate(ipam_pb2.AllocateRequest(attachment=lives, deadline_ms=5000), timeout=10)
        await daemon.settled(free=5)
        await daemon.seen("metrics.serving")  # the last step of a start, which no other step waits for
        await control(vpc, "clear", {"calls": True})
        await control(vpc, "faults", {"action": "imds", "delay_s": 0.001})  # counts, nothing more
        said = len(daemon.events())
        if often:
            await audited(daemon, vpc, 4)
        else:
            await asyncio.sleep(3)
        await daemon.stop()
        calls = await sent(vpc, daemon.node.instance_id)
        lines = daemon.events()[said:]
        quiet = [line for line in lines if line["event"] != "daemon.stopping"]
        assert [line for line in quiet if line["level"] != "debug"] == []
        assert [line["action"] for line in quiet if line["event"] == "ec2.call"] == calls
        assert set(calls) == ({READ_ENIS, READ_SUBNETS} if often else set())
        assert len(quiet) == len(calls)
        # One read with each audit: the VPC's CIDRs. The last audit may have been cut off by the stop.
        [imds] = await control(vpc, "faults")
        audits = calls.count(READ_ENIS)
        assert imds["struck"] == 0 if not often else 0 < imds["struck"] <= audits + 1
