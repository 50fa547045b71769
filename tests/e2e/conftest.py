"""What every end-to-end test stands on: a VPC in a box with real daemons, gone without a trace at the end."""

from __future__ import annotations

import asyncio
import os

# Before grpc is imported: its fork handlers would slow down and endanger every subprocess.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from ipamd.sim import netns as namespaces
from ipamd.sim.demo.checks import ControlClient
from ipamd.sim.demo.node import Node
from ipamd.sim.vpc import SimulatedVpc
from tests.e2e.podman import without_cni

# What a node must be called and how large it is; a test takes others by parametrizing the fixture `types`.
TWO_NODES = {"n1": "m5.large", "n2": "c5.large"}


@pytest.fixture(scope="session", autouse=True)
def root() -> None:
    """These tests fail, rather than skip, for anybody but root: a skipped suite looks like a passed one."""
    if os.geteuid() != 0:
        pytest.fail("tests/e2e make network namespaces and containers: run them as root", pytrace=False)


@pytest.fixture(scope="session")
def podman_with_cni() -> None:
    if reason := without_cni():
        pytest.skip(f"podman: {reason}")


@pytest.fixture
def types() -> Mapping[str, str]:
    return TWO_NODES


@pytest.fixture
def directory() -> Iterator[Path]:
    """Not pytest's tmp_path, which is too long for the sockets in it."""
    with tempfile.TemporaryDirectory(prefix="ie-") as name:
        yield Path(name)


@pytest.fixture
async def vpc(types: Mapping[str, str], directory: Path) -> AsyncIterator[SimulatedVpc]:
    """A VPC without a daemon; the test fails if any of its namespaces stays."""
    async with SimulatedVpc.build(dir=directory, nodes=types) as made:
        yield made
    assert [path.name for path in namespaces.DIRECTORY.glob(f"{made.fabric.prefix}*")] == []


@pytest.fixture
async def control(vpc: SimulatedVpc) -> AsyncIterator[ControlClient]:
    async with aiohttp.ClientSession() as session:
        yield ControlClient(session, vpc.control_url)


@pytest.fixture
async def cold_nodes(vpc: SimulatedVpc) -> AsyncIterator[list[Node]]:
    """The nodes with the plugin in place and no daemon; daemons that the test starts are stopped after it."""
    async with AsyncExitStack() as stack:
        nodes = [Node(spec) for spec in vpc.nodes]
        for node in nodes:
            stack.callback(node.close)
            stack.push_async_callback(node.stop)
            await asyncio.to_thread(node.install_plugin)
        yield nodes


@pytest.fixture
async def nodes(cold_nodes: list[Node]) -> list[Node]:
    """The nodes with their daemons, ready and with warm pools."""
    for node in cold_nodes:
        await node.start()
    for node in cold_nodes:
        await node.wait_until_ready()
        await node.wait_until_settled()
    return cold_nodes


@pytest.fixture
def node(nodes: list[Node]) -> Node:
    """The first of them."""
    return nodes[0]
