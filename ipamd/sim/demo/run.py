"""What the demo does, in order. Whatever it starts is on one stack, which takes it down however the demo ends."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp
from rich.console import Group

from ipamd.sim.demo import report
from ipamd.sim.demo.checks import ControlClient, disagreements, leaks
from ipamd.sim.demo.node import DaemonFailed, Node
from ipamd.sim.demo.ping import Endpoint, ping_all
from ipamd.sim.runtimes import Pod, RuntimeFailure
from ipamd.sim.runtimes.containerd import Containerd, containerd
from ipamd.sim.runtimes.direct import Direct, direct
from ipamd.sim.vpc import SimulatedVpc

_SUBNET: Final = "10.0.0.0/20"
_OBSERVE_EVERY: Final = 0.2  # seconds

T = TypeVar("T")


@dataclass
class Worker:
    """A node with its runtime and the pods on it."""

    node: Node
    runtime: Containerd | Direct
    pods: list[Pod] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.node.name


@dataclass
class Found:
    """What there was while all was up, for the JSON file: a list entry for each node, in its order."""

    workers: Sequence[Worker]
    views: Sequence[report.NodeView]
    ledgers: Sequence[Mapping[str, Mapping[str, Any]]]  # container id -> its line in `ipamctl pods`
    at_ec2: Sequence[Mapping[str, Sequence[str]]]  # ENI -> private addresses, primary first
    pings_tried: int = 0
    pings_answered: int = 0

    def as_json(self, calls: Iterable[Mapping[str, Any]], left: Sequence[str]) -> dict[str, Any]:
        return {
            "nodes": [
                {
                    "name": view.name,
                    "instance_type": view.instance_type,
                    "enis": view.enis,
                    "addresses": [ip for addresses in enis.values() for ip in addresses[1:]],
                }
                for view, enis in zip(self.views, self.at_ec2, strict=True)
            ],
            "pods": [
                {
                    "name": pod.name,
                    "node": worker.name,
                    "ip": pod.ip,
                    "eni": ledger.get(pod.id, {}).get("eni"),
                    "add_ms": round(pod.add_seconds * 1000, 1),
                }
                for worker, ledger in zip(self.workers, self.ledgers, strict=True)
                for pod in worker.pods
            ],
            "pings": {"tried": self.pings_tried, "ok": self.pings_answered},
            "ec2_calls": dict(Counter(call["action"] for call in calls)),
            "leaks": list(left),
        }


@dataclass
class Demo:
    """`types` maps the nodes' names to their instance types; `pods` is for each of them."""

    types: Mapping[str, str]
    pods: int
    runtime: str
    keep: bool
    json_file: Path | None
    reporter: report.Reporter
    _kept: bool = False  # all is up, and left alone...
    _enough: asyncio.Event = field(default_factory=asyncio.Event)  # ...until this is set

    def end_keeping(self) -> bool:
        """End the pause that `keep` asked for; returns whether there was one."""
        was_kept, self._kept = self._kept, False
        self._enough.set()
        return was_kept

    async def run(self) -> int:
        """The command's exit code. Raises what the parts raise."""
        done = "all its namespaces, processes and files are gone"
        try:
            async with AsyncExitStack() as stack:
                code = await self._run(stack)
        except asyncio.CancelledError:
            self.reporter.say(done)
            raise
        self.reporter.say(done)
        return code

    async def _run(self, stack: AsyncExitStack) -> int:
        say = self.reporter.say
        directory = Path(tempfile.mkdtemp(prefix="ipamd-"))
        stack.callback(shutil.rmtree, directory)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        names = ", ".join(f"{name} ({instance_type})" for name, instance_type in self.types.items())
        say(f"building a VPC in a box: {names}, subnet {_SUBNET}")
        say(f"its files are in {directory}, its network namespaces are called {directory.name}-*")
        vpc = await stack.enter_async_context(
            SimulatedVpc.build(dir=directory, nodes=self.types, subnets=[_SUBNET], prefix=directory.name)
        )
        stack.callback(say, "taking the VPC down")
        stack.enter_context(self.reporter.live())
        nodes = [Node(spec) for spec in vpc.nodes]
        say("starting the daemon and installing the plugin on each node")
        for node in nodes:
            stack.callback(node.close)
            stack.push_async_callback(node.stop)
            await node.start()
        stack.callback(say, "stopping the daemons")
        stack.push_async_callback(_cancel, asyncio.ensure_future(self._watch(nodes)))
        await together(asyncio.to_thread(node.install_plugin) for node in nodes)
        if self.runtime == "containerd":
            say("starting a containerd on each node")
        runtimes = await together(stack.enter_async_context(self._start_runtime(node)) for node in nodes)
        await together(node.wait_until_ready() for node in nodes)
        await together(runtime.wait_until_ready() for runtime in runtimes if isinstance(runtime, Containerd))
        await together(node.wait_until_settled() for node in nodes)
        self.reporter.observe([await view(node) for node in nodes])
        say("every node can serve")
        workers = [Worker(node, runtime) for node, runtime in zip(nodes, runtimes, strict=True)]
        return await self._use(workers, ControlClient(session, vpc.control_url))

    def _start_runtime(self, node: Node) -> AbstractAsyncContextManager[Containerd | Direct]:
        if self.runtime == "containerd":
            return containerd(node.spec.netns, node.spec.dir / "ctd", node.bin_dir, node.conf_dir)
        return direct(node.spec.netns, node.bin_dir, node.conf_dir)

    async def _watch(self, nodes: Sequence[Node]) -> None:
        """Tell the reporter how the pools are, over and over."""
        views: dict[str, report.NodeView] = {}
        while True:
            for node in nodes:
                try:
                    views[node.name] = await view(node)
                except DaemonFailed:
                    continue  # not up yet, or no more
            self.reporter.observe(list(views.values()))
            await asyncio.sleep(_OBSERVE_EVERY)

    async def _use(self, workers: Sequence[Worker], control: ControlClient) -> int:
        """Pods up, pings, pods down, with the tables; returns the exit code."""
        say, show = self.reporter.say, self.reporter.show
        calls_before = len(await control.calls())
        problems = await self._make_pods(workers)
        await together(worker.node.wait_until_settled() for worker in workers)
        calls_after = len(await control.calls())
        found = await look(workers, control)
        self.reporter.observe(found.views)
        problems += contradictions(found)
        for worker in workers:
            problems += await disagreements(worker.node, control)

        endpoints = [endpoint for worker in workers for endpoint in _endpoints(worker)]
        found.pings_tried = len(endpoints) * (len(endpoints) - 1)
        say(f"every pod and node pings every other: {found.pings_tried} pings")
        silent = await ping_all(endpoints)
        found.pings_answered = found.pings_tried - len(silent)
        say(f"{found.pings_answered} of {found.pings_tried} pings were answered")
        problems += [f"no answer: {source.name} pings {target.name} ({target.ip})" for source, target in silent]

        show(
            report.pools_table(found.views),
            report.pods_table([(worker.name, worker.pods) for worker in workers], _enis_of_pods(found)),
            report.ping_table(endpoints, silent),
            await _latencies(workers),
        )
        if self.keep:
            self._write_json(found.as_json(await control.calls(), []))
            await self._leave_up(workers, control)

        problems += await self._remove_pods(workers)
        await together(worker.node.wait_until_settled() for worker in workers)
        self.reporter.observe([await view(worker.node) for worker in workers])
        left = [leak for worker in workers for leak in await leaks(worker.node, control)]
        calls = await control.calls()
        self._write_json(found.as_json(calls, left))
        phases = {"warm-up": (0, calls_before), "pods": (calls_before, calls_after), "removal": (calls_after, None)}
        show(
            report.calls_table(
                {
                    (worker.name, phase): [
                        c for c in calls[start:end] if c["instance"] == worker.node.spec.instance_id
                    ]
                    for worker in workers
                    for phase, (start, end) in phases.items()
                }
            )
        )
        return self._conclude(problems, left)

    async def _make_pods(self, workers: Sequence[Worker]) -> list[str]:
        """Returns what went wrong."""
        number = len(workers) * self.pods
        self.reporter.say(f"making {self.pods} pods on each node, all {number} at once")
        before = time.monotonic()

        async def make(worker: Worker, name: str) -> str | None:
            try:
                worker.pods.append(await worker.runtime.run_pod(name))
            except RuntimeFailure as error:
                return f"no pod {name}: {error}"
            return None

        digits = len(str(self.pods))
        outcomes = await together(
            make(worker, f"{worker.name}-p{index:0{digits}}")
            for worker in workers
            for index in range(1, self.pods + 1)
        )
        for worker in workers:
            worker.pods.sort(key=lambda pod: pod.name)
        up = sum(len(worker.pods) for worker in workers)
        self.reporter.say(
            f"{up} of {number} pods are up, {time.monotonic() - before:.2f} s after the first was asked for"
        )
        return [outcome for outcome in outcomes if outcome]

    async def _remove_pods(self, workers: Sequence[Worker]) -> list[str]:
        """Returns what went wrong."""
        self.reporter.say("removing the pods")
        before = time.monotonic()

        async def remove(worker: Worker, pod: Pod) -> str | None:
            try:
                await worker.runtime.remove_pod(pod)
            except RuntimeFailure as error:
                return f"pod {pod.name} was not removed: {error}"
            return None

        outcomes = await together(remove(worker, pod) for worker in workers for pod in worker.pods)
        self.reporter.say(f"the pods are gone after {time.monotonic() - before:.2f} s")
        return [outcome for outcome in outcomes if outcome]

    async def _leave_up(self, workers: Sequence[Worker], control: ControlClient) -> None:
        self.reporter.show_commands(commands(workers, control))
        self._kept = True
        self.reporter.say("all is left up; Ctrl-C or SIGTERM ends it")
        await self._enough.wait()

    def _write_json(self, document: Mapping[str, Any]) -> None:
        if self.json_file is not None:
            self.json_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    def _conclude(self, problems: Sequence[str], left: Sequence[str]) -> int:
        for problem in problems:
            self.reporter.say(f"PROBLEM {problem}")
        for leak in left:
            self.reporter.say(f"LEAK {leak}")
        if not left:
            self.reporter.say(
                "everything came back: ledgers empty, no host link, no route, "
                "EC2 and the daemons agree on every address"
            )
        return 1 if problems or left else 0


