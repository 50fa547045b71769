"""Many pods at once through a real containerd on each of two nodes, as a kubelet would make them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from ipamd.sim.demo.checks import ControlClient, leaks
from ipamd.sim.demo.node import Node
from ipamd.sim.demo.ping import Endpoint, ping_all
from ipamd.sim.demo.run import Worker, contradictions, look, together
from ipamd.sim.runtimes.containerd import Containerd, containerd

pytestmark = pytest.mark.e2e

PODS = 20


async def test_twenty_pods_at_once_on_each_of_two_nodes(nodes: list[Node], control: ControlClient) -> None:
    async with AsyncExitStack() as stack:
        workers = []
        for node in nodes:
            runtime = await stack.enter_async_context(
                containerd(node.spec.netns, node.spec.dir / "ctd", node.bin_dir, node.conf_dir)
            )
            await runtime.wait_until_ready()
            workers.append(Worker(node, runtime))

        async def make(worker: Worker, index: int) -> None:
            worker.pods.append(await worker.runtime.run_pod(f"{worker.name}-p{index}"))

        await together(make(worker, index) for worker in workers for index in range(PODS))
        await together(node.wait_until_settled() for node in nodes)
        found = await look(workers, control)
        assert contradictions(found) == []  # addresses unique; pods, ledgers and EC2 agree
        assert [len(ledger) for ledger in found.ledgers] == [PODS, PODS]
        for worker, ledger in zip(workers, found.ledgers, strict=True):
            for pod in worker.pods:
                assert ledger[pod.id]["pod"] == pod.name
                assert ledger[pod.id]["namespace"] == "default"
                assert ledger[pod.id]["ifname"] == "eth0"

        ends = [Endpoint(pod.name, worker.name, pod.ip, pod.netns) for worker in workers for pod in worker.pods] + [
            Endpoint(node.name, node.name, node.spec.primary_ip, node.spec.netns) for node in nodes
        ]
        assert len(ends) == 2 * PODS + 2
        silent = await ping_all(ends)
        assert [(source.name, target.name) for source, target in silent] == []

        await _containers_see_the_network(workers)

        await together(worker.runtime.remove_pod(pod) for worker in workers for pod in worker.pods)
        for worker in workers:
            assert isinstance(worker.runtime, Containerd)
            assert await worker.runtime.pod_ids() == []
        for node in nodes:
            await node.wait_until_settled()
            assert await leaks(node, control) == []


async def _containers_see_the_network(workers: list[Worker]) -> None:
    """From inside a container: the interface as planned, and the pod on the other node answers."""
    for worker, other in (workers, reversed(workers)):
        assert isinstance(worker.runtime, Containerd)
        pod, target = worker.pods[0], other.pods[-1]
        code, output = await worker.runtime.execute(pod, "/bin/ping", "-c", "1", "-W", "2", target.ip)
        assert code == 0, output
        code, output = await worker.runtime.execute(pod, "/bin/ip", "addr", "show", "dev", "eth0")
        assert code == 0
        assert f"inet {pod.ip}/32 " in output
        code, output = await worker.runtime.execute(pod, "/bin/ip", "route")
        assert code == 0
        assert "default via 169.254.1.1 dev eth0" in output


async def test_repeated_removal_of_a_pod_harms_no_other(nodes: list[Node], control: ControlClient) -> None:
    """Each stop and each removal is one more DEL, later ones without a namespace and without a result."""
    node = nodes[0]
    async with containerd(node.spec.netns, node.spec.dir / "ctd", node.bin_dir, node.conf_dir) as runtime:
        await runtime.wait_until_ready()
        first = await runtime.run_pod("first")
        await runtime.stop_pod(first)
        assert await node.pods() == []
        second = await runtime.run_pod("second")
        await runtime.stop_pod(first)
        await runtime.remove_pod(first)
        await runtime.remove_pod(first)
        assert [pod["container_id"] for pod in await node.pods()] == [second.id]
        await asyncio.gather(runtime.remove_pod(second), runtime.remove_pod(second))
    await node.wait_until_settled()
    assert await leaks(node, control) == []
