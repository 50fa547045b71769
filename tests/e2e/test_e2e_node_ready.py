"""A node that can't give a pod an address stays ready: containerd 2 makes each error of STATUS a node that is not
ready, and Kubernetes then evicts what runs there. These tests ask for the CRI's RuntimeStatus, as a kubelet does."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from ipamd.install.plugin import install_plugin
from ipamd.shell.serving import Record
from ipamd.sim import netns
from ipamd.sim.fabric import EC2_ADDRESS
from ipamd.sim.runtimes import RuntimeFailure
from ipamd.sim.runtimes.containerd import Containerd, containerd
from ipamd.sim.vpc import SimulatedVpc
from tests.e2e import debian
from tests.netns.boxed import Daemon, box, refused, until
from tests.netns.test_reasons import CASES, HASTY, late

pytestmark = pytest.mark.e2e

AWAY = 30.0  # seconds that a daemon may be gone before a pod's ADD fails for it
OTHER_BOOT = "00000000-0000-0000-0000-000000000000\n"


@pytest.fixture(scope="module")
def release() -> Path:
    """The folder with the executables of a containerd 2."""
    folder = debian.unpacked("sid", "containerd") / "usr" / "bin"
    done = subprocess.run([folder / "containerd", "--version"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"{folder / 'containerd'} does not run on this machine: {done.stderr.strip()}")
    assert done.stdout.split()[2].lstrip("v").startswith("2."), done.stdout
    return folder


@dataclass(frozen=True)
class Watched:
    """A containerd and what it said of its network since the last look."""

    runtime: Containerd
    seen: list[str]

    async def asked_again(self) -> None:
        """It has answered a question that was put after now."""
        goal = len(self.seen) + 2

        async def answered() -> bool:
            return len(self.seen) >= goal

        await until(answered, "containerd answers")

    def always_ready(self) -> bool:
        return bool(self.seen) and not any(self.seen)


@asynccontextmanager
async def watched(daemon: Daemon, release: Path) -> AsyncIterator[Watched]:
    node = daemon.node
    async with containerd(
        node.netns, node.dir / "ctd", node.dir / "bin", node.dir / "net.d", release=release
    ) as runtime:
        await runtime.wait_until_ready()
        found = Watched(runtime, [])

        async def ask() -> None:
            while True:
                with suppress(RuntimeFailure):  # containerd itself did not answer
                    found.seen.append(await runtime.why_not_ready())
                await asyncio.sleep(0.05)

        asking = asyncio.create_task(ask())
        try:
            yield found
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)


@asynccontextmanager
async def node_of(
    directory: Path, type: str = "m5.large", **settings: object
) -> AsyncIterator[tuple[Daemon, SimulatedVpc]]:
    """With the plugin in place; the daemon is not started."""
    async with box(directory, f"e{secrets.token_hex(4)}", type=type, **settings) as (daemon, vpc):
        files = daemon.node
        await asyncio.to_thread(install_plugin, files.dir / "bin", files.socket, files.dir / "released")
        yield daemon, vpc


@pytest.mark.parametrize("name", CASES)
async def test_a_node_that_refuses_a_pod_stays_ready(directory: Path, release: Path, name: str) -> None:
    case = CASES[name]
    cooling = {"POOL_COOLDOWN": 600, "POOL_REUSE_COOLING_AFTER": 600}  # longer than a containerd takes to start
    settings = {"POOL_WARM_IPS": 0, "POOL_COALESCE": 0, **cooling, **dict(case.settings)}
    async with node_of(directory, case.type, **settings) as (daemon, vpc):
        daemon.python = ("-c", HASTY)
        story = case.provoke(daemon, vpc)
        try:
            meanwhile = await anext(story)
            async with watched(daemon, release) as watch:
                call = asyncio.ensure_future(refused(daemon.ipam.Allocate(late(case.wait), timeout=case.wait + 5)))
                if meanwhile is not None:
                    await meanwhile()
                _, info, _ = await call
                assert info.reason == case.reason
                await watch.asked_again()
                assert watch.always_ready(), watch.seen
        finally:
            await story.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("end", "away"), [("TERM", 0.0), ("KILL", 0.0), ("KILL", AWAY)])
async def test_a_restart_fails_no_pod_and_no_status(directory: Path, release: Path, end: str, away: float) -> None:
    async with node_of(directory) as (daemon, _):
        await daemon.ready()
        async with watched(daemon, release) as watch:
            before = await watch.runtime.run_pod("before")
            await (daemon.stop() if end == "TERM" else daemon.kill())
            starting = asyncio.ensure_future(watch.runtime.run_pod("meanwhile"))
            await watch.asked_again()
            await asyncio.sleep(away)
            await daemon.ready()
            during = await starting
            assert during.ip and during.ip != before.ip
            await watch.asked_again()
            assert watch.always_ready(), watch.seen
            await netns.command("ip", "netns", "exec", daemon.node.netns, "ping", "-c1", "-W5", before.ip)


async def test_a_restart_while_ec2_is_away_shows_nowhere(directory: Path, release: Path) -> None:
    async with node_of(directory) as (daemon, _):
        await daemon.ready()
        async with watched(daemon, release) as watch:
            await daemon.stop()
            closed = f"ip daddr {EC2_ADDRESS} tcp dport 80 reject with tcp reset"
            table = f"table inet t {{ chain c {{ type filter hook output priority 0; {closed}; }}; }}"
            await netns.nft(daemon.node.netns, table)
            daemon.log.write_text("")
            await daemon.start()
            await daemon.seen("ec2.unavailable")
            starting = asyncio.ensure_future(watch.runtime.run_pod("meanwhile"))
            await watch.asked_again()
            assert watch.always_ready(), watch.seen
            await netns.nft(daemon.node.netns, "delete table inet t")
            assert (await starting).ip
            await watch.asked_again()
            assert watch.always_ready(), watch.seen


async def test_a_stopped_process_shows_nowhere(directory: Path, release: Path) -> None:
    """SIGSTOP, as a debugger or a frozen group of processes does it: the socket is there and nobody answers."""
    async with node_of(directory) as (daemon, _):
        await daemon.ready()
        async with watched(daemon, release) as watch:
            assert daemon.process is not None
            os.kill(daemon.process.pid, signal.SIGSTOP)
            try:
                starting = asyncio.ensure_future(watch.runtime.run_pod("meanwhile"))
                await watch.asked_again()
            finally:
                os.kill(daemon.process.pid, signal.SIGCONT)
            assert (await starting).ip
            assert watch.always_ready(), watch.seen


async def test_a_node_is_not_ready_before_it_has_served_in_this_boot(directory: Path, release: Path) -> None:
    async with node_of(directory) as (daemon, _):
        await daemon.ready()
        async with watched(daemon, release) as watch:
            await daemon.stop()
            record = Record(daemon.node.socket)
            assert record.holds()
            for leave in (lambda: record.path.write_text(OTHER_BOOT), record.remove):  # a disk's, an empty /run
                leave()
                watch.seen.clear()
                await watch.asked_again()
                assert "NetworkReady" in watch.seen[-1] and "no answer from ipamd" in watch.seen[-1]
            await daemon.ready()
            watch.seen.clear()
            await watch.asked_again()
            assert watch.always_ready(), watch.seen


@pytest.fixture
async def sysctls(directory: Path) -> AsyncIterator[Path]:
    """A place for /proc/sys/net that can be made read-only without the machine's own."""
    place = directory / "sysctls"
    place.mkdir()
    await netns.command("mount", "--bind", "/proc/sys/net", str(place))
    yield place
    await netns.command("umount", "--lazy", str(place))


