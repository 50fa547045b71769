"""What an EC2 reply says of addresses is checked before any of them is granted."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network

import pytest

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import CreatedEni, DropIntent, Limits, PutIntent
from tests.unit.story import Story, observed, warm

SUBNET = IPv4Network("10.0.0.0/24")
OWN = "10.0.0.4"


def node(want: int = 2, *held: str, limits: Limits | None = None) -> Story:
    """Its ENI is ready, in a /24, and `want` addresses have been asked for."""
    story = Story(warm(want), limits or Limits(1, 10))
    story.feed(on.Started((observed("eni-0", 0, *held),)))
    story.feed(on.LinkReady(story.one(do.ConfigureLink).op, "eth0", SUBNET))
    return story


def states(story: Story) -> dict[str, str]:
    return {a.ip: a.state.value for a in story.pool.inventory.addresses.values()}


def doubts(story: Story) -> list[str]:
    return [str(dict(n.fields)["doubts"]) for n in story.take(do.Note) if n.event == "ec2.reply_doubted"]


@pytest.mark.parametrize(
    ("named", "doubt"),
    [
        (OWN, "the ENI's own address"),
        ("banana", "not an IPv4 address"),
        ("", "not an IPv4 address"),
        ("10.0.0.9/32", "not an IPv4 address"),
        ("fd00::1", "not an IPv4 address"),
        ("10.9.9.9", "not an address for 10.0.0.0/24"),
        ("10.0.0.1", "not an address for 10.0.0.0/24"),
        ("10.0.0.255", "not an address for 10.0.0.0/24"),
        ("10.0.0.20", "named twice"),
    ],
)
def test_a_reply_with_an_address_that_can_not_be_is_not_believed(named: str, doubt: str) -> None:
    story = node()
    assign = story.one(do.AssignAddresses)
    story.feed(on.AddressesAssigned(assign.op, ("10.0.0.20", named)))
    assert states(story) == {}, "who names one that can't be may invent the other"
    assert doubts(story) == [f"{named}: {doubt}"]
    # What the call has brought is found by reading the ENI, and is ours by its number.
    describe = story.one(do.DescribeEni)
    story.feed(on.EniObserved(describe.op, observed("eni-0", 0, "10.0.0.20", "10.0.0.21")))
    assert states(story) == {"10.0.0.20": "free", "10.0.0.21": "free"}
    assert {r.token for r in story.written() if isinstance(r, DropIntent)} == {"token-0"}


def test_an_address_more_than_asked_for_is_not_taken_in() -> None:
    story = node()
    assign = story.one(do.AssignAddresses)
    story.feed(on.AddressesAssigned(assign.op, ("10.0.0.20", "10.0.0.21", "10.0.0.22")))
    assert states(story) == {}
    assert doubts(story) and story.one(do.DescribeEni)


def test_fewer_addresses_than_asked_for_are_read_again() -> None:
    story = node(3)
    assign = story.one(do.AssignAddresses)
    story.feed(on.AddressesAssigned(assign.op, ("10.0.0.20",)))
    kept = [r.intent.count for r in story.written() if isinstance(r, PutIntent)]
    assert kept == [3, 2] and doubts(story) == ["fewer addresses than were asked for"]
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, observed("eni-0", 0, "10.0.0.20")))
    assert set(states(story)) == {"10.0.0.20"}


def two_enis() -> tuple[Story, do.AssignAddresses]:
    """One has an address of a pod and a free one, for the other addresses are asked for."""
    story = Story(warm(2), Limits(2, 3))
    first, second = observed("eni-0", 0, "10.0.0.10", "10.0.0.11"), observed("eni-1", 1, owned=True)
    story.feed(on.Started((first, replace(second, primary_ip="10.0.0.5"))))
    for effect in story.take(do.ConfigureLink):
        story.feed(on.LinkReady(effect.op, f"eth{effect.device_index}", SUBNET))
    story.take(do.SetDeleteOnTermination)
    story.ask("a")
    (assign,) = [e for e in story.take(do.AssignAddresses) if e.eni_id == "eni-1"]
    return story, assign


@pytest.mark.parametrize("ip", ["10.0.0.10", "10.0.0.11"])
def test_an_address_on_record_elsewhere_waits_for_both_readings(ip: str) -> None:
    story, assign = two_enis()
    before = states(story)[ip]
    story.feed(on.AddressesAssigned(assign.op, (ip,)))
    assert story.pool.inventory.addresses[ip].eni.id == "eni-0"
    story.ask("b")
    assert ip not in {grant.attachment.address for grant in story.take(do.Grant)[1:]}
    reads = {effect.eni_id: effect for effect in story.take(do.DescribeEni)}
    assert set(reads) == {"eni-0", "eni-1"}
    first = observed("eni-0", 0, "10.0.0.10", "10.0.0.11")
    story.feed(on.EniObserved(reads["eni-0"].op, first))
    story.feed(on.EniObserved(reads["eni-1"].op, replace(observed("eni-1", 1, owned=True), primary_ip="10.0.0.5")))
    assert states(story)[ip] == ("assigned" if before == "assigned" else "cooling")


def test_an_address_that_has_moved_is_served_where_it_is() -> None:
    story, assign = two_enis()
    (held,) = story.pool.inventory.attachments.values()
    story.feed(on.AddressesAssigned(assign.op, (held.address,)))
    reads = {effect.eni_id: effect for effect in story.take(do.DescribeEni)}
    other = next(ip for ip in ("10.0.0.10", "10.0.0.11") if ip != held.address)
    story.feed(on.EniObserved(reads["eni-0"].op, observed("eni-0", 0, other)))
    assert held.address in story.pool.inventory.lost
    moved = replace(observed("eni-1", 1, held.address, owned=True), primary_ip="10.0.0.5")
    story.feed(on.EniObserved(reads["eni-1"].op, moved))
    address = story.pool.inventory.addresses[held.address]
    assert (address.eni.id, address.state.value) == ("eni-1", "assigned")
    assert not story.pool.inventory.lost
    assert story.one(do.ConfigureLink).eni_id == "eni-1"


def created(story: Story, own: str, *addresses: str) -> do.CreateEni:
    create = story.one(do.CreateEni)
    story.feed(on.EniCreated(create.op, CreatedEni("eni-1", "02:1", "subnet-1", own, addresses)))
    return create


def test_a_new_enis_own_address_makes_a_pods_missing_at_once() -> None:
    story = node(0, "10.0.0.10", limits=Limits(2, 2))
    story.ask("a", "b")
    created(story, "10.0.0.10", "10.0.0.20")
    lost = story.pool.inventory.lost["10.0.0.10"]
    assert lost.cause == "EC2 has given 10.0.0.10 to eni-1 as its own address"
    missing = [(n.level, dict(n.fields)["ip"]) for n in story.take(do.Note) if n.event == "address.missing"]
    assert missing == [("error", "10.0.0.10")]
    # A reply that was wrong about it is put right by the reading.
    reads = {effect.eni_id: effect for effect in story.take(do.DescribeEni)}
    assert set(reads) == {"eni-0", "eni-1"}
    story.feed(on.EniObserved(reads["eni-1"].op, replace(observed("eni-1", None, owned=True), primary_ip="10.0.0.9")))
    story.feed(on.EniObserved(reads["eni-0"].op, observed("eni-0", 0, "10.0.0.10")))
    assert states(story)["10.0.0.10"] == "assigned" and not story.pool.inventory.lost


@pytest.mark.parametrize("own", ["", "banana", "fd00::1"])
def test_a_new_eni_with_an_odd_own_address_is_read_first(own: str) -> None:
    story = node(0, "10.0.0.10", limits=Limits(2, 2))
    story.ask("a", "b")
    created(story, own, "10.0.0.20")
    assert doubts(story) and not story.take(do.AttachEni)
    describe = story.one(do.DescribeEni)
    story.feed(on.EniObserved(describe.op, replace(observed("eni-1", None, owned=True), primary_ip="10.0.0.9")))
    assert story.pool.inventory.enis["eni-1"].primary_ip == "10.0.0.9"
    assert story.one(do.AttachEni)


def test_a_new_eni_keeps_out_what_its_subnet_can_not_have() -> None:
    """Its subnet is known only once its interface is there."""
    story = node(4, "10.0.0.10", limits=Limits(2, 3))
    create = created(story, "10.0.0.9", "10.0.0.20", "10.9.9.9")
    assert create.count == 2
    story.feed(on.EniAttached(story.one(do.AttachEni).op, "att"))
    story.feed(on.LinkReady(story.one(do.ConfigureLink).op, "eth1", SUBNET))
    assert "10.9.9.9" not in states(story)
    story.ask("a", "b", "c", "d")
    assert {grant.attachment.address for grant in story.take(do.Grant)} == {"10.0.0.10", "10.0.0.20"}


def test_a_reading_brings_in_nothing_that_can_not_be() -> None:
    story = Story(warm(0, slack=20), Limits(2, 10))
    other = replace(observed("eni-1", 1, "10.0.0.4", "10.0.0.30", owned=True), primary_ip="10.0.0.5")
    story.start(observed("eni-0", 0, "10.0.0.10", "banana", OWN, "10.0.0.30", "10.0.0.5"), other)
    # The one that two ENIs have stays with the first; the other's own is nobody's.
    assert states(story) == {"10.0.0.10": "free", "10.0.0.30": "free", "10.0.0.5": "foreign"}
    assert story.take(do.DescribeEni)


def test_a_cidr_without_the_enis_own_address_is_not_believed() -> None:
    story = Story(warm(0, slack=20), Limits(1, 10))
    story.feed(on.Started((observed("eni-0", 0, "10.0.0.10"),)))
    story.feed(on.LinkReady(story.one(do.ConfigureLink).op, "eth0", IPv4Network("192.168.0.0/24")))
    assert states(story) == {"10.0.0.10": "free"} and doubts(story)
