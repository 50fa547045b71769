"""containerd is killed while the plugin works, or loses its network configuration while pods run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from ipamd.install.files import CONFLIST
from ipamd.sim.demo.checks import ControlClient, leaks
from ipamd.sim.demo.node import Node
from ipamd.sim.runtimes import Pod, RuntimeFailure
from ipamd.sim.runtimes.containerd import Containerd, containerd
from tests.e2e.single_node import assert_each_has_its_way_out, run, until

OUTSIDE = "192.0.2.1"

pytestmark = pytest.mark.e2e


@pytest.fixture
def types() -> Mapping[str, str]:
    return {"n1": "m5.large"}


@pytest.fixture
async def runtime(node: Node) -> AsyncIterator[Containerd]:
    async with containerd(node.spec.netns, node.spec.dir / "ctd", node.bin_dir, node.conf_dir, networks=2) as made:
        await made.wait_until_ready()
        yield made


async def test_killed_in_the_middle_of_an_add(runtime: Containerd, node: Node, control: ControlClient) -> None:
    """The plugin goes on alone, and nothing of that ADD is left. The restarted containerd sends DEL while it still
    waits for its address; containerd 1.7 sends none for a pod whose ADD it has not seen the end of."""
    before = await runtime.run_pod("before")
    for action in ("AssignPrivateIpAddresses", "CreateNetworkInterface"):
        await control.fault(action, error="held")
    starting: list[asyncio.Task[object]] = []

    async def one_waits() -> bool:
        if (await node.status())["waiting"]:
            return True
        if all(task.done() for task in starting):
            starting.append(asyncio.ensure_future(runtime.run_pod(f"p{len(starting)}")))
        return False

    await until(one_waits, "an ADD waits for EC2")
    await runtime.kill()
    *_up, broken_off = await asyncio.gather(*starting, return_exceptions=True)
    assert isinstance(broken_off, RuntimeFailure)
    assert (await node.status())["waiting"] == 1  # the plugin has noticed nothing

    await runtime.start()
    await runtime.wait_until_ready()
    ids = await runtime.pod_ids()
    assert before.id in ids
    assert (await node.status())["waiting"] == 1  # so DEL meets an ADD that still runs
    await asyncio.gather(*(runtime.remove_id(id) for id in ids))

    async def over() -> bool:
        return not (await node.status())["waiting"] and await node.pods() == []

    await until(over, "the ADD is over, and has left no pod")
    await control.clear_faults()
    again = await runtime.run_pod("again")
    await runtime.remove_pod(again)
    await node.wait_until_settled()
    assert await leaks(node, control) == []


async def test_two_networks_of_a_pod(runtime: Containerd, node: Node, control: ControlClient) -> None:
    """Called at the same time for eth0 and eth1 of the same pod."""
    await _add_network(node, "20-second.conflist", "second")
    pods: list[Pod] = []

    async def both() -> bool:  # until containerd has seen the new file
        pods.append(await runtime.run_pod(f"p{len(pods)}"))
        return len([line for line in await node.pods() if line["container_id"] == pods[-1].id]) == 2

    await until(both, "a pod in two networks")
    lines = [line for line in await node.pods() if line["container_id"] == pods[-1].id]
    assert {(line["network"], line["ifname"]) for line in lines} == {("ipamd", "eth0"), ("second", "eth1")}
    for line in lines:
        code, text = await run(node.spec.netns, "ping", "-n", "-c1", "-W2", line["ip"])
        assert code == 0, text
        code, text = await run(pods[-1].netns, "ping", "-n", "-c1", "-W2", "-I", line["ip"], node.spec.primary_ip)
        assert code == 0, text
    await assert_each_has_its_way_out(pods[-1].netns, {line["ifname"]: line["ip"] for line in lines}, OUTSIDE)
    for pod in pods:
        await runtime.remove_pod(pod)
    await node.wait_until_settled()
    assert await leaks(node, control) == []


async def _add_network(node: Node, file: str, name: str) -> Path:
    path = node.conf_dir / file
    path.write_text(json.dumps(json.loads((node.conf_dir / CONFLIST).read_bytes()) | {"name": name}))
    return path


async def test_a_conflist_that_is_removed_meanwhile(runtime: Containerd, node: Node, control: ControlClient) -> None:
    """containerd itself then makes no pod and ends none; both work again once a restarted daemon has written it."""
    pod = await runtime.run_pod("old")
    (node.conf_dir / CONFLIST).unlink()

    async def noticed() -> bool:
        return "NetworkReady" in await runtime.why_not_ready()

    await until(noticed, "containerd sees that the network configuration is gone")
    with pytest.raises(RuntimeFailure, match="cni plugin not initialized"):
        await runtime.run_pod("too-late")
    with pytest.raises(RuntimeFailure, match="cni plugin not initialized"):
        await runtime.remove_pod(pod)
    assert [line["ip"] for line in await node.pods()] == [pod.ip]  # it may still run

    await node.stop()
    await node.start()
    await node.wait_until_ready()
    await runtime.wait_until_ready()
    for id in await runtime.pod_ids():
        await runtime.remove_id(id)
    await node.wait_until_settled()
    assert await leaks(node, control) == []
