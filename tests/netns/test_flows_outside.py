"""From pods to outside of the VPC: with the primary address and a random port, or untranslated where that was asked
for; and what comes back, ICMP and fragments included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise

import pytest

from ipamd.settings import HostSettings
from tests.netns.flows import (
    PORT,
    PROTOCOLS,
    Flow,
    name_of,
    ping,
    tcp,
    udp,
    udp_client,
    udp_server,
)
from tests.netns.flows_stage import Stage, staged

pytestmark = pytest.mark.netns

PODS = ["n1.0", "n1.1", "n1.2"]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("vpc")) as made:
        yield made


@pytest.fixture(autouse=True)
def symmetric(stage: Stage) -> Iterator[None]:
    stage.n1.apply(HostSettings())
    with stage.nothing_dropped():
        yield


@pytest.mark.parametrize("server", ["internet", "internet2"])
@pytest.mark.parametrize("pod", PODS)
@pytest.mark.parametrize("flow", PROTOCOLS, ids=name_of)
def test_a_pod_goes_out_with_the_primary_address(stage: Stage, flow: Flow, pod: str, server: str) -> None:
    assert flow(stage.place(pod), stage.place(server)).address == stage.n1.spec.primary_ip


@pytest.mark.parametrize("pod", PODS)
def test_echo(stage: Stage, pod: str) -> None:
    ping(stage.place(pod), stage.internet.address)
    ping(stage.place(pod), stage.internet.address, size=20_000)


@pytest.mark.parametrize("pod", PODS)
def test_datagrams_in_fragments_are_translated_whole(stage: Stage, pod: str) -> None:
    assert udp(stage.place(pod), stage.internet, size=20_000).address == stage.n1.spec.primary_ip


@pytest.mark.parametrize("flow", PROTOCOLS, ids=name_of)
def test_ports_are_random_and_not_the_clients(stage: Stage, flow: Flow) -> None:
    """Pods that all use one port, which would be kept as long as it is free, or counted up from."""
    pods = [stage.place(pod) for pod in PODS]
    ports = []
    for client_port in range(20_000, 20_010):
        for pod in pods:
            seen = flow(pod, stage.internet, port=client_port)
            assert seen.client_port == client_port
            ports.append(seen.port)
    # Each of the 30 may be one of these ten by chance: one is in a run of 200, two in one of 100,000.
    assert sum(port in range(20_000, 20_010) for port in ports) < 2
    assert len(set(ports)) >= len(ports) - 2  # 30 of 64,512
    steps = [later - earlier for earlier, later in pairwise(ports)]
    assert sum(abs(step) > 1000 for step in steps) > len(steps) * 3 / 4
    assert max(ports) - min(ports) > 30_000


@pytest.mark.parametrize(
    "settings", [HostSettings(snat=False), HostSettings(snat_exclude=["192.0.2.0/24"])], ids=["off", "excluded"]
)
@pytest.mark.parametrize("pod", PODS)
@pytest.mark.parametrize("flow", PROTOCOLS, ids=name_of)
def test_pod_without_snat_leaves_by_its_own_eni_and_address(
    stage: Stage, flow: Flow, pod: str, settings: HostSettings
) -> None:
    stage.n1.apply(settings)
    place = stage.place(pod)
    seen = flow(place, stage.peer, port=20_000)
    assert (seen.address, seen.port) == (place.address, 20_000)
    ping(place, stage.peer.address, size=20_000)


def test_what_is_not_excluded_is_translated_still(stage: Stage) -> None:
    stage.n1.apply(HostSettings(snat_exclude=["192.0.2.0/24"]))
    for pod in PODS:
        assert tcp(stage.place(pod), stage.internet).address == stage.n1.spec.primary_ip


@pytest.mark.parametrize("settings", [HostSettings(), HostSettings(snat_exclude=["192.0.2.0/24"])], ids=["", "excl."])
@pytest.mark.parametrize("pod", PODS)
@pytest.mark.parametrize("flow", PROTOCOLS, ids=name_of)
def test_who_comes_from_another_network_is_answered_by_that_eni(
    stage: Stage, flow: Flow, pod: str, settings: HostSettings
) -> None:
    """Even where the pod's own packets to there would be translated."""
    stage.n1.apply(settings)
    assert flow(stage.peer, stage.place(pod)).address == stage.peer.address


@pytest.mark.parametrize("pod", PODS)
def test_port_unreachable_comes_back_to_the_pod(stage: Stage, pod: str) -> None:
    with udp_client(stage.place(pod), (stage.internet.address, PORT)) as client:
        client.settimeout(5.0)
        client.send(b"?")
        with pytest.raises(ConnectionRefusedError):
            client.recv(1)


def test_many_pods_share_a_port_of_the_server(stage: Stage) -> None:
    """Each gets its own answer."""
    with ExitStack() as stack:
        server = stack.enter_context(udp_server(stage.internet))
        server.settimeout(5.0)
        to = (stage.internet.address, PORT)
        clients = [stack.enter_context(udp_client(stage.place(pod), to, 20_000)) for pod in PODS]
        for number, client in enumerate(clients):
            client.settimeout(5.0)
            client.send(bytes([number]))
        received = [server.recvfrom(1) for _ in clients]
        assert len({peer for _, peer in received}) == len(clients)
        for message, peer in received:
            server.sendto(message, peer)
        for number, client in enumerate(clients):
            assert client.recv(1) == bytes([number])
