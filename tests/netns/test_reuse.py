"""The real daemon on a real kernel: what is tracked for an address goes with its pod, and never meets the next."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ipamd.install.plugin import install_plugin
from ipamd.pool.reuse import PAUSE
from ipamd.sim import netns
from ipamd.sim.runtimes import Pod
from ipamd.sim.runtimes.direct import Direct, direct
from tests.netns.boxed import Daemon, box, until

pytestmark = pytest.mark.netns

NANO = "t3.nano"  # 1 secondary address on each ENI
LARGE = "m5.large"  # 9
ONE_ADDRESS = {"POOL_MAX_ENIS": 1, "POOL_WARM_IPS": 0}
NEVER = 600  # seconds

GATEWAY, OUTSIDE, SERVICE = "10.0.0.1", "192.0.2.1", "10.96.0.10"
CLIENT = "10.0.0.3"  # one that EC2 reserves, so no pod has it

# A walk through the kernel's table appends a byte to this file, beside the daemon's log.
WALKS = "walks"


def counting(dir: Path, *, fails: bool = False) -> tuple[str, str]:
    """What the interpreter is to run: the daemon, which tells of its walks; `fails`: the kernel refuses them."""
    return (
        "-c",
        f"""
import errno, sys
from ipamd.__main__ import main
from ipamd.host import conntrack
find = conntrack._find
def counted(*arguments):
    with open({str(dir / WALKS)!r}, "a") as file:
        file.write(".")
    if {fails}:
        raise OSError(errno.EPERM, "not permitted, says the test")
    return find(*arguments)
