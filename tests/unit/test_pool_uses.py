"""No address is granted that a foreign object in the kernel leads to."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import CloudErrorKind, Cooling, Use, Uses
from tests.unit.story import SUBNET, Story, addresses, observed, warm

A, B, C = addresses(3)
PRIMARY = observed("eni-0", 0, A, B, C)
ROUTE = Use("route", "route 10.0.0.10 table 254 dev eni3f", "eni3f")
RULE = Use("rule", "rule 1536: from 10.0.0.10 lookup 2")
BRIDGE = Use("route", "route 10.0.0.8/29 table 254 dev docker0", "docker0")


def node(*, warm_ips: int = 0, **kept: object) -> Story:
    story = Story(warm(warm_ips, slack=20))
    story.start(PRIMARY, **kept)
    return story


def states(story: Story) -> dict[str, str]:
    return {a.ip: a.state.value for a in story.pool.inventory.addresses.values()}


def granted(story: Story) -> set[str]:
    return {grant.attachment.address for grant in story.take(do.Grant)}


def notes(story: Story) -> list[str]:
    return [note.event for note in story.take(do.Note) if not note.event.startswith("eni.")]


def see(story: Story, where: str, use: Use) -> None:
    story.feed(on.UseSeen(IPv4Network(where), use))


def read(story: Story, **uses: Use) -> None:
    story.feed(on.UsesRead(Uses({f"10.0.0.{name[1:]}": use for name, use in uses.items()}), ()))


def cool(story: Story) -> None:
    for _ in range(2):
        story.pass_time(31)


@pytest.mark.parametrize("use", [ROUTE, RULE, Use("address", "address", "lo"), Use("neighbour", "neighbour", "eth1")])
def test_an_address_in_use_at_start_is_granted_to_nobody(use: Use) -> None:
    story = node(uses=Uses({A: use}))
    story.ask("a", "b", "c")
    assert granted(story) == {B, C}
    (note,) = [note for note in story.take(do.Note) if note.event == "address.foreign"]
    assert dict(note.fields)["cause"] == use.text


def test_an_address_that_comes_to_be_used_is_granted_to_nobody() -> None:
    story = node()
    see(story, A, ROUTE)
    see(story, B, RULE)
    story.ask("a", "b")
    assert granted(story) == {C}


def test_a_cooling_address_that_is_used_never_becomes_free() -> None:
    story = node(cooling=(Cooling(A, 1000.0),))
    see(story, A, ROUTE)
    cool(story)
    story.ask("a", "b", "c")
    assert granted(story) == {B, C}


def test_an_address_cools_and_is_free_once_its_use_has_ended() -> None:
    story = node(uses=Uses({A: ROUTE}))
    notes(story)
    read(story)
    assert states(story)[A] == "cooling"
    assert notes(story) == ["address.foreign_ended"]
    cool(story)
    story.ask("a", "b", "c")
    assert granted(story) == {A, B, C}


def test_an_address_that_is_used_stays_on_record_as_ours() -> None:
    story = node(uses=Uses({A: ROUTE}))
    own = story.pool.inventory.enis["eni-0"].own()
    assert own.addresses == (A, B, C) and own.foreign == ()
    assert states(node(own=(own,)))[A] == "free"


def test_somebody_elses_address_stays_foreign_when_a_use_ends() -> None:
    own = node().pool.inventory.enis["eni-0"].own()
    story = node(own=(type(own)("eni-0", (B, C), (A,)),), uses=Uses({A: ROUTE}))
    read(story)
    cool(story)
    assert states(story)[A] == "foreign"


def test_a_way_to_a_part_of_the_subnet_uses_all_of_it() -> None:
    story = node()
    see(story, "10.0.0.8/29", BRIDGE)
    assert set(states(story).values()) == {"foreign"}


def test_a_way_to_a_part_counts_once_the_subnet_is_known() -> None:
    story = Story(warm(0, slack=20))
    story.feed(on.Started((PRIMARY,), uses=Uses({}, {IPv4Network("10.0.0.8/29"): BRIDGE})))
    assert set(states(story).values()) == {"free"}
    story.feed(on.LinkReady(story.one(do.ConfigureLink).op, "eth0", SUBNET))
    assert set(states(story).values()) == {"foreign"}


@pytest.mark.parametrize("network", ["10.0.0.0/16", "10.0.0.0/8", "0.0.0.0/1"])
def test_a_way_to_the_subnet_or_more_uses_no_address(network: str) -> None:
    story = node()
    see(story, network, Use("route", "a VPN", "tun0"))
    assert set(states(story).values()) == {"free"}


def test_what_is_used_is_not_given_back() -> None:
    story = Story(warm(0, release_delay=0.0))
    story.start(PRIMARY)
    story.pass_time(1)
    story.take(do.DescribeEni)
    assert states(story)[A] == "releasing"
    see(story, A, ROUTE)
    assert states(story)[A] == "foreign"
    describe = next(iter(story.pool.under_way()))
    story.feed(on.EniObserved(describe.effect.op, PRIMARY))
    asked = story.take(do.UnassignAddresses)
    assert not any(A in effect.addresses for effect in asked)


def test_an_eni_is_not_given_back_while_an_address_of_it_is_used() -> None:
    story = Story(warm(0, release_delay=0.0))
    story.start(observed("eni-0", 0), observed("eni-1", 1, A, B, owned=True), uses=Uses({A: ROUTE}))
    story.pass_time(1)
    assert states(story) == {A: "foreign", B: "releasing"}


def test_a_failed_unassign_frees_nothing_that_is_used() -> None:
    story = Story(warm(0, release_delay=0.0))
    story.start(PRIMARY)
    story.pass_time(1)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, PRIMARY))
    unassign = story.one(do.UnassignAddresses)
    see(story, A, ROUTE)
    story.fail(unassign, CloudErrorKind.IN_USE, "UnassignPrivateIpAddresses")
    assert states(story)[A] == "foreign"


def test_a_route_of_ours_to_a_free_address_makes_it_that_pods() -> None:
    story = node()
    story.feed(on.PodRouteSeen(A, "ipm1"))
    (held,) = story.pool.inventory.attachments.values()
    assert (held.address, held.key.container_id) == (A, "ipm1")
    assert notes(story) == ["attachment.recovered"]


def test_a_pod_that_runs_on_after_its_release_keeps_its_address() -> None:
    story = node()
    story.ask("a")
    (ip,) = granted(story)
    story.feed(on.PodRouteSeen(ip, "ipm1"))
    story.give_back("a")
    cool(story)
    assert states(story)[ip] == "assigned"
    story.ask("b", "c", "d")
    assert ip not in granted(story)


def test_a_route_that_went_holds_its_address_no_longer() -> None:
    story = node()
    story.ask("a")
    (ip,) = granted(story)
    story.feed(on.PodRouteSeen(ip, "ipm1"))
    story.give_back("a")
    story.feed(on.PodRouteSeen(ip, ""))
    cool(story)
    assert states(story)[ip] == "free"


def test_a_route_of_a_pod_with_a_record_costs_no_turn() -> None:
    story = node()
    story.ask("a")
    (ip,) = granted(story)
    assert story.pool.handle(on.PodRouteSeen(ip, "ipm1"), story.now) == do.Turn()


def test_a_pods_address_that_leads_elsewhere_too_is_told_of_once() -> None:
    story = node()
    story.ask("a")
    (ip,) = granted(story)
    notes(story)
    see(story, ip, ROUTE)
    see(story, ip, ROUTE)
    assert notes(story) == ["address.contested"]
    assert states(story)[ip] == "assigned" and ip in story.pool.contested
    read(story)
    assert not story.pool.contested


@pytest.mark.parametrize("use", [RULE, Use("route", "a policy agent's, to our own link", "ipm1")])
def test_a_rule_or_a_route_to_the_pods_own_link_is_no_contest(use: Use) -> None:
    story = node()
    story.ask("a")
    (ip,) = granted(story)
    story.feed(on.PodRouteSeen(ip, "ipm1"))
    see(story, ip, use)
    assert not story.pool.contested
