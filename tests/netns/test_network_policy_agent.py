"""The daemon and the plugin beside AWS's network policy agent, on a node of the VPC in a box."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

from cni_shim.names import host_ifname
from ipamd.api.v1 import introspection_pb2 as introspection
from ipamd.install.plugin import install_plugin
from ipamd.policy.aws import policy_agent_pb2_grpc
from ipamd.sim.runtimes import Pod
from ipamd.sim.runtimes.direct import Direct, PluginError, direct
from tests.netns.boxed import Daemon, box, until
from tests.netns.policy_agent import PolicyAgent

pytestmark = pytest.mark.netns

WEB = ("shop", "web-0")


@dataclass
class Stage:
    daemon: Daemon
    agent: PolicyAgent
    runtime: Direct
    folder: Path

    async def told(self, condition: Callable[[], bool], what: str) -> None:
        async def met() -> bool:
            return condition()

        await until(met, what)

    async def troubles(self) -> dict[str, str]:
        node = await self.daemon.introspection.GetNode(introspection.GetNodeRequest(), timeout=5)
        return {each.name: each.text for each in node.conditions}


@asynccontextmanager
async def staged(dir: Path, prefix: str, mode: str) -> AsyncIterator[Stage]:
    folder = dir / "aws-node"
    async with AsyncExitStack() as stack:
        daemon, vpc = await stack.enter_async_context(box(dir, prefix, POLICY_MODE=mode, POLICY_DIR=folder))
        spec = vpc.nodes[0]
        install_plugin(spec.dir / "bin", spec.socket)
        agent = PolicyAgent(folder, spec.netns)
        await daemon.ready()
        runtime = await stack.enter_async_context(direct(spec.netns, spec.dir / "bin", spec.dir / "net.d"))
        stack.push_async_callback(agent.stop)
        made = Stage(daemon, agent, runtime, folder)
        await made.told((folder / "ipamd.sock").exists, "the agent can ask")
        yield made


@pytest.fixture
async def stage(tmp_path: Path, prefix: str) -> AsyncIterator[Stage]:
    async with staged(tmp_path, prefix, "standard") as made:
        await made.agent.start()
        yield made


@pytest.fixture
async def strict(tmp_path: Path, prefix: str) -> AsyncIterator[Stage]:
    async with staged(tmp_path, prefix, "strict") as made:
        yield made


async def test_the_agent_learns_the_mode_and_the_node(stage: Stage) -> None:
    assert (stage.folder / "ipamd.sock").stat().st_mode & 0o777 == 0o600
    async with grpc.aio.insecure_channel(f"unix:{stage.folder}/ipamd.sock") as channel:
        backend = policy_agent_pb2_grpc.ConfigServerBackendStub(channel)
        reply = await backend.GetNetworkPolicyConfigs(Empty(), timeout=10)
    node = stage.daemon.node
    assert (reply.NetworkPolicyMode, reply.MultiNICEnabled) == ("standard", False)
    assert (reply.NodeIPv4, reply.InstanceID) == (node.primary_ip, node.instance_id)


async def test_a_pod_is_filtered_before_it_starts(stage: Stage) -> None:
    pod = await stage.runtime.run_pod("web-0", "shop")
    assert stage.agent.filters[WEB].startswith("ipm") and stage.agent.modes == {"standard"}
    await stage.runtime.remove_pod(pod)
    await stage.told(lambda: not stage.agent.filters, "the agent heard of the end")
    assert stage.agent.calls == [("delete", WEB), ("enforce", WEB), ("delete", WEB)]


async def test_pods_of_one_name_are_filtered_in_turn(stage: Stage) -> None:
    """A StatefulSet's pod that is replaced, also while the link of the one before is still there."""
    first = await stage.runtime.run_pod("web-0", "shop")
    before = stage.agent.filters[WEB]
    second = await stage.runtime.run_pod("web-0", "shop")
    after = stage.agent.filters[WEB]
    assert before != after
    await stage.runtime.remove_pod(first)
    third = await stage.runtime.run_pod("other", "shop")
    assert stage.agent.filters[WEB] == after
    for pod in (second, third):
        await stage.runtime.remove_pod(pod)
    await stage.told(lambda: not stage.agent.filters, "the agent heard of each end")


