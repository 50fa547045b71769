"""Two nodes of the VPC in a box with pods on each of their ENIs: the stage of all flows.

    n1 10.0.0.0/24   ENI 0, 1, 2   pods n1.0, n1.1, n1.1b, n1.2      internet   198.51.100.10, 203.0.113.10
    n2 10.0.1.0/24   ENI 0, 1, 2   pods n2.0, n2.1, n2.1b, n2.2      peer       192.0.2.10

The fabric drops whatever leaves by an ENI that has not its source, so a flow that works has taken the right way in
both directions, by the ENI where its request came in; `nothing_dropped` makes sure that nothing took another even in
passing. Each node's network is what `HostNetwork.apply` makes of it; the pods are plumbed by the plugin's own code
from the daemon's own plan.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from cni_shim import netlink, plumbing, protobuf
from ipamd.api.plan import plan
from ipamd.host import EniNetwork, HostNetwork, NodeNetwork, PodNetwork
from ipamd.pool.model import Attachment, AttachmentKey
from ipamd.settings import HostSettings
from ipamd.sim import netns
from ipamd.sim.ec2.cloud import Delays
from ipamd.sim.ec2.rules import Ask
from ipamd.sim.fabric import INTERNET_HOSTS, MTU, PEER_HOST
from ipamd.sim.vpc import SimulatedNode, SimulatedVpc
from tests.netns.flows import Place

AT_ONCE: Final = Delays(create=0, attach=0, detach=0, assign=0, link=0, imds_lag=0)
SUBNETS: Final = ("10.0.0.0/24", "10.0.1.0/24")
ENIS: Final = 3
PODS: Final = ("0", "1", "1b", "2")  # the digit is the ENI's device index

T = TypeVar("T")


@dataclass(frozen=True)
class Pod(Place):
    """`link` is the host's end of its veth."""

    eni: int = 0
    link: str = ""


@dataclass
class Node:
    """`place` is the node itself, with its primary address; `at_eni` the same by another ENI's own address."""

    spec: SimulatedNode
    enis: list[EniNetwork]
    pods: dict[str, Pod] = field(default_factory=dict)
    settings: HostSettings = field(default_factory=HostSettings)

    @property
    def place(self) -> Place:
        return Place(self.spec.name, self.spec.netns, self.spec.primary_ip)

    def at_eni(self, index: int) -> Place:
        eni = self.enis[index]
        return Place(f"{self.spec.name}:eth{index}", self.spec.netns, eni.primary_ip, bound=index != 0)

    def network(self) -> NodeNetwork:
        pods = tuple(PodNetwork(pod.address, pod.link, pod.eni) for pod in self.pods.values())
        return NodeNetwork(tuple(self.enis), ("10.0.0.0/16",), pods)

    def apply(self, settings: HostSettings | None = None) -> list[str]:
        """Returns what was done. `settings` stay in force."""
        self.settings = settings or self.settings

        async def steps() -> list[str]:
            host = HostNetwork(self.settings)
            await host.open()
            try:
                return [str(step) for step in (await host.apply(self.network())).done]
            finally:
                await host.close()

        return self.place.run(lambda: asyncio.run(steps()))

    def ip(self, command: str) -> str:
        """ip(8), with these arguments."""
        return self.run("ip", *command.split())

    def run(self, *argv: str, stdin: str = "") -> str:
        """A command on the node."""
        command = ["ip", "netns", "exec", self.spec.netns, *argv]
        done = subprocess.run(command, input=stdin, text=True, capture_output=True)
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout


class Stage:
    def __init__(self, vpc: SimulatedVpc, loop: asyncio.AbstractEventLoop) -> None:
        self.vpc = vpc
        self.loop = loop
        self.nodes: dict[str, Node] = {}
        self.internet = Place("internet", vpc.fabric.internet, INTERNET_HOSTS[0])
        self.internet2 = Place("internet2", vpc.fabric.internet, INTERNET_HOSTS[1])
        self.peer = Place("peer", vpc.fabric.peer, PEER_HOST)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Its result: on the VPC's event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    @property
    def n1(self) -> Node:
        return self.nodes["n1"]

    @property
    def n2(self) -> Node:
        return self.nodes["n2"]

    def place(self, name: str) -> Place:
        """ "n1" (the node), "n1:eth2" (the node by that ENI's address), "n1.1b" (a pod), "internet" or "peer"."""
        if name in ("internet", "internet2", "peer"):
            found: Place = getattr(self, name)
            return found
        if ":eth" in name:
            node, _, index = name.partition(":eth")
            return self.nodes[node].at_eni(int(index))
        node, _, pod = name.partition(".")
        return self.nodes[node].pods[pod] if pod else self.nodes[node].place

    def dropped(self) -> Mapping[str, int]:
        return self.call(self.vpc.fabric.dropped())

    @contextmanager
    def nothing_dropped(self) -> Iterator[None]:
        """No packet took a way that a VPC does not allow."""
        before = self.dropped()
        yield
        assert self.dropped() == before

    def forget_connections(self) -> None:
        for node in self.nodes.values():
            node.run("conntrack", "-F")


