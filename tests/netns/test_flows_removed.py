"""What each object that ipamd writes on a node is there for: without it a flow breaks; `apply` brings it back.

`CARRIES` is the table: which object carries which flow. A rule, route or setting that is in neither it nor
`CARRY_NONE` fails a test: nothing is written to a node that nobody can say the use of.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ipamd.host.desired import POD_LINK_PREFIX, desired
from ipamd.host.links import Links
from ipamd.settings import HostSettings
from ipamd.sim import netns
from tests.netns.flows import LITTLE_PATIENCE, PATIENCE, tcp
from tests.netns.flows_guard import spoof, token_status
from tests.netns.flows_services import NODE_PORT, Service, nftables, served
from tests.netns.flows_stage import Node, Stage, staged

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("vpc")) as made:
        for pod in made.n1.pods.values():  # as in test_flows_guard
            netns.write_sysctls(made.n1.spec.netns, {f"ipv4/conf/{pod.link}/rp_filter": 0})
        yield made


# Flows. Each fails, in one way or another, within the patience that it is given.

Way = Callable[[Stage, float], None]


def direct(client: str, server: str) -> Way:
    def way(stage: Stage, patience: float) -> None:
        one = stage.place(client)
        assert tcp(one, stage.place(server), patience=patience).address == one.address

    return way


def outward(client: str) -> Way:
    def way(stage: Stage, patience: float) -> None:
        assert tcp(stage.place(client), stage.internet, patience=patience).address == stage.n1.spec.primary_ip

    return way


def node_port(client: str, eni: int, backend: str) -> Way:
    """With the client's own address."""

    def way(stage: Stage, patience: float) -> None:
        one, other = stage.place(client), stage.place(backend)
        with served(nftables, stage.n1, Service(other, local=True)):
            to = (stage.n1.enis[eni].primary_ip, NODE_PORT)
            assert tcp(one, other, to, patience=patience).address == one.address

    return way


def beside_foreign_rules(way: Way) -> Way:
    """Such as ec2-net-utils writes: whatever has an address of an ENI leaves by it."""

    def among(stage: Stage, patience: float) -> None:
        rule = f"from {stage.place('n1.1').address} lookup 10001 priority 10001"
        stage.n1.ip(f"rule add {rule}")
        stage.n1.ip("route add default via 10.0.0.1 dev eth1 onlink table 10001")
        try:
            way(stage, patience)
        finally:
            stage.n1.ip(f"rule del {rule}")
            stage.n1.ip("route flush table 10001")

    return among


def no_forgery(stage: Stage, patience: float) -> None:
    assert spoof(stage, "n1.1", "n1.2", [stage.place("n1.0").address]) == []


def no_metadata(stage: Stage, patience: float) -> None:
    with pytest.raises(OSError) as told:
        token_status(stage.place("n1.1"), patience)
    assert not isinstance(told.value, TimeoutError)


# Objects, by what shows them in the kernel's own listing


@dataclass(frozen=True)
class Object:
    """`remove` takes it away, or makes it what it must not be."""

    name: str
    remove: Callable[[Node], object]
    settings: HostSettings = field(default_factory=HostSettings)

    def __str__(self) -> str:
        return self.name


def nft_rules(node: Node) -> list[tuple[str, str, str]]:
    """(chain, rule, handle)"""
    found, chain = [], ""
    for line in node.run("nft", "-a", "list", "table", "inet", "ipamd").splitlines():
        text, _, handle = line.strip().partition(" # handle ")
        if match := re.match(r"chain (\w+)", text):
            chain = match[1]
        elif handle and not text.startswith(("table", "set")):
            found.append((chain, text, handle))
    return found


def nft(chain: str, words: str, settings: HostSettings | None = None) -> Object:
    def remove(node: Node) -> None:
        ((_, _, handle),) = [each for each in nft_rules(node) if each[0] == chain and words in each[1]]
        node.run("nft", "delete", "rule", "inet", "ipamd", chain, "handle", handle)

    return Object(f"nft {chain}: {words}", remove, settings or HostSettings())


def ip(name: str, command: str) -> Object:
    return Object(name, lambda node: node.ip(command))


def rule(selector: str, table: str) -> Object:
    return ip(f"rule {selector} lookup {table}", f"rule del {selector} lookup {table}")


