"""Calls whose effect and whose answer come at different times, and what is stuck for good."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import CloudErrorKind, CreatedEni, EniState, Limits, ObservedEni, Reason
from tests.unit.story import SUBNET, Story, addresses, observed, warm


def idle(*enis: ObservedEni) -> Story:
    """What is not in use goes back at once."""
    story = Story(warm(0, release_delay=0.0, slack=0))
    story.start(*enis)
    story.pass_time(0.0)
    return story


def states(story: Story) -> dict[str, str]:
    return {a.ip: a.state.value for a in story.pool.inventory.addresses.values()}


# Effects before answers


def test_address_seen_before_its_assignment_is_answered_is_ours() -> None:
    story = idle(observed("eni-0", 0, *addresses(2)))
    read = story.one(do.DescribeEni)
    story.ask("a", "b", "c")
    assign = story.one(do.AssignAddresses)
    story.feed(on.EniObserved(read.op, observed("eni-0", 0, *addresses(3))))
    assert "10.0.0.12" not in states(story), "its owner is not known yet"
    story.feed(on.AddressesAssigned(assign.op, ("10.0.0.12",)))
    assert states(story) == dict.fromkeys(addresses(3), "assigned")


def test_what_two_calls_brought_is_told_apart_when_both_are_over() -> None:
    story = Story(warm(0))
    story.start()
    story.ask("a")
    story.ask("b")
    first, second = story.take(do.AssignAddresses)
    story.fail(first, CloudErrorKind.UNKNOWN_OUTCOME)
    story.feed(on.AddressesAssigned(second.op, ("10.0.0.11",)))
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, observed("eni-0", 0, *addresses(2))))
    assert states(story) == dict.fromkeys(addresses(2), "assigned")


# Effects after answers


@pytest.mark.parametrize("still_there", [True, False])
def test_unanswered_removal_blocks_the_address_until_a_reading(still_there: bool) -> None:
    story = idle(observed("eni-0", 0, *addresses(1)))
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, observed("eni-0", 0, *addresses(1))))
    story.fail(story.one(do.UnassignAddresses), CloudErrorKind.UNKNOWN_OUTCOME, "UnassignPrivateIpAddresses")
    story.ask("a")
    story.take(do.AssignAddresses)
    story.pass_time(4.9)
    assert not story.take(do.Grant) and not story.take(do.DescribeEni)
    story.pass_time(0.1)
    shown = addresses(1) if still_there else ()
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, observed("eni-0", 0, *shown)))
    assert len(story.take(do.Grant)) == still_there


def test_detached_eni_is_not_revived_by_an_old_reading() -> None:
    second = observed("eni-1", 1, *addresses(2, 30), owned=True)
    story = idle(observed("eni-0", 0), second)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, second))
    story.feed(on.OperationDone(story.one(do.DetachEni).op))
    story.pass_time(3)
    story.fail(story.one(do.DeleteEni), CloudErrorKind.INCORRECT_STATE, "DeleteNetworkInterface")
    story.ask("a")
    story.pass_time(10)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, second))
    assert story.pool.inventory.enis["eni-1"].state is EniState.DELETING and not story.take(do.Grant)


# What is stuck


def test_a_refused_detachment_leaves_the_eni_in_service() -> None:
    second = observed("eni-1", 1, *addresses(2, 30), owned=True)
    story = idle(observed("eni-0", 0), second)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, second))
    story.fail(story.one(do.DetachEni), CloudErrorKind.NOT_AUTHORIZED, "DetachNetworkInterface")
    story.feed(on.LinkReady(story.one(do.ConfigureLink).op, "eth1", SUBNET))
    story.ask("a")
    assert story.one(do.Grant).attachment.address == "10.0.0.30"


def test_unattachable_eni_does_not_block_creation_of_another() -> None:
    story = Story(warm(0), Limits(3, 2))
    story.start(observed("eni-0", 0, "10.0.0.10"))
    story.ask("a", "b", wait=300.0)
    create = story.one(do.CreateEni)
    story.feed(on.EniCreated(create.op, CreatedEni("eni-1", "02:1", "subnet-1", "10.0.0.5", ("10.0.0.30",))))
    for _ in range(60):
        for attach in story.take(do.AttachEni):
            story.fail(attach, CloudErrorKind.INCORRECT_STATE, "AttachNetworkInterface")
        for read in story.take(do.DescribeEni):
            story.feed(on.EniObserved(read.op, observed("eni-1", None, "10.0.0.30", owned=True)))
        story.pass_time(1.0)
    assert len(story.take(do.CreateEni)) == 1, "once the first one takes too long"


def test_an_eni_that_can_not_be_attached_is_given_up() -> None:
    story = Story(warm(0), Limits(2, 2))
    story.start(observed("eni-0", 0, "10.0.0.10"))
    story.ask("a", "b")
    create = story.one(do.CreateEni)
    story.feed(on.EniCreated(create.op, CreatedEni("eni-1", "02:1", "subnet-1", "10.0.0.5", ("10.0.0.30",))))
    for _ in range(400):
        for attach in story.take(do.AttachEni):
            story.fail(attach, CloudErrorKind.INCORRECT_STATE, "AttachNetworkInterface")
        for read in story.take(do.DescribeEni):
            story.feed(on.EniObserved(read.op, observed("eni-1", None, "10.0.0.30", owned=True)))
        story.pass_time(1.0)
    assert [effect.eni_id for effect in story.take(do.DeleteEni)] == ["eni-1"]


def test_unreadable_eni_does_not_block_creation_of_another() -> None:
    story = Story(warm(0), Limits(2, 3))
    story.start()
    story.ask("a", wait=300.0)
    story.fail(story.one(do.AssignAddresses), CloudErrorKind.UNKNOWN_OUTCOME)
    story.fail(story.one(do.DescribeEni), CloudErrorKind.NOT_AUTHORIZED, "DescribeNetworkInterfaces")
    story.pass_time(1.0)
    assert story.one(do.CreateEni).count == 1


def test_after_a_failed_creation_one_is_enough_to_try_again() -> None:
    story = Story(warm(0), Limits(5, 2))
    story.start(observed("eni-0", 0, "10.0.0.10"))
    story.ask(*"abcde", wait=300.0)
    creates = story.take(do.CreateEni)
    assert len(creates) == 4
    for create in creates:
        story.fail(create, CloudErrorKind.TRANSIENT, "CreateNetworkInterface")
    story.pass_time(1.0)
    probe = story.one(do.CreateEni)
    story.feed(on.EniCreated(probe.op, CreatedEni("eni-1", "02:1", "subnet-1", "10.0.0.5", ("10.0.0.30",))))
    story.feed(on.EniAttached(story.one(do.AttachEni).op, "attach-1"))
    assert len(story.take(do.CreateEni)) == 3


def test_audits_that_fail_are_not_repeated_for_a_pod_that_waits() -> None:
    story = Story(warm(0), Limits(2, 2))
    foreign = observed("eni-x", 1)
    story.start(observed("eni-0", 0, "10.0.0.10"), replace(foreign, primary=False))
    story.ask("a", "b")
    story.fail(story.one(do.Audit), CloudErrorKind.THROTTLED, "DescribeNetworkInterfaces")
    assert not story.take(do.Audit)
    assert story.one(do.Refuse).refusal.reason is Reason.ENI_LIMIT


def test_a_primary_eni_that_one_reading_misses_is_not_forgotten() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0, *addresses(1)))
    story.now += 1000
    story.ask("a", "b")
    story.fail(story.one(do.AssignAddresses), CloudErrorKind.UNKNOWN_OUTCOME)
    story.pass_time(1.0)
    for read in story.take(do.DescribeEni):
        story.feed(on.EniObserved(read.op, None))
    assert set(story.pool.inventory.enis) == {"eni-0"}
