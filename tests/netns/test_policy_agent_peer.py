"""The network policy agent's calls: with AWS's own gRPC code, and the netlink library by which it finds links."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from cni_shim.names import host_ifname
from ipamd.install.plugin import install_plugin
from ipamd.sim import netns
from ipamd.sim.runtimes.direct import direct
from ipamd.sim.runtimes.process import inside
from tests.golang import build
from tests.netns.boxed import box

pytestmark = pytest.mark.netns


class Agent:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        self._lines = process.stdout

    async def says(self) -> str:
        async with asyncio.timeout(60):
            return (await self._lines.readline()).decode().strip()


@asynccontextmanager
async def running(program: Path, host: str, folder: Path) -> AsyncIterator[Agent]:
    process = await asyncio.create_subprocess_exec(
        *inside(host, program, folder), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield Agent(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def test_the_agent_finds_each_pods_link_by_its_name(tmp_path: Path, prefix: str) -> None:
    """It starts before the daemon, and waits for the answer to its question."""
    program = await asyncio.to_thread(build, "policy_agent")
    folder = tmp_path / "aws-node"
    folder.mkdir()
    async with box(tmp_path, prefix, POLICY_MODE="strict", POLICY_DIR=folder) as (daemon, vpc):
        spec = vpc.nodes[0]
        install_plugin(spec.dir / "bin", spec.socket)
        async with running(program, spec.netns, folder) as agent:
            await daemon.ready()
            assert await agent.says() == f"mode strict multi false node {spec.primary_ip}"
            assert await agent.says() == "ready"
            async with direct(spec.netns, spec.dir / "bin", spec.dir / "net.d") as runtime:
                first = await runtime.run_pod("web-0", "shop")
                link = host_ifname(first.id, "eth0")
                assert await agent.says() == f"enforce shop.web-0 strict 1 {link}"
                shown = await netns.command("ip", "netns", "exec", spec.netns, "tc", "qdisc", "show", "dev", link)
                assert "clsact" in shown
                await runtime.remove_pod(first)
                assert await agent.says() == "delete shop.web-0"
                again = await runtime.run_pod("web-0", "shop")
                assert await agent.says() == f"enforce shop.web-0 strict 1 {host_ifname(again.id, 'eth0')}"
