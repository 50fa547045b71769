"""The embedded table of what instance types allow."""

from __future__ import annotations

import pytest

from ipamd.cloud.limits import limits_of, network_cards, table
from ipamd.pool.model import Limits


@pytest.mark.parametrize(
    ("instance_type", "limits"),
    [
        ("m5.large", Limits(3, 10)),
        ("c5.large", Limits(3, 10)),
        ("t3.nano", Limits(2, 2)),
        ("c5n.18xlarge", Limits(15, 50)),
        # Four network cards with 15 ENIs each: only the first card counts.
        ("p4d.24xlarge", Limits(15, 50)),
    ],
)
def test_figures_are_those_of_network_card_zero(instance_type: str, limits: Limits) -> None:
    assert limits_of(instance_type) == limits


@pytest.mark.parametrize(
    ("instance_type", "cards"), [("m5.large", 1), ("p4d.24xlarge", 4), ("p5.48xlarge", 32), ("m99.large", 1)]
)
def test_a_type_has_the_cards_that_ec2_tells(instance_type: str, cards: int) -> None:
    assert network_cards(instance_type) == cards


def test_an_unknown_type_is_none() -> None:
    assert limits_of("m99.large") is None


def test_every_figure_makes_sense() -> None:
    assert len(table()) > 1000
    for instance_type, limits in table().items():
        family, _, size = instance_type.partition(".")
        assert family and size
        assert 1 <= limits.max_enis <= 64, instance_type
        assert 2 <= limits.addresses_per_eni <= 64, instance_type
