"""The numbers of the node's network: tables, rules, marks and groups follow from the settings and the ENIs alone."""

from __future__ import annotations

import pytest

from ipamd.host import EniNetwork, HostError, NodeNetwork, link_group
from ipamd.host.desired import Device, Route, Rule, desired, mark, table
from ipamd.settings import HostSettings

PRIMARY = EniNetwork("eni-0", "02:00:00:00:00:00", 0, True, "10.0.0.10", "10.0.0.0/24")
FIRST = EniNetwork("eni-1", "02:00:00:00:00:01", 1, False, "10.0.1.10", "10.0.1.0/24")
THIRD = EniNetwork("eni-3", "02:00:00:00:00:03", 3, False, "10.0.3.70", "10.0.3.64/26")
NODE = NodeNetwork((PRIMARY, FIRST, THIRD), ("10.0.0.0/16",))
NAMES = {PRIMARY.mac: "ens5", FIRST.mac: "ens6", THIRD.mac: "ens8"}


def test_rules_grow_with_enis_and_not_with_pods() -> None:
    assert sorted(desired(HostSettings(), NODE).rules) == [
        Rule(500, 1500),
        Rule(1000, 254, 0x40, 0x40),
        Rule(1501, 1501, 0x1, 0x7F),
        Rule(1503, 1503, 0x3, 0x7F),
        Rule(32000, 1501, source="10.0.1.10"),
        Rule(32000, 1503, source="10.0.3.70"),
    ]


def test_the_gateway_is_the_first_host_address_of_the_subnet() -> None:
    assert sorted(desired(HostSettings(), NODE).routes) == [
        Route(1501, FIRST.mac, gateway="10.0.1.1"),
        Route(1501, FIRST.mac, destination="10.0.1.1"),
        Route(1503, THIRD.mac, gateway="10.0.3.65"),
        Route(1503, THIRD.mac, destination="10.0.3.65"),
    ]


def test_the_system_alone_gives_the_primary_eni_its_address() -> None:
    devices = desired(HostSettings(mtu=1400), NODE).devices
    assert devices[:2] == (Device(PRIMARY.mac, "", 1400), Device(FIRST.mac, "10.0.1.10", 1400))


def test_a_primary_eni_alone_needs_no_table_of_its_own() -> None:
    wish = desired(HostSettings(), NodeNetwork((PRIMARY,), ("10.0.0.0/16",)))
    assert sorted(wish.rules) == [Rule(500, 1500), Rule(1000, 254, 0x40, 0x40)]
    assert not wish.routes


def test_other_numbers() -> None:
    settings = HostSettings(table=3000, rule_eni=700, mark_mask=0xF00, main_mark=0x1000)
    assert link_group(settings, 0) == 3000
    assert link_group(settings, 3) == 3003
    assert mark(settings, 3) == 0x300
    assert Rule(703, 3003, 0x300, 0x1F00) in desired(settings, NODE).rules


def test_an_index_that_the_mark_has_no_room_for_is_refused_rather_than_cut() -> None:
    settings = HostSettings(mark_mask=0x3)
    assert mark(settings, 3) == 3
    with pytest.raises(HostError, match=r"host\.mark_mask 0x3 has room for device indexes up to 3"):
        mark(settings, 4)


def test_cidrs_of_the_vpc_and_exclusions_are_one_set_without_overlap() -> None:
    settings = HostSettings(snat_exclude=["10.0.0.0/8", "192.168.0.0/24", "192.168.1.0/24"])
    assert table(settings, NODE, NAMES).inside == ("10.0.0.0/8", "192.168.0.0/23")


def test_without_snat_nothing_is_rewritten() -> None:
    assert table(HostSettings(), NODE, NAMES).snat_to == "10.0.0.10"
    assert table(HostSettings(snat=False), NODE, NAMES).snat_to == ""