conntrack._find = counted
sys.exit(main(sys.argv[1:]))
""",
    )


def walks(daemon: Daemon) -> int:
    return len((daemon.node.dir / WALKS).read_text())


@asynccontextmanager
async def node(
    dir: Path, prefix: str, type: str = NANO, *, fails: bool = False, **settings: Any
) -> AsyncIterator[tuple[Daemon, Direct]]:
    async with box(dir, prefix, type=type, **settings) as (daemon, _):
        files = daemon.node
        (files.dir / WALKS).touch()
        daemon.python = counting(files.dir, fails=fails)
        await asyncio.to_thread(
            install_plugin, files.dir / "bin", files.socket, files.dir / "released", add_seconds=15
        )
        async with direct(files.netns, files.dir / "bin", files.dir / "net.d") as runtime:
            await daemon.ready()
            yield daemon, runtime


async def tracked(daemon: Daemon, address: str) -> list[str]:
    """As conntrack(8) lists them."""
    listed = await netns.command("ip", "netns", "exec", daemon.node.netns, "conntrack", "-L")
    return [line for line in listed.splitlines() if f"={address} " in f"{line} "]


async def forgotten(daemon: Daemon, address: str) -> None:
    async def none() -> bool:
        return not await tracked(daemon, address)

    await until(none, f"flows of {address} are gone")


async def talk(daemon: Daemon, pod: Pod) -> None:
    """A flow within the VPC, one that is translated, and one from the node to the pod."""
    ports = {GATEWAY: 7, OUTSIDE: 53}

    def send(flows: dict[str, int]) -> None:
        for address, port in flows.items():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
                datagram.sendto(b"?", (address, port))

    netns.run_in(pod.netns.name, lambda: send(ports))
    netns.run_in(daemon.node.netns, lambda: send({str(pod.ip): 9}))
    assert len(await tracked(daemon, pod.ip)) == 3


async def keep_sending(daemon: Daemon, *addresses: str) -> None:
    """What kube-proxy makes of clients of a service whose endpoint is gone without its having heard of it
    (kubernetes#126130): entries that lead there."""
    for number, address in enumerate(addresses):
        entry = f"-p udp -s {CLIENT} -d {SERVICE} --sport {5000 + number} --dport 53 -r {address} -q {CLIENT}"
        inserted = f"conntrack -I {entry} --reply-port-src 5353 --reply-port-dst {5000 + number} -t 600"
        await netns.command("ip", "netns", "exec", daemon.node.netns, *inserted.split())
        assert await tracked(daemon, address)


async def test_with_its_pod_goes_what_is_tracked_for_an_address(tmp_path: Path, prefix: str) -> None:
    async with node(tmp_path, prefix, LARGE, POOL_COOLDOWN=NEVER) as (daemon, runtime):
        one, other = [await runtime.run_pod(name) for name in ("one", "other")]
        await talk(daemon, one)
        await talk(daemon, other)
        await keep_sending(daemon, one.ip)
        await runtime.remove_pod(one)
        await forgotten(daemon, one.ip)
        assert len(await tracked(daemon, other.ip)) == 3
        assert (await daemon.counts()).cooling == 1
        assert walks(daemon) == 1


async def test_late_packet_during_cooldown_does_not_reach_the_next_pod(tmp_path: Path, prefix: str) -> None:
    settings = {"POOL_COOLDOWN": 2, "POOL_REUSE_COOLING_AFTER": 2, **ONE_ADDRESS}
    async with node(tmp_path, prefix, **settings) as (daemon, runtime):
        one = await runtime.run_pod("one")
        await talk(daemon, one)
        before = time.monotonic()
        await runtime.remove_pod(one)
        await forgotten(daemon, one.ip)
        await keep_sending(daemon, one.ip)
        assert await daemon.address("next") == one.ip
        assert await tracked(daemon, one.ip) == []
        assert time.monotonic() - before >= 2
        assert walks(daemon) == 2


async def test_nor_when_nobody_waited_for_the_address(tmp_path: Path, prefix: str) -> None:
    async with node(tmp_path, prefix, POOL_COOLDOWN=1, **ONE_ADDRESS) as (daemon, runtime):
        one = await runtime.run_pod("one")
        await runtime.remove_pod(one)
        await keep_sending(daemon, one.ip)
        await daemon.settled(free=1)
        assert await tracked(daemon, one.ip) == []
        at_rest = walks(daemon)
        await asyncio.sleep(1)
        assert walks(daemon) == at_rest == 2


async def test_a_waiting_pod_gets_a_cooling_address_without_its_flows(tmp_path: Path, prefix: str) -> None:
    settings = {"POOL_COOLDOWN": NEVER, "POOL_REUSE_COOLING_AFTER": 1, **ONE_ADDRESS}
    async with node(tmp_path, prefix, **settings) as (daemon, runtime):
        one = await runtime.run_pod("one")
        await talk(daemon, one)
        await runtime.remove_pod(one)
        await keep_sending(daemon, one.ip)
        assert await daemon.address("next") == one.ip
        assert await tracked(daemon, one.ip) == []


async def test_a_burst_of_releases_shares_walks(tmp_path: Path, prefix: str) -> None:
    async with node(tmp_path, prefix, LARGE, POOL_COOLDOWN=3, POOL_WARM_IPS=20) as (daemon, _):
        await daemon.settled(free=20)
        names = [f"pod-{number}" for number in range(20)]
        addresses = await asyncio.gather(*(daemon.address(name) for name in names))
        await keep_sending(daemon, *addresses)
        before = time.monotonic()
        await asyncio.gather(*(daemon.release(name) for name in names))
        took = time.monotonic() - before
        for address in addresses:
            await forgotten(daemon, address)
        released = walks(daemon)
        assert released <= took / PAUSE + 2

        async def free() -> bool:
            return (await daemon.counts()).cooling == 0

        await until(free, "they have cooled")
        assert walks(daemon) - released <= took / PAUSE + 2


async def test_leftovers_from_downtime_are_removed_at_restart(tmp_path: Path, prefix: str) -> None:
    async with node(tmp_path, prefix, POOL_COOLDOWN=1, **ONE_ADDRESS) as (daemon, runtime):
        one = await runtime.run_pod("one")
        await talk(daemon, one)
        await daemon.kill()
        await runtime.remove_pod(one)  # into the spool
        await asyncio.sleep(1.5)  # its cooldown is over when the daemon hears of its release
        assert len(await tracked(daemon, one.ip)) == 3
        await daemon.ready()
        assert await daemon.address("next") == one.ip
        assert await tracked(daemon, one.ip) == []


async def test_a_kernel_that_does_not_forget_keeps_no_address(tmp_path: Path, prefix: str) -> None:
    settings = {"POOL_COOLDOWN": 2, "POOL_REUSE_COOLING_AFTER": 0.1, **ONE_ADDRESS}
    async with node(tmp_path, prefix, fails=True, **settings) as (daemon, runtime):
        one = await runtime.run_pod("one")
        await talk(daemon, one)
        before = time.monotonic()
        await runtime.remove_pod(one)
        told = await daemon.seen("conntrack.unusable")
        assert told["level"] == "warning" and "not permitted" in told["error"]
        assert await daemon.address("next") == one.ip
        assert time.monotonic() - before >= 2, "none is used early"
        assert len(await tracked(daemon, one.ip)) == 3
        await daemon.release("next")
        await daemon.address("third")
        assert len(daemon.events("conntrack.unusable")) == 1