@contextmanager
def staged(dir: Path, hop_limit: int = 2) -> Iterator[Stage]:
    """All of it, removed at the end; it fails if a namespace is left."""
    prefix = f"t{secrets.token_hex(4)}"
    nodes = {"n1": "m5.large", "n2": "m5.large"}
    with ExitStack() as stack:
        vpc, loop = stack.enter_context(
            on_a_thread(
                lambda: SimulatedVpc.build(
                    dir=dir, nodes=nodes, subnets=SUBNETS, delays=AT_ONCE, prefix=prefix, hop_limit=hop_limit
                )
            )
        )
        stage = Stage(vpc, loop)
        for spec in vpc.nodes:
            node = Node(spec, stage.call(_attach_enis(vpc, spec)))
            stage.nodes[spec.name] = node
            node.apply()
            for name in PODS:
                node.pods[name] = _add_pod(stack, stage, node, name)
        yield stage
    left = [path.name for path in netns.DIRECTORY.glob(f"{prefix}*")]
    assert left == []


async def _attach_enis(vpc: SimulatedVpc, spec: SimulatedNode) -> list[EniNetwork]:
    """Secondary ENIs in the node's own subnet, as the daemon attaches them; all ENIs in the order of their index."""
    cloud = vpc.cloud
    subnet = cloud.instances.get(spec.instance_id).primary.subnet
    for index in range(1, ENIS):
        eni = await cloud.create_eni(subnet.id)
        cloud.attach_eni(eni.id, spec.instance_id, index)
        await cloud.settle([eni])
    return served_enis(vpc, spec)


def served_enis(vpc: SimulatedVpc, spec: SimulatedNode) -> list[EniNetwork]:
    """All ENIs of the node, in the order of their index."""
    enis = [
        EniNetwork(eni.id, eni.mac, index, index == 0, eni.addresses[0], str(eni.subnet.network))
        for eni in vpc.cloud.instances.get(spec.instance_id).enis.values()
        if eni.attachment is not None
        for index in (eni.attachment.device_index,)
    ]
    return sorted(enis, key=lambda eni: eni.device_index)


def _add_pod(stack: ExitStack, stage: Stage, node: Node, name: str) -> Pod:
    index = int(name[0])
    eni = node.enis[index]
    (address,) = stage.call(stage.vpc.cloud.assign(eni.eni_id, Ask(1)))
    space = f"{node.spec.netns}.{name}"
    subprocess.run(["ip", "netns", "add", space], check=True)
    stack.callback(subprocess.run, ["ip", "netns", "delete", space], check=True)
    subprocess.run(["ip", "-n", space, "link", "set", "lo", "up"], check=True)
    attachment = Attachment(AttachmentKey("flows", f"{node.spec.name}.{name}", "eth0"), address, eni.eni_id, 0.0)
    reply = plan(attachment, node.settings, index, MTU, "")
    reply.result = b"{}"  # what the plugin would print

    def attach() -> None:
        """On a thread that ends with it: it stays in the pod's namespace."""
        descriptor = os.open(netns.DIRECTORY / space, os.O_RDONLY | os.O_CLOEXEC)
        host = netlink.Socket()
        try:
            plumbing.attach(host, protobuf.Plan(reply.SerializeToString()), descriptor)
        finally:
            host.close()
            os.close(descriptor)

    node.place.run(attach)
    return Pod(f"{node.spec.name}.{name}", space, address, eni=index, link=reply.host_ifname)


@contextmanager
def on_a_thread(
    build: Callable[[], AbstractAsyncContextManager[T]],
) -> Iterator[tuple[T, asyncio.AbstractEventLoop]]:
    """What is built, on an event loop of its own: servers answer while a test waits for an answer of theirs."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def enter() -> T:
        return await manager.__aenter__()

    async def leave() -> None:
        await manager.__aexit__(None, None, None)

    try:
        manager = build()
        value = asyncio.run_coroutine_threadsafe(enter(), loop).result(60)
        try:
            yield value, loop
        finally:
            asyncio.run_coroutine_threadsafe(leave(), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
