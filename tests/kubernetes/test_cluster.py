"""The harness itself: a cluster comes up, works, survives what is done to its parts, and goes without a trace."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from ipamd.sim import cgroups, netns
from ipamd.sim.internet import WEB_SERVER
from ipamd.sim.runtimes.process import inside
from tests.kubernetes import images
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.observing import until
from tests.kubernetes.parts import ClusterError
from tests.kubernetes.sharing import Shared
from tests.kubernetes.skipping import skipped_if_unbuilt
from tests.kubernetes.worker import Node, Worker

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORKERS: Final = (
    Worker("w1", containerd="1.6", proxy="nftables", ipamd="host"),
    Worker("w2", containerd="2", proxy="iptables", ipamd="daemonset"),
)
PODS: Final = 24
SERVICE: Final = "172.20.0.80"
NODE_PORT: Final = 30080
FETCH: Final = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"

# Each pod answers with its own name.
WEB: Final = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web"},
    "spec": {
        "replicas": PODS,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [
                    {
                        "name": "web",
                        "image": images.reference("busybox"),
                        "command": ["/bin/sh", "-c", "hostname > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"],
                        "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 2},
                    }
                ],
            },
        },
    },
}
WEB_SERVICE: Final = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web"},
    "spec": {
        "type": "NodePort",
        "clusterIP": SERVICE,
        "selector": {"app": "web"},
        "ports": [{"port": 80, "targetPort": 8080, "nodePort": NODE_PORT}],
    },
}


def traces(prefix: str) -> list[str]:
    """Namespaces, control groups and processes of clusters that begin with the prefix."""
    paths = [
        *netns.DIRECTORY.glob(f"{prefix}*"),
        *cgroups.ROOT.glob(f"{prefix}*"),
        *cgroups.ROOT.glob(f"*/{prefix}*"),
    ]
    commands = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if f"/{prefix}" in words or f"={prefix}" in words:
                commands.append(words)
    return [*map(str, paths), *commands]


@asynccontextmanager
async def serving() -> AsyncIterator[Cluster]:
    """A cluster with the web servers; nothing of it may be left."""
    prefix = f"kc{secrets.token_hex(2)}"
    with skipped_if_unbuilt(), tempfile.TemporaryDirectory(prefix=prefix) as folder:
        async with Cluster.up(Path(folder), prefix, WORKERS) as made:
            await made.apply(json.dumps(WEB))
            await made.apply(json.dumps(WEB_SERVICE))
            await made.rolled_out("deployment/web")
            yield made
        mounted = Path("/proc/self/mountinfo").read_text()
        assert folder not in mounted
    assert traces(prefix) == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Shared]:
    sharing = Shared(serving)
    yield sharing
    await sharing.end()


@pytest_asyncio.fixture(loop_scope="module")
async def cluster(shared: Shared, request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    async with shared.lent(request.node) as lent:
        yield lent


async def pods(cluster: Cluster) -> list[dict[str, Any]]:
    found = (await cluster.get("pods"))["items"]
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


async def a_pod_on(cluster: Cluster, node: str) -> str:
    names: list[str] = [pod["metadata"]["name"] for pod in await pods(cluster) if pod["spec"]["nodeName"] == node]
    return names[0]


async def shell(cluster: Cluster, pod: str, command: str) -> str:
    return await cluster.kubectl("exec", pod, "--", "/bin/sh", "-c", command)


async def assert_as_before(cluster: Cluster) -> None:
    """Nodes and pods are ready, the Service answers, and EC2, the daemons' records and the kernels agree."""
    await cluster.kubectl("wait", "--for=condition=Ready", "--timeout=120s", "node", "--all")
    await cluster.rolled_out("deployment/web")
    for node in cluster.nodes.values():
        pod = await a_pod_on(cluster, node.name)
        await until(functools.partial(is_entered, cluster, node, pod), f"the kubelet of {node.name} knows {pod}")
        assert await backends(cluster, pod) > 1
        await until(functools.partial(agrees, node), f"the audit of {node.name}")


async def is_entered(cluster: Cluster, node: Node, pod: str) -> bool:
    """The API calls a node ready for a while whose kubelet has just been started, and knows no pod yet. Raises
    `ClusterError`."""
    node.kubelet.check()
    await cluster.kubectl("exec", pod, "--", "/bin/true")
    return True


async def agrees(node: Node) -> bool:
    """Raises `ClusterError`, while a change is under way, too."""
    await node.ipamctl("audit")
    return True


async def backends(cluster: Cluster, pod: str) -> int:
    """How many different pods have answered twenty calls of the Service."""
    ask = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {SERVICE} 80 | tail -n 1"
    answers = (await shell(cluster, pod, f"for i in $(seq 20); do {ask}; done")).split()
    names = {each["metadata"]["name"] for each in await pods(cluster)}
    assert len(answers) == 20 and set(answers) <= names
    return len(set(answers))


async def test_every_pod_has_an_address_of_its_nodes_enis(cluster: Cluster) -> None:
    for node in cluster.nodes.values():
        enis = (await cluster.control.enis(node.spec.instance_id)).values()
        assigned = {address for addresses in enis for address in addresses[1:]}
        there = [pod["status"]["podIP"] for pod in await pods(cluster) if pod["spec"]["nodeName"] == node.name]
        assert there and len(set(there)) == len(there) and set(there) <= assigned


@pytest.mark.parametrize("node", [worker.name for worker in WORKERS])
async def test_a_service_answers_pods_of_each_proxy_mode(cluster: Cluster, node: str) -> None:
    assert await backends(cluster, await a_pod_on(cluster, node)) > 5


