"""Through a service, by each kind of kube-proxy's rules: from pods and nodes by its virtual address, from outside by
a node port on each of the node's addresses, and replies by the ENI where the request came in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ipamd.settings import HostSettings
from tests.netns.flows import Place, name_of, tcp, udp
from tests.netns.flows_services import NODE_PORT, PROXIES, SERVICE, Proxy, Service, served
from tests.netns.flows_stage import Stage, staged

pytestmark = [pytest.mark.netns, pytest.mark.parametrize("proxy", PROXIES, ids=name_of)]

LOCAL_BACKENDS = ["n1.0", "n1.1", "n1.2"]
REMOTE_BACKENDS = ["n2.0", "n2.1"]
BACKENDS = [*LOCAL_BACKENDS, *REMOTE_BACKENDS]
INSIDE_VPC = ("10.0.200.1", 80)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("vpc")) as made:
        yield made


@pytest.fixture(autouse=True)
def symmetric(stage: Stage) -> Iterator[None]:
    stage.forget_connections()
    with stage.nothing_dropped():
        yield


@pytest.mark.parametrize("backend", BACKENDS)
def test_from_a_pod(stage: Stage, proxy: Proxy, backend: str) -> None:
    server = stage.place(backend)
    with served(proxy, stage.n1, Service(server)):
        for client in (stage.place(name) for name in ("n1.0", "n1.1", "n1.1b", "n1.2")):
            if client != server:
                assert both(client, server, SERVICE) == {client.address}


@pytest.mark.parametrize("backend", BACKENDS)
def test_from_the_node_itself(stage: Stage, proxy: Proxy, backend: str) -> None:
    with served(proxy, stage.n1, Service(stage.place(backend))):
        assert both(stage.n1.place, stage.place(backend), SERVICE) == {stage.n1.spec.primary_ip}


@pytest.mark.parametrize("backend", LOCAL_BACKENDS)
def test_from_the_pod_that_serves_it(stage: Stage, proxy: Proxy, backend: str) -> None:
    """Hairpin: masqueraded, or else the pod would answer itself directly."""
    with served(proxy, stage.n1, Service(stage.place(backend))):
        assert both(stage.place(backend), stage.place(backend), SERVICE) == {stage.n1.spec.primary_ip}


@pytest.mark.parametrize("backend", LOCAL_BACKENDS)
def test_by_a_virtual_address_inside_the_vpc(stage: Stage, proxy: Proxy, backend: str) -> None:
    with served(proxy, stage.n1, Service(stage.place(backend), vip=INSIDE_VPC)):
        client = stage.place("n1.1b")
        assert both(client, stage.place(backend), INSIDE_VPC) == {client.address}


@pytest.mark.parametrize("vip", [SERVICE, INSIDE_VPC], ids=["out", "in"])
def test_an_endpoint_outside_the_vpc(stage: Stage, proxy: Proxy, vip: tuple[str, int]) -> None:
    """A service without a selector: where the packet really goes decides how it leaves."""
    with served(proxy, stage.n1, Service(stage.internet, vip=vip)):
        for pod in ("n1.0", "n1.1"):
            assert both(stage.place(pod), stage.internet, vip) == {stage.n1.spec.primary_ip}


@pytest.mark.parametrize("client", ["internet", "peer", "n2"])
@pytest.mark.parametrize("backend", LOCAL_BACKENDS)
def test_by_node_port_with_the_clients_address(stage: Stage, proxy: Proxy, backend: str, client: str) -> None:
    with served(proxy, stage.n1, Service(stage.place(backend), local=True)):
        for entrance in _entrances(stage, client):
            place = stage.place(client)
            assert both(place, stage.place(backend), (entrance, NODE_PORT)) == {place.address}


@pytest.mark.parametrize("client", ["internet", "peer", "n2", "n1.0", "n1.1", "n2.2"])
@pytest.mark.parametrize("backend", LOCAL_BACKENDS)
def test_by_node_port_masqueraded(stage: Stage, proxy: Proxy, backend: str, client: str) -> None:
    if client != backend:
        by_node_port(stage, proxy, backend, client, _entrances(stage, client))


@pytest.mark.parametrize("client", ["internet", "peer", "n2", "n1.0", "n1.1", "n2.2"])
@pytest.mark.parametrize("backend", REMOTE_BACKENDS)
def test_by_node_port_on_to_the_other_node(stage: Stage, proxy: Proxy, backend: str, client: str) -> None:
    by_node_port(stage, proxy, backend, client, [stage.n1.spec.primary_ip])


@pytest.mark.parametrize("client", ["peer", "n2", "n2.2"])
@pytest.mark.parametrize("backend", REMOTE_BACKENDS)
def test_by_a_secondary_enis_node_port_on_to_the_other_node(
    stage: Stage, proxy: Proxy, backend: str, client: str
) -> None:
    """The reply comes in by the primary ENI and has to leave by that where the request came in."""
    by_node_port(stage, proxy, backend, client, _entrances(stage, client)[1:])


@pytest.mark.parametrize("backend", LOCAL_BACKENDS)
def test_by_node_port_without_snat(stage: Stage, proxy: Proxy, backend: str) -> None:
    stage.n1.apply(HostSettings(snat=False))
    try:
        with served(proxy, stage.n1, Service(stage.place(backend), local=True)):
            for entrance in _entrances(stage, "peer"):
                assert both(stage.peer, stage.place(backend), (entrance, NODE_PORT)) == {stage.peer.address}
    finally:
        stage.n1.apply(HostSettings())


def by_node_port(stage: Stage, proxy: Proxy, backend: str, client: str, entrances: list[str]) -> None:
    with served(proxy, stage.n1, Service(stage.place(backend))):
        for entrance in entrances:
            own = {eni.primary_ip for eni in stage.n1.enis}
            assert both(stage.place(client), stage.place(backend), (entrance, NODE_PORT)) <= own


def both(client: Place, server: Place, to: tuple[str, int]) -> set[str]:
    """The addresses with which the client came by TCP and by UDP."""
    return {flow(client, server, to).address for flow in (tcp, udp)}


def _entrances(stage: Stage, client: str) -> list[str]:
    """The node's addresses that the client can reach: only the primary one has a public address."""
    return [eni.primary_ip for eni in stage.n1.enis if client != "internet" or eni.primary]
