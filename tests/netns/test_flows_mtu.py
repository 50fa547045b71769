"""Where a path takes only smaller packets than its ends: the kernel learns it from ICMP, on either side of a NAT."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.netns.flows import (
    PATIENCE,
    PORT,
    Place,
    never_fragment,
    path_mtu,
    tcp,
    udp,
    udp_client,
    udp_server,
)
from tests.netns.flows_stage import Stage, staged

pytestmark = pytest.mark.netns

PODS = ["n1.0", "n1.1", "n1.2"]
JUMBO = 9001
NARROW = 1400
LARGE = 400_000  # bytes: some hundred packets
HEADERS = 28  # of IPv4 and UDP


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("vpc")) as made:
        yield made


@pytest.fixture(autouse=True)
def symmetric(stage: Stage) -> Iterator[None]:
    for node in stage.nodes.values():
        for place in (node.place, *node.pods.values()):
            place.command("ip", "route", "flush", "cache")
    with stage.nothing_dropped():
        yield


@contextmanager
def narrow(stage: Stage, place: Place) -> Iterator[None]:
    """Beyond the router, on the way to there."""
    stage.call(stage.vpc.fabric.limit_mtu(place.address, NARROW))
    try:
        yield
    finally:
        stage.call(stage.vpc.fabric.limit_mtu(place.address, 0))


def known_mtu(client: Place, to: str) -> str:
    """What the kernel's cache of routes says of the way to there."""
    return client.command("ip", "route", "get", to).stdout


@pytest.mark.parametrize("server", ["n2", "n2.0", "n2.1", "peer"])
@pytest.mark.parametrize("client", [*PODS, "n1", "n1:eth1"])
def test_a_large_tcp_transfer_learns_it(stage: Stage, client: str, server: str) -> None:
    """To the peer a pod is translated, and the router's word comes to the node's address."""
    one, other = stage.place(client), stage.place(server)
    with narrow(stage, other):
        tcp(one, other, size=LARGE)
        options = ["from", one.address] if one.bound else []
        route = one.command("ip", "route", "get", other.address, *options).stdout
        assert f"mtu {NARROW}" in route, route


@pytest.mark.parametrize(
    ("server", "mtu"), [("n2.0", NARROW), ("n2.1", NARROW), ("peer", NARROW), ("internet", 1500)]
)
@pytest.mark.parametrize("client", PODS)
def test_a_large_datagram_that_may_not_be_fragmented_learns_it(
    stage: Stage, client: str, server: str, mtu: int
) -> None:
    """Beyond the internet gateway it is 1500 anyway, and the pod's own is 9001."""
    one, other = stage.place(client), stage.place(server)
    with narrow(stage, other if mtu == NARROW else stage.peer), udp_server(other) as listener:
        listener.settimeout(PATIENCE)
        with udp_client(one, (other.address, PORT)) as sender:
            never_fragment(sender)
            assert path_mtu(sender) == JUMBO
            sender.settimeout(PATIENCE)
            sender.send(bytes(JUMBO - HEADERS))
            with pytest.raises(OSError) as told:
                sender.recv(1)  # what the network had to say of the datagram
            assert told.value.errno == errno.EMSGSIZE
            assert path_mtu(sender) == mtu
            assert f"mtu {mtu}" in known_mtu(one, other.address)
            with pytest.raises(OSError) as refused:
                sender.send(bytes(mtu - HEADERS + 1))
            assert refused.value.errno == errno.EMSGSIZE
            sender.send(bytes(mtu - HEADERS))
            assert len(listener.recv(1 << 16)) == mtu - HEADERS


@pytest.mark.parametrize("server", ["n2.1", "peer", "internet"])
@pytest.mark.parametrize("client", PODS)
def test_what_may_be_fragmented_gets_through(stage: Stage, client: str, server: str) -> None:
    one, other = stage.place(client), stage.place(server)
    with narrow(stage, other):
        udp(one, other, size=20_000)


@pytest.mark.parametrize("client", PODS)
def test_jumbo_pods_beyond_the_internet_gateway(stage: Stage, client: str) -> None:
    """Large transfers in both directions; the servers there have 1500 themselves."""
    tcp(stage.place(client), stage.internet, size=LARGE)
    udp(stage.place(client), stage.internet, size=20_000)


@pytest.mark.parametrize("server", PODS)
def test_a_server_learns_of_its_clients_path(stage: Stage, server: str) -> None:
    """The large packets are the replies: the router's word reaches the pod by the connection it is about."""
    one = stage.peer
    with narrow(stage, one):
        tcp(one, stage.place(server), size=LARGE)
        assert f"mtu {NARROW}" in known_mtu(stage.place(server), one.address)
