"""An ENI's interface vanishes from the kernel, though nobody here took it away."""

from __future__ import annotations

from dataclasses import replace

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.links import LINK_RETRY, LINK_RETRY_CAP, STEADY_AFTER
from ipamd.pool.model import CloudErrorKind, EniState, ObservedEni
from tests.unit.story import SUBNET, Story, addresses, observed, warm

HELD = addresses(3, 30)
SECOND = observed("eni-1", 1, *HELD, owned=True)
DETACHED = observed("eni-1", None, *HELD, owned=True)
GONE = on.DeviceGone("eni-1")


def node(**targets: float) -> Story:
    """A pod has one of the addresses on the second ENI, and none is free elsewhere."""
    story = Story(warm(0, slack=9, **targets))
    story.start(observed("eni-0", 0), SECOND)
    story.ask("a")
    story.one(do.Grant)
    story.effects.clear()
    return story


def shrinking() -> Story:
    """Its two free addresses are to go."""
    story = node()
    story.feed(on.TargetsChanged(warm(0, release_delay=0.0)))
    story.pass_time(0)
    return story


def state(story: Story) -> EniState:
    return story.pool.inventory.enis["eni-1"].state


def read(story: Story, shown: ObservedEni | None) -> None:
    effect = story.one(do.DescribeEni)
    assert effect.eni_id == "eni-1"
    story.feed(on.EniObserved(effect.op, shown))


def link(story: Story) -> None:
    effect = story.one(do.ConfigureLink)
    assert effect.eni_id == "eni-1"
    story.feed(on.LinkReady(effect.op, "eth1", SUBNET))


def notes(story: Story) -> list[str]:
    return [note.event for note in story.take(do.Note)]


def test_what_is_still_attached_is_set_up_again() -> None:
    story = node()
    story.feed(GONE)
    assert notes(story) == ["eni.device_gone"]
    read(story, SECOND)
    link(story)
    assert state(story) is EniState.READY and notes(story) == ["eni.ready"]
    assert not [effect for effect in story.effects if isinstance(effect, do.RECORDED)]
    story.ask("b")
    assert story.one(do.Grant).attachment.eni_id == "eni-1"


def test_what_was_detached_is_attached_again() -> None:
    story = node()
    story.feed(GONE)
    read(story, DETACHED)
    attach = story.one(do.AttachEni)
    assert (attach.eni_id, attach.device_index) == ("eni-1", 1)
    story.feed(on.EniAttached(attach.op, "attach-new"))
    link(story)
    assert state(story) is EniState.READY
    assert story.pool.counts().assigned == 1 and story.pool.counts().free == 2


def test_eni_gone_from_ec2_is_forgotten_except_for_pod_records() -> None:
    story = node()
    story.feed(GONE)
    read(story, None)
    assert set(story.pool.inventory.enis) == {"eni-0"} and "eni.gone" in notes(story)
    assert len(story.pool.inventory.attachments) == 1


def test_deviceless_eni_grants_nothing_and_growth_ignores_it() -> None:
    story = node()
    story.feed(GONE)
    story.ask("b")
    assert not story.take(do.Grant)
    assign = story.one(do.AssignAddresses)
    assert assign.eni_id == "eni-0"
    story.feed(on.AddressesAssigned(assign.op, addresses(assign.count)))
    assert story.one(do.Grant).attachment.eni_id == "eni-0"


def test_a_burst_of_events_makes_one_call() -> None:
    story = node()
    for _ in range(5):
        story.feed(GONE)
        story.pass_time(0.01)
    read(story, SECOND)
    seek = story.one(do.ConfigureLink)
    for _ in range(5):
        story.feed(GONE)
        story.pass_time(1.0)
    assert not story.take(do.DescribeEni) and not story.take(do.ConfigureLink)
    story.feed(on.LinkReady(seek.op, "eth1", SUBNET))
    assert state(story) is EniState.CONFIGURING, "it vanished after it had been found, perhaps"
    assert not story.take(do.DescribeEni)
    story.pass_time(LINK_RETRY)
    read(story, SECOND)
    link(story)
    assert state(story) is EniState.READY


def test_one_that_comes_and_goes_is_read_less_and_less_often() -> None:
    story = node()
    pauses = []
    for _ in range(7):
        story.feed(GONE)
        begun = story.now
        while not any(isinstance(effect, do.DescribeEni) for effect in story.effects):
            story.now = next(wake.at for wake in reversed(story.take(do.Wake)) if wake.at is not None)
            story.feed(on.TimePassed())
        pauses.append(story.now - begun)
        read(story, SECOND)
        link(story)
    assert pauses == [0, LINK_RETRY, 2 * LINK_RETRY, 4 * LINK_RETRY, 8 * LINK_RETRY, LINK_RETRY_CAP, LINK_RETRY_CAP]
    story.pass_time(STEADY_AFTER)
    story.feed(GONE)
    assert story.take(do.DescribeEni)


