"""The numbers of the node's network: tables, rules, marks and groups follow from the settings and the ENIs alone."""

from __future__ import annotations

from dataclasses import replace
from socket import AF_INET, AF_INET6

import pytest

from ipamd.host import EniNetwork, HostError, NodeNetwork, PodNetwork, link_group
from ipamd.host.desired import Address, Desired, LinkWish, Route, Rule, desired, mark
from ipamd.host.difference import Found, SetSysctl, difference
from ipamd.host.links import Link
from ipamd.settings import HostSettings

PRIMARY = EniNetwork("eni-0", "02:00:00:00:00:00", 0, True, "10.0.0.10", "10.0.0.0/24")
FIRST = EniNetwork("eni-1", "02:00:00:00:00:01", 1, False, "10.0.1.10", "10.0.1.0/24")
THIRD = EniNetwork("eni-3", "02:00:00:00:00:03", 3, False, "10.0.3.70", "10.0.3.64/26")
NODE = NodeNetwork((PRIMARY, FIRST, THIRD), ("10.0.0.0/16",))


class Links:
    """The links of a node, made for the test."""

    def __init__(self, *links: Link) -> None:
        self._links = links

    def by_mac(self, mac: str) -> Link | None:
        return next((link for link in self._links if link.mac == mac), None)

    def by_name(self, name: str) -> Link | None:
        return next((link for link in self._links if link.name == name), None)


ENI_LINKS = (
    Link(2, "ens5", PRIMARY.mac, 9001, True),
    Link(3, "ens6", FIRST.mac, 9001, False),
    Link(4, "ens8", THIRD.mac, 9001, False),
)
LINKS = Links(*ENI_LINKS)


def wish(settings: HostSettings | None = None, node: NodeNetwork = NODE, links: Links = LINKS) -> Desired:
    return desired(settings or HostSettings(), node, links)


def test_rules_grow_with_enis_and_not_with_pods() -> None:
    assert sorted(wish().rules) == [
        Rule(500, 1500),
        Rule(1100, 254, 0x40, 0x40),
        Rule(1501, 1501, 0x1, 0x7F),
        Rule(1503, 1503, 0x3, 0x7F),
        Rule(32000, 1501, source="10.0.1.10"),
        Rule(32000, 1503, source="10.0.3.70"),
    ]
    assert wish(node=replace(NODE, pods=(PodNetwork("10.0.1.50", "ipm1", 1),))).rules == wish().rules


def test_the_gateway_is_the_first_host_address_of_the_subnet() -> None:
    assert sorted(wish().routes) == [
        Route(1501, 3, gateway="10.0.1.1"),
        Route(1501, 3, destination="10.0.1.1"),
        Route(1503, 4, gateway="10.0.3.65"),
        Route(1503, 4, destination="10.0.3.65"),
    ]


def test_the_system_alone_gives_the_primary_eni_its_address() -> None:
    wanted = wish(HostSettings(mtu=1400))
    assert wanted.links == tuple(LinkWish(link, mtu=1400) for link in ENI_LINKS)
    assert wanted.addresses == {Address(3, "10.0.1.10"), Address(4, "10.0.3.70")}


def test_a_primary_eni_alone_needs_no_table_of_its_own() -> None:
    wanted = wish(node=NodeNetwork((PRIMARY,), ("10.0.0.0/16",)))
    assert sorted(wanted.rules) == [Rule(500, 1500), Rule(1100, 254, 0x40, 0x40)]
    assert not wanted.routes


def test_missing_device_is_skipped_unless_it_is_the_primary() -> None:
    wanted = wish(links=Links(*ENI_LINKS[:2]))
    assert wanted.enis == (PRIMARY, FIRST)
    assert wanted.rules == wish(node=replace(NODE, enis=(PRIMARY, FIRST))).rules
    with pytest.raises(HostError, match=PRIMARY.mac):
        wish(links=Links(*ENI_LINKS[1:]))


def test_a_pod_has_a_route_to_its_veth_and_the_group_of_its_eni() -> None:
    veth = Link(9, "ipm1", "0a:59:0a:00:01:32", 9001, True, 1501)
    node = replace(NODE, pods=(PodNetwork("10.0.1.50", "ipm1", 1), PodNetwork("10.0.1.51", "ipm2", 1)))
    wanted = wish(node=node, links=Links(*ENI_LINKS, veth))
    assert wanted.routes - wish().routes == {Route(1500, 9, "10.0.1.50")}, "one without a veth is still being made"
    assert wanted.links[3:] == (LinkWish(veth, group=1501),)


