"""One node of a VPC in a box for all tests of a module, which each have to leave it as they found it."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ipamd.install.files import CONFLIST
from ipamd.sim import netns as namespaces
from ipamd.sim.demo.checks import ControlClient, leaks
from ipamd.sim.demo.node import Node
from ipamd.sim.runtimes.process import inside
from ipamd.sim.vpc import SimulatedVpc

_LOOKS = 5


@dataclass(frozen=True, slots=True)
class Box:
    """A node with its daemon, ready. `directory` is for whatever a test needs besides."""

    vpc: SimulatedVpc
    node: Node
    control: ControlClient
    directory: Path

    async def held(self) -> dict[str, str]:
        """Address by container id."""
        return {pod["container_id"]: pod["ip"] for pod in await self.node.pods()}

    async def assert_nothing_left(self) -> None:
        """Kernel, ledger, spool and EC2 are as they were before the first pod."""
        found: list[str] = []
        for _ in range(_LOOKS):  # the pool may have begun to fill up between two of the looks
            await self.node.wait_until_settled()
            found = await leaks(self.node, self.control)
            if not found:
                return
            await asyncio.sleep(0.2)
        assert found == []

    async def restart_daemon(self) -> None:
        await self.node.stop()
        await self.node.start()
        await self.node.wait_until_ready()


@asynccontextmanager
async def single_node(instance_type: str, settings: str = "", subnet: str = "10.0.0.0/24") -> AsyncIterator[Box]:
    """`settings` are lines for the daemon's configuration file."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ie-")))
        vpc = await stack.enter_async_context(
            SimulatedVpc.build(dir=directory, nodes={"n1": instance_type}, subnets=[subnet])
        )
        node = Node(vpc.nodes[0])
        with node.spec.config.open("a") as config:
            config.write(f"\n{settings}\n")
        stack.callback(node.close)
        await asyncio.to_thread(node.install_plugin)
        stack.push_async_callback(node.stop)
        await node.start()
        await node.wait_until_ready()
        await node.wait_until_settled()
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Box(vpc, node, ControlClient(session, vpc.control_url), directory)
    assert [path.name for path in namespaces.DIRECTORY.glob(f"{vpc.fabric.prefix}*")] == []


def network(box: Box, **changes: Any) -> dict[str, Any]:
    """The network configuration list that the daemon wrote, with changes; None removes a key."""
    document = json.loads((box.node.conf_dir / CONFLIST).read_bytes()) | changes
    return {key: value for key, value in document.items() if value is not None}


async def run(netns: str | Path, *argv: str) -> tuple[int, str]:
    """Run a command in a network namespace; returns its exit code and all its output."""
    process = await asyncio.create_subprocess_exec(
        *inside(netns, *argv),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(errors="replace")


async def ask(netns: str | Path, *argv: str) -> Any:
    """What ip(8), tc(8) and the like answer as JSON."""
    code, text = await run(netns, *argv)
    assert code == 0, f"{' '.join(argv)}: {text}"
    return json.loads(text or "[]")


async def assert_each_has_its_way_out(netns: str | Path, addresses: dict[str, str], target: str) -> None:
    """In a container with two interfaces (`addresses`: address by interface) packets leave by that of their source.

    The interface that came second has a rule for its address and a table of its own; which one that was is up to the
    runtime.
    """
    for ifname, address in addresses.items():
        [route] = await ask(netns, "ip", "-json", "route", "get", target, "from", address)
        assert (route["dev"], route["gateway"]) == (ifname, "169.254.1.1")
    rules = [rule for rule in await ask(netns, "ip", "-json", "rule", "show") if rule["src"] in addresses.values()]
    assert len(rules) == 1
    [route] = await ask(netns, "ip", "-json", "route", "show", "table", rules[0]["table"])
    assert (route["dst"], route["gateway"]) == ("default", "169.254.1.1")
    assert addresses[route["dev"]] == rules[0]["src"]


async def until(condition: Any, what: str, timeout: float = 60.0) -> None:
    """Wait for the coroutine function `condition` to return something true."""
    try:
        async with asyncio.timeout(timeout):
            while not await condition():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"{what}: not within {timeout:.0f} s")