def test_a_reading_that_was_asked_for_before_does_not_count() -> None:
    story = shrinking()
    earlier = story.one(do.DescribeEni)  # before its idle addresses go
    story.feed(GONE)
    assert not story.take(do.DescribeEni), "one at a time"
    story.feed(on.EniObserved(earlier.op, SECOND))
    assert not story.take(do.ConfigureLink)
    read(story, DETACHED)
    assert story.one(do.AttachEni)


def test_what_was_unassigned_when_it_vanished_stays_so() -> None:
    story = shrinking()
    read(story, SECOND)
    unassign = story.one(do.UnassignAddresses)
    story.feed(GONE)
    story.feed(on.OperationDone(unassign.op))
    left = [ip for ip in HELD if ip not in unassign.addresses]
    read(story, observed("eni-1", None, *left, owned=True))
    attach = story.one(do.AttachEni)
    story.feed(on.EniAttached(attach.op, "attach-new"))
    link(story)
    assert sorted(story.pool.inventory.enis["eni-1"].addresses) == left


def test_unanswered_removal_is_read_again_when_device_returns() -> None:
    story = shrinking()
    read(story, SECOND)
    unassign = story.one(do.UnassignAddresses)
    story.feed(GONE)
    story.fail(unassign, CloudErrorKind.UNKNOWN_OUTCOME, "UnassignPrivateIpAddresses")
    story.pass_time(5)
    left = [ip for ip in HELD if ip not in unassign.addresses]
    read(story, observed("eni-1", None, *left, owned=True))
    story.feed(on.EniAttached(story.one(do.AttachEni).op, "attach-new"))
    link(story)
    assert sorted(story.pool.inventory.enis["eni-1"].addresses) == left


def test_unanswered_assignment_is_read_when_the_device_returns() -> None:
    story = node()
    story.pool.inventory.enis["eni-0"].capacity = 0
    story.ask("b", "c", "d")
    assign = story.one(do.AssignAddresses)
    assert assign.eni_id == "eni-1"
    story.feed(GONE)
    seen = story.one(do.DescribeEni)
    story.fail(assign, CloudErrorKind.UNKNOWN_OUTCOME)
    more = observed("eni-1", 1, *HELD, *addresses(assign.count, 40), owned=True)
    story.feed(on.EniObserved(seen.op, more))
    story.pass_time(1)
    for effect in story.take(do.DescribeEni):
        story.feed(on.EniObserved(effect.op, more))
    story.take(do.Grant)
    link(story)
    story.pass_time(1)
    read(story, more)
    assert set(addresses(assign.count, 40)) <= story.pool.inventory.addresses.keys()
    assert [grant.request for grant in story.take(do.Grant)][-1:] == ["d"]


def test_while_it_is_being_detached_it_is_looked_at_now_and_then() -> None:
    story = node()
    story.feed(GONE)
    busy = replace(SECOND, attachment_status="detaching")
    read(story, busy)
    reads = 0
    for _ in range(300):
        assert not story.take(do.ConfigureLink) and not story.take(do.AttachEni)
        for effect in story.take(do.DescribeEni):
            reads += 1
            story.feed(on.EniObserved(effect.op, busy))
        story.pass_time(1)
    assert 5 <= reads <= 10
    story.pass_time(LINK_RETRY_CAP)
    read(story, DETACHED)
    assert story.one(do.AttachEni)


def test_while_ec2_does_not_answer_nobody_gets_its_addresses() -> None:
    story = node()
    story.pool.inventory.enis["eni-0"].capacity = 0
    story.feed(GONE)
    story.fail(story.one(do.DescribeEni), CloudErrorKind.TRANSIENT, "DescribeNetworkInterfaces")
    story.ask("b")
    assert not story.take(do.Grant)
    story.pass_time(1)
    read(story, SECOND)
    link(story)
    assert story.one(do.Grant).request == "b"


def test_device_that_stays_away_is_read_from_ec2_again() -> None:
    story = node()
    story.feed(GONE)
    read(story, SECOND)  # older than its detachment
    story.feed(on.LinkFailed(story.one(do.ConfigureLink).op, "no interface"))
    story.pass_time(LINK_RETRY)
    read(story, DETACHED)
    assert story.one(do.AttachEni)


def test_device_loss_of_a_leaving_or_unknown_eni_is_ignored() -> None:
    story = Story(warm(0, release_delay=0.0))
    story.start(observed("eni-0", 0), SECOND)
    story.pass_time(0)
    read(story, SECOND)
    detach = story.one(do.DetachEni)
    story.effects.clear()
    for eni_id in ("eni-1", "eni-9"):
        story.feed(on.DeviceGone(eni_id))
    assert not [effect for effect in story.effects if not isinstance(effect, do.Wake)]
    story.feed(on.OperationDone(detach.op))
    assert state(story) is EniState.DELETING
