"""Between pods, and between pods and nodes: TCP, UDP and ICMP, large datagrams in fragments, jumbo frames."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.flows import PROTOCOLS, Flow, name_of, ping
from tests.netns.flows_stage import Stage, staged

pytestmark = pytest.mark.netns

ON_ONE_NODE = [
    ("n1.1", "n1.1b"),  # of the same ENI
    ("n1.0", "n1.1"),
    ("n1.1", "n1.0"),
    ("n1.1", "n1.2"),
]
ACROSS = [(f"n1.{one}", f"n2.{other}") for one in range(3) for other in range(3)]
WITH_NODES = [
    ("n1", "n1.0"),
    ("n1", "n1.1"),
    ("n1.0", "n1"),
    ("n1.1", "n1"),
    ("n1.1", "n1:eth1"),
    ("n1.1", "n1:eth2"),
    ("n1:eth1", "n1.1"),
    ("n1:eth1", "n1.2"),
    ("n1", "n2.0"),
    ("n1", "n2.2"),
    ("n2.0", "n1"),
    ("n2.2", "n1"),
    ("n2.1", "n1:eth2"),
]
OF_NODES = [
    *((f"n1:eth{i}", "n2") for i in range(3)),
    ("n1:eth1", "n2:eth2"),
    ("n1:eth2", "n2.1"),
    ("n1:eth1", "peer"),
]
ALL = [*ON_ONE_NODE, *ACROSS, *WITH_NODES, *OF_NODES]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("vpc")) as made:
        yield made


@pytest.fixture(autouse=True)
def symmetric(stage: Stage) -> Iterator[None]:
    with stage.nothing_dropped():
        yield


@pytest.mark.parametrize(("client", "server"), ALL)
@pytest.mark.parametrize("flow", PROTOCOLS, ids=name_of)
def test_it_gets_there_and_back_with_its_own_address(stage: Stage, flow: Flow, client: str, server: str) -> None:
    one, other = stage.place(client), stage.place(server)
    assert flow(one, other).address == one.address


@pytest.mark.parametrize(("client", "server"), ALL)
def test_echo(stage: Stage, client: str, server: str) -> None:
    one, other = stage.place(client), stage.place(server)
    ping(one, other.address)
    ping(one, other.address, size=8973)  # a jumbo frame, whole
    ping(one, other.address, size=20_000)  # in fragments


@pytest.mark.parametrize(("client", "server"), [*ON_ONE_NODE, *ACROSS, ("n1.1", "n1"), ("n1:eth1", "n2.2")])
def test_datagrams_in_fragments(stage: Stage, client: str, server: str) -> None:
    udp = PROTOCOLS[1]
    assert udp(stage.place(client), stage.place(server), size=20_000).address == stage.place(client).address
