"""The pool's decisions, told as short stories: grants, and how many addresses it asks for.

The invariants are tests/property/test_pool_machine.py's.
"""

from __future__ import annotations

import pytest

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import (
    CreatedEni,
    Limits,
    PutAttachment,
    Reason,
    Targets,
)
from tests.unit.story import SUBNET, Story, addresses, observed, warm


def test_a_fresh_node_fills_its_pool_with_one_call() -> None:
    story = Story(warm(5))
    story.start()
    ask = story.one(do.AssignAddresses)
    assert (ask.eni_id, ask.count) == ("eni-0", 5)
    story.feed(on.AddressesAssigned(ask.op, addresses(5)))
    assert story.pool.counts().free == 5
    assert not story.take(do.AssignAddresses) and not story.take(do.CreateEni)
    assert story.pool.can_serve()


def test_a_grant_comes_from_the_warm_pool_after_its_record() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0, *addresses(2)))
    story.written()
    story.ask("a")
    grant = story.one(do.Grant)
    assert story.written() == [PutAttachment(grant.attachment)]
    assert grant.attachment.address == "10.0.0.10"


def test_the_same_attachment_gets_the_same_address() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0, *addresses(2)))
    story.ask("a")
    first = story.one(do.Grant)
    story.ask("a")
    assert story.one(do.Grant).attachment == first.attachment


def test_whoever_waits_longest_is_served_first() -> None:
    story = Story(warm(0))
    story.start()
    story.ask("a", "b", "c")
    ask = story.take(do.AssignAddresses)[0]
    story.feed(on.AddressesAssigned(ask.op, addresses(1)))
    assert [grant.request for grant in story.take(do.Grant)] == ["a"]


def test_requests_that_come_together_share_one_call() -> None:
    story = Story(warm(0, coalesce=0.05))
    story.start()
    story.ask("a", "b", "c")
    assert not story.take(do.AssignAddresses)
    assert story.take(do.Wake)[-1].at == pytest.approx(1000.05)
    story.pass_time(0.05)
    assert story.one(do.AssignAddresses).count == 3


def test_burst_fills_the_eni_and_creates_missing_ones_at_once() -> None:
    story = Story(warm(0, coalesce=0.05))
    story.start()
    story.ask(*(f"p{n}" for n in range(25)))
    story.pass_time(0.05)
    assert story.one(do.AssignAddresses).count == 9
    assert [create.count for create in story.take(do.CreateEni)] == [9, 7]
    indexes = [eni.device_index for eni in story.pool.inventory.enis.values()]
    assert sorted(indexes) == [0, 1, 2]


def test_new_eni_is_created_attached_marked_then_configured() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0, *addresses(9)))
    story.ask(*(f"p{n}" for n in range(10)))
    assert len(story.take(do.Grant)) == 9
    create = story.one(do.CreateEni)
    assert create.count == 1
    story.feed(on.EniCreated(create.op, CreatedEni("eni-1", "02:1", "subnet-1", "10.0.0.5", ("10.0.0.50",))))
    attach = story.one(do.AttachEni)
    assert attach.device_index == 1
    story.feed(on.EniAttached(attach.op, "attach-1"))
    assert story.one(do.SetDeleteOnTermination).attachment_id == "attach-1"
    link = story.one(do.ConfigureLink)
    assert not story.take(do.Grant), "the address is not there yet"
    story.feed(on.LinkReady(link.op, "eth1", SUBNET))
    assert story.one(do.Grant).attachment.address == "10.0.0.50"


def test_a_released_address_cools_before_it_is_used_again() -> None:
    story = Story(warm(0, cooldown=30.0, allocate_wait=60.0), Limits(1, 2))
    story.start(observed("eni-0", 0, "10.0.0.10"))
    story.ask("a")
    story.give_back("a")
    assert story.one(do.Released).attachment is not None
    story.take(do.Grant)
    story.ask("b", wait=60)
    assert not story.take(do.Grant) and not story.take(do.Refuse), "it can wait: 60 s are left to the deadline"
    story.pass_time(29.9)
    assert not story.take(do.Grant)
    story.pass_time(0.1)
    assert story.one(do.Grant).attachment.address == "10.0.0.10"