def rule_from(eni: int) -> Object:
    def remove(node: Node) -> None:
        node.ip(f"rule del from {node.enis[eni].primary_ip} priority 32000")

    return Object(f"rule from eth{eni}'s address", remove)


def pods_route(pod: str) -> Object:
    return Object("the pod's route", lambda node: node.ip(f"route del {node.pods[pod].address} table 1500"))


def group(pod: str) -> Object:
    return Object("the veth's group", lambda node: node.ip(f"link set {node.pods[pod].link} group default"))


def sysctl(name: str, wrong: int) -> Object:
    return Object(f"{name}={wrong}", lambda node: netns.write_sysctls(node.spec.netns, {name: wrong}))


def pod_forwarding(pod: str) -> Object:
    def off(node: Node) -> None:
        netns.write_sysctls(node.spec.netns, {f"ipv4/conf/{node.pods[pod].link}/forwarding": 0})

    return Object(f"{POD_FORWARDING} of n1.{pod}", off)


POD_FORWARDING = "forwarding of a pod's link"
BLOCKED = HostSettings(pod_imds="block")
ACROSS_0, ACROSS_1, ACROSS_2 = (direct(f"n1.{i}", "n2.1") for i in range(3))
BY_PORT = node_port("n2", 0, "n1.1")  # in by the primary ENI, to a pod on another, from inside the VPC
BY_PORT_1 = node_port("peer", 1, "n1.2")
BY_PORT_2 = node_port("peer", 2, "n1.1")

CARRIES: list[tuple[Object, Way]] = [
    (nft("guard", "from a pod: with its own address alone"), no_forgery),
    (nft("own_source", "fib saddr"), no_forgery),
    (nft("prerouting", "from a pod: choose its way out"), ACROSS_1),
    (nft("prerouting", "from a pod: choose its way out"), outward("n1.0")),
    (nft("prerouting", "remember by which ENI a connection came in"), BY_PORT),
    (nft("prerouting", "remember by which ENI a connection came in"), BY_PORT_1),
    (nft("prerouting", "a reply leaves as it came"), BY_PORT),
    (nft("prerouting", "a reply leaves as it came"), BY_PORT_1),
    (nft("prerouting", "a reply leaves as it came"), direct("peer", "n1.1")),
    (nft("from_pod", "ip daddr 169.254.169.254", BLOCKED), no_metadata),
    (nft("from_pod", "out of the VPC: by the primary ENI"), outward("n1.1")),
    (nft("from_pod", "by the ENI that holds the address"), ACROSS_1),
    (nft("postrouting", "leave the VPC with the primary address"), outward("n1.1")),
    (nft("leave_1500", "meta mark set"), outward("n1.0")),
    (nft("leave_1501", "meta mark set"), ACROSS_1),
    (nft("leave_1502", "meta mark set"), ACROSS_2),
    (nft("entered_1500", "ct mark set"), BY_PORT),
    (nft("entered_1501", "ct mark set"), BY_PORT_1),
    (nft("entered_1502", "ct mark set"), BY_PORT_2),
    (rule("priority 500", "1500"), direct("n1", "n1.1")),
    (rule("priority 500", "1500"), direct("n2.1", "n1.0")),
    # Without others' rules the main table is the last that is looked at, and the right one.
    (rule("priority 1100", "main"), beside_foreign_rules(outward("n1.1"))),
    (rule("priority 1501", "1501"), ACROSS_1),
    (rule("priority 1502", "1502"), ACROSS_2),
    (rule_from(1), direct("n1:eth1", "n2")),
    (rule_from(2), direct("n1:eth2", "peer")),
    (rule_from(1), direct("n2.1", "n1:eth1")),
    (ip("default route 1501", "route del default table 1501"), ACROSS_1),
    (ip("default route 1502", "route del default table 1502"), ACROSS_2),
    (pods_route("1"), direct("n1.0", "n1.1")),
    (group("1"), ACROSS_1),
    (group("1"), outward("n1.1")),
    (ip("address of eth1", "addr flush dev eth1"), direct("n2", "n1:eth1")),
    (ip("eth1 up", "link set eth1 down"), ACROSS_1),
    (ip("eth2 up", "link set eth2 down"), direct("n2.1", "n1.2")),
    (sysctl("ipv4/ip_forward", 0), ACROSS_0),
    (sysctl("ipv4/conf/eth0/forwarding", 0), direct("n2.1", "n1.0")),
    (sysctl("ipv4/conf/eth1/forwarding", 0), direct("n2.1", "n1.1")),
    (sysctl("ipv4/conf/eth2/forwarding", 0), direct("n2.1", "n1.2")),
    (pod_forwarding("1"), ACROSS_1),
    (sysctl("ipv4/conf/eth0/rp_filter", 1), beside_foreign_rules(outward("n1.1"))),
    (sysctl("ipv4/conf/eth1/rp_filter", 1), direct("n2.1", "n1.1")),
    (sysctl("ipv4/conf/eth2/rp_filter", 1), direct("n2.1", "n1.2")),
]

