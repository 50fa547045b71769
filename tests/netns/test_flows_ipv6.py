"""IPv6 between pods, by the same layout. The addresses and the pods' ends are given by the test: the pool hands out
no IPv6 address yet, and the plugin configures none.

Each ENI has fd00:10:<node>:e<index>::a, each pod ::50 and its place in the list.
"""

from __future__ import annotations

import errno
import json
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from ipamd.host import NodeNetwork, PodNetwork
from ipamd.settings import HostSettings
from ipamd.sim import netns
from tests.netns.flows import LITTLE_PATIENCE, PATIENCE, PORT, PROTOCOLS, Flow, Place, name_of, ping, tcp
from tests.netns.flows_stage import Node, Pod, Stage, staged

pytestmark = pytest.mark.netns

ROUTER = "fe80::1"  # what a pod takes for its gateway
METADATA = "fd00:ec2::254"

ON_ONE_NODE = [("n1.1", "n1.1b"), ("n1.0", "n1.1"), ("n1.1", "n1.2"), ("n1.2", "n1.0")]
ACROSS = [(f"n1.{one}", f"n2.{other}") for one in range(3) for other in range(3)]
WITH_NODES = [
    ("n1", "n1.0"),
    ("n1:eth1", "n1.1"),
    ("n1:eth1", "n1.2"),
    ("n1.1", "n1"),
    ("n1.1", "n1:eth2"),
    ("n1", "n2.2"),
    ("n2.1", "n1"),
]
OF_NODES = [("n1", "n2"), ("n1:eth1", "n2"), ("n1:eth2", "n2.1"), ("n2.1", "n1:eth1"), ("n1:eth1", "n2:eth2")]
ALL = [*ON_ONE_NODE, *ACROSS, *WITH_NODES, *OF_NODES]


class DualNode(Node):
    """A node whose ENIs and pods have an IPv6 address each as well."""

    def __init__(self, node: Node, number: int) -> None:
        enis = [replace(eni, primary_ip6=f"fd00:10:{number}:e{eni.device_index}::a") for eni in node.enis]
        super().__init__(node.spec, enis, node.pods, node.settings)
        self.addresses = {
            name: f"fd00:10:{number}:e{pod.eni}::{50 + place}" for place, (name, pod) in enumerate(node.pods.items())
        }

    def network(self) -> NodeNetwork:
        both = super().network()
        pods = tuple(PodNetwork(self.addresses[name], pod.link, pod.eni) for name, pod in self.pods.items())
        return replace(both, pods=both.pods + pods)

    def delivered(self) -> dict[str, tuple[str, ...]]:
        """IPv6 addresses by ENI."""
        return {
            eni.eni_id: (
                eni.primary_ip6,
                *(self.addresses[name] for name, pod in self.pods.items() if pod.eni == eni.device_index),
            )
            for eni in self.enis
        }


class DualStage(Stage):
    def place(self, name: str) -> Place:
        """As in `Stage`, but with the IPv6 address."""
        place = super().place(name)
        node = self.nodes[name[:2]]
        assert isinstance(node, DualNode)
        if isinstance(place, Pod):
            return replace(place, address=node.addresses[name.partition(".")[2]])
        index = int(name.partition(":eth")[2] or 0)
        return replace(place, address=node.enis[index].primary_ip6)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DualStage]:
    with staged(tmp_path_factory.mktemp("vpc")) as made:
        dual = DualStage(made.vpc, made.loop)
        for number, (name, node) in enumerate(made.nodes.items(), 1):
            dual.nodes[name] = at = DualNode(node, number)
            for eni in made.vpc.cloud.instances.get(node.spec.instance_id).enis.values():
                addresses = (*eni.addresses, *at.delivered()[eni.id])
                dual.call(made.vpc.fabric.deliver(eni.id, addresses))
            for pod_name, pod in node.pods.items():
                _add_ipv6(at, pod, at.addresses[pod_name])
            at.apply()
        yield dual


def _add_ipv6(node: Node, pod: Pod, address: str) -> None:
    """A pod's IPv6: /128, fe80::1 on the host's end, a permanent neighbour entry for it."""
    (mac,) = (each["address"] for each in _links(node) if each["ifname"] == pod.link)
    netns.write_sysctls(
        node.spec.netns,
        {
            f"ipv6/conf/{pod.link}/addr_gen_mode": 1,
            f"ipv6/conf/{pod.link}/accept_ra": 0,
            f"ipv6/conf/{pod.link}/disable_ipv6": 0,
        },
    )
    node.ip(f"addr add {ROUTER}/64 dev {pod.link} nodad")
    for command in (
        f"addr add {address}/128 dev eth0 nodad",
        f"neigh add {ROUTER} lladdr {mac} dev eth0 nud permanent",
        f"route add default via {ROUTER} dev eth0",
    ):
        done = pod.command("ip", *command.split())
        assert done.returncode == 0, f"{command}: {done.stderr}"


def _links(node: Node) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(node.ip("-j link"))
    return found


@pytest.fixture(autouse=True)
def symmetric(stage: DualStage, request: pytest.FixtureRequest) -> Iterator[None]:
    if "command" in request.fixturenames:  # that takes something away
        yield
        return
    with stage.nothing_dropped():
        yield


