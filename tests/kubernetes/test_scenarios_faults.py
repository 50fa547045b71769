"""Parts of a node end and come back while pods come and go: ipamd fails no ADD and makes no node not ready."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.kubernetes import observing, workloads
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.killing import killed_in_turn
from tests.kubernetes.observing import nodes_stay_ready, number_running, until
from tests.kubernetes.worker import Node

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

REPLICAS = 60


async def rollout(cluster: Cluster, space: str) -> None:
    """Replace all pods of a Deployment twice."""
    for _ in range(2):
        await cluster.kubectl("rollout", "restart", "deployment/web", f"--namespace={space}")
        await cluster.rolled_out("deployment/web", space, timeout="300s")


async def no_add_failed(cluster: Cluster, space: str) -> None:
    failed = await observing.events(cluster, "FailedCreatePodSandBox", space)
    assert [event["message"] for event in failed] == []


async def start_web(cluster: Cluster, space: str) -> None:
    strategy = {"rollingUpdate": {"maxSurge": 8, "maxUnavailable": 8}}
    spec = workloads.pod_spec()
    await cluster.apply(workloads.deployment("web", space, REPLICAS, spec, strategy=strategy))
    await cluster.rolled_out("deployment/web", space)


async def test_daemonset_replaced_during_a_rollout(cluster: Cluster, space: str) -> None:
    await start_web(cluster, space)

    async def replace() -> None:
        await cluster.kubectl("rollout", "restart", "daemonset/ipamd", "--namespace=kube-system")
        await cluster.rolled_out("daemonset/ipamd", "kube-system")

    async with nodes_stay_ready(cluster), killed_in_turn([replace], 1.0):
        await rollout(cluster, space)
    await cluster.rolled_out("daemonset/ipamd", "kube-system")
    await no_add_failed(cluster, space)


@pytest.mark.slow
async def test_daemons_killed_during_a_rollout(cluster: Cluster, space: str) -> None:
    """The one on the host again and again, as a service manager starts it again at once. The DaemonSet's once in each
    rollout: a kubelet waits longer each time before it starts a container again."""
    await start_web(cluster, space)
    on_host = [node for node in cluster.nodes.values() if node.worker.ipamd == "host"]
    in_pods = [node for node in cluster.nodes.values() if node.worker.ipamd == "daemonset"]

    async def kill() -> None:
        for node in on_host:
            await node.daemon.kill()
            await asyncio.sleep(1.0)
            await node.daemon.start()

    async with nodes_stay_ready(cluster), killed_in_turn([kill], 5.0) as kills:
        for _ in range(2):
            await cluster.kubectl("rollout", "restart", "deployment/web", f"--namespace={space}")
            for node in in_pods:
                await node.daemon.kill()
            await cluster.rolled_out("deployment/web", space, timeout="300s")
            await cluster.rolled_out("daemonset/ipamd", "kube-system", timeout="300s")
    assert kills.number > 3
    await no_add_failed(cluster, space)


@pytest.mark.slow
async def test_kubelets_killed_during_a_rollout(cluster: Cluster, space: str) -> None:
    await start_web(cluster, space)

    async def kill() -> None:
        for node in cluster.nodes.values():
            await node.kubelet.kill()
            await node.kubelet.start()

    async with killed_in_turn([kill], 20.0):
        await rollout(cluster, space)


@pytest.mark.slow
async def test_containerds_killed_during_a_rollout(cluster: Cluster, space: str) -> None:
    await start_web(cluster, space)

    async def kill() -> None:
        for node in cluster.nodes.values():
            await node.containerd.kill()
            await node.start_containerd()

    async with killed_in_turn([kill], 20.0):
        await rollout(cluster, space)


@pytest.mark.slow
async def test_a_power_cut_during_a_rollout(cluster: Cluster, space: str) -> None:
    """The pods of the node are made anew, by a kubelet that finds no trace of them, with addresses of this boot."""
    await start_web(cluster, space)
    node = cluster.nodes["w17"]
    await cluster.kubectl("rollout", "restart", "deployment/web", f"--namespace={space}")
    await node.power_cut()
    await node.boot()
    await cluster.rolled_out("deployment/web", space, timeout="300s")
    await cluster.rolled_out("daemonset/ipamd", "kube-system", timeout="300s")
    assert await number_running(cluster, space) == REPLICAS


@pytest.mark.slow
async def test_a_del_that_never_came(cluster: Cluster, space: str) -> None:
    """The runtime forgets a pod: its containers, its namespace and its records go behind its back."""
    node = cluster.nodes["w16"]
    await cluster.apply(workloads.deployment("web", space, 2, workloads.pod_spec(node.name)))
    await cluster.rolled_out("deployment/web", space)
    attachments = [
        each for each in json.loads(await node.ipamctl("pods", "-o", "json")) if each["namespace"] == space
    ]
    lost = attachments[0]
    await forget(node, lost["container_id"], lost["netns"])

    async def collected() -> bool:
        held = json.loads(await node.ipamctl("pods", "-o", "json"))
        return lost["container_id"] not in {each["container_id"] for each in held}

    await until(collected, "the attachment is collected", 240)
    await cluster.rolled_out("deployment/web", space)


async def forget(node: Node, sandbox: str, netns: str) -> None:
    """Remove a sandbox, its containers and its namespace without CNI: the kubelet makes the pod anew in another."""
    await node.kubelet.kill()
    try:
        for container in (await node.ctr("containers", "ls", "--quiet")).split():
            info = json.loads(await node.ctr("containers", "info", container))
            if container == sandbox or info["Spec"]["annotations"].get("io.kubernetes.cri.sandbox-id") == sandbox:
                await node.ctr("tasks", "delete", "--force", container)
                await node.ctr("containers", "delete", container)
        await node.containerd.kill()  # what it has in memory goes, too
        await node.enter("umount", netns)
        await node.enter("rm", netns)
        await node.start_containerd()
    finally:
        await node.kubelet.start()