# No flow here breaks without these.
CARRY_NONE = {
    "nft own_source: ip6 saddr": "this kernel's fib expression lets pass what a link needs (nft_fib_v6_skip_icmpv6)",
    "nft from_pod: ip6 daddr fd00:ec2::254": "IPv6: test_flows_ipv6",
    "route 10.0.0.1 table 1501": "the default route is onlink, and finds the gateway without it",
    "route 10.0.0.1 table 1502": "the same",
    "arp_ignore": "nobody in a VPC asks an instance: the fabric knows which ENI has an address",
    "arp_announce": "the fabric answers every ARP request",
}


@pytest.mark.parametrize(("thing", "way"), CARRIES, ids=lambda value: str(value) if isinstance(value, Object) else "")
def test_without_it_the_flow_breaks_and_apply_restores_it(stage: Stage, thing: Object, way: Way) -> None:
    node = stage.n1
    node.apply(thing.settings)
    node.run("conntrack", "-F")
    with stage.nothing_dropped():
        way(stage, PATIENCE)
    thing.remove(node)
    node.run("conntrack", "-F")
    with pytest.raises((OSError, AssertionError, pytest.fail.Exception)):
        way(stage, LITTLE_PATIENCE)
    assert node.apply()
    assert node.apply() == []
    node.run("conntrack", "-F")
    with stage.nothing_dropped():
        way(stage, PATIENCE)


# Nothing else is written


def known(kind: str, *words: str) -> bool:
    names = [thing.name for thing, _ in CARRIES] + list(CARRY_NONE)
    return any(name.startswith(kind) and all(word in name for word in words) for name in names)


def test_every_nft_rule_carries_something(stage: Stage) -> None:
    stage.n1.apply(BLOCKED)
    names = [thing.name for thing, _ in CARRIES] + list(CARRY_NONE)
    keys = [name.removeprefix("nft ").partition(": ") for name in names if name.startswith("nft ")]
    rules = nft_rules(stage.n1)
    assert len(rules) > 15
    for chain, text, _ in rules:
        assert [words for at, _, words in keys if at == chain and words in text], f"{chain}: {text}"


def test_every_rule_and_route_carries_something(stage: Stage) -> None:
    stage.n1.apply(HostSettings())
    addresses = {eni.primary_ip: f"eth{eni.device_index}'s address" for eni in stage.n1.enis}
    for line in stage.n1.ip("rule").splitlines():
        if "proto 158" not in line:
            continue
        priority, source, table = re.match(r"(\d+):\s+from (\S+) .*lookup (\w+)", line).groups()  # type: ignore[union-attr]
        if source in addresses:
            assert known("rule", addresses[source]), line
        else:
            assert known("rule", f"priority {priority} ", f"lookup {table}"), line
    pods = {pod.address for pod in stage.n1.pods.values()}
    for line in stage.n1.ip("route show table all proto 158").splitlines():
        destination, table = re.match(r"(\S+).* table (\d+)", line).groups()  # type: ignore[union-attr]
        if table == "1500":
            assert destination in pods
        else:
            assert known("default route" if destination == "default" else f"route {destination}", table), line


def test_every_sysctl_carries_something(stage: Stage) -> None:
    for each in sysctls(stage.n1):
        name = Path(each).name
        if name == "forwarding" and Path(each).parent.name.startswith(POD_LINK_PREFIX):
            each = POD_FORWARDING
        assert known(each) or name in CARRY_NONE, each


def sysctls(node: Node) -> list[str]:
    async def wanted() -> list[str]:
        links = Links()
        await links.open()
        try:
            return [each.name for each in desired(node.settings, node.network(), links).sysctls]
        finally:
            links.close()

    return node.place.run(lambda: asyncio.run(wanted()))
