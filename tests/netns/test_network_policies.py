"""A policy engine's iptables rules on the way of our pods' packets: it sees each of them, with the pods' own
addresses, whichever ENI they are on and wherever they go, and what it lets through works.

The rules are those of kube-router's policy controller (v2.1, pkg/controllers/netpol) for one pod with a policy for
both directions, with plain addresses in the place of its ipsets: chains, marks and their order.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ipamd.host.clashes import find_clashes
from ipamd.settings import HostSettings
from ipamd.sim import netns
from tests.netns.flows import LITTLE_PATIENCE, PORT, PROTOCOLS, Flow, Place, name_of, tcp, udp
from tests.netns.flows_services import PROXIES, SERVICE, Proxy, Service, served
from tests.netns.flows_stage import Node, Stage, staged

pytestmark = pytest.mark.netns

BINARIES = ("iptables-nft", "iptables-legacy")
# The pod with a policy, those that it may talk to, and others: on each ENI of its own node and of another one.
POD, FRIENDS, OTHERS = "n1.1", ("n1.2", "n2.1"), ("n1.0", "n1.1b", "n2.2", "n2.0")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("vpc")) as made:
        yield made


@pytest.fixture(autouse=True)
def symmetric(stage: Stage) -> Iterator[None]:
    stage.forget_connections()
    with stage.nothing_dropped():
        yield


@pytest.fixture(params=BINARIES)
def ipt(request: pytest.FixtureRequest) -> str:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    binary: str = request.param
    return binary


def rules(pod: str, friends: list[str]) -> list[str]:
    """For the table filter: the pod may talk to its friends and they to it, at one port; its own node may at any."""
    firewall, policy = "KUBE-POD-FW-TEST", "KUBE-NWPLCY-TEST"
    hooks = {"INPUT": "KUBE-ROUTER-INPUT", "FORWARD": "KUBE-ROUTER-FORWARD", "OUTPUT": "KUBE-ROUTER-OUTPUT"}
    lines = [f"-N {chain}" for chain in (*hooks.values(), firewall, policy)]
    lines += [f'-I {hook} 1 -m comment --comment "kube-router netpol" -j {chain}' for hook, chain in hooks.items()]
    lines += [f"-A {chain} -d {pod} -j {firewall}" for hook, chain in hooks.items() if hook != "INPUT"]
    lines += [f"-A {chain} -s {pod} -j {firewall}" for chain in hooks.values()]
    accept = "-m mark --mark 0x20000/0x20000 -j ACCEPT"
    lines += [f"-A {chain} {accept}" for chain in hooks.values()]
    for friend in friends:
        for way in (f"-s {friend} -d {pod}", f"-s {pod} -d {friend}"):
            for protocol in ("tcp", "udp"):
                match = f"-A {policy} {way} -p {protocol} --dport {PORT}"
                lines += [
                    f"{match} -j MARK --set-xmark 0x10000/0x10000",
                    f"{match} -m mark --mark 0x10000/0x10000 -j RETURN",
                ]
    return [
        *lines,
        f"-A {firewall} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        f"-A {firewall} -m conntrack --ctstate INVALID -j DROP",
        f"-A {firewall} -m addrtype --src-type LOCAL -d {pod} -j ACCEPT",
        f"-A {firewall} -j {policy}",
        f"-A {firewall} -m mark ! --mark 0x10000/0x10000 -j REJECT",
        f"-A {firewall} -j MARK --set-mark 0/0x10000",
        f"-A {firewall} -j MARK --set-mark 0x20000/0x20000",
    ]


@contextmanager
def enforced(stage: Stage, node: Node, ipt: str, pod: str, friends: tuple[str, ...]) -> Iterator[None]:
    lines = rules(stage.place(pod).address, [stage.place(friend).address for friend in friends])
    script = "\n".join(["*filter", *lines, "COMMIT", ""])
    node.run(f"{ipt}-restore", "--noflush", stdin=script)
    try:
        yield
    finally:
        node.run(ipt, "-t", "filter", "-F")
        node.run(ipt, "-t", "filter", "-X")


def passes(flow: Flow, client: Place, server: Place, to: tuple[str, int] | None = None) -> bool:
    try:
        seen = flow(client, server, to, patience=LITTLE_PATIENCE)
    except OSError:  # refused by the engine, or no answer
        return False
    assert seen.address == client.address
    return True


@pytest.mark.parametrize("flow", PROTOCOLS, ids=name_of)
def test_a_pod_is_reached_by_those_alone_that_may(stage: Stage, ipt: str, flow: Flow) -> None:
    pod = stage.place(POD)
    with enforced(stage, stage.n1, ipt, POD, FRIENDS):
        assert {name for name in (*FRIENDS, *OTHERS) if passes(flow, stage.place(name), pod)} == set(FRIENDS)
        assert passes(flow, stage.n1.place, pod), "from its own node, as probes are"
        assert not passes(flow, stage.n2.place, pod)
    assert passes(flow, stage.place(OTHERS[0]), pod), "without the rules"


@pytest.mark.parametrize("flow", PROTOCOLS, ids=name_of)
def test_a_pod_reaches_those_alone_that_it_may(stage: Stage, ipt: str, flow: Flow) -> None:
    pod = stage.place(POD)
    everybody = (*FRIENDS, *OTHERS, "n1", "n2", "internet")
    with enforced(stage, stage.n1, ipt, POD, FRIENDS):
        assert {name for name in everybody if passes(flow, pod, stage.place(name))} == set(FRIENDS)


@pytest.mark.parametrize("proxy", PROXIES, ids=name_of)
@pytest.mark.parametrize("backend", FRIENDS)
def test_a_policy_holds_for_a_services_backend(stage: Stage, ipt: str, proxy: Proxy, backend: str) -> None:
    """Of the two addresses only the service's is translated before postrouting."""
    pod, server = stage.place(POD), stage.place(backend)
    for friends in (FRIENDS, ()):
        with enforced(stage, stage.n1, ipt, POD, friends), served(proxy, stage.n1, Service(server)):
            assert passes(tcp, pod, server, SERVICE) == passes(udp, pod, server, SERVICE) == bool(friends)


def test_an_engines_rules_are_no_clash(stage: Stage, ipt: str) -> None:
    with enforced(stage, stage.n1, ipt, POD, FRIENDS):
        found = netns.run_in(stage.n1.spec.netns, lambda: asyncio.run(find_clashes(HostSettings())))
        assert [str(clash) for clash in found] == []
