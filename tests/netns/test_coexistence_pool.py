"""On a node where others use addresses of the ENIs, the pool grants none of them.

What the AWS VPC CNI's pods leave on the host is made by hand, as its sources have it: a route in main to an `eni...`
link, rule 512 to the pod's address, and for a pod of a secondary ENI rule 1536 from it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.sim import netns
from ipamd.sim.vpc import SimulatedVpc
from tests.netns.boxed import Daemon, add_route, box, cloud_enis, ec2, secondary, text, until

pytestmark = pytest.mark.netns


async def assign(vpc: SimulatedVpc, daemon: Daemon, count: int) -> list[str]:
    """Give the primary ENI so many secondary addresses, as the incumbent did before."""
    before = secondary(await cloud_enis(vpc))
    eni = next(e for e in (await cloud_enis(vpc)).values() if e["primary_ip"] == str(daemon.node.primary_ip))
    await ec2(vpc, "AssignPrivateIpAddresses", NetworkInterfaceId=eni["id"], SecondaryPrivateIpAddressCount=count)
    return sorted(secondary(await cloud_enis(vpc)) - before)


async def ip(daemon: Daemon, *commands: str) -> None:
    await netns.ip_batch(daemon.node.netns, list(commands))


async def add_pods(daemon: Daemon, addresses: list[str]) -> None:
    await ip(
        daemon,
        *(
            line
            for address in addresses
            for link in (f"eni{address.replace('.', '')}",)
            for line in (
                f"link add {link} type veth peer name x{link}",
                f"link set {link} up",
                f"route add {address}/32 dev {link} scope link",
                f"rule add to {address} lookup main priority 512",
                f"rule add from {address} lookup 2 priority 1536",
            )
        ),
    )


async def remove_pods(daemon: Daemon, addresses: list[str]) -> None:
    await ip(
        daemon,
        *(
            line
            for address in addresses
            for line in (
                f"rule del to {address} priority 512",
                f"rule del from {address} priority 1536",
                f"link del eni{address.replace('.', '')}",
            )
        ),
    )


async def states(daemon: Daemon) -> dict[str, str]:
    reply = await daemon.introspection.ListAddresses(pb.ListAddressesRequest(), timeout=5)
    return {address.ip: address.state for address in reply.addresses}


async def granted(daemon: Daemon, *names: str) -> set[str]:
    replies = await asyncio.gather(*map(daemon.allocate, names))
    return {text(reply.address) for reply in replies}


async def test_pods_of_another_cni_keep_their_addresses(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_COOLDOWN=1, POOL_WARM_IPS=2) as (daemon, vpc):
        theirs = await assign(vpc, daemon, 9)
        await add_pods(daemon, theirs)
        await daemon.ready()
        assert {state for address, state in (await states(daemon)).items() if address in theirs} == {"foreign"}
        ours = await granted(daemon, *map(str, range(9)))
        assert len(ours) == 9 and not ours & set(theirs)

        await daemon.kill()
        await daemon.ready()
        assert not await granted(daemon, "r1", "r2", "r3") & set(theirs)

        await daemon.kill()  # no pod of ours left a route, so they are forgotten with the ledger; theirs are not
        (daemon.node.dir / "ledger.db").unlink()
        await daemon.ready()
        assert not await granted(daemon, "l1", "l2", "l3", "l4") & set(theirs)

        reply = await daemon.introspection.Audit(pb.AuditRequest(), timeout=30)
        in_use = {m.subject for m in reply.mismatches if m.kind == "address_in_use"}
        assert in_use == set(theirs)
        assert not await granted(daemon, "u1", "u2") & set(theirs)

        await remove_pods(daemon, theirs[:4])

        async def back() -> bool:
            now = await states(daemon)
            return all(now.get(address, "") in ("free", "assigned") for address in theirs[:4])

        await until(back, "addresses whose use has ended are free")
        assert {(await states(daemon))[address] for address in theirs[4:]} == {"foreign"}


@pytest.mark.parametrize(
    "made",
    [
        "route add {ip}/32 dev lo table 77 proto 42",
        "route add local {ip}/32 dev lo",
        "route add blackhole {ip}/32",
        "rule add from {ip} lookup 77 priority 600",
        "addr add {ip}/32 dev lo",
        "neigh add {ip} lladdr 02:00:00:00:00:99 dev eth0 nud permanent",
    ],
)
async def test_an_address_that_somebody_takes_is_not_granted_after(made: str, tmp_path: Path, prefix: str) -> None:
    """Each time the next address that would have been granted is taken, and at once one is asked for."""
    async with box(tmp_path, prefix, POOL_WARM_IPS=5) as (daemon, _):
        await daemon.ready()
        await daemon.settled(free=5)
        taken = set()
        for round in range(3):
            free = [address for address, state in (await states(daemon)).items() if state == "free"]
            await ip(daemon, made.format(ip=free[0]))
            taken.add(free[0])
            assert not await granted(daemon, f"{round}") & taken
        assert {state for address, state in (await states(daemon)).items() if address in taken} == {"foreign"}


async def test_a_range_that_a_bridge_has_is_not_granted(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_WARM_IPS=5) as (daemon, _):
        await daemon.ready()
        await ip(daemon, "link add br0 type bridge", "link set br0 up", "route add 10.0.0.0/28 dev br0")
        addresses = await granted(daemon, *map(str, range(9)))
        assert all(int(address.rsplit(".", 1)[1]) > 15 for address in addresses)


@pytest.mark.parametrize("rule", ["from 10.0.0.0/28", "to 10.0.0.1/28"])
async def test_a_range_that_a_rule_selects_by_is_not_granted(rule: str, tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_WARM_IPS=5) as (daemon, _):
        await daemon.ready()
        await ip(daemon, f"rule add {rule} lookup 77 priority 300")
        addresses = await granted(daemon, *map(str, range(9)))
        assert all(int(address.rsplit(".", 1)[1]) > 15 for address in addresses)


@pytest.mark.parametrize("rule", ["not from 10.0.0.0/28", "from 10.0.0.0/8", "to 10.0.0.0/24", "from all"])
async def test_a_rule_for_all_others_or_for_more_is_no_use(rule: str, tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_WARM_IPS=5) as (daemon, _):
        await daemon.ready()
        await daemon.settled(free=5)
        await ip(daemon, f"rule add {rule} lookup 77 priority 300")
        await granted(daemon, *map(str, range(5)))
        assert set((await states(daemon)).values()) <= {"free", "assigned", "pending"}


async def test_a_proxied_neighbour_is_found_by_an_audit(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_WARM_IPS=5) as (daemon, _):
        await daemon.ready()
        await daemon.settled(free=5)
        free = next(iter(await states(daemon)))
        await ip(daemon, f"neigh add proxy {free} dev eth0")
        reply = await daemon.introspection.Audit(pb.AuditRequest(), timeout=30)
        assert [(m.kind, m.subject) for m in reply.mismatches] == [("address_in_use", free)]
        assert (await states(daemon))[free] == "foreign"


async def test_a_pod_that_lost_its_record_keeps_its_address(tmp_path: Path, prefix: str) -> None:
    """Its address was released, and it runs on: the route is there when the address has cooled."""
    async with box(tmp_path, prefix, POOL_COOLDOWN=0.5, POOL_WARM_IPS=2) as (daemon, _):
        await daemon.ready()
        address = await daemon.address("a")
        await add_route(daemon.node, "a", address)
        await daemon.release("a")
        assert (await daemon.seen("attachment.recovered"))["ip"] == address
        assert address not in await granted(daemon, *map(str, range(9)))


async def test_somebody_elses_route_to_a_pods_address_is_told_of(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, _):
        await daemon.ready()
        address = await daemon.address("a")
        await daemon.settled(free=5)
        await add_route(daemon.node, "a", address)
        await ip(daemon, f"route add {address}/32 dev lo")
        found = await daemon.seen("address.contested")
        assert (found["ip"], found["level"]) == (address, "error") and "dev lo" in found["by"]
        reply = await daemon.introspection.Audit(pb.AuditRequest(), timeout=30)
        assert [(m.kind, m.subject) for m in reply.mismatches] == [("address_in_use", address)]
