"""The worked examples that the incumbent publishes for its targets, on the real pool.

Sources (only the figures are taken):

    targets page    aws/amazon-vpc-cni-k8s, docs/eni-and-ip-target.md
    README          aws/amazon-vpc-cni-k8s, README.md: "ENI Allocation", WARM_ENI_TARGET, MINIMUM_IP_TARGET, MAX_ENI
    best practices  aws/aws-eks-best-practices, content/networking/vpc-cni/index.md
    AI on EKS       awslabs/ai-on-eks, best practices, "Networking for AI"
    re:Post         AWS Knowledge Center, "eks-configure-cni-plugin-use-ip-address"
    max pods        aws/amazon-vpc-cni-k8s, misc/eni-max-pods.txt

WARM_ENI_TARGET, WARM_IP_TARGET, MINIMUM_IP_TARGET and MAX_ENI are `warm_enis`, `warm_ips`, `minimum_ips` and
`max_enis`. Everything that makes the pool keep more than its targets, or act later, is off, so that the figures are
exact. A figure is the number of secondary addresses on each ENI; where a source counts the ENIs' own (primary)
addresses as well, the case says so and has them subtracted. Where the pool comes to another result, the case has both
and the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

import pytest

from ipamd.pool.model import Limits, Targets
from ipamd.settings import PoolSettings
from ipamd.sim.virtual.clock import VirtualClock
from ipamd.sim.virtual.ec2 import Latencies, VirtualEc2
from ipamd.sim.virtual.kubelet import Kubelet
from ipamd.sim.virtual.node import PoolNode

FREE_ADDRESSES = "warm_enis asks for as many free addresses as that many ENIs hold, not for ENIs that are full"
PRIMARY_FIRST = "the same ENIs, but the primary one is filled first: it is never given back"
ONLY_WHAT_IS_SHORT = "by address, a new ENI gets what is short, as in the targets page's own 49 and 1"
NO_POD_NO_ENI = "with no pod the primary ENI's addresses are an ENI's worth, as in the targets page's own rows"


def targets(warm_enis: int = 0, warm_ips: int = 0, minimum_ips: int = 0, max_enis: int = 0) -> Targets:
    return Targets(
        warm_ips=warm_ips,
        warm_enis=warm_enis,
        minimum_ips=minimum_ips,
        max_enis=max_enis,
        slack=0,
        coalesce=0.0,
        release_delay=0.0,
    )


@dataclass(frozen=True)
class Example:
    """`type` is an instance type, or the limits of one that the source made up. `published` and `ours` are the
    secondary addresses on each ENI; `ours` None: the same."""

    source: str
    type: str | Limits
    targets: Targets
    pods: int
    published: tuple[int, ...]
    ours: tuple[int, ...] | None = None
    why: str = ""

    def __post_init__(self) -> None:
        assert (self.ours is None) == (not self.why) and self.ours != self.published

    @property
    def expected(self) -> tuple[int, ...]:
        return self.published if self.ours is None else self.ours

    def __str__(self) -> str:
        wanted = [f"{name}={getattr(self.targets, name)}" for name in ("warm_enis", "warm_ips", "minimum_ips")]
        kind = self.type if isinstance(self.type, str) else f"{self.type.max_enis}x{self.type.secondary_per_eni}"
        return " ".join([kind, *(text for text in wanted if not text.endswith("=0")), f"{self.pods} pods"])


PAGE, README, PRACTICES, AI, REPOST = "targets page", "README", "best practices", "AI on EKS", "re:Post"
SMALL, LARGE = "t3.small", "p3dn.24xlarge"  # 3 x 3, 15 x 49
ONE_ENI = targets(warm_enis=1)
ONE_IP = targets(warm_ips=1, minimum_ips=1)
TWO_OF_FIVE = targets(warm_ips=2, minimum_ips=5)
FIVE_OF_TEN = targets(warm_ips=5, minimum_ips=10)
HUNDRED = Limits(10, 11)

EXAMPLES = (
    Example(PAGE, SMALL, ONE_ENI, 0, (3,)),
    Example(PAGE, SMALL, ONE_ENI, 5, (3, 3, 3), ours=(3, 3, 2), why=FREE_ADDRESSES),
    Example(PAGE, SMALL, ONE_ENI, 9, (3, 3, 3)),
    Example(PAGE, SMALL, ONE_IP, 0, (1,)),
    Example(PAGE, SMALL, ONE_IP, 5, (3, 3)),
    Example(PAGE, SMALL, ONE_IP, 9, (3, 3, 3)),
    Example(PAGE, SMALL, TWO_OF_FIVE, 0, (2, 3), ours=(3, 2), why=PRIMARY_FIRST),
    Example(PAGE, SMALL, TWO_OF_FIVE, 5, (3, 3, 1)),
    Example(PAGE, SMALL, TWO_OF_FIVE, 9, (3, 3, 3)),
    Example(PAGE, LARGE, ONE_ENI, 0, (49,)),
    Example(PAGE, LARGE, ONE_ENI, 3, (49, 49), ours=(49, 3), why=FREE_ADDRESSES),
    Example(PAGE, LARGE, ONE_ENI, 95, (49, 49, 49), ours=(49, 49, 46), why=FREE_ADDRESSES),
    Example(PAGE, LARGE, FIVE_OF_TEN, 0, (10,)),
    Example(PAGE, LARGE, FIVE_OF_TEN, 7, (12,)),
    Example(PAGE, LARGE, FIVE_OF_TEN, 15, (20,)),
    Example(PAGE, LARGE, FIVE_OF_TEN, 45, (49, 1)),
    # 0 to 29 pods: one more ENI, 58 addresses; 30 to 58 pods: two more, 87. The "30 per ENI" has the ENI's own.
    Example(README, "m4.4xlarge", ONE_ENI, 0, (29, 29), ours=(29,), why=NO_POD_NO_ENI),
    Example(README, "m4.4xlarge", ONE_ENI, 5, (29, 29), ours=(29, 5), why=FREE_ADDRESSES),
    Example(README, "m4.4xlarge", ONE_ENI, 29, (29, 29)),
    Example(README, "m4.4xlarge", ONE_ENI, 30, (29, 29, 29), ours=(29, 29, 1), why=FREE_ADDRESSES),
    Example(README, "m4.4xlarge", ONE_ENI, 58, (29, 29, 29)),
    # Five addresses for pods on each ENI: with the sixth pod the warm one is used.
    Example(PRACTICES, "t3.medium", ONE_ENI, 5, (5, 5)),
    Example(PRACTICES, "t3.medium", ONE_ENI, 6, (5, 5, 5), ours=(5, 5, 1), why=FREE_ADDRESSES),
    # Twenty addresses for pods on each ENI, the second one attached for the sixteenth pod.
    Example(PRACTICES, Limits(2, 21), targets(warm_ips=5), 15, (20,)),
    Example(PRACTICES, Limits(2, 21), targets(warm_ips=5), 16, (20, 20), ours=(20, 1), why=ONLY_WHAT_IS_SHORT),
    # Ten addresses for pods on each ENI and a minimum of 100: ten ENIs, whatever the other two targets are.
    Example(PRACTICES, HUNDRED, targets(minimum_ips=100), 0, (10,) * 10),
    Example(PRACTICES, HUNDRED, targets(warm_ips=5, minimum_ips=100), 0, (10,) * 10),
    Example(PRACTICES, HUNDRED, targets(warm_enis=1, minimum_ips=100), 0, (10,) * 10),
    # Two nodes with a pod of CoreDNS: 20 addresses with the two ENIs' own; one without: 10 with its ENI's own.
    Example(PRACTICES, "c5.large", ONE_ENI, 1, (9, 9), ours=(9, 1), why=FREE_ADDRESSES),
    Example(PRACTICES, "c5.large", ONE_ENI, 0, (9,)),
    # 60 and 100 addresses with the two ENIs' own; here 41 and 61.
    Example(AI, "m5.8xlarge", ONE_ENI, 10, (29, 29), ours=(29, 10), why=FREE_ADDRESSES),
    Example(AI, "m5.16xlarge", ONE_ENI, 10, (49, 49), ours=(49, 10), why=FREE_ADDRESSES),
    # 45 addresses with the three ENIs' own.
    Example(REPOST, "m5.xlarge", targets(warm_enis=3), 0, (14, 14, 14)),
)

BY_SOURCE = [pytest.param(example, id=f"{example.source}: {example}") for example in EXAMPLES]
# The most pods of each node that the examples have.
FULLEST = {(e.type, e.targets): e for e in sorted(EXAMPLES, key=lambda e: e.pods) if e.pods}
NODES = [pytest.param(example, id=str(example)) for example in FULLEST.values()]


class World:
    """One node, booted and at rest, in an EC2 that does all it is asked to."""

    def __init__(self, instance_type: str | Limits, aims: Targets) -> None:
        self.clock = VirtualClock()
        ec2 = VirtualEc2(self.clock, Latencies(), Random(1))
        if isinstance(instance_type, Limits):
            self.instance = ec2.launch("m5.large", ec2.add_subnet())
            self.instance.instance.limits = instance_type
        else:
            self.instance = ec2.launch(instance_type, ec2.add_subnet())
        self.node = PoolNode(self.clock, ec2, self.instance, aims, Random(2))
        self.kubelet = Kubelet(self.clock, self.node)
        self.kubelet.boot()
        self.rest()

    def rest(self, seconds: float = 300.0) -> None:
        """Long enough for every call and every cooldown; too short for an audit."""
        self.clock.run_until(self.clock() + seconds)

    def run(self, count: int) -> list[str]:
        pods = [f"pod-{self.clock()}-{number}" for number in range(count)]
        for pod in pods:
            self.kubelet.run(pod)
        self.rest()
        return pods

    def stop(self, pods: list[str], pause: float = 0.0) -> None:
        for pod in pods:
            self.kubelet.stop(pod)
            self.rest(pause)
        self.rest()

    @property
    def addresses(self) -> tuple[int, ...]:
        """The secondary ones on each ENI, in order of device index, as EC2 has them: none is left unattached."""
        enis = self.instance.describe_all()
        attached = {eni.device_index: len(eni.addresses) for eni in enis if eni.device_index is not None}
        assert len(attached) == len(enis)
        return tuple(attached[index] for index in sorted(attached))

    @property
    def free(self) -> int:
        return self.node.pool.counts().free


@pytest.mark.parametrize("example", BY_SOURCE)
def test_the_pool_comes_to_rest_at_the_published_figures(example: Example) -> None:
    world = World(example.type, example.targets)
    world.run(example.pods)
    assert world.kubelet.pending == 0
    assert world.addresses == example.expected
    assert world.free == sum(example.expected) - example.pods
    counts = world.node.pool.counts()
    assert (counts.total, counts.assigned) == (sum(example.expected), example.pods)
    # With nothing kept beyond the targets and nothing put off, it would be easy to go back and forth.
    calls = world.instance.calls.total()
    world.rest()
    assert world.instance.calls.total() == calls


@pytest.mark.parametrize("example", BY_SOURCE)
def test_the_figures_follow_from_the_arithmetic(example: Example) -> None:
    """That of the pool's docstring, on paper: so what the pool did is not all that speaks for `ours`."""
    limits = World(example.type, example.targets).instance.limits
    per_eni, aims = limits.secondary_per_eni, example.targets
    headroom = aims.warm_enis * per_eni or aims.warm_ips
    wanted = min(max(example.pods + headroom, aims.minimum_ips), limits.max_enis * per_eni)
    assert sum(example.expected) == wanted
    assert len(example.expected) == -(-wanted // per_eni)
    assert sum(example.published) >= wanted  # where they differ, the incumbent holds more


@pytest.mark.parametrize("example", NODES)
def test_deployment_that_comes_and_goes_restores_the_targets(example: Example) -> None:
    world = World(example.type, example.targets)
    before = world.addresses
    for _ in range(2):
        pods = world.run(example.pods)
        assert world.addresses == example.expected
        world.stop(pods)
        assert world.addresses == before
        assert world.free == sum(before)


@pytest.mark.parametrize("pause", [1.0, 45.0])
@pytest.mark.parametrize("example", NODES)
def test_pods_that_go_one_by_one_leave_as_many_addresses(example: Example, pause: float) -> None:
    """As many; on which ENIs depends on where the last pods were, since what is free and wanted is never moved."""
    world = World(example.type, example.targets)
    before = sum(world.addresses)
    pods = world.run(example.pods)
    Random(3).shuffle(pods)
    world.stop(pods, pause)
    assert sum(world.addresses) == world.free == before


@pytest.mark.parametrize(
    ("wanted", "before", "after"),
    [
        # About 30 pods on a node: asked for as warm ones, 30 addresses become 60; as a minimum, 32 (README).
        (targets(warm_ips=30), 30, 60),
        (targets(warm_ips=2, minimum_ips=30), 30, 32),
    ],
    ids=["warm", "minimum"],
)
def test_a_minimum_prepares_for_a_deployment_without_doubling_it(wanted: Targets, before: int, after: int) -> None:
    world = World("m5.4xlarge", wanted)
    assert sum(world.addresses) == before
    world.run(30)
    assert sum(world.addresses) == after


def test_minimum_above_the_coming_pods_makes_them_start_at_once() -> None:
    """The targets page: for about 10 pods a minimum of 12 and 2 warm ones."""
    world = World("m5.xlarge", targets(warm_ips=2, minimum_ips=12))
    calls = world.instance.calls.total()
    world.run(10)
    assert world.addresses == (12,) and world.free == 2
    assert max(world.kubelet.waits.values()) == 0
    assert world.instance.calls.total() == calls


@pytest.mark.parametrize(
    ("instance_type", "published"),
    [("t3.small", 11), ("t3.medium", 17), ("m5.large", 29), ("m5.xlarge", 58), ("c5n.18xlarge", 737)],
)
def test_max_pods_follows_from_the_instance_type(instance_type: str, published: int) -> None:
    """ENIs x (addresses per ENI - 1) + 2, where the 2 are pods in the host's network, which need no address."""
    most = published - 2
    world = World(instance_type, targets())
    pods = world.run(most + 1)
    assert world.kubelet.pending == 1
    assert len(world.kubelet.waits) == sum(world.addresses) == most
    world.stop([pods[0]])
    assert world.kubelet.pending == 0


@pytest.mark.parametrize(("max_enis", "enis"), [(0, 3), (2, 2), (3, 3), (5, 3)])
def test_max_enis_is_never_more_than_the_instance_type_takes(max_enis: int, enis: int) -> None:
    """The README of MAX_ENI: not set or 0 means the type's own limit, which a higher figure doesn't lift."""
    world = World("m5.large", targets(warm_ips=100, max_enis=max_enis))
    assert world.addresses == (9,) * enis
    assert world.instance.calls["CreateNetworkInterface"] == enis - 1  # known beforehand, not learnt from a refusal
    world.run(9 * enis + 1)
    assert world.kubelet.pending == 1


def test_growth_takes_half_of_the_slack_along() -> None:
    """As docs/vpc-cni-settings.md says: WARM_IP_TARGET 1 and MINIMUM_IP_TARGET 1 are 1 address there."""
    aims = targets(warm_ips=1, minimum_ips=1)
    assert World("t3.small", aims).addresses == (1,)
    assert World("t3.small", replace(aims, slack=PoolSettings().slack)).addresses == (3,)
