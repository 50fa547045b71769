"""`kubectl ipamd` by the real kubectl, against daemons in their pods; and what is left of a replaced one."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from ipamd.sim.runtimes.process import inside
from tests.kubernetes import images
from tests.kubernetes.cluster import ROOT, Cluster
from tests.kubernetes.sharing import Shared
from tests.kubernetes.skipping import skipped_if_unbuilt
from tests.kubernetes.worker import Worker

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLUGIN: Final = ROOT / "deploy/kubernetes/kubectl-ipamd"
WORKERS: Final = (Worker("w1", ipamd="host"), Worker("w2", containerd="2", proxy="iptables", ipamd="daemonset"))
LABEL: Final = "--selector=app.kubernetes.io/name=ipamd"


def pod(name: str, node: str) -> str:
    container = {"name": "c", "image": images.reference("busybox"), "command": ["/bin/sleep", "100000"]}
    spec = {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container]}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Operator:
    """Somebody with kubectl, its plugin and a kubeconfig, on a machine in the VPC."""

    cluster: Cluster
    bin_dir: Path

    async def __call__(self, *words: str) -> Said:
        plane, programs = self.cluster.plane, self.cluster.programs
        environment = {
            "PATH": f"{self.bin_dir}:{programs}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "KUBECONFIG": str(plane.kubeconfig),
            "HOME": str(self.bin_dir),
        }
        process = await asyncio.create_subprocess_exec(
            *inside(plane.host.netns, "kubectl", "ipamd", *words),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return Said(process.returncode or 0, out.decode(), err.decode())


@asynccontextmanager
async def one_pod_each() -> AsyncIterator[Cluster]:
    prefix = f"ko{secrets.token_hex(2)}"
    with skipped_if_unbuilt(), tempfile.TemporaryDirectory(prefix=prefix) as folder:
        async with Cluster.up(Path(folder), prefix, WORKERS, dns=False) as cluster:
            for worker in WORKERS:
                await cluster.apply(pod(f"on-{worker.name}", worker.name))
            await cluster.kubectl("wait", "--for=condition=Ready", "--timeout=120s", "pod", "--all")
            yield cluster


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Shared]:
    sharing = Shared(one_pod_each)
    yield sharing
    await sharing.end()


@pytest_asyncio.fixture(loop_scope="module")
async def operator(shared: Shared, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Operator]:
    (tmp_path / PLUGIN.name).symlink_to(PLUGIN)
    async with shared.lent(request.node) as cluster:
        yield Operator(cluster, tmp_path)


async def address(operator: Operator, name: str) -> str:
    found: str = (await operator.cluster.get("pod", name))["status"]["podIP"]
    return found


async def daemons_pod(operator: Operator) -> dict[str, Any]:
    (found,) = json.loads(
        await operator.cluster.kubectl("get", "pods", "--namespace=kube-system", LABEL, "--output=json")
    )["items"]
    assert isinstance(found, dict)
    return found


async def test_the_table_tells_daemons_from_hosts(operator: Operator) -> None:
    said = await operator("nodes")
    rows = {line.split()[0]: line.split()[1:] for line in said.out.splitlines()[1:3]}
    assert said.code in (0, 3), said
    assert rows["w2"][0] in ("ready", "drained") and rows["w2"][2] == "1" and rows["w1"][:2] == ["no", "pod"]
    whole = json.loads((await operator("nodes", "-o", "json")).out)
    assert {each["node"]: each["status"] is not None for each in whole} == {"w2": True, "w1": False}


async def test_a_pod_is_explained_by_its_nodes_daemon(operator: Operator) -> None:
    begin = f"Pod default/on-w2 (eth0) has {await address(operator, 'on-w2')}, "
    for words in (["default/on-w2"], ["pod", "on-w2", "--namespace=default"]):
        said = await operator("explain", *words)
        assert said.code == 0 and said.out.startswith(begin), said
    on_host = await operator("explain", "default/on-w1")
    assert on_host.code == 1 and "chroot /host ipamctl explain pod default/on-w1" in on_host.err
    assert (await operator("explain", "default/nobody")).code == 1


async def test_an_address_leads_to_its_node(operator: Operator) -> None:
    said = await operator("whois", await address(operator, "on-w2"))
    assert said.code == 0 and said.out.startswith("node w2\n") and "default/on-w2" in said.out, said
    own = operator.cluster.nodes["w1"].spec.primary_ip
    assert f"{own} is node w1's own address" in (await operator("whois", own)).err


async def test_ipamctls_commands_and_codes_come_through(operator: Operator) -> None:
    assert "default" in (await operator("on", "w2", "pods")).out
    assert (await operator("status", "w2")).out.count("w2") == 0  # ipamctl's own screen
    wrong = await operator("on", "w2", "explain", "pod", "default/on-w1")
    assert wrong.code == 1 and "not on this node" in wrong.err


async def test_a_replaced_daemon_leaves_no_warning_of_its_start(operator: Operator) -> None:
    before = await daemons_pod(operator)
    name = before["metadata"]["name"]
    await operator.cluster.kubectl("delete", "pod", "--namespace=kube-system", name)
    await operator.cluster.rolled_out("daemonset/ipamd", "kube-system")
    after = await daemons_pod(operator)
    assert after["metadata"]["name"] != name and after["status"]["containerStatuses"][0]["restartCount"] == 0
    events = (await operator.cluster.get("events", namespace="kube-system"))["items"]
    assert not [event["message"] for event in events if "Startup probe failed" in event["message"]]
    assert (await operator("explain", "default/on-w2")).code == 0


async def test_a_node_out_of_reach_is_shown_and_counts(operator: Operator) -> None:
    node = operator.cluster.nodes["w2"]
    await node.kubelet.kill()
    try:
        said = await operator("nodes")
        assert said.code == 1 and "unreachable" in said.out and "! w2: " in said.out, said
        one = await operator("status", "w2")
        assert one.code == 1 and "kubectl describe pod -n kube-system" in one.err, one
    finally:
        await node.kubelet.start()
