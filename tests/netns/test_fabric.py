"""The packet fabric delivers what EC2 assigned, and nothing else."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from ipamd.sim import netns
from ipamd.sim.fabric import EC2_ADDRESS, IMDS_ADDRESS, INTERNET_HOSTS, PEER_HOST, Fabric, FabricError

pytestmark = pytest.mark.netns

INSIDE, OUTSIDE = INTERNET_HOSTS


async def node(fabric: Fabric, name: str, index: int, subnet: int = 0) -> str:
    """An instance i-<name> whose primary ENI eni-<name> has the address 10.0.<subnet>.<index>."""
    namespace = await fabric.add_node(f"i-{name}", name)
    await fabric.plug(f"i-{name}", f"eni-{name}", f"06:00:00:00:00:{index:02x}", 0)
    await fabric.deliver(f"eni-{name}", (f"10.0.{subnet}.{index}",))
    return namespace


async def pings(namespace: str, destination: str, source: str = "") -> bool:
    options = ["-I", source] if source else []
    process = await asyncio.create_subprocess_exec(
        *("ip", "netns", "exec", namespace, "ping", "-n", "-q", "-c", "1", "-W", "5", *options, destination),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    return await process.wait() == 0


async def silent(namespace: str, destination: str, source: str = "") -> bool:
    """Whether nothing answers for half a second, which is a thousand times what an answer takes here."""
    options = ["-I", source] if source else []
    process = await asyncio.create_subprocess_exec(
        *("ip", "netns", "exec", namespace, "ping", "-n", "-q", "-c", "1", "-W", "0.5", *options, destination),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    out, _ = await process.communicate()
    # "+1 errors" would be an answer of the network's, and no output a ping that never started
    return process.returncode == 1 and b"1 packets transmitted, 0 received, 100% packet loss" in out


def by_eth1(source: str) -> list[str]:
    """Commands that make packets from `source` leave by eth1."""
    return [f"rule add from {source} lookup 77", "route add default via 10.0.0.1 dev eth1 onlink table 77"]


async def links(namespace: str) -> dict[str, dict[str, object]]:
    return {link["ifname"]: link for link in json.loads(await netns.command("ip", "-j", "-n", namespace, "link"))}


async def test_nodes_reach_each_other_in_one_subnet_and_across_subnets(fabric: Fabric) -> None:
    one = await node(fabric, "n1", 4)
    await node(fabric, "n2", 5)
    await node(fabric, "n3", 6, subnet=1)

    assert await pings(one, "10.0.0.5")
    assert await pings(one, "10.0.1.6")
    assert await pings(one, "10.0.0.1"), "the subnet's gateway"


async def test_the_primary_link_is_as_an_instance_has_it(fabric: Fabric) -> None:
    namespace = await node(fabric, "n1", 4)

    link = (await links(namespace))["eth0"]
    assert (link["address"], link["mtu"], link["operstate"]) == ("06:00:00:00:00:04", 9001, "UP")
    [route] = json.loads(await netns.command("ip", "-j", "-n", namespace, "route", "show", "default"))
    assert (route["gateway"], route["dev"]) == ("10.0.0.1", "eth0")
    [eth0] = json.loads(await netns.command("ip", "-j", "-n", namespace, "-4", "addr", "show", "eth0"))
    assert [(a["local"], a["prefixlen"]) for a in eth0["addr_info"]] == [("10.0.0.4", 24)]


async def test_jumbo_frames_pass_whole(fabric: Fabric) -> None:
    one = await node(fabric, "n1", 4)
    await node(fabric, "n2", 5)

    await netns.command(*f"ip netns exec {one} ping -n -q -c 1 -w 2 -M do -s 8973 10.0.0.5".split())


async def test_an_address_is_reachable_exactly_while_it_is_assigned(fabric: Fabric) -> None:
    one = await node(fabric, "n1", 4)
    two = await node(fabric, "n2", 5)
    await netns.ip_batch(two, ["addr add 10.0.0.77/32 dev lo"])  # on no link: nothing answers ARP for it

    assert await silent(one, "10.0.0.77")
    await fabric.deliver("eni-n2", ("10.0.0.5", "10.0.0.77"))
    assert await pings(one, "10.0.0.77")
    await fabric.deliver("eni-n2", ("10.0.0.5",))
    assert await silent(one, "10.0.0.77")
    assert await pings(one, "10.0.0.5")


async def test_moved_address_is_followed_in_any_order_of_calls(fabric: Fabric) -> None:
    one, two, three = await node(fabric, "n1", 4), await node(fabric, "n2", 5), await node(fabric, "n3", 6)
    for namespace in (two, three):
        await netns.ip_batch(namespace, ["addr add 10.0.0.77/32 dev lo"])

    await fabric.deliver("eni-n2", ("10.0.0.5", "10.0.0.77"))
    await fabric.deliver("eni-n3", ("10.0.0.6", "10.0.0.77"))
    await fabric.deliver("eni-n2", ("10.0.0.5",))

    assert await pings(one, "10.0.0.77")
    assert await silent(two, "10.0.0.4", source="10.0.0.77")
    assert await pings(three, "10.0.0.4", source="10.0.0.77")


async def test_a_wrong_source_is_dropped(fabric: Fabric) -> None:
    one = await node(fabric, "n1", 4)
    await node(fabric, "n2", 5)
    await node(fabric, "n3", 6)
    wrong = ("192.0.2.1", "10.0.0.5", "10.0.0.99")
    await netns.ip_batch(one, [f"addr add {source}/32 dev lo" for source in wrong])

    for source in wrong:
        assert await silent(one, "10.0.0.6", source)
        assert await silent(one, IMDS_ADDRESS, source)
    assert (await fabric.dropped())["source check"] == 2 * len(wrong)
    assert await pings(one, "10.0.0.6")


async def test_eni_rejects_addresses_of_its_neighbour_on_the_same_node(fabric: Fabric) -> None:
    one = await node(fabric, "n1", 4)
    await node(fabric, "n2", 5)
    await fabric.plug("i-n1", "eni-b", "06:00:00:00:01:01", 1)
    await fabric.deliver("eni-b", ("10.0.0.20", "10.0.0.21"))
    await netns.ip_batch(one, ["link set eth1 up", "addr add 10.0.0.21/32 dev lo"])

    assert await silent(one, "10.0.0.5", source="10.0.0.21"), "it left by eth0"
    await netns.ip_batch(one, by_eth1("10.0.0.21"))
    assert await pings(one, "10.0.0.5", source="10.0.0.21")


async def test_a_secondary_eni_appears_down_with_its_mac_and_vanishes(fabric: Fabric) -> None:
    one = await node(fabric, "n1", 4)

    await fabric.deliver("eni-b", ("10.0.1.20",))  # it exists, but is attached to nothing
    assert set(await links(one)) == {"lo", "eth0"}
    await fabric.plug("i-n1", "eni-b", "06:00:00:00:01:01", 3)
    await fabric.deliver("eni-b", ("10.0.1.20",))
    link = (await links(one))["eth3"]
    assert (link["address"], link["mtu"], link["operstate"]) == ("06:00:00:00:01:01", 9001, "DOWN")
    await fabric.unplug("eni-b")
    assert set(await links(one)) == {"lo", "eth0"}


async def test_an_eni_can_be_plugged_again_elsewhere(fabric: Fabric) -> None:
    one, two = await node(fabric, "n1", 4), await node(fabric, "n2", 5)

    await fabric.plug("i-n1", "eni-b", "06:00:00:00:01:01", 1)
    await fabric.deliver("eni-b", ("10.0.0.20",))
    await fabric.unplug("eni-b")
    await fabric.plug("i-n2", "eni-b", "06:00:00:00:01:01", 1)
    await fabric.deliver("eni-b", ("10.0.0.20",))
    await netns.ip_batch(two, ["link set eth1 up", "addr add 10.0.0.20/32 dev eth1", *by_eth1("10.0.0.20")])

    assert await pings(one, "10.0.0.20")


@pytest.mark.parametrize("destination", [INSIDE, OUTSIDE, EC2_ADDRESS])
async def test_outside_vpc_answers_only_primary_address_of_primary_eni(fabric: Fabric, destination: str) -> None:
    one = await node(fabric, "n1", 4)
    await fabric.deliver("eni-n1", ("10.0.0.4", "10.0.0.7"))
    await netns.ip_batch(one, ["addr add 10.0.0.7/32 dev lo"])

    assert await pings(one, destination)
    assert await silent(one, destination, source="10.0.0.7")
    assert await pings(one, IMDS_ADDRESS, source="10.0.0.7"), "link-local, inside the VPC"


async def test_the_internet_reaches_only_the_primary_address(fabric: Fabric) -> None:
    one = await node(fabric, "n1", 4)
    await fabric.deliver("eni-n1", ("10.0.0.4", "10.0.0.7"))
    await netns.ip_batch(one, ["addr add 10.0.0.7/32 dev lo"])

    assert await pings(fabric.internet, "10.0.0.4")
    assert await silent(fabric.internet, "10.0.0.7")


async def test_the_peered_network_reaches_and_answers_every_address(fabric: Fabric) -> None:
    one = await node(fabric, "n1", 4)
    await fabric.deliver("eni-n1", ("10.0.0.4", "10.0.0.7"))
    await netns.ip_batch(one, ["addr add 10.0.0.7/32 dev lo"])

    for address in ("10.0.0.4", "10.0.0.7"):
        assert await pings(one, PEER_HOST, source=address)
        assert await pings(fabric.peer, address)
    assert set((await fabric.dropped()).values()) == {0}


async def test_packet_too_large_for_path_is_answered_by_router(fabric: Fabric) -> None:
    one = await node(fabric, "n1", 4)
    await node(fabric, "n2", 5)
    await fabric.limit_mtu("10.0.0.5", 1400)
    await fabric.limit_mtu(PEER_HOST, 1300)

    for destination, mtu in (("10.0.0.5", 1400), (PEER_HOST, 1300), (INSIDE, 1500)):
        ping = f"ip netns exec {one} ping -n -c 1 -W 5 -M do -s {{}} {destination}"
        with pytest.raises(netns.CommandError, match="exit code 1"):
            await netns.command(*ping.format(mtu - 27).split())
        route = await netns.command("ip", "-n", one, "route", "get", destination)
        assert f"mtu {mtu}" in route
        await netns.command(*ping.format(mtu - 28).split())
    await fabric.limit_mtu("10.0.0.5", 0)
    await netns.ip_batch(one, ["route flush cache"])
    await netns.command(*ping.format(8973).replace(INSIDE, "10.0.0.5").split())
    with pytest.raises(FabricError, match="neither"):
        await fabric.limit_mtu("10.0.0.99", 1400)


async def test_ipv6_is_delivered_and_checked_like_ipv4(fabric: Fabric) -> None:
    one, two = await node(fabric, "n1", 4), await node(fabric, "n2", 5)
    await fabric.deliver("eni-n1", ("10.0.0.4", "fd00:10::4"))
    await fabric.deliver("eni-n2", ("10.0.0.5", "fd00:10::5", "fd00:10::77"))
    for namespace in (one, two):
        await netns.ip_batch(namespace, ["addr add fd00:10::77/128 dev lo nodad"])

    assert await pings(one, "fe80:ec2::1%eth0"), "the router"
    assert await pings(one, "fd00:10::5", source="fd00:10::4")
    assert set((await fabric.dropped()).values()) == {0}
    assert await silent(one, "fd00:10::5", source="fd00:10::77")
    assert (await fabric.dropped())["source check, IPv6"] == 1
    await netns.ip_batch(one, ["addr del fd00:10::77/128 dev lo"])
    assert await pings(two, "fd00:10::4", source="fd00:10::77")
    await fabric.deliver("eni-n2", ("10.0.0.5", "fd00:10::5"))
    assert await silent(two, "fd00:10::4", source="fd00:10::77")


async def test_an_address_without_an_eni_is_a_black_hole_not_an_error(fabric: Fabric) -> None:
    """ARP is answered at once, so that a sender's neighbour entry is good when the address comes to life."""
    one = await node(fabric, "n1", 4)

    assert await silent(one, "10.0.0.200")
    [entry] = json.loads(await netns.command("ip", "-j", "-n", one, "neigh", "show", "10.0.0.200"))
    assert entry["lladdr"] == "02:00:00:00:00:01"


