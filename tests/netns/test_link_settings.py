"""Pods reach others, and are reached, whatever the node's settings for its links are.

Hardening profiles set `conf/default`, which counts for links to come, and `conf/all`, which the kernel combines with
that of a link (Documentation/networking/ip-sysctl.rst). Every IPv4 setting that this kernel has is tried with a value
that is not its default, before the first ENI and the first pod come. The pods' links are made without the plugin: the
daemon has to put right what the plugin would see to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ipamd.host import EniNetwork, HostNetwork, PodNetwork
from ipamd.sim import netns
from tests.netns.node_stage import NODE, OUTSIDE, VPC_HOST, Topology

pytestmark = pytest.mark.netns

CONF = Path("/proc/sys/net/ipv4/conf/default")
PODS = tuple(PodNetwork(f"10.0.{index}.50", f"ipm{index}", index) for index in range(3))
SERVED = replace(NODE, pods=PODS)

# Of settings that are more than a switch, each value that is not the default.
VALUES = {"arp_announce": (1, 2), "arp_ignore": (1, 2, 3, 8), "rp_filter": (1, 2)}
# mc_forwarding can't be written; force_igmp_version, medium_id and tag are no switches, and of nothing that pods use.
NOT_TRIED = {"mc_forwarding", "force_igmp_version", "medium_id", "tag"}


def cases() -> Iterator[tuple[str, str, int]]:
    for path in sorted(CONF.iterdir()):
        if path.name in NOT_TRIED:
            continue
        for value in VALUES.get(path.name, (int(path.read_text() == "0\n"),)):
            yield "default", path.name, value
            # The stage's router asks for an ENI's address, which nobody in a VPC does.
            if (path.name, value) not in (("arp_ignore", 2), ("arp_ignore", 8)):
                yield "all", path.name, value
    yield "default", "forwarding", 0


class Hardened(Topology):
    """The settings are there when the ENIs and the pods come."""

    def __init__(self, prefix: str, settings: dict[str, int]) -> None:
        super().__init__(prefix)
        self._hardened = settings

    def plug(self, eni: EniNetwork) -> None:
        netns.write_sysctls(self.node, {"ipv4/ip_forward": 1, **self._hardened})
        super().plug(eni)


def flows(stage: Topology) -> None:
    """To and from each pod. Raises TimeoutError when something does not arrive."""
    vpc, vpc_port = stage.listen("router", VPC_HOST)
    outside, outside_port = stage.listen("router", OUTSIDE)
    for index in range(3):
        pod, address = f"pod{index}", f"10.0.{index}.50"
        listener, port = stage.listen(pod, address)
        stage.connect("router", address, port, listener, source=VPC_HOST)
        stage.connect("node", address, port, listener)
        stage.connect(f"pod{(index + 1) % 3}", address, port, listener)
        assert stage.connect(pod, VPC_HOST, vpc_port, vpc) == address
        assert stage.connect(pod, OUTSIDE, outside_port, outside) == "10.0.0.10"


@pytest.mark.parametrize(("scope", "name", "value"), list(cases()))
def test_pods_are_connected_with_setting(prefix: str, scope: str, name: str, value: int) -> None:
    with Hardened(prefix, {f"ipv4/conf/{scope}/{name}": value}) as stage:
        stage.apply(SERVED)
        flows(stage)


def test_links_that_do_not_forward_are_told(prefix: str) -> None:
    off = {"ipv4/conf/eth1/forwarding": 0, "ipv4/conf/ipm2/forwarding": 0}
    with Topology(prefix) as stage:
        stage.apply(SERVED)

        async def told(network: HostNetwork) -> frozenset[str]:
            return await network.not_forwarding()

        assert stage.host(told) == frozenset()
        netns.write_sysctls(stage.node, off)
        assert stage.host(told) == {"eth1", "ipm2"}
        assert stage.apply(SERVED) == [
            "set sysctl net/ipv4/conf/eth1/forwarding=1",
            "set sysctl net/ipv4/conf/ipm2/forwarding=1",
        ]
