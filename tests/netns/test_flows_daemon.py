"""One flow of each kind on nodes that nothing but the real daemon has set up, with pods that the real plugin made.

On n1 a hardening profile has turned forwarding off for links to come before the daemon starts, on n2 after the first
pod is there. A t3.micro has two ENIs with one address for pods on each: of the two pods of a node one is on the
primary ENI.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from cni_shim.names import host_ifname
from ipamd.sim import netns
from ipamd.sim.demo.node import Node as DaemonNode
from ipamd.sim.runtimes.direct import direct
from ipamd.sim.vpc import SimulatedVpc
from tests.netns.flows import PROTOCOLS, Flow, name_of, ping, udp
from tests.netns.flows_guard import spoof, token_status
from tests.netns.flows_services import NODE_PORT, PROXIES, SERVICE, Proxy, Service, served
from tests.netns.flows_stage import AT_ONCE, SUBNETS, Node, Pod, Stage, on_a_thread, served_enis

pytestmark = pytest.mark.netns

PODS = ["n1.0", "n1.1"]


@asynccontextmanager
async def daemons(dir: Path, prefix: str) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        nodes = {"n1": "t3.micro", "n2": "t3.micro"}
        vpc = await stack.enter_async_context(
            SimulatedVpc.build(dir=dir, nodes=nodes, subnets=SUBNETS, delays=AT_ONCE, prefix=prefix)
        )
        stage = Stage(vpc, asyncio.get_running_loop())
        await asyncio.gather(*(_start(stack, stage, DaemonNode(spec)) for spec in vpc.nodes))
        yield stage


async def _start(stack: AsyncExitStack, stage: Stage, node: DaemonNode) -> None:
    stack.callback(node.close)
    await asyncio.to_thread(node.install_plugin)
    if node.name == "n1":
        _harden(node)
    await node.start()
    stack.push_async_callback(node.stop)
    await node.wait_until_ready()
    runtime = await stack.enter_async_context(direct(node.spec.netns, node.bin_dir, node.conf_dir))
    pods = [await runtime.run_pod("web-0")]
    _harden(node)
    pods.append(await runtime.run_pod("web-1"))
    await node.wait_until_settled()
    enis = served_enis(stage.vpc, node.spec)
    stage.nodes[node.name] = made = Node(node.spec, enis)
    holders = {eni.eni_id: eni for eni in enis}
    for eni in stage.vpc.cloud.instances.get(node.spec.instance_id).enis.values():
        for pod in pods:
            if pod.ip in eni.addresses:
                index = holders[eni.id].device_index
                link = host_ifname(pod.id, "eth0")
                name = f"{node.name}.{index}"
                made.pods[str(index)] = Pod(name, pod.netns.name, pod.ip, eni=index, link=link)


def _harden(node: DaemonNode) -> None:
    """As in CIS benchmarks for hosts that are no routers, where something has turned forwarding on before."""
    netns.write_sysctls(node.spec.netns, {"ipv4/ip_forward": 1, "ipv4/conf/default/forwarding": 0})


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    prefix = f"t{secrets.token_hex(4)}"
    with on_a_thread(lambda: daemons(tmp_path_factory.mktemp("vpc"), prefix)) as (made, _):
        yield made
    assert list(netns.DIRECTORY.glob(f"{prefix}*")) == []


@pytest.fixture(autouse=True)
def symmetric(stage: Stage) -> Iterator[None]:
    with stage.nothing_dropped():
        yield


@pytest.mark.parametrize(
    ("client", "server"),
    [
        (client, server)
        for client in ("n1.0", "n1.1", "n1", "n1:eth1")
        for server in ("n1.0", "n1.1", "n2.0", "n2.1", "n1", "n2", "n1:eth1", "peer")
        if client.partition(":")[0] != server.partition(":")[0]
    ],
)
@pytest.mark.parametrize("flow", PROTOCOLS, ids=name_of)
def test_between_pods_and_nodes(stage: Stage, flow: Flow, client: str, server: str) -> None:
    one, other = stage.place(client), stage.place(server)
    translated = server == "peer" and isinstance(one, Pod)
    assert flow(one, other).address == (stage.n1.spec.primary_ip if translated else one.address)
    ping(one, other.address)


@pytest.mark.parametrize("pod", PODS)
@pytest.mark.parametrize("flow", PROTOCOLS, ids=name_of)
def test_to_outside(stage: Stage, flow: Flow, pod: str) -> None:
    assert flow(stage.place(pod), stage.internet).address == stage.n1.spec.primary_ip
    udp(stage.place(pod), stage.internet, size=20_000)


@pytest.mark.parametrize("proxy", PROXIES, ids=name_of)
@pytest.mark.parametrize("backend", [*PODS, "n2.1"])
@pytest.mark.parametrize("flow", PROTOCOLS, ids=name_of)
def test_through_a_service(stage: Stage, flow: Flow, backend: str, proxy: Proxy) -> None:
    server = stage.place(backend)
    with served(proxy, stage.n1, Service(server)):
        for name in PODS:
            flow(stage.place(name), server, SERVICE)
        flow(stage.internet, server, (stage.n1.spec.primary_ip, NODE_PORT))


@pytest.mark.parametrize("pod", PODS)
def test_metadata(stage: Stage, pod: str) -> None:
    assert token_status(stage.place(pod)) == "HTTP/1.1 200 OK"


def test_no_forged_source(stage: Stage) -> None:
    assert spoof(stage, "n1.1", "n2.1", [stage.place(name).address for name in ("n1.0", "n1:eth1", "n2.0")]) == []