def test_a_release_ends_the_wait_of_its_attachment() -> None:
    story = Story(warm(0))
    story.start()
    story.ask("a", "b")
    story.give_back("a")
    refuse = story.one(do.Refuse)
    assert (refuse.request, refuse.refusal.reason) == ("a", Reason.RELEASED)
    asked = story.take(do.AssignAddresses)
    story.feed(on.AddressesAssigned(asked[0].op, addresses(1)))
    assert story.one(do.Grant).request == "b"


def test_node_is_not_ready_while_its_first_addresses_are_pending() -> None:
    story = Story(warm(5))
    story.start()
    ask = story.one(do.AssignAddresses)
    assert not story.pool.can_serve()
    story.feed(on.AddressesAssigned(ask.op, addresses(5)))
    assert story.pool.can_serve()


def test_releasing_what_is_not_held_is_a_success() -> None:
    story = Story(warm(0))
    story.start()
    story.give_back("a")
    assert story.one(do.Released).attachment is None


def test_grants_pack_the_fullest_eni_so_that_others_drain() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0, *addresses(2)), observed("eni-1", 1, *addresses(2, 20), owned=True))
    story.ask("a")
    first = story.one(do.Grant).attachment.eni_id
    story.ask("b")
    assert story.one(do.Grant).attachment.eni_id == first


def test_minimum_ips_counts_what_is_in_use() -> None:
    story = Story(warm(0, minimum_ips=6))
    story.start(observed("eni-0", 0, *addresses(2)))
    story.ask("a")
    assert story.one(do.AssignAddresses).count == 4


def test_max_pods_bounds_growth() -> None:
    story = Story(Targets(warm_ips=8, max_pods=4, coalesce=0))
    story.start()
    assert story.one(do.AssignAddresses).count == 4


def test_what_the_ledger_can_not_record_is_not_granted() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0, *addresses(1)))
    story.ask("a")
    grant = story.one(do.Grant)
    story.feed(on.GrantsUnrecorded((grant,), "no space left on device"))
    refusal = story.one(do.Refuse).refusal
    assert refusal.reason is Reason.LEDGER_UNWRITABLE and "no space left" in refusal.message
    assert story.pool.counts().free == 1


def test_max_enis_bounds_growth() -> None:
    story = Story(Targets(warm_ips=30, max_enis=2, coalesce=0))
    story.start()
    assert story.one(do.AssignAddresses).count == 9
    assert [create.count for create in story.take(do.CreateEni)] == [9]


def test_a_call_that_is_made_anyway_asks_for_half_the_slack_more() -> None:
    story = Story(warm(5, slack=8))
    story.start()
    assert story.one(do.AssignAddresses).count == 9
    story = Story(warm(5, slack=8, max_pods=7))
    story.start()
    assert story.one(do.AssignAddresses).count == 7, "but never more than pods may use"


def test_no_eni_is_created_for_what_only_rides_along() -> None:
    story = Story(warm(5, slack=8))
    story.start(observed("eni-0", 0, *addresses(3)))
    assert story.one(do.AssignAddresses).count == 6, "all that the ENI takes"
    assert not story.take(do.CreateEni)
    story.ask(*"abcdef")
    assert story.one(do.CreateEni).count == 1 + 4


def test_what_rode_along_is_no_excess() -> None:
    story = Story(warm(5, slack=8, release_delay=10.0))
    story.start()
    story.feed(on.AddressesAssigned(story.one(do.AssignAddresses).op, addresses(9)))
    story.pass_time(100)
    assert not story.take(do.DescribeEni)