async def test_servers_in_the_router_see_the_primary_address(fabric: Fabric) -> None:
    namespace = await node(fabric, "n1", 4)
    loop = asyncio.get_running_loop()
    for address in (IMDS_ADDRESS, EC2_ADDRESS):
        with fabric.listen(address, 80) as server:
            server.setblocking(False)
            client = loop.run_in_executor(
                None, netns.run_in, namespace, lambda a=address: socket.create_connection((a, 80), timeout=5)
            )
            accepted, peer = await loop.sock_accept(server)
            with accepted, await client:
                assert peer[0] == "10.0.0.4"


async def test_two_vpcs_of_one_cidr_do_not_meet(prefix: str) -> None:
    async with AsyncExitStack() as stack:
        a, b = [await stack.enter_async_context(Fabric("10.0.0.0/16", f"{prefix}{name}")) for name in "ab"]
        for fabric in (a, b):
            await fabric.add_subnet("10.0.0.0/24")
        a1, b1 = await node(a, "n1", 4), await node(b, "n1", 4)
        await node(a, "n2", 5)
        assert await pings(a1, "10.0.0.5")
        assert await silent(b1, "10.0.0.5")
        await node(b, "n2", 5)
        await a.unplug("eni-n2")
        assert await silent(a1, "10.0.0.5")
        assert await pings(b1, "10.0.0.5")


