"""What a pod must not do: send with an address that is not its own, or, where that is so set, reach the instance's
metadata, whose credentials are the node's.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ipamd.settings import HostSettings
from ipamd.sim import netns
from ipamd.sim.fabric import IMDS_ADDRESS
from tests.netns.flows import LITTLE_PATIENCE, PORT, tcp, udp
from tests.netns.flows_guard import spoof, token_status
from tests.netns.flows_stage import Stage, staged

pytestmark = pytest.mark.netns

BLOCKED = HostSettings(pod_imds="block")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """With veths as the kernel itself sets them up. Where the distribution sets even the loose reverse-path check,
    it takes a device without an address, as a pod's veth is, strictly (__fib_validate_source in the kernel)."""
    with staged(tmp_path_factory.mktemp("vpc")) as made:
        for pod in made.n1.pods.values():
            netns.write_sysctls(made.n1.spec.netns, {f"ipv4/conf/{pod.link}/rp_filter": 0})
        yield made


@pytest.fixture(scope="module")
def stage_of_one_hop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """EC2's own default hop limit."""
    with staged(tmp_path_factory.mktemp("vpc1"), hop_limit=1) as made:
        yield made


@pytest.fixture(autouse=True)
def symmetric(stage: Stage) -> Iterator[None]:
    stage.n1.apply(HostSettings())
    with stage.nothing_dropped():
        yield


# Spoofed sources


def foreign_sources(stage: Stage, attacker: str) -> list[str]:
    """Of pods here and there, of nodes, from outside, nobody's (EC2 reserves it), and loopback."""
    names = ("n1.0", "n1.1", "n1.1b", "n1.2", "n2.1", "n1", "n1:eth1", "n1:eth2", "n2", "internet", "peer")
    others = [stage.place(name).address for name in names if name != attacker]
    return [*others, "10.0.0.3", "192.0.2.77", "127.0.0.1"]


@pytest.mark.parametrize("victim", ["n1.1b", "n1.2", "n1", "n2.1", "n2"])
@pytest.mark.parametrize("attacker", ["n1.0", "n1.1"])
def test_pods_packets_with_other_sources_are_dropped_at_its_veth(stage: Stage, attacker: str, victim: str) -> None:
    assert spoof(stage, attacker, victim, foreign_sources(stage, attacker)) == []


def test_without_the_guard_they_arrive(stage: Stage) -> None:
    """Which shows that the others count what they should."""
    sources = [stage.place(name).address for name in ("n1.0", "n1.1b", "n2.1")]
    stage.n1.run("nft", "flush chain inet ipamd guard")
    assert spoof(stage, "n1.1", "n1.2", sources) == sources
    assert spoof(stage, "n1.1", "n2", [stage.place("n1.1b").address]) == [stage.place("n1.1b").address]
    assert stage.n1.apply() == ["set nft table inet ipamd"]
    assert spoof(stage, "n1.1", "n1.2", sources) == []


# Instance metadata


@pytest.mark.parametrize("client", ["n1", "n1:eth1", "n1.0", "n1.1", "n1.2"])
def test_metadata_is_there_for_node_and_pods(stage: Stage, client: str) -> None:
    assert token_status(stage.place(client)) == "HTTP/1.1 200 OK"


@pytest.mark.parametrize("pod", ["n1.0", "n1.1", "n1.2"])
def test_metadata_is_there_without_snat(stage: Stage, pod: str) -> None:
    stage.n1.apply(HostSettings(snat=False))
    assert token_status(stage.place(pod)) == "HTTP/1.1 200 OK"


@pytest.mark.parametrize("snat", [True, False])
@pytest.mark.parametrize("pod", ["n1.0", "n1.1", "n1.2"])
def test_metadata_is_refused_at_once_where_it_is_blocked(stage: Stage, pod: str, snat: bool) -> None:
    stage.n1.apply(BLOCKED.model_copy(update={"snat": snat}))
    with pytest.raises(OSError) as told:
        token_status(stage.place(pod))
    assert not isinstance(told.value, TimeoutError), told.value
    assert token_status(stage.n1.place) == "HTTP/1.1 200 OK"
    if snat:
        assert tcp(stage.place(pod), stage.internet).address == stage.n1.spec.primary_ip
    assert udp(stage.place(pod), stage.place("n2.1")).address == stage.place(pod).address


def test_imds_block_spares_other_servers_at_that_address(stage: Stage) -> None:
    """Such as kiam and kube2iam did: by DNAT to an agent on the node."""
    stage.n1.apply(BLOCKED)
    agent = stage.n1.place
    stage.n1.run(
        *("nft", "-f", "-"),
        stdin=f"""table ip agent {{ chain c {{
          type nat hook prerouting priority dstnat;
          ip daddr {IMDS_ADDRESS} tcp dport 80 dnat to {agent.address}:{PORT}
        }}; }}""",
    )
    try:
        pod = stage.place("n1.1")
        assert tcp(pod, agent, (IMDS_ADDRESS, 80)).address == pod.address
    finally:
        stage.n1.run("nft", "delete table ip agent")


def test_with_a_hop_limit_of_1_only_the_node_gets_a_token(stage_of_one_hop: Stage) -> None:
    stage = stage_of_one_hop
    assert token_status(stage.n1.place) == "HTTP/1.1 200 OK"
    for pod in ("n1.0", "n1.1"):
        with pytest.raises(TimeoutError):
            token_status(stage.place(pod), LITTLE_PATIENCE)
