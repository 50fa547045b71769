"""EC2 takes the address of a running pod: every view says that the pod is cut off, until it is gone."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.sim.vpc import SimulatedVpc
from tests.netns.boxed import Daemon, add_route, box, cloud_enis, ec2, give_the_newest_address_first, until
from tests.netns.test_metrics import scrape, value

pytestmark = pytest.mark.netns


async def take_away(vpc: SimulatedVpc, address: str) -> str:
    """As a colleague with the console would. Returns the ENI's id."""
    eni = next(id for id, each in (await cloud_enis(vpc)).items() if address in each["private_ips"])
    await ec2(vpc, "UnassignPrivateIpAddresses", NetworkInterfaceId=eni, PrivateIpAddresses=[address])
    return eni


async def run(daemon: Daemon, *command: str) -> tuple[int, Any]:
    """The exit code of `ipamctl`, and what it shows."""
    argv = [sys.executable, "-m", "ipamd.ctl", *command, "-o", "json", "--socket", str(daemon.node.socket)]
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, json.loads(output)


async def node(daemon: Daemon) -> pb.Node:
    found: pb.Node = await daemon.introspection.GetNode(pb.GetNodeRequest(), timeout=5)
    return found


async def everybody_sees(daemon: Daemon, address: str) -> None:
    """On each way on which an operator would look."""
    code, status = await run(daemon, "status")
    assert "1 pod is cut off" in status["attention"][0] and address in status["attention"][0]
    assert [(t["kind"], t["ip"]) for t in status["attachment_troubles"]] == [("lost", address)]
    code, said = await run(daemon, "explain", "pod", "pod-a")
    assert (code, said["state"]) == (3, "cut_off") and address in said["headline"]
    _, pods = await run(daemon, "pods")
    assert [bool(pod["trouble"]) for pod in pods] == [True]
    _, addresses = await run(daemon, "addresses")
    assert {each["state"] for each in addresses if each["ip"] == address} == {"lost"}
    code, audit = await run(daemon, "audit")
    assert code == 1
    assert ("attachment_stranded", address) in {(m["kind"], m["subject"]) for m in audit["mismatches"]}
    await until(lambda: tell(daemon), "the metric tells")


async def tell(daemon: Daemon) -> bool:
    return value(await scrape(daemon), "ipamd_attachments_stranded") == 1


async def test_what_an_audit_finds_lasts_until_the_pod_is_gone(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_WARM_IPS=2) as (daemon, vpc):
        await daemon.ready()
        address = await daemon.address("a")
        await add_route(daemon.node, "a", address)
        await daemon.settled(free=2)
        await take_away(vpc, address)
        first = await daemon.introspection.Audit(pb.AuditRequest(), timeout=30)
        assert [(m.kind, m.subject) for m in first.mismatches] == [("address_missing", address)]
        lost = await daemon.seen("address.missing")
        assert (lost["ip"], lost["level"]) == (address, "error")
        await asyncio.sleep(5.1)  # an audit's answer is given again for so long
        await everybody_sees(daemon, address)

        await daemon.stop()
        await daemon.ready()
        await everybody_sees(daemon, address)

        await daemon.release("a")
        assert not (await node(daemon)).attachment_troubles


async def test_an_address_that_a_new_eni_gets_cuts_its_pod_off_at_once(tmp_path: Path, prefix: str) -> None:
    """The proof is in the reply to the daemon's own call: no audit is needed."""
    async with box(tmp_path, prefix, POOL_WARM_IPS=0, type="t3.small") as (daemon, vpc):
        await daemon.ready()
        held = [await daemon.address(name) for name in ("a", "b", "c")]  # all that fit the primary ENI
        await add_route(daemon.node, "a", held[0])
        await take_away(vpc, held[0])
        give_the_newest_address_first(vpc)
        await daemon.address("d")
        enis = await cloud_enis(vpc)
        assert held[0] in {each["primary_ip"] for each in enis.values()}
        (trouble,) = (await node(daemon)).attachment_troubles
        assert (trouble.kind, trouble.attachment.container_id) == ("lost", "a")
        assert "as its own address" in trouble.cause
        assert (await daemon.seen("address.missing"))["level"] == "error"


async def test_a_pod_is_back_once_ec2_has_its_address_again(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_WARM_IPS=2) as (daemon, vpc):
        await daemon.ready()
        address = await daemon.address("a")
        await add_route(daemon.node, "a", address)
        await daemon.settled(free=2)
        eni = await take_away(vpc, address)
        await daemon.introspection.Audit(pb.AuditRequest(), timeout=30)
        assert (await node(daemon)).attachment_troubles
        give_the_newest_address_first(vpc)
        await ec2(vpc, "AssignPrivateIpAddresses", NetworkInterfaceId=eni, SecondaryPrivateIpAddressCount=1)
        await asyncio.sleep(5.1)
        await daemon.introspection.Audit(pb.AuditRequest(), timeout=30)
        assert not (await node(daemon)).attachment_troubles
        assert (await daemon.seen("address.found_again"))["ip"] == address
        await daemon.settled(free=2)
        await asyncio.sleep(5.1)
        assert not (await daemon.introspection.Audit(pb.AuditRequest(), timeout=30)).mismatches