async def test_what_cannot_be_is_refused_and_leaves_the_fabric_whole(fabric: Fabric) -> None:
    one = await node(fabric, "n1", 4)
    await node(fabric, "n2", 5)

    with pytest.raises(FabricError, match="no namespace"):
        await fabric.plug("i-none", "eni-b", "06:00:00:00:01:01", 1)
    with pytest.raises(FabricError, match="plugged already"):
        await fabric.plug("i-n2", "eni-n1", "06:00:00:00:00:04", 1)
    with pytest.raises(netns.CommandError):  # eth0 is taken
        await fabric.plug("i-n1", "eni-b", "06:00:00:00:01:01", 0)
    with pytest.raises(FabricError, match="not plugged"):
        await fabric.unplug("eni-b")
    await fabric.add_node("i-n3", "n3")
    await fabric.plug("i-n3", "eni-n3", "06:00:00:00:00:06", 0)
    with pytest.raises(FabricError, match="in no subnet"):
        await fabric.deliver("eni-n3", ("10.0.9.6",))
    with pytest.raises(FabricError, match="overlaps"):
        Fabric("198.51.0.0/16")
    assert await pings(one, "10.0.0.5")
    assert {name for name in await links(fabric.router) if name.startswith("port")} == {"port1", "port2", "port4"}