async def view(node: Node) -> report.NodeView:
    """Raises `DaemonFailed`."""
    return report.NodeView(node.name, node.spec.instance_type, await node.status(), await node.enis())


async def look(workers: Sequence[Worker], control: ControlClient) -> Found:
    return Found(
        workers,
        [await view(worker.node) for worker in workers],
        [{line["container_id"]: line for line in await worker.node.pods()} for worker in workers],
        [await control.enis(worker.node.spec.instance_id) for worker in workers],
    )


def contradictions(found: Found) -> list[str]:
    """Where pods, ledger and EC2 tell different stories; also addresses that two pods have."""
    wrong = []
    for worker, ledger, enis in zip(found.workers, found.ledgers, found.at_ec2, strict=True):
        for pod in worker.pods:
            line = ledger.get(pod.id)
            if line is None:
                wrong.append(f"{pod.name} is not in the ledger of {worker.name}")
            elif line["ip"] != pod.ip:
                wrong.append(f"{pod.name} has {pod.ip}, but by the ledger {line['ip']}")
            elif pod.ip not in enis.get(line["eni"], ())[1:]:
                wrong.append(f"{pod.name} has {pod.ip}, which is no address of {line['eni']} at EC2")
        unknown = ledger.keys() - {pod.id for pod in worker.pods}
        wrong += [f"the ledger of {worker.name} has {key[:12]}, which is no pod" for key in sorted(unknown)]
    counted = Counter(pod.ip for worker in found.workers for pod in worker.pods)
    return wrong + [f"{number} pods have {ip}" for ip, number in counted.items() if number > 1]


