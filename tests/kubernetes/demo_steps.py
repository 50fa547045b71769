"""What the demo on a cluster shows, in order. All that it starts is on one stack, which takes it down in any case."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ipamd.sim.demo.ping import ping_all
from ipamd.sim.demo.report import Reporter
from ipamd.sim.internet import WEB_SERVER
from ipamd.sim.machine import MachineError
from ipamd.sim.netns import CommandError
from ipamd.sim.runtimes.process import inside
from tests.kubernetes import demo_tables as tables
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.golang import DoesNotCompile, Unbuilt
from tests.kubernetes.parts import ClusterError
from tests.kubernetes.traffic import Answers, ask, asking
from tests.kubernetes.web import NODE_PORT, Pod, TooSlow, Web
from tests.kubernetes.worker import Packaging, Worker

FAILURES: Final = (Unbuilt, DoesNotCompile, ClusterError, MachineError, CommandError, TooSlow, OSError)
_WORKERS: Final = (
    Worker("w1", type="m5.large", proxy="nftables", ipamd="host"),
    Worker("w2", type="c5.large", proxy="iptables", ipamd="daemonset"),
)
_INSTALLED: Final[dict[Packaging | None, str]] = {"host": "ipamd install", "daemonset": "DaemonSet", None: "none"}
_MANY, _FEW = 24, 3  # replicas; the manifest has those to begin with
_QUESTIONS: Final = 60


@dataclass
class Demo:
    """`keep`: leave all up until it is ended."""

    reporter: Reporter
    keep: bool
    _kept: bool = False
    _enough: asyncio.Event = field(default_factory=asyncio.Event)
    _problems: list[str] = field(default_factory=list)
    _step: int = 0

    def end_keeping(self) -> bool:
        """End the pause that `keep` asked for; returns whether there was one."""
        was_kept, self._kept = self._kept, False
        self._enough.set()
        return was_kept

    async def run(self) -> int:
        """The command's exit code. Raises what the parts raise."""
        done = "all its machines, processes, namespaces and files are gone"
        try:
            async with AsyncExitStack() as stack:
                await self._run(stack)
        except asyncio.CancelledError:
            self.reporter.say(done)
            raise
        self.reporter.say(done)
        for problem in self._problems:
            self.reporter.say(f"PROBLEM {problem}")
        return 1 if self._problems else 0

    async def _run(self, stack: AsyncExitStack) -> None:
        directory = Path(tempfile.mkdtemp(prefix="ipamd-"))
        stack.callback(shutil.rmtree, directory)
        self._begin("a VPC in a box, a control plane on a host of its own in it, two workers")
        self._done(f"its files are in {directory}, its network namespaces are called {directory.name}-*")
        cluster = await stack.enter_async_context(
            Cluster.up(directory, directory.name, _WORKERS, dns=False, say=self._done)
        )
        stack.callback(self.reporter.say, "taking the cluster and the VPC down")
        self.reporter.show(tables.nodes_table(await _nodes(cluster)))
        web = Web(cluster)
        await self._deploy(web)
        await self._ping(web)
        await self._serve(cluster, web)
        if self.keep:
            await self._leave_up(cluster)
        await self._roll(cluster, web)
        await self._scale_down(web)
        await self._remove(cluster, web)

    def _begin(self, title: str) -> None:
        self._step += 1
        self.reporter.say(f"{self._step}. {title}")

    def _done(self, text: str) -> None:
        self.reporter.say(f"   {text}")

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self._problems.append(otherwise)

    async def _deploy(self, web: Web) -> None:
        self._begin("a Deployment, and more of it")
        took = await web.make()
        self._done(f"kubectl apply: {len(await web.pods())} pods are ready {took:.1f} s later")
        took = await web.scale(_MANY)
        lines = await web.lines()
        self._done(f"kubectl scale: {len(lines)} pods are ready {took:.1f} s later")
        self.reporter.show(tables.pods_table(lines))
        unknown = [line.pod for line in lines if line.eni == "?"]
        self._expect(not unknown, f"the daemons do not know the addresses of {', '.join(unknown)}")

    async def _ping(self, web: Web) -> None:
        endpoints = await web.endpoints()
        tried = len(endpoints) * (len(endpoints) - 1)
        self._begin(f"every pod and worker pings every other: {tried} pings")
        silent = await ping_all(endpoints)
        self._done(f"{tried - len(silent)} of {tried} were answered")
        self._problems += [f"no answer: {source.name} pings {target.name} ({target.ip})" for source, target in silent]

    async def _serve(self, cluster: Cluster, web: Web) -> None:
        self._begin("the Service, from pods and from outside")
        address = await web.cluster_ip()
        clients = {endpoint.name: endpoint for endpoint in await web.endpoints()}
        for pod in _one_on_each(await web.pods()):
            answers = await ask(clients[pod.name].netns, address, 80, _QUESTIONS)
            self._answered(f"a pod on {pod.node} asks {address}:80", answers)
        for name, node in cluster.nodes.items():
            answers = await ask(cluster.plane.machine.netns, node.spec.primary_ip, NODE_PORT, _QUESTIONS)
            self._answered(f"another host of the VPC asks {name}, {node.spec.primary_ip}:{NODE_PORT}", answers)
        for pod in _one_on_each(await web.pods()):
            answers = await ask(clients[pod.name].netns, WEB_SERVER, 80)
            self._answered(f"a pod on {pod.node} asks {WEB_SERVER} in the internet", answers)

    def _answered(self, what: str, answers: Answers) -> None:
        said = f'"{next(iter(answers.by))}"' if answers.asked == 1 and answers.by else str(answers)
        self._done(f"{what}: {said}")
        self._problems += [f"{what}: {failure}" for failure in answers.failed]

    async def _roll(self, cluster: Cluster, web: Web) -> None:
        self._begin("a rolling update, while a host of the VPC asks the Service all the time")
        before = {pod.name for pod in await web.pods()}
        node = next(iter(cluster.nodes.values()))
        async with asking(cluster.plane.machine.netns, node.spec.primary_ip, NODE_PORT) as answers:
            took = await web.update()
        kept = before & {pod.name for pod in await web.pods()}
        self._done(f"kubectl set env: {len(before) - len(kept)} pods are replaced {took:.1f} s later")
        self._answered("meanwhile", answers)

    async def _scale_down(self, web: Web) -> None:
        self._begin("less of it")
        took = await web.scale(_FEW)
        self._done(f"kubectl scale: {len(await web.pods())} pods are left {took:.1f} s later")
        self.reporter.show(tables.pods_table(await web.lines()))

    async def _remove(self, cluster: Cluster, web: Web) -> None:
        self._begin("nothing of it")
        took = await web.remove()
        self._done(f"kubectl delete: the last pod is gone {took:.1f} s later")
        for node in cluster.nodes.values():
            verdict, _, _ = (await node.ipamctl("audit")).partition("\n")
            self._done(f"ipamctl audit on {node.name}: {verdict}")

    async def _leave_up(self, cluster: Cluster) -> None:
        self.reporter.show_commands(_commands(cluster))
        self._kept = True
        self.reporter.say("all is left up; Ctrl-C or SIGTERM goes on")
        await self._enough.wait()