@pytest.mark.parametrize("node", [worker.name for worker in WORKERS])
async def test_a_node_port_answers_from_everywhere(cluster: Cluster, node: str) -> None:
    url = f"http://{cluster.nodes[node].spec.primary_ip}:{NODE_PORT}/"
    names = {pod["metadata"]["name"] for pod in await pods(cluster)}
    fabric = cluster.vpc.fabric
    places = [cluster.plane.host.netns, fabric.internet, fabric.peer, *(n.spec.netns for n in cluster.nodes.values())]
    for place in places:
        answer = await netns.command(*inside(place, sys.executable, "-c", FETCH, url))
        assert answer.strip() in names, place


@pytest.mark.parametrize("node", [worker.name for worker in WORKERS])
async def test_names_of_cluster_and_internet_resolve_in_pods(cluster: Cluster, node: str) -> None:
    pod = await a_pod_on(cluster, node)
    assert SERVICE in await shell(cluster, pod, "nslookup web.default.svc.cluster.local")
    assert WEB_SERVER in await shell(cluster, pod, "nslookup google.com")


@pytest.mark.parametrize("node", [worker.name for worker in WORKERS])
async def test_a_killed_daemon_comes_back(cluster: Cluster, node: str) -> None:
    there = cluster.nodes[node]
    before = there.daemon.pid
    await there.daemon.kill()
    if there.daemon.part is not None:
        await there.daemon.start()
    await there.daemon.wait_until_serving()
    assert there.daemon.pid != before
    await assert_as_before(cluster)


@pytest.mark.parametrize("node", [worker.name for worker in WORKERS])
async def test_kubelet_and_containerd_killed_and_started(cluster: Cluster, node: str) -> None:
    there = cluster.nodes[node]
    before = {pod["status"]["podIP"] for pod in await pods(cluster)}
    await there.kubelet.kill()
    await there.containerd.kill()
    await there.start_containerd()
    await there.kubelet.start()
    await assert_as_before(cluster)
    assert {pod["status"]["podIP"] for pod in await pods(cluster)} == before


@pytest.mark.parametrize("node", [worker.name for worker in WORKERS])
async def test_a_power_cut_node_boots_and_runs_its_pods(cluster: Cluster, node: str) -> None:
    there = cluster.nodes[node]

    async def starts() -> dict[str, int]:
        """How often each pod of the node was started, by its name."""
        mine = [pod for pod in await pods(cluster) if pod["spec"]["nodeName"] == node]
        return {pod["metadata"]["name"]: pod["status"]["containerStatuses"][0]["restartCount"] for pod in mine}

    before = await starts()
    await there.power_cut()
    await there.boot()
    await there.daemon.wait_until_serving()

    async def all_started_again() -> bool:
        return all(number > before[name] for name, number in (await starts()).items())

    await until(all_started_again, "the API knows that the pods run again")
    await assert_as_before(cluster)


async def test_two_clusters_side_by_side(cluster: Cluster) -> None:
    prefix = f"kc{secrets.token_hex(2)}"
    before = {pod["metadata"]["uid"] for pod in await pods(cluster)}
    with tempfile.TemporaryDirectory(prefix=prefix) as folder:
        async with Cluster.up(Path(folder), prefix, [Worker("w1")], dns=False) as other:
            nodes = (await other.get("nodes"))["items"]
            assert [node["metadata"]["name"] for node in nodes] == ["w1"]
    assert traces(prefix) == []
    await assert_as_before(cluster)
    assert {pod["metadata"]["uid"] for pod in await pods(cluster)} == before


INTERRUPTED: Final = """
import asyncio, sys
from pathlib import Path
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.worker import Worker

async def main():
    def say(line):
        print(line, flush=True)
    async with Cluster.up(Path(sys.argv[1]), sys.argv[2], [Worker("w1")], say=say):
        print("the whole cluster", flush=True)
        await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.mark.parametrize("moment", ["starting the control plane", "starting the workers", "the whole cluster"])
async def test_nothing_is_left_after_an_interrupt(cluster: Cluster, moment: str) -> None:
    del cluster  # built first: then all programs are
    prefix = f"kc{secrets.token_hex(2)}"
    with tempfile.TemporaryDirectory(prefix=prefix) as folder:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", INTERRUPTED, folder, prefix), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        async for line in process.stdout:
            if line.decode().strip() == moment:
                process.send_signal(signal.SIGINT)
        assert await process.wait() != 0
    assert traces(prefix) == []


async def test_a_part_that_ends_at_once_ends_all_with_its_words(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    del cluster
    prefix = f"kc{secrets.token_hex(2)}"
    monkeypatch.setattr(Node, "configure", lambda *anything: None)
    with (
        tempfile.TemporaryDirectory(prefix=prefix) as folder,
        pytest.raises(ClusterError, match=r"w1: (kubelet|kube-proxy|containerd) ended with (?s:.*)no such file"),
    ):
        async with Cluster.up(Path(folder), prefix, [Worker("w1")]):
            pass
    assert traces(prefix) == []


async def test_a_part_that_does_not_start_ends_all(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    del cluster
    prefix = f"kc{secrets.token_hex(2)}"

    async def start(self: Node) -> None:
        raise ClusterError(f"{self.name} does not start")

    monkeypatch.setattr(Node, "start", start)
    with (
        tempfile.TemporaryDirectory(prefix=prefix) as folder,
        pytest.raises(ClusterError, match="w1 does not start"),
    ):
        async with Cluster.up(Path(folder), prefix, [Worker("w1")]):
            pass
    assert traces(prefix) == []
