"""An ENI's way into service, and what goes wrong on it."""

from __future__ import annotations

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import (
    CloudErrorKind,
    CreatedEni,
    DropCooling,
    DropIntent,
    Reason,
)
from tests.unit.story import SUBNET, Story, addresses, observed, warm


def test_time_out_is_not_blamed_on_call_that_brings_no_addresses() -> None:
    story = Story(warm(0))
    attach = created_eni(story)
    story.feed(on.EniAttached(attach.op, "attach-eni-1"))
    story.fail(story.one(do.SetDeleteOnTermination), CloudErrorKind.NOT_AUTHORIZED, "ModifyNetworkInterfaceAttribute")
    story.pass_time(30.0)
    assert story.take(do.Refuse)[-1].refusal.reason is Reason.TIMEOUT


def test_eni_is_read_after_a_time_out_before_anything_is_asked() -> None:
    story = Story(warm(2))
    story.start()
    story.fail(story.one(do.AssignAddresses), CloudErrorKind.UNKNOWN_OUTCOME)
    assert not story.take(do.AssignAddresses)
    look = story.one(do.DescribeEni)
    story.feed(on.EniObserved(look.op, observed("eni-0", 0, *addresses(2))))
    assert story.pool.counts().free == 2
    story.pass_time(60)
    assert not story.take(do.AssignAddresses)


def test_creation_of_unknown_outcome_is_repeated_with_its_token() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0, *addresses(9)))
    story.ask(*(f"p{n}" for n in range(10)))
    first = story.one(do.CreateEni)
    story.fail(first, CloudErrorKind.UNKNOWN_OUTCOME, "CreateNetworkInterface")
    story.pass_time(1.0)
    again = story.one(do.CreateEni)
    assert (again.token, again.count) == (first.token, first.count)


def test_an_eni_that_can_not_be_attached_is_deleted() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0, *addresses(9)))
    story.ask(*(f"p{n}" for n in range(10)))
    create = story.one(do.CreateEni)
    story.feed(on.EniCreated(create.op, CreatedEni("eni-1", "02:1", "subnet-1", "10.0.0.5", ("10.0.0.50",))))
    story.fail(story.one(do.AttachEni), CloudErrorKind.ATTACHMENT_LIMIT, "AttachNetworkInterface")
    story.feed(on.OperationDone(story.one(do.DeleteEni).op))
    assert set(story.pool.inventory.enis) == {"eni-0"}


def created_eni(story: Story) -> do.AttachEni:
    """Ask for one address on a node whose primary ENI is full, up to the attachment of the second."""
    story.start(observed("eni-0", 0, *addresses(9)))
    story.ask(*(f"pod-{n}" for n in range(10)))
    create = story.one(do.CreateEni)
    story.feed(on.EniCreated(create.op, CreatedEni("eni-1", "02:eni-1", "subnet-1", "10.0.0.5", addresses(1, 50))))
    return story.one(do.AttachEni)


def test_device_index_taken_by_others_is_not_tried_for_ever() -> None:
    story = Story(warm(0))
    first = created_eni(story)
    story.fail(first, CloudErrorKind.INCORRECT_STATE, "AttachNetworkInterface")
    story.pass_time(1.0)
    read = story.one(do.DescribeEni)
    story.feed(on.EniObserved(read.op, observed("eni-1", None, "10.0.0.50", owned=True)))
    second = story.one(do.AttachEni)
    assert second.device_index != first.device_index
    story.fail(second, CloudErrorKind.INCORRECT_STATE, "AttachNetworkInterface")
    story.pass_time(2.0)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, observed("eni-1", None, "10.0.0.50", owned=True)))
    assert story.one(do.AttachEni).device_index not in (0, first.device_index, second.device_index)


def test_a_new_eni_that_ec2_does_not_know_yet_is_waited_for() -> None:
    story = Story(warm(0))
    story.fail(created_eni(story), CloudErrorKind.NOT_FOUND, "AttachNetworkInterface")
    story.pass_time(1.0)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, None))
    story.pass_time(1.0)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, observed("eni-1", None, "10.0.0.50", owned=True)))
    assert story.one(do.AttachEni).eni_id == "eni-1"
    assert not story.take(do.DeleteEni)