def _one_on_each(pods: list[Pod]) -> list[Pod]:
    """The first pod of each node."""
    return list({pod.node: pod for pod in reversed(pods)}.values())[::-1]


async def _nodes(cluster: Cluster) -> list[tables.NodeLine]:
    items = {item["metadata"]["name"]: item for item in (await cluster.get("nodes"))["items"]}
    lines = [tables.NodeLine("cp", "", cluster.plane.host.primary_ip, "control plane", "", "")]
    for worker in _WORKERS:
        runtime = items[worker.name]["status"]["nodeInfo"]["containerRuntimeVersion"].replace("://", " ")
        address = cluster.nodes[worker.name].spec.primary_ip
        installed = _INSTALLED[worker.ipamd]
        lines.append(tables.NodeLine(worker.name, worker.type, address, runtime, worker.proxy, installed))
    return lines


def _commands(cluster: Cluster) -> dict[str, str]:
    """What to try while all is up: purpose -> command line."""
    plane, first = cluster.plane, next(iter(cluster.nodes.values()))
    kubectl = shlex.join(
        inside(plane.machine.netns, cluster.programs / "kubectl", f"--kubeconfig={plane.kubeconfig}")
    )
    ipamctl = Path(sys.executable).with_name("ipamctl")
    commands = {
        "the cluster": f"{kubectl} get nodes,pods,services --all-namespaces --output=wide",
        "more pods": f"{kubectl} scale deployment/web --replicas=40",
        "why has a pod no address": f"{kubectl} describe pods --selector=app=web",
    }
    for node in cluster.nodes.values():
        commands[f"the pool of {node.name}"] = shlex.join(node.machine.inside(ipamctl, "status"))
    commands[f"the pods of {first.name}"] = shlex.join(first.machine.inside(ipamctl, "pods"))
    commands[f"a shell on {first.name}"] = shlex.join(first.machine.inside("bash"))
    return commands