@pytest.mark.parametrize(("client", "server"), ALL)
@pytest.mark.parametrize("flow", PROTOCOLS, ids=name_of)
def test_it_gets_there_and_back_with_its_own_address(stage: DualStage, flow: Flow, client: str, server: str) -> None:
    one, other = stage.place(client), stage.place(server)
    assert flow(one, other).address == one.address


@pytest.mark.parametrize(("client", "server"), ALL)
def test_echo_and_fragments(stage: DualStage, client: str, server: str) -> None:
    one, other = stage.place(client), stage.place(server)
    ping(one, other.address)
    ping(one, other.address, size=20_000)


def test_ipv4_works_beside_it(stage: DualStage) -> None:
    for client, server in (("n1.1", "n2.2"), ("n1.1", "n1.0")):
        one, other = Stage.place(stage, client), Stage.place(stage, server)
        assert tcp(one, other).address == one.address
    assert tcp(Stage.place(stage, "n1.1"), stage.internet).address == stage.n1.spec.primary_ip


def test_a_node_reaches_its_pods_with_one_of_its_addresses(stage: DualStage) -> None:
    """Which one, the kernel chooses by the longest common prefix (RFC 6724, section 5, rule 8)."""
    node = stage.nodes["n1"]
    for pod in ("n1.1", "n1.2"):
        assert tcp(stage.place("n1"), stage.place(pod)).address in {eni.primary_ip6 for eni in node.enis}


# What a pod must not do


def forged(stage: DualStage, sources: list[str]) -> list[str]:
    """Which of the datagrams from n1.1 to n1.2 with these sources arrive; the last one, with its own, does."""
    attacker, victim = stage.place("n1.1"), stage.place("n1.2")
    with (
        victim.run(lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_UDP)) as raw,
        attacker.run(lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)) as sender,
    ):
        for source in [*sources, attacker.address]:
            # RFC 8200, section 3, and RFC 768: a datagram of 8 bytes
            header = struct.pack("!IHBB", 6 << 28, 8, socket.IPPROTO_UDP, 64)
            ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, victim.address)
            sender.sendto(header + ends + struct.pack("!HHHH", 4242, PORT, 8, 1), (victim.address, 0))
        raw.settimeout(PATIENCE)
        arrived: list[str] = []
        while (source := raw.recvfrom(1 << 16)[1][0]) != attacker.address:
            arrived.append(source)
        return arrived


def test_pods_packets_with_other_sources_are_dropped_at_its_veth(stage: DualStage) -> None:
    others = [stage.place(name).address for name in ("n1.0", "n1.1b", "n1", "n1:eth1", "n2.1", "n2")]
    assert forged(stage, [*others, "2001:db8::1"]) == []
    stage.n1.run("nft", "flush chain inet ipamd guard")
    assert forged(stage, others[:2]) == others[:2]
    assert stage.n1.apply()
    assert forged(stage, others[:2]) == []


def test_metadata_is_refused_at_once_where_it_is_blocked(stage: DualStage) -> None:
    pod = stage.place("n1.1")

    def error(patience: float) -> int | None:
        with pytest.raises(OSError) as told:
            pod.run(lambda: socket.create_connection((METADATA, 80), patience))
        return told.value.errno

    stage.n1.apply(HostSettings(pod_imds="block"))
    assert error(PATIENCE) == errno.EACCES  # administratively prohibited
    stage.n1.apply(HostSettings())
    assert error(LITTLE_PATIENCE) != errno.EACCES  # the double has no metadata there


# What each object is there for


def reaches(client: str, server: str) -> Callable[[DualStage, float], None]:
    return lambda stage, patience: ping(stage.place(client), stage.place(server).address, patience=patience)


@pytest.mark.parametrize(
    ("command", "way"),
    [
        ("ip -6 rule del priority 500", reaches("n1", "n1.0")),
        ("ip -6 rule del priority 1501", reaches("n1.1", "n2.1")),
        ("ip -6 rule del priority 1502", reaches("n2.0", "n1.2")),
        ("ip -6 rule del from fd00:10:1:e1::a priority 32000", reaches("n1:eth1", "n2")),
        ("ip -6 route del default table 1501", reaches("n1.1", "n2.1")),
        ("ip -6 route del fd00:10:1:e1::51 table 1500", reaches("n1.0", "n1.1")),
        ("ip -6 addr del fd00:10:1:e1::a/128 dev eth1", reaches("n2", "n1:eth1")),
        ("sysctl -q net.ipv6.conf.all.forwarding=0", reaches("n1.1", "n2.1")),
        ("sysctl -q net.ipv6.conf.eth1.disable_ipv6=1", reaches("n1.1", "n2.1")),
        ("nft flush chain inet ipamd from_pod", reaches("n1.1", "n2.1")),
    ],
)
def test_without_it_the_flow_breaks_and_apply_restores_it(
    stage: DualStage, command: str, way: Callable[[DualStage, float], None]
) -> None:
    node = stage.n1
    way(stage, PATIENCE)
    node.run(*command.split())
    with pytest.raises(TimeoutError):
        way(stage, LITTLE_PATIENCE)
    assert node.apply()
    assert node.apply() == []
    way(stage, PATIENCE)