async def test_a_node_whose_kernel_carries_no_pod_is_not_ready(directory: Path, release: Path, sysctls: Path) -> None:
    """Forwarding is switched off, and ipamd is kept from switching it on again."""
    async with node_of(directory, HOST_SYSCTL_DIR=sysctls) as (daemon, _):
        await daemon.ready()
        async with watched(daemon, release) as watch:
            await netns.command("mount", "-o", "remount,bind,ro", str(sysctls))
            netns.write_sysctls(daemon.node.netns, {"ipv4/ip_forward": 0})

            async def cut_off() -> bool:
                return bool(watch.seen) and "can't be put in order" in watch.seen[-1]

            await until(cut_off, "containerd shows that no pod is reached", timeout=120.0)
            assert daemon.events("daemon.not_serving") and not Record(daemon.node.socket).holds()
            await netns.command("mount", "-o", "remount,bind,rw", str(sysctls))

            async def mended() -> bool:
                return watch.seen[-1] == ""

            await until(mended, "containerd shows that pods are reached again", timeout=120.0)


@pytest.mark.parametrize("modern", [False, True], ids=["the machine's own", "containerd 2"])
async def test_containerd_reads_the_conflist_without_a_complaint(
    directory: Path, release: Path, modern: bool
) -> None:
    async with node_of(directory) as (daemon, _):
        node = daemon.node
        folder = release if modern else None
        async with containerd(
            node.netns, node.dir / "ctd", node.dir / "bin", node.dir / "net.d", release=folder
        ) as runtime:
            assert "NetworkReady" in await runtime.why_not_ready()  # it watches the folder
            await daemon.ready()
            await runtime.wait_until_ready()
            assert "failed to reload cni configuration" not in (node.dir / "ctd" / "log").read_text()