async def test_pods_start_and_end_without_an_agent(stage: Stage) -> None:
    await stage.agent.stop()
    pods = [await stage.runtime.run_pod(f"web-{number}", "shop") for number in range(3)]
    assert "npa.sock" in (await stage.troubles())["policy.not_enforced"]
    await stage.runtime.remove_pod(pods[2])


async def test_a_hanging_agent_holds_up_no_pod(stage: Stage) -> None:
    stage.agent.holding = asyncio.Event()
    pod = await stage.runtime.run_pod("web-0", "shop")
    assert pod.ip and not stage.agent.filters
    stage.agent.holding.set()
    await stage.told(lambda: WEB in stage.agent.filters, "the agent ended what it had begun")


async def test_a_folder_that_others_may_write_is_not_believed(stage: Stage) -> None:
    stage.folder.chmod(0o777)
    await stage.runtime.run_pod("web-0", "shop")
    assert "not root's alone" in (await stage.troubles())["policy.not_enforced"]
    assert stage.agent.calls == []


async def test_a_restart_tells_what_ended_meanwhile(stage: Stage) -> None:
    gone = await stage.runtime.run_pod("web-0", "shop")
    await stage.runtime.run_pod("web-1", "shop")
    await stage.daemon.kill()
    await stage.runtime.remove_pod(gone)
    await stage.daemon.ready()
    again = await stage.runtime.run_pod("web-0", "shop")
    assert stage.agent.filters[WEB] == _link(again)
    assert ("shop", "web-1") in stage.agent.filters


async def test_somebody_elses_socket_is_left_alone(tmp_path: Path, prefix: str) -> None:
    """As that of the VPC CNI's daemon on a node that is on its way from one to the other."""
    folder = tmp_path / "aws-node"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(folder / "ipamd.sock"))
        other.listen()
        async with box(tmp_path, prefix, POLICY_MODE="standard", POLICY_DIR=folder) as (daemon, _):
            await daemon.ready()
            event = await daemon.seen("policy.not_served")
            assert "another ipamd serves it" in event["text"]
        assert (folder / "ipamd.sock").is_socket()


async def test_strict_lets_no_pod_start_without_its_policies(strict: Stage) -> None:
    """The refusal undoes the pod's interface; with the agent it starts."""
    call = asyncio.create_task(strict.runtime.run_pod("web-0", "shop"))
    await strict.daemon.seen("policy.not_enforced")
    assert not call.done()
    await strict.agent.start()
    pod = await call
    assert strict.agent.filters[WEB] == _link(pod) and strict.agent.modes == {"strict"}


@pytest.mark.parametrize("end", [Daemon.kill, Daemon.stop])
async def test_strict_survives_a_restart_of_the_daemon(
    strict: Stage, end: Callable[[Daemon], Coroutine[Any, Any, None]]
) -> None:
    """The plugin waits for the next daemon, which puts the policies in force."""
    strict.agent.holding = asyncio.Event()
    await strict.agent.start()
    call = asyncio.create_task(strict.runtime.run_pod("web-0", "shop"))
    await strict.told(lambda: ("enforce", WEB) in strict.agent.calls, "the agent was asked")
    await end(strict.daemon)
    strict.agent.holding.set()
    await strict.daemon.ready()
    pod = await call
    assert strict.agent.filters[WEB] == _link(pod)


async def test_strict_refuses_with_a_reason_and_leaves_nothing(strict: Stage) -> None:
    """The folder is somebody else's, so no agent is believed: the ADD ends as its time is over."""
    spec = strict.daemon.node
    install_plugin(spec.dir / "bin", spec.socket, add_seconds=6.0)
    with pytest.raises(PluginError, match=r"policies of pod shop/web-0 are not in force.*POLICY_NOT_ENFORCED"):
        await strict.runtime.run_pod("web-0", "shop")
    assert await strict.daemon.held() == {}


def _link(pod: Pod) -> str:
    return host_ifname(pod.id, "eth0")