def test_each_link_of_ours_forwards_whatever_the_default_is() -> None:
    veth = Link(9, "ipm1", "0a:59:0a:00:01:32", 9001, True, 1501)
    node = replace(NODE, pods=(PodNetwork("10.0.1.50", "ipm1", 1),))
    wanted = wish(node=node, links=Links(*ENI_LINKS, veth))
    found = {sysctl.name: sysctl for sysctl in wanted.sysctls}
    assert {sysctl.name: sysctl.forwards for sysctl in wanted.sysctls if sysctl.forwards} == {
        f"ipv4/conf/{link.name}/forwarding": link.index for link in (*ENI_LINKS, veth)
    }
    state = {name: sysctl.value for name, sysctl in found.items()}

    def steps(**changed: str) -> list[str]:
        sysctls = state | {f"ipv4/{name.replace('__', '/')}": value for name, value in changed.items()}
        found = Found(sysctls, wanted.addresses, frozenset(), wanted.rules, 158, True)
        return [step.what for step in difference(wanted, found) if isinstance(step, SetSysctl)]

    assert steps() == []
    assert steps(conf__ipm1__forwarding="0") == ["sysctl net/ipv4/conf/ipm1/forwarding=1"]
    # The kernel turns all of them on with that of the node.
    assert steps(ip_forward="0", conf__ipm1__forwarding="0") == ["sysctl net/ipv4/ip_forward=1"]


def test_ipv6_has_the_same_layout() -> None:
    six = [replace(eni, primary_ip6=f"2001:db8::{eni.device_index}:10") for eni in NODE.enis]
    node = replace(NODE, enis=tuple(six), pods=(PodNetwork("2001:db8::1:50", "ipm1", 1),))
    wanted = wish(node=node, links=Links(*ENI_LINKS, Link(9, "ipm1", "", 9001, True, 1501)))
    four = wish()
    assert {replace(rule, family=AF_INET) for rule in wanted.rules if not rule.source} == {
        rule for rule in four.rules if not rule.source
    }
    assert sorted(wanted.routes - four.routes) == [
        Route(1500, 9, "2001:db8::1:50", family=AF_INET6),
        Route(1501, 3, gateway="fe80:ec2::1", family=AF_INET6),
        Route(1501, 3, destination="fe80:ec2::1", family=AF_INET6),
        Route(1503, 4, gateway="fe80:ec2::1", family=AF_INET6),
        Route(1503, 4, destination="fe80:ec2::1", family=AF_INET6),
    ]
    names = [sysctl.name for sysctl in wanted.sysctls]
    assert names.index("ipv6/conf/ens5/accept_ra") < names.index("ipv6/conf/all/forwarding")
    assert not any("ipv6" in sysctl.name for sysctl in four.sysctls)


def test_other_numbers() -> None:
    settings = HostSettings(table=3000, rule_eni=700, mark_mask=0xF00, main_mark=0x1000)
    assert link_group(settings, 0) == 3000
    assert link_group(settings, 3) == 3003
    assert mark(settings, 3) == 0x300
    assert Rule(703, 3003, 0x300, 0x1F00) in wish(settings).rules


def test_eni_index_too_large_for_the_mark_is_refused() -> None:
    settings = HostSettings(mark_mask=0x3)
    assert mark(settings, 3) == 3
    with pytest.raises(HostError, match=r"host\.mark_mask 0x3 has room for device indexes up to 3"):
        mark(settings, 4)


def test_cidrs_of_vpc_and_exclusions_are_one_set_without_overlap() -> None:
    settings = HostSettings(snat_exclude=["10.0.0.0/8", "192.168.0.0/24", "192.168.1.0/24"])
    assert wish(settings).table.inside == ("10.0.0.0/8", "192.168.0.0/23")


def test_without_snat_nothing_is_rewritten() -> None:
    assert wish().table.snat_to == "10.0.0.10"
    assert wish(HostSettings(snat=False)).table.snat_to == ""