async def test_a_plug_that_fails_half_way_leaves_no_link(fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace = await fabric.add_node("i-n1", "n1")

    def full(name: str, values: dict[str, int]) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(netns, "write_sysctls", full)
        with pytest.raises(OSError, match="No space left"):
            await fabric.plug("i-n1", "eni-n1", "06:00:00:00:00:04", 0)
    assert set(await links(namespace)) == {"lo"}
    await fabric.plug("i-n1", "eni-n1", "06:00:00:00:00:04", 0)
    assert set(await links(namespace)) == {"lo", "eth0"}


async def test_all_namespaces_go_when_the_building_of_one_fails(prefix: str) -> None:
    with pytest.raises(netns.CommandError):
        async with Fabric("10.0.0.0/16", prefix) as fabric:
            await fabric.add_node("i-n1", "n1")
            await fabric.add_node("i-n2", "n1")

    assert list(netns.DIRECTORY.glob(f"{prefix}*")) == []


async def test_the_callers_thread_stays_in_its_namespace(fabric: Fabric) -> None:
    def here() -> str:
        return str(Path("/proc/thread-self/ns/net").readlink())

    home = here()
    namespace = await node(fabric, "n1", 4)
    inside = netns.run_in(namespace, here)

    assert here() == home != inside
    with pytest.raises(FileNotFoundError):
        netns.run_in(f"{namespace}-none", here)
    assert here() == home
