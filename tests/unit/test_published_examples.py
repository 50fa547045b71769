"""The worked examples that the incumbent publishes for its targets, on the real pool.

Figures: docs/eni-and-ip-target.md of aws/amazon-vpc-cni-k8s (instance type, targets, pods; ENIs, secondary addresses
on each). With WARM_IP_TARGET and MINIMUM_IP_TARGET they are the same here. With WARM_ENI_TARGET they agree in the
ENIs, but the incumbent fills each ENI to the brim, where `warm_enis` is so many free addresses: where that makes a
difference, the case has both figures.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ipamd.cloud.limits import limits_of
from ipamd.pool.model import Targets
from ipamd.sim.virtual.fleet import Fleet
from ipamd.sim.virtual.kubelet import Kubelet
from ipamd.sim.virtual.node import PoolNode

SMALL, LARGE = "t3.small", "p3dn.24xlarge"


@dataclass(frozen=True)
class Example:
    """`published` and `ours` are the secondary addresses on each ENI; `ours` None: the same."""

    type: str
    warm_enis: int
    warm_ips: int
    minimum_ips: int
    pods: int
    published: tuple[int, ...]
    ours: tuple[int, ...] | None = None

    def __str__(self) -> str:
        wanted = f"warm_enis={self.warm_enis}" if self.warm_enis else f"warm_ips={self.warm_ips},{self.minimum_ips}"
        return f"{self.type}-{wanted}-{self.pods}-pods"


EXAMPLES = (
    Example(SMALL, 1, 0, 0, 0, (3,)),
    Example(SMALL, 1, 0, 0, 5, (3, 3, 3), ours=(3, 3, 2)),  # 5 in use and 3 free
    Example(SMALL, 1, 0, 0, 9, (3, 3, 3)),
    Example(SMALL, 0, 1, 1, 0, (1,)),
    Example(SMALL, 0, 1, 1, 5, (3, 3)),
    Example(SMALL, 0, 1, 1, 9, (3, 3, 3)),
    Example(SMALL, 0, 2, 5, 0, (3, 2)),
    Example(SMALL, 0, 2, 5, 5, (3, 3, 1)),
    Example(SMALL, 0, 2, 5, 9, (3, 3, 3)),
    Example(LARGE, 1, 0, 0, 0, (49,)),
    Example(LARGE, 1, 0, 0, 3, (49, 49), ours=(49, 3)),
    Example(LARGE, 1, 0, 0, 95, (49, 49, 49), ours=(49, 49, 46)),
    Example(LARGE, 0, 5, 10, 0, (10,)),
    Example(LARGE, 0, 5, 10, 7, (12,)),
    Example(LARGE, 0, 5, 10, 15, (20,)),
    Example(LARGE, 0, 5, 10, 45, (49, 1)),
)


def rest(fleet: Fleet) -> None:
    fleet.clock.run_until(fleet.clock() + 300.0)


def booted(fleet: Fleet, example: Example) -> Kubelet:
    targets = Targets(
        warm_enis=example.warm_enis,
        warm_ips=example.warm_ips,
        minimum_ips=example.minimum_ips,
        slack=0,
        release_delay=0.0,
    )
    kubelet = fleet.add(example.type, targets)
    kubelet.boot()
    rest(fleet)
    return kubelet


def addresses(kubelet: Kubelet) -> tuple[int, ...]:
    """On each ENI, as EC2 has it."""
    return tuple(sorted((len(eni.addresses) for eni in kubelet.node.instance.enis.values()), reverse=True))


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_the_pool_comes_to_rest_at_the_published_figures(example: Example) -> None:
    fleet = Fleet()
    kubelet = booted(fleet, example)
    for number in range(example.pods):
        kubelet.run(f"pod-{number}")
    rest(fleet)
    assert kubelet.pending == 0
    assert addresses(kubelet) == (example.ours or example.published)
    assert len(addresses(kubelet)) == len(example.published)


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.pods], ids=str)
def test_it_comes_back_to_where_it_was_when_the_pods_are_gone(example: Example) -> None:
    fleet = Fleet()
    kubelet = booted(fleet, example)
    before = sum(addresses(kubelet))
    for number in range(example.pods):
        kubelet.run(f"pod-{number}", 120.0)
    rest(fleet)
    rest(fleet)
    assert isinstance(kubelet.node, PoolNode) and kubelet.node.pool.counts().assigned == 0
    assert sum(addresses(kubelet)) == before


@pytest.mark.parametrize(
    ("instance_type", "most"),
    # eni-max-pods.txt of awslabs/amazon-eks-ami, less the two pods of the host's network that it counts.
    [("t3.small", 9), ("t3.medium", 15), ("m5.large", 27), ("m5.4xlarge", 232), ("c5n.18xlarge", 735)],
)
def test_max_pods_follows_from_the_instance_type(instance_type: str, most: int) -> None:
    limits = limits_of(instance_type)
    assert limits is not None and limits.max_pods == most