def test_a_new_eni_that_ec2_never_gets_to_know_is_given_up() -> None:
    story = Story(warm(0))
    story.fail(created_eni(story), CloudErrorKind.NOT_FOUND, "AttachNetworkInterface")
    reads = 0
    while "eni-1" in story.pool.inventory.enis:
        story.pass_time(1.0)
        for read in story.take(do.DescribeEni):
            story.feed(on.EniObserved(read.op, None))
            reads += 1
    assert 60 <= story.now - 1000 < 120 and reads < 20


def test_eni_found_attached_is_used_instead_of_deleted() -> None:
    """The attachment was not to be seen yet when this process started."""
    story = Story(warm(0))
    story.start(observed(), observed("eni-1", None, "10.0.0.50", owned=True))
    story.fail(story.one(do.DeleteEni), CloudErrorKind.INCORRECT_STATE, "DeleteNetworkInterface")
    story.pass_time(1.0)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, observed("eni-1", 1, "10.0.0.50", owned=True)))
    story.feed(on.LinkReady(story.one(do.ConfigureLink).op, "eth1", SUBNET))
    assert story.pool.counts().free == 1


def test_eni_without_a_link_is_read_and_attached_if_detached() -> None:
    story = Story(warm(0))
    story.feed(on.Started((observed(), observed("eni-1", 1, "10.0.0.50", owned=True))))
    second = next(effect for effect in story.take(do.ConfigureLink) if effect.eni_id == "eni-1")
    story.feed(on.LinkFailed(second.op, "no link"))
    story.pass_time(5.0)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, observed("eni-1", 1, "10.0.0.50", owned=True)))
    story.feed(on.LinkFailed(story.one(do.ConfigureLink).op, "no link"))
    story.pass_time(5.0)
    assert not story.take(do.DescribeEni), "each pause is longer than the one before"
    story.pass_time(5.0)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, observed("eni-1", None, "10.0.0.50", owned=True)))
    attach = story.one(do.AttachEni)
    story.feed(on.EniAttached(attach.op, "attach-eni-1"))
    story.feed(on.LinkReady(story.one(do.ConfigureLink).op, "eth1", SUBNET))
    assert story.pool.counts().free == 1


def test_eni_stays_unsure_after_an_unrelated_call_fails_clearly() -> None:
    story = Story(warm(0))
    story.start()
    story.ask("a")
    story.ask("b")
    first, second = story.take(do.AssignAddresses)
    story.fail(first, CloudErrorKind.UNKNOWN_OUTCOME)
    assert not story.take(do.DescribeEni), "the addresses of the two calls could not be distinguished"
    story.fail(second, CloudErrorKind.THROTTLED)
    read = story.one(do.DescribeEni)
    story.fail(read, CloudErrorKind.THROTTLED, "DescribeNetworkInterfaces")
    story.pass_time(2.0)
    assert story.one(do.DescribeEni).eni_id == "eni-0"
    assert not story.take(do.AssignAddresses)


def test_an_eni_that_is_gone_takes_its_records_along() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0), observed("eni-1", 1, "10.0.0.50", owned=True))
    story.ask("a")
    story.give_back("a")
    story.ask(*(f"pod-{n}" for n in range(10)))
    for ask in story.take(do.AssignAddresses):
        kind = CloudErrorKind.NOT_FOUND if ask.eni_id == "eni-1" else CloudErrorKind.TRANSIENT
        story.fail(ask, kind)
    story.written()
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, None))
    assert story.written()[:2] == [
        DropIntent("attach eni-1"),
        DropCooling("10.0.0.50"),
    ]


def test_address_moved_by_ec2_moves_in_our_records() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0, *addresses(2)), observed("eni-1", 1, owned=True))
    story.ask("a")
    held = story.one(do.Grant).attachment.address
    story.ask("b", "c")
    ask = story.one(do.AssignAddresses)
    story.feed(on.AddressesAssigned(ask.op, (held,)))
    assert [a.address for a in story.pool.inventory.attachments.values()].count(held) == 1
