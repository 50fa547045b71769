"""A Kubernetes cluster in the VPC in a box: a control plane on a host of its own, and workers that are machines.

    workers = [Worker("w1"), Worker("w2", containerd="2", ipamd="daemonset")]
    async with Cluster.up(directory, "t1", workers) as cluster:
        await cluster.apply(manifest)
        print(await cluster.kubectl("get", "pods", "--output=wide"))
        await cluster.nodes["w1"].daemon.kill()

All that it starts ends with the block, by process id. Clusters with different prefixes stand side by side.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml

from ipamd.sim.demo.checks import ControlClient
from ipamd.sim.demo.run import together
from ipamd.sim.vpc import SimulatedVpc
from tests.kubernetes import images
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.parts import ClusterError, Part
from tests.kubernetes.programs import built
from tests.kubernetes.worker import Node, Worker

ROOT: Final = Path(__file__).resolve().parents[2]
MANIFESTS: Final = Path(__file__).with_name("manifests")
DAEMONSET: Final = ROOT / "deploy/kubernetes/ipamd.yaml"

_CONTROL_PLANE: Final = "cp"
_PROGRAMS: Final = (
    *("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"),
    *("kubelet", "kube-proxy", "kubectl"),
)
_PATIENCE: Final = "180s"
_LOOK: Final = 0.5  # seconds


@dataclass
class Cluster:
    """A cluster that is up. `times`: seconds from the begin of `up` until its parts were ready, by part."""

    vpc: SimulatedVpc
    plane: ControlPlane
    nodes: dict[str, Node]
    control: ControlClient
    programs: Path
    times: dict[str, float] = field(default_factory=dict)

    @classmethod
    @asynccontextmanager
    async def up(
        cls,
        directory: Path,
        prefix: str,
        workers: Sequence[Worker],
        *,
        archives: Sequence[str] = ("busybox",),
        dns: bool = True,
        subnets: Sequence[str] = ("10.0.0.0/24",),
        say: Callable[[str], None] = lambda line: None,
    ) -> AsyncIterator[Cluster]:
        """Yields when every worker with ipamd is ready, and the cluster's DNS if `dns`.

        `directory` gets the machines' folders and logs. `prefix` begins the names of all namespaces and control
        groups. `archives` are images that pods can have beside the cluster's own, by their names in
        `tests.kubernetes.images`. Raises `golang.Unbuilt` (of `programs.built`), `ClusterError`, `MachineError`,
        `netns.CommandError` and OSError.
        """
        wanted = [*_PROGRAMS, *(["coredns"] if dns else [])]
        folder = await built(wanted, say)
        own = ["pause", *(["coredns"] if dns else [])]
        if any(worker.ipamd == "daemonset" for worker in workers):
            own.append("ipamd")
        made = dict.fromkeys([await images.archive(name, folder) for name in (*own, *archives)])
        begin = time.monotonic()
        async with AsyncExitStack() as stack:
            vpc = await stack.enter_async_context(
                SimulatedVpc.build(
                    dir=directory,
                    nodes={worker.name: worker.type for worker in workers},
                    hosts=[_CONTROL_PLANE],
                    subnets=subnets,
                    machines=True,
                    prefix=prefix,
                )
            )
            session = await stack.enter_async_context(aiohttp.ClientSession())
            plane = ControlPlane(vpc.hosts[0], folder)
            nodes = {
                worker.name: Node(worker, vpc, spec, folder, [*made])
                for worker, spec in zip(workers, vpc.nodes, strict=True)
            }
            cluster = cls(vpc, plane, nodes, ControlClient(session, vpc.control_url), folder)
            stack.push_async_callback(cluster._end)
            await cluster._start(begin, dns, say)
            yield cluster

    async def _start(self, begin: float, dns: bool, say: Callable[[str], None]) -> None:
        say("starting the control plane")
        await self.plane.start()
        self.times["control plane"] = time.monotonic() - begin
        say("starting the workers")
        for node in self.nodes.values():
            node.configure(self.plane.authority, self.plane.url, images.reference("pause"))
        await together(node.start() for node in self.nodes.values())
        self.times["kubelets started"] = time.monotonic() - begin
        try:
            await self._watched(self._become_ready(begin, dns))
        except ClusterError as error:
            error.add_note(await self.state())
            raise
        say("the cluster is up")

    async def _become_ready(self, begin: float, dns: bool) -> None:
        in_pods = any(node.worker.ipamd == "daemonset" for node in self.nodes.values())
        if in_pods:
            await self.apply(daemonset(self.vpc.ec2_url))
        if dns:
            await self.apply((MANIFESTS / "coredns.yaml").read_text())
        networked = [f"node/{node.name}" for node in self.nodes.values() if node.worker.ipamd is not None]
        if not networked:
            return
        # kubectl waits for a condition only of what is there, and gives up at once when two of several are missing.
        for node in networked:
            await self.kubectl("wait", "--for=create", f"--timeout={_PATIENCE}", node)
        await self.kubectl("wait", "--for=condition=Ready", f"--timeout={_PATIENCE}", *networked)
        self.times["nodes ready"] = time.monotonic() - begin
        if in_pods:
            await self.rolled_out("daemonset/ipamd", "kube-system")
        if dns:
            await self.rolled_out("deployment/coredns", "kube-system")
            self.times["DNS ready"] = time.monotonic() - begin

    async def _watched(self, waiting: Coroutine[Any, Any, None]) -> None:
        """Raises `ClusterError` as soon as a part has ended: what is waited for would not come."""
        task = asyncio.ensure_future(waiting)
        try:
            while not (await asyncio.wait([task], timeout=_LOOK))[0]:
                for part in self.parts:
                    part.check()
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    @property
    def parts(self) -> list[Part]:
        return [*self.plane.parts, *(part for node in self.nodes.values() for part in node.parts)]

    async def state(self) -> str:
        """Nodes, pods and events, for people; what can't be had is said."""
        try:
            return await self.kubectl("get", "nodes,pods,events", "--all-namespaces", "--output=wide")
        except ClusterError as error:
            return str(error)

    async def _end(self) -> None:
        """The machines' power cuts, which come after this, end what this does not."""
        await asyncio.gather(*(part.kill() for part in self.parts))

    async def kubectl(self, *words: str, stdin: str = "") -> str:
        """Run kubectl as the cluster's administrator; returns what it prints. Raises `ClusterError`."""
        return await self.plane.kubectl(*words, stdin=stdin)

    async def get(self, kind: str, name: str = "", namespace: str = "") -> dict[str, Any]:
        """An object of the API, or a list of all (`namespace` "*": in all namespaces). Raises `ClusterError`."""
        return await self.plane.get(kind, name, namespace)

    async def apply(self, text: str) -> None:
        """Raises `ClusterError`."""
        await self.kubectl("apply", "--filename=-", stdin=text)

    async def rolled_out(self, what: str, namespace: str = "default", timeout: str = _PATIENCE) -> None:
        """Wait until a Deployment, DaemonSet or StatefulSet (kind/name) is as it should be. Raises `ClusterError`."""
        await self.kubectl("rollout", "status", what, f"--namespace={namespace}", f"--timeout={timeout}")


def daemonset(ec2_url: str) -> str:
    """deploy/kubernetes/ipamd.yaml with another EC2 endpoint, and without dry runs."""
    documents = list(yaml.safe_load_all(DAEMONSET.read_text()))
    [config] = [document for document in documents if document["kind"] == "ConfigMap"]
    text: str = config["data"]["config.toml"]
    assert "\n[ec2]\n" in text
    own = f'\n[ec2]\nendpoint = "{ec2_url}"\ncheck_permissions = false\n'
    config["data"]["config.toml"] = text.replace("\n[ec2]\n", own)
    return yaml.safe_dump_all(documents)
