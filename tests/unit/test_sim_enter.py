"""`ipamd simulate enter`: which namespace a name means."""

from __future__ import annotations

import pytest

from ipamd.sim.enter import NoPlace, find

NAMESPACES = ["vpc1.router", "vpc1.internet", "vpc1-n1", "vpc1-n2", "vpc2.router", "vpc2-n2", "vpc2-new-n1"]


@pytest.mark.parametrize(
    ("name", "namespace"),
    [
        ("internet", "vpc1.internet"),
        ("vpc2-n2", "vpc2-n2"),
        ("new-n1", "vpc2-new-n1"),
        ("vpc2.router", "vpc2.router"),
    ],
)
def test_a_name_that_one_has(name: str, namespace: str) -> None:
    assert find(name, NAMESPACES) == namespace


def test_a_name_that_several_have_lists_them() -> None:
    with pytest.raises(NoPlace, match="several are called n2: give one of vpc1-n2, vpc2-n2"):
        find("n2", NAMESPACES)


def test_a_name_that_nobody_has_lists_what_there_is() -> None:
    with pytest.raises(NoPlace, match=r"no VPC in a box has a n9: there are vpc1-n1, .*vpc2\.router"):
        find("n9", NAMESPACES)


def test_no_vpc_at_all() -> None:
    with pytest.raises(NoPlace, match="none runs"):
        find("n1", [])