def commands(workers: Sequence[Worker], control: ControlClient) -> dict[str, str]:
    """What to try while all is up: purpose -> command line."""
    ipamctl = Path(sys.executable).with_name("ipamctl")
    suggested = {}
    for worker in workers:
        suggested[f"the pool of {worker.name}"] = f"{ipamctl} --socket {worker.node.spec.socket} status"
    first, last = workers[0], workers[-1]
    suggested["its ENIs, its pods"] = f"{ipamctl} --socket {first.node.spec.socket} enis  (or: pods)"
    if first.pods and last.pods:
        source, target = first.pods[0], last.pods[-1]
        suggested[f"{source.name} pings {target.name}"] = f"nsenter --net={source.netns} ping -c 3 {target.ip}"
        suggested[f"{first.name} pings {target.name}"] = (
            f"ip netns exec {first.node.spec.netns} ping -c 3 {target.ip}"
        )
    suggested[f"rules and routes of {first.name}"] = (
        f"ip -n {first.node.spec.netns} rule; ip -n {first.node.spec.netns} route show table all"
    )
    suggested["EC2's view"] = f"curl {control.url}/_control/state"
    suggested[f"the log of {first.name}"] = f"tail -f {first.node.log}"
    return suggested


async def together(awaitables: Iterable[Awaitable[T]]) -> list[T]:
    """The results of all at once. When one fails the others are cancelled, and ended when this raises."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _cancel(*tasks)


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _endpoints(worker: Worker) -> list[Endpoint]:
    spec = worker.node.spec
    pods = [Endpoint(pod.name, spec.name, pod.ip, pod.netns) for pod in worker.pods]
    return [Endpoint(spec.name, spec.name, spec.primary_ip, spec.netns), *pods]


def _enis_of_pods(found: Found) -> dict[str, str]:
    return {key: line["eni"] for ledger in found.ledgers for key, line in ledger.items()}


async def _latencies(workers: Sequence[Worker]) -> Group:
    seconds = [pod.add_seconds for worker in workers for pod in worker.pods]
    if isinstance(workers[0].runtime, Direct):
        return report.latency_table({"the plugin": seconds}, {}, "the plugin: from its start to its end")
    times = [
        times
        for worker in workers
        if isinstance(worker.runtime, Containerd) and (times := await worker.runtime.plugin_times()) is not None
    ]
    means = {}
    if number := sum(one.calls for one in times):
        means["CNI plugins in it"] = number, sum(one.calls * one.mean_seconds for one in times) / number
    note = "RunPodSandbox: containerd's whole work for a pod; CNI plugins: ipamd-cni and loopback, by its own clock"
    return report.latency_table({"RunPodSandbox": seconds}, means, note)
