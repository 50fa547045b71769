"""The kinds of workloads that a cluster has: each gets its addresses, and gives them back."""

from __future__ import annotations

import asyncio

import pytest

from tests.kubernetes import observing, workloads
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.observing import nodes_stay_ready, running, until
from tests.kubernetes.parts import ClusterError

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

HTTP = ["sh", "-c", "hostname > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"]


async def asked(cluster: Cluster, node: str, place: str) -> str:
    """What an HTTP server answers to a node; empty if it does not. `place` is "address:port"."""
    try:
        return (await cluster.nodes[node].enter("curl", "--silent", "--max-time", "3", f"http://{place}/")).strip()
    except ClusterError:
        return ""


async def test_a_stateful_set_keeps_its_names(cluster: Cluster, space: str) -> None:
    await cluster.apply(workloads.stateful_set("db", space, 3, workloads.pod_spec()))
    await cluster.rolled_out("statefulset/db", space)
    await cluster.kubectl("delete", "pod", "db-1", f"--namespace={space}")
    await cluster.rolled_out("statefulset/db", space)
    names = {pod["metadata"]["name"] for pod in await observing.pods(cluster, space) if running(pod)}
    assert names == {"db-0", "db-1", "db-2"}


async def test_a_job_of_a_hundred_pods_completes(cluster: Cluster, space: str) -> None:
    async with nodes_stay_ready(cluster):
        await cluster.apply(workloads.job("batch", space, 100, 20, workloads.pod_spec(command=["true"])))
        await cluster.kubectl(
            "wait", "--for=condition=Complete", "job/batch", f"--namespace={space}", "--timeout=300s"
        )
    assert await observing.events(cluster, "FailedCreatePodSandBox", space) == []


async def test_init_containers_have_the_network(cluster: Cluster, space: str) -> None:
    dns = (await cluster.get("service", "kube-dns", "kube-system"))["spec"]["clusterIP"]
    ask = {
        "name": "ask",
        "image": workloads.BUSYBOX,
        "command": ["nslookup", "kubernetes.default.svc.cluster.local", dns],
    }
    await cluster.apply(workloads.pod("init", space, workloads.pod_spec(initContainers=[ask])))
    await cluster.kubectl("wait", "--for=condition=Ready", "pod/init", f"--namespace={space}", "--timeout=120s")


async def test_a_host_network_pod_takes_no_address(cluster: Cluster, space: str) -> None:
    spec = workloads.pod_spec("w2", hostNetwork=True)
    await cluster.apply(workloads.pod("agent", space, spec))
    await cluster.kubectl("wait", "--for=condition=Ready", "pod/agent", f"--namespace={space}", "--timeout=120s")
    found = await cluster.get("pod", "agent", space)
    assert found["status"]["podIP"] == str(cluster.nodes["w2"].spec.primary_ip)
    assert space not in await cluster.nodes["w2"].ipamctl("pods")


@pytest.mark.parametrize("name", ["w16", "w17", "w2"])
async def test_a_host_port_leads_to_its_pod(cluster: Cluster, space: str, name: str) -> None:
    port = {"containerPort": 8080, "hostPort": 18080}
    spec = workloads.pod_spec(name, command=HTTP, ports=[port])
    await cluster.apply(workloads.pod("web", space, spec))
    await cluster.kubectl("wait", "--for=condition=Ready", "pod/web", f"--namespace={space}", "--timeout=120s")
    address = str(cluster.nodes[name].spec.primary_ip)

    async def all_reach_it() -> bool:
        answers = [await asked(cluster, node, f"{address}:18080") for node in cluster.nodes]
        return {*answers, await asked(cluster, name, "127.0.0.1:18080")} == {"web"}

    await until(all_reach_it, "the host port answers on every way", 30)
    await cluster.kubectl("delete", "pod", "web", f"--namespace={space}")

    async def gone() -> bool:
        return await asked(cluster, name, f"{address}:18080") == ""

    await until(gone, "the host port is free again", 30)


async def test_forced_deletes_leave_nothing(cluster: Cluster, space: str) -> None:
    """The API forgets the pods at once, and their successors come while the kubelets still end them."""
    await cluster.apply(workloads.deployment("web", space, 30, workloads.pod_spec()))
    await cluster.rolled_out("deployment/web", space)
    for _ in range(2):
        await cluster.kubectl("delete", "pods", "--all", "--force", "--grace-period=0", f"--namespace={space}")
        await asyncio.sleep(1.0)  # between a pod's begin and its readiness, as a hurried operator does it
    await cluster.rolled_out("deployment/web", space)
