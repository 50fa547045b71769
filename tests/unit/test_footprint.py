"""What a node takes from its subnet, by hand-made figures: `test_plan.py` compares it with the pool itself."""

from __future__ import annotations

import pytest

from ipamd.pool.footprint import Footprint, footprint
from ipamd.pool.model import Limits, Targets

M5_LARGE = Limits(3, 10)  # 9 addresses for pods on each ENI


@pytest.mark.parametrize(
    ("targets", "pods", "cooling", "least", "most"),
    [
        (Targets(warm_ips=5, slack=8), 10, 0.0, 15, 23),
        (Targets(warm_ips=5, slack=8), 10, 1.2, 17, 25),
        (Targets(warm_ips=0, slack=0), 0, 0.0, 0, 0),
        (Targets(warm_ips=1, slack=0, minimum_ips=12), 3, 0.0, 12, 12),
        (Targets(warm_ips=1, slack=20, minimum_ips=12), 3, 0.0, 12, 24),
        (Targets(warm_enis=1, slack=2), 4, 0.0, 13, 15),
        (Targets(warm_ips=5, slack=8), 25, 0.0, 27, 27),
        (Targets(warm_ips=5, slack=8, max_pods=12), 10, 1.0, 13, 13),
        (Targets(warm_ips=5, slack=8, max_enis=2), 10, 0.0, 15, 18),
    ],
)
def test_addresses_follow_from_targets_pods_and_cooling(
    targets: Targets, pods: int, cooling: float, least: int, most: int
) -> None:
    found = footprint(targets, M5_LARGE, pods, cooling)
    assert (found.least, found.most) == (least, most)


def test_enis_are_counted_in_the_subnet() -> None:
    found = footprint(Targets(warm_ips=5, slack=8), M5_LARGE, 10)
    assert found == Footprint(pods=10, least=15, most=23, enis_least=2, enis_most=3, most_pods=27)
    assert (found.subnet_least, found.subnet_most) == (17, 26)
    assert footprint(Targets(warm_ips=0, slack=0), M5_LARGE, 0).enis_least == 1, "the primary ENI"


@pytest.mark.parametrize(
    ("targets", "most_pods"),
    [
        (Targets(), 27),
        (Targets(max_pods=12), 12),
        (Targets(max_pods=99), 27),
        (Targets(max_enis=2), 18),
        (Targets(max_enis=9), 27),
    ],
)
def test_most_pods_are_bounded_by_type_and_settings(targets: Targets, most_pods: int) -> None:
    assert footprint(targets, M5_LARGE, 0).most_pods == most_pods
