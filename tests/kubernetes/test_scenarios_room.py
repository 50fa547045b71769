"""No room for a pod: on the node, in the subnet, by an operator's wish. Nodes stay ready and pods that run stay.

What the pod waits for is in its events; it starts by itself once there is room.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.kubernetes import observing, workloads
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.conftest import ADDRESSES, WORKERS
from tests.kubernetes.observing import nodes_stay_ready, number_running, until
from tests.kubernetes.worker import Node
from tests.netns.boxed import control

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

REFUSED = 240.0  # an ADD waits for a minute before it is refused


async def told(cluster: Cluster, space: str, word: str) -> None:
    """An event of a pod has the word."""

    async def there() -> bool:
        found = await observing.events(cluster, "FailedCreatePodSandBox", space)
        return any(word in event["message"] for event in found)

    await until(there, f"a pod's event says {word}", REFUSED)


async def daemons_are_available(cluster: Cluster) -> None:
    status = (await cluster.get("daemonset", "ipamd", "kube-system"))["status"]
    assert (
        status["numberAvailable"] == status["desiredNumberScheduled"] == sum(w.ipamd == "daemonset" for w in WORKERS)
    )


@pytest.mark.parametrize("name", [worker.name for worker in WORKERS])
async def test_a_node_filled_beyond_its_last_address(cluster: Cluster, space: str, name: str) -> None:
    spec = workloads.pod_spec(name)
    async with nodes_stay_ready(cluster):
        await cluster.apply(workloads.deployment("first", space, 20, spec))
        await cluster.rolled_out("deployment/first", space)
        await cluster.apply(workloads.deployment("more", space, 15, spec))
        await told(cluster, space, "ENI_LIMIT")
        await daemons_are_available(cluster)
        assert await number_running(cluster, space, "first") == 20
        taken = len((await cluster.get("pods", namespace="kube-system"))["items"])  # DNS may be on this node
        assert ADDRESSES - taken <= await number_running(cluster, space) <= ADDRESSES
        await cluster.kubectl("scale", "deployment/first", "--replicas=0", f"--namespace={space}")
        await cluster.rolled_out("deployment/more", space)


@pytest.mark.parametrize("name", [worker.name for worker in WORKERS])
async def test_a_rolling_restart_on_a_full_node(cluster: Cluster, space: str, name: str) -> None:
    """A new pod's ADD comes before its address does, and waits for the end of an old pod."""
    node = cluster.nodes[name]
    others = len(json.loads(await node.ipamctl("pods", "-o", "json")))  # DNS may be on this node
    await cluster.apply(workloads.deployment("web", space, ADDRESSES - others, workloads.pod_spec(name)))
    await cluster.rolled_out("deployment/web", space)
    async with nodes_stay_ready(cluster):
        await cluster.kubectl("rollout", "restart", "deployment/web", f"--namespace={space}")
        await cluster.rolled_out("deployment/web", space, timeout="300s")
    failed = await observing.events(cluster, "FailedCreatePodSandBox", space)
    assert [event["message"] for event in failed] == []


@asynccontextmanager
async def few_addresses(node: Node) -> AsyncIterator[None]:
    """The daemon of the node, which is on its host, keeps its target and nothing above it."""
    before = node.spec.config.read_text()
    node.spec.config.write_text(f"{before}\n[pool]\nslack = 0\nrelease_delay = 1.0\n")

    async def given_back() -> bool:
        status = json.loads(await node.ipamctl("status", "--output=json"))
        beyond: int = status["total"] - status["assigned"] - status["targets"]["warm_ips"]
        return beyond <= 0

    try:
        await until(given_back, f"{node.name} has given back what it does not need")
        yield
    finally:
        node.spec.config.write_text(before)


@pytest.mark.slow
async def test_a_subnet_without_addresses(cluster: Cluster, space: str) -> None:
    [subnet] = (await control(cluster.vpc, "state"))["subnets"]
    node = cluster.nodes["w16"]
    spec = workloads.pod_spec(node.name)
    async with nodes_stay_ready(cluster), few_addresses(node):
        await cluster.apply(workloads.deployment("before", space, 3, spec))
        await cluster.rolled_out("deployment/before", space)
        await control(cluster.vpc, "subnets", {"subnet_id": subnet["id"], "others": subnet["available"]})
        try:
            await cluster.apply(workloads.deployment("beyond", space, 20, spec))
            await told(cluster, space, "SUBNET_EXHAUSTED")
            await daemons_are_available(cluster)
            assert await number_running(cluster, space, "before") == 3
        finally:
            await control(cluster.vpc, "subnets", {"subnet_id": subnet["id"], "others": 0})
        await cluster.rolled_out("deployment/beyond", space)


async def test_a_drained_node_keeps_its_pods(cluster: Cluster, space: str) -> None:
    spec = workloads.pod_spec("w2")
    node = cluster.nodes["w2"]
    async with nodes_stay_ready(cluster):
        await cluster.apply(workloads.deployment("before", space, 3, spec))
        await cluster.rolled_out("deployment/before", space)
        await node.ipamctl("drain")
        try:
            await cluster.apply(workloads.deployment("beyond", space, 2, spec))
            await told(cluster, space, "DRAINED")
            assert await number_running(cluster, space, "before") == 3
        finally:
            await node.ipamctl("undrain")
        await cluster.rolled_out("deployment/beyond", space)
