"""What is given back to EC2, and what stays."""

from __future__ import annotations

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import (
    AddressState,
    CloudErrorKind,
    ObservedEni,
    Targets,
)
from tests.unit.story import Story, addresses, observed, warm


def idle(*enis: ObservedEni, **targets: float) -> Story:
    story = Story(warm(1, slack=1, release_delay=60.0, **targets))
    story.start(*enis)
    return story


def test_an_excess_is_given_back_only_after_it_lasted() -> None:
    story = idle(observed("eni-0", 0, *addresses(6)))
    story.pass_time(59.9)
    assert not story.take(do.DescribeEni)
    story.pass_time(0.1)
    look = story.one(do.DescribeEni)
    assert not story.take(do.UnassignAddresses), "first a fresh read"
    story.feed(on.EniObserved(look.op, observed("eni-0", 0, *addresses(6))))
    give = story.one(do.UnassignAddresses)
    assert len(give.addresses) == 4, "one warm and one of slack stay"
    story.feed(on.OperationDone(give.op))
    counts = story.pool.counts()
    assert (counts.free, counts.total, counts.releasing) == (2, 2, 0)
    story.pass_time(1000)
    assert not story.take(do.DescribeEni)


def test_only_what_lasted_is_given_back() -> None:
    story = idle(observed("eni-0", 0, *addresses(6)))
    story.ask("a", "b", "c")
    story.pass_time(30)
    for name in "abc":
        story.give_back(name)
    story.pass_time(30)  # cooled, and free again
    look = story.one(do.DescribeEni)
    story.feed(on.EniObserved(look.op, observed("eni-0", 0, *addresses(6))))
    assert len(story.one(do.UnassignAddresses).addresses) == 1


def test_what_is_wanted_again_stays() -> None:
    story = idle(observed("eni-0", 0, *addresses(6)))
    story.pass_time(60)
    look = story.one(do.DescribeEni)
    assert story.pool.counts().releasing == 4
    story.ask("a", "b", "c")
    assert len(story.take(do.Grant)) == 3
    story.feed(on.EniObserved(look.op, observed("eni-0", 0, *addresses(6))))
    assert not story.take(do.UnassignAddresses)
    assert story.pool.counts().releasing == 0


def test_an_idle_eni_goes_whole_and_without_holding_up_growth() -> None:
    second = observed("eni-1", 1, *addresses(3, 30), owned=True)
    story = idle(observed("eni-0", 0, *addresses(2)), second)
    story.pass_time(60)
    look = story.one(do.DescribeEni)
    assert look.eni_id == "eni-1"
    story.feed(on.EniObserved(look.op, second))
    detach = story.one(do.DetachEni)
    assert detach.attachment_id == "attach-eni-1" and set(detach.addresses) == set(second.addresses)
    story.ask("a", "b", "c")  # it is too late for eni-1: the pool grows elsewhere
    assert len(story.take(do.Grant)) == 2
    assert {ask.eni_id for ask in story.take(do.AssignAddresses)} == {"eni-0"}
    story.feed(on.OperationDone(detach.op))
    story.pass_time(3.0)
    delete = story.one(do.DeleteEni)
    story.feed(on.OperationDone(delete.op))
    assert set(story.pool.inventory.enis) == {"eni-0"}


def test_an_eni_with_an_address_of_somebody_else_is_kept() -> None:
    second = observed("eni-1", 1, *addresses(3, 30), owned=True)
    story = idle(observed("eni-0", 0, *addresses(2)), second)
    story.pass_time(60)
    look = story.one(do.DescribeEni)
    shared = observed("eni-1", 1, *addresses(3, 30), "10.0.0.99", owned=True)
    story.feed(on.EniObserved(look.op, shared))
    assert not story.take(do.DetachEni)
    assert "address.foreign" in [note.event for note in story.take(do.Note)]
    assert story.pool.inventory.addresses["10.0.0.99"].state is AddressState.FOREIGN
    assert story.pool.inventory.enis["eni-1"].room == 5


def test_an_address_that_a_route_leads_to_is_not_given_back() -> None:
    story = idle(observed("eni-0", 0, *addresses(6)))
    story.pass_time(60)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, observed("eni-0", 0, *addresses(6))))
    story.fail(story.one(do.UnassignAddresses), CloudErrorKind.IN_USE, "UnassignPrivateIpAddresses")
    assert story.pool.counts().free == 6
    story.ask(*(f"p{n}" for n in range(8)))
    assert sum(ask.count for ask in story.take(do.AssignAddresses)) == 3, "growth on that ENI goes on"


def test_minimum_ips_is_never_given_back() -> None:
    story = idle(observed("eni-0", 0, *addresses(6)), minimum_ips=5)
    story.pass_time(60)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, observed("eni-0", 0, *addresses(6))))
    assert len(story.one(do.UnassignAddresses).addresses) == 1


def test_warm_enis_keep_whole_enis_free() -> None:
    story = Story(Targets(warm_enis=1, coalesce=0, slack=0))
    story.start(observed("eni-0", 0, *addresses(9)))
    assert not story.take(do.CreateEni)
    story.ask("a")
    assert story.one(do.CreateEni).count == 1
