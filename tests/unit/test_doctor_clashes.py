"""Clashes as pure comparison."""

from __future__ import annotations

import pytest

from ipamd.host import owners
from ipamd.host.clashes import Found, Weight, compare
from ipamd.host.mark_users import ALL, CONNECTION, PACKET, MarkUse, harmful
from ipamd.host.others import AnyChain, AnyLink, AnyRoute, AnyRule
from ipamd.process.clashes import ending
from ipamd.settings import HostSettings


def test_neighbours_up_to_the_edges() -> None:
    settings = HostSettings()
    rules = tuple(AnyRule(2, priority, 77, 3) for priority in (499, 501, 1500, 1516, 32001))
    routes = (AnyRoute(2, 1499, 3, "default", 1), AnyRoute(2, 1516, 3, "default", 1))
    assert compare(settings, Found(rules=rules, routes=routes)) == []


@pytest.mark.parametrize("priority", [500, 1100, 1501, 1515, 32000])
def test_rule_with_a_priority_of_ours_ends_nothing(priority: int) -> None:
    (clash,) = compare(HostSettings(), Found(rules=(AnyRule(2, priority, 77, 3),)))
    assert clash.weight is Weight.SHARED and ending([clash], pods=False) == []


def test_rule_of_vrfs_is_no_clash_and_named() -> None:
    rule = AnyRule(2, 1100, 0, 2, vrf=True)
    assert compare(HostSettings(), Found(rules=(rule,))) == []
    assert str(rule) == "ip rule 1100: from all lookup [l3mdev-table] (VRF)"


def test_running_pods_outweigh_what_they_bear() -> None:
    pod = AnyRoute(2, 1500, 158, "10.0.1.50/32", 7)
    others = AnyRoute(2, 1503, 3, "default", 1)
    link = AnyLink(7, "ipm1", "", 1500, 1501)
    (borne,) = compare(HostSettings(), Found(routes=(pod, others), links=(link,)))
    assert ending([borne], pods=True) == [] and ending([borne], pods=False) == [borne]
    (misplaced,) = compare(HostSettings(table=2500), Found(routes=(pod,), links=(link,)))
    assert ending([misplaced], pods=True) == [misplaced], "it would cut them off"


def test_routes_of_pods_that_the_kernel_made_are_nobodys() -> None:
    """An IPv6 link address brings some to every link."""
    found = Found(
        links=(AnyLink(7, "ipm1", "", 1500, 1501),),
        routes=(AnyRoute(10, 254, 2, "fe80::/64", 7), AnyRoute(10, 255, 2, "fe80::1/128", 7)),
    )
    assert compare(HostSettings(), found) == []


def test_where_bits_are_cleared_decides_whether_it_hurts() -> None:
    clears = MarkUse("ip", "t", "c", PACKET, clears=ALL)
    forgets = MarkUse("ip", "t", "c", CONNECTION, clears=ALL)

    def chain(hook: int | None, priority: int, type: str = "filter") -> AnyChain:
        return AnyChain("ip", "t", "c", hook, priority, type)

    assert harmful(clears, 0x7F, chain(0, -150)) == 0
    assert harmful(clears, 0x7F, chain(0, -90)) == 0x7F
    assert harmful(clears, 0x7F, chain(0, -90, "nat")) == 0
    assert harmful(clears, 0x7F, chain(3, 0)) == 0
    assert harmful(clears, 0x7F, chain(2, 0)) == 0x7F
    assert harmful(clears, 0x7F, chain(None, 0)) == harmful(clears, 0x7F, None) == 0x7F
    assert harmful(forgets, 0x7F, chain(0, -150)) == 0x7F
    assert harmful(forgets, 0x7F, chain(0, -100, "nat")) == 0


def test_when_no_bits_are_free_no_setting_is_proposed() -> None:
    found = Found(marks=(MarkUse("ip", "mangle", "FORWARD", PACKET, tests=ALL),))
    (clash,) = compare(HostSettings(), found)
    assert "a mask with its own bits alone" in clash.remedy and " to other bits" not in clash.remedy


@pytest.mark.parametrize(
    ("owner", "expected"),
    [
        (owners.of_chain("mangle", "KUBE-MARK-MASQ"), "Kubernetes (kube-proxy, kubelet)"),
        (owners.of_chain("aws-cni", "nat-prerouting"), "AWS VPC CNI"),
        (owners.of_chain("filter", "INPUT"), ""),
        (owners.of_link("cali0123"), "Calico"),
        (owners.of_protocol(3), ""),
        (owners.of_protocol(233), "protocol 233"),
        (owners.of_rule(1536, 2, 0), "AWS VPC CNI"),
        (owners.of_rule(7, 52, 0), "Tailscale"),
    ],
)
def test_owners(owner: str, expected: str) -> None:
    assert owner == expected
