"""An ADD that asks for one address gets that one, waits for it, or is refused: never another one."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.explain import explain_pool, explain_waiting
from ipamd.pool.model import (
    Attachment,
    AttachmentKey,
    CloudErrorKind,
    Cooling,
    DropCooling,
    Intent,
    Limits,
    OwnAddresses,
    Owner,
    PutAttachment,
    PutCooling,
    Reason,
    Use,
    Uses,
)
from ipamd.pool.outlook import would_refuse
from ipamd.pool.queue import WaitsFor
from tests.unit.story import SUBNET, Story, addresses, full_node, observed, warm

A, B, C = addresses(3)
ELSEWHERE = "10.0.9.99"
ROUTE = Use("route", "somebody's route")


def node(*held: str, **targets: float) -> Story:
    """One ENI, which has these addresses and room for more. None is kept warm."""
    story = Story(warm(0, **{"reuse_cooling_after": 10.0, **targets}))
    story.start(observed("eni-0", 0, *held))
    story.effects.clear()
    return story


def full() -> Story:
    """Three addresses, all of them pods'."""
    story = Story(warm(0), Limits(1, 4))
    story.start(observed("eni-0", 0, A, B, C))
    story.ask("a", "b", "third")
    story.effects.clear()
    return story


def wish(story: Story, name: str, ip: str, wait: float = 60.0, blocks_releases: bool = False) -> str | None:
    """What it gets at once: an address, the words of a refusal, or None while it waits."""
    story.ask(name, wait=wait, wanted=ip, blocks_releases=blocks_releases)
    return answer(story)


def answer(story: Story) -> str | None:
    """What the one that asked was answered; None: nothing yet."""
    grants, refusals = story.take(do.Grant), story.take(do.Refuse)
    assert len(grants) + len(refusals) <= 1
    if grants:
        return grants[0].attachment.address
    if not refusals:
        return None
    refusal = refusals[0].refusal
    assert refusal.reason is Reason.ADDRESS_UNAVAILABLE
    return refusal.message


def why(story: Story, name: str) -> str:
    return " ".join(explain_waiting(story.pool, story.pool.waiting[name], name, story.now).because)


# There


def test_wish_for_a_free_address_is_granted_at_once() -> None:
    assert wish(node(A, B), "b", B) == B


def test_wish_for_the_own_address_needs_no_cooldown() -> None:
    story = node(A)
    assert wish(story, "a", A) == A
    story.give_back("a")
    story.effects.clear()
    story.ask("a", wanted=A)
    (grant,) = story.take(do.Grant)
    assert grant.attachment.address == A
    written = story.written()
    assert DropCooling(A) in written and PutAttachment(grant.attachment) in written
    story.pass_time(story.pool.targets.cooldown + 1)
    assert story.pool.counts().assigned == 1


def test_own_address_cools_on_when_its_grant_is_unrecorded() -> None:
    """It was not free: nobody else may have it, and its flows are not forgotten yet."""
    story = node(A)
    story.ask("a")
    story.give_back("a")
    story.effects.clear()
    story.ask("a", wanted=A)
    story.feed(on.GrantsUnrecorded((story.one(do.Grant),), "no space left on device"))
    assert story.one(do.Refuse).refusal.reason is Reason.LEDGER_UNWRITABLE
    assert (story.pool.counts().free, story.pool.counts().cooling) == (0, 1)
    assert PutCooling(Cooling(A, story.now)) in story.written()


def test_own_address_is_known_again_when_it_was_recovered() -> None:
    """Its record was lost, so it stood under the name of its link."""
    by_link, key = AttachmentKey("", "ipm1", ""), AttachmentKey("net", "a", "eth0")
    story = Story(warm(0))
    story.start(observed("eni-0", 0, A), routed=((A, "ipm1"),))
    story.feed(on.ReleaseRequested("del", key, by_link))
    assert wish(story, "a", A) == A


def test_repeated_wish_for_the_held_address_is_granted() -> None:
    story = node(A)
    assert wish(story, "a", A) == A
    assert wish(story, "a", A) == A


# Another one than it holds


def test_repeated_add_that_wishes_another_address_is_refused() -> None:
    story = node(A, B)
    assert wish(story, "a", A) == A
    story.ask("a", wanted=B)
    refusal = story.one(do.Refuse).refusal
    assert refusal.reason is Reason.ADDRESS_UNAVAILABLE and refusal.retry_after is None
    assert refusal.message == f"{B} was asked for, but the attachment has {A}: it has to be deleted first"


def test_repeated_add_with_another_wish_is_refused_in_a_burst() -> None:
    story = node(A)
    story.ask("a", "b")  # one is on its way
    assert story.one(do.Grant).attachment.address == A
    assert "the attachment has 10.0.0.10" in (wish(story, "a", ELSEWHERE) or "")
    assert story.one(do.AssignAddresses) and list(story.pool.waiting) == ["b"]


def test_two_wishes_of_one_attachment_get_one_address() -> None:
    """The second is for another address, and comes while both wait."""
    story = full()
    key = AttachmentKey("net", "c", "eth0")
    for request, ip in (("first", A), ("second", B), ("third", "")):
        story.feed(on.AllocationRequested(request, key, Owner(), story.now + 60, ip))
    story.give_back("a")
    story.pass_time(30)
    grants = {grant.request: grant.attachment.address for grant in story.take(do.Grant)}
    assert grants == {"first": A, "third": A}
    assert story.one(do.Refuse).request == "second" and not story.pool.waiting


def test_attachment_asked_for_twice_is_answered_before_others() -> None:
    """One address, and somebody else between the two requests."""
    story = full()
    key = AttachmentKey("net", "c", "eth0")
    story.feed(on.AllocationRequested("first", key, Owner(), story.now + 60))
    story.ask("d", wait=60.0)
    story.feed(on.AllocationRequested("second", key, Owner(), story.now + 60))
    story.give_back("a")
    story.pass_time(30)
    assert [grant.request for grant in story.take(do.Grant)] == ["first", "second"]


# On its way


def test_wish_is_never_answered_with_what_a_burst_brings() -> None:
    story = node(A)
    story.ask("a")
    story.ask("b")
    assign = story.one(do.AssignAddresses)
    story.effects.clear()
    assert wish(story, "c", ELSEWHERE) is None and story.waited_for()["c"] is WaitsFor.EC2
    assert "1 address is on the way, and EC2 has not said which" in why(story, "c")
    story.feed(on.AddressesAssigned(assign.op, (B,)))
    assert story.one(do.Grant).request == "b"
    assert answer(story) == f"{ELSEWHERE} was asked for, but no ENI of this node has it; ask for none to get any"


def test_wish_that_a_burst_brings_is_granted() -> None:
    """Somebody before it takes another one, as long as there is one."""
    story = node(A)
    story.ask("a", "b")
    assign = story.one(do.AssignAddresses)
    story.effects.clear()
    story.ask("later")
    assert wish(story, "c", B) is None
    more = story.one(do.AssignAddresses)
    story.feed(on.AddressesAssigned(assign.op, (B,)))
    assert story.one(do.Grant).request == "b", "it came first, and there is no other"
    assert story.waited_for()["c"] is WaitsFor.RELEASE
    story.feed(on.AddressesAssigned(more.op, (C,)))
    assert story.one(do.Grant).request == "later"


def test_pod_before_a_wish_takes_another_address_if_there_is_one() -> None:
    story = Story(warm(2))
    story.start(observed("eni-0", 0))
    assign = story.one(do.AssignAddresses)
    story.ask("before")
    assert wish(story, "c", A) is None
    story.feed(on.AddressesAssigned(assign.op, (A, B)))
    assert {g.request: g.attachment.address for g in story.take(do.Grant)} == {"before": B, "c": A}


def test_no_more_unknown_wishes_wait_than_addresses_come() -> None:
    story = node(A)
    story.ask("a", "b")
    story.effects.clear()
    assert wish(story, "c", "10.0.9.1") is None
    assert "no ENI of this node has it" in (wish(story, "d", "10.0.9.2") or "")


def test_wish_outside_the_subnet_is_refused_while_others_come() -> None:
    story = node(A)
    story.ask("a", "b")
    story.effects.clear()
    assert wish(story, "c", "192.168.7.7") == (
        "192.168.7.7 was asked for, but no ENI of this node has it; ask for none to get any"
    )


def test_wish_asks_nothing_of_ec2() -> None:
    """EC2 would choose the address."""
    story = full_node()
    story.ask("c", wait=60.0, wanted=A)
    roomy = node(A)
    roomy.ask("a")
    assert roomy.one(do.Grant)
    roomy.ask("c", wait=60.0, wanted=A)
    assert not roomy.take(do.AssignAddresses) and not roomy.take(do.CreateEni)
    assert "1 pod waits for the one address that it asked for" in explain_pool(roomy.pool, roomy.now).headline


def test_wish_for_an_arriving_enis_address_waits_for_the_eni() -> None:
    """After a restart, above all: its interface is set up anew."""
    story = Story(warm(0))
    story.feed(on.Started((observed("eni-0", 0, A),)))
    link = story.one(do.ConfigureLink)
    assert wish(story, "a", A) is None and story.waited_for()["a"] is WaitsFor.EC2
    assert "eni-0, which has it, is configuring" in why(story, "a")
    story.feed(on.LinkReady(link.op, "eth0", SUBNET))
    assert answer(story) == A


def test_wish_before_the_start_is_judged_after_it() -> None:
    story = Story(warm(0))
    for name, ip in (("a", A), ("b", ELSEWHERE), ("c", C)):
        story.ask(name, wait=60.0, wanted=ip)
    assert not story.take(do.Refuse)
    held = Attachment(AttachmentKey("net", "c", "eth0"), B, "eni-0", 900.0)
    story.start(observed("eni-0", 0, A, B), attachments=(held,))
    assert story.one(do.Grant).attachment.address == A
    refused = {refuse.request: refuse.refusal.message for refuse in story.take(do.Refuse)}
    assert f"the attachment has {B}" in refused["c"] and "no ENI of this node has it" in refused["b"]


def test_wish_for_what_a_lost_answer_may_have_brought_waits() -> None:
    """The process ended while EC2 was asked: the address may be on the ENI, which was not read yet."""
    story = Story(warm(0))
    intent = Intent("t", do.AssignAddresses.action, 990.0, eni_id="eni-0", count=1)
    story.feed(on.Started((observed("eni-0", 0),), intents=(intent,), own=(OwnAddresses("eni-0", ()),)))
    link = story.one(do.ConfigureLink)
    assert wish(story, "a", A) is None
    story.feed(on.LinkReady(link.op, "eth0", SUBNET))
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, observed("eni-0", 0, A)))
    assert answer(story) == A


# Cooling


def test_wish_for_a_cooling_address_waits_for_its_cooldown() -> None:
    story = node(A, B)
    story.ask("a", "b")
    story.give_back("b")
    story.pass_time(5)
    story.give_back("a")
    story.effects.clear()
    story.ask("x", wait=60.0)
    story.effects.clear()
    assert wish(story, "c", A) is None and story.waited_for()["c"] is WaitsFor.COOLDOWN
    story.pass_time(5)
    assert story.one(do.Grant).attachment == Attachment(
        AttachmentKey("net", "x", "eth0"), B, "eni-0", story.now, Owner(pod_name="x")
    )
    story.pass_time(5)
    assert answer(story) == A


def test_wish_for_a_young_cooling_address_wakes_the_pool_for_it() -> None:
    """It is not the one that has cooled longest, and nobody else waits."""
    story = node(A, B)
    story.ask("a", "b")
    story.give_back("b")
    story.pass_time(5)
    story.give_back("a")
    story.take(do.Grant)
    story.ask("c", wait=60.0, wanted=A)
    story.wake()
    assert story.now == pytest.approx(1015.0) and answer(story) == A
    assert story.pool.counts().cooling == 1, "the other one cools to the end"


def test_wish_that_cools_beyond_the_deadline_is_refused_at_once() -> None:
    story = node(A)
    story.ask("a")
    story.give_back("a")
    story.effects.clear()
    story.ask("c", wait=10.0, wanted=A)
    refusal = story.one(do.Refuse).refusal
    assert refusal.reason is Reason.ADDRESS_UNAVAILABLE and refusal.retry_after == pytest.approx(10.0)
    assert refusal.message == f"{A} was asked for, but it cools after its last pod; ask for none to get any"


def test_wish_waits_for_a_cooldown_where_no_release_can_come() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0, A), cooling=(Cooling(A, 999.0),))
    assert wish(story, "c", A, blocks_releases=True) is None
    story.pass_time(30)
    assert answer(story) == A


# A pod's


def test_wish_for_a_pods_address_waits_for_its_end() -> None:
    story = node(A)
    story.ask("a")
    story.effects.clear()
    assert wish(story, "c", A) is None and story.waited_for()["c"] is WaitsFor.RELEASE
    assert f"It asked for {A} and takes no other: another pod has it." in why(story, "c")
    story.pass_time(3)
    story.give_back("a")
    assert story.waited_for()["c"] is WaitsFor.COOLDOWN
    story.wake()
    assert (story.now, answer(story)) == (pytest.approx(1013.0), A)


@pytest.mark.parametrize(("wait", "blocks"), [(60.0, True), (10.0, False)])
def test_wish_for_a_pods_address_is_refused_if_no_end_helps(wait: float, blocks: bool) -> None:
    story = node(A)
    story.ask("a")
    story.effects.clear()
    assert "another pod has it" in (wish(story, "c", A, wait, blocks) or "")


def test_second_wish_for_one_address_is_refused() -> None:
    story = node(A)
    story.ask("a")
    story.effects.clear()
    assert wish(story, "c", A) is None
    assert "another pod waits for it already" in (wish(story, "d", A) or "")
    story.feed(on.AllocationCancelled("c"))
    assert wish(story, "d", A) is None, "nobody is before it any more"


def test_wish_at_its_deadline_says_where_the_address_is() -> None:
    story = node(A)
    story.ask("a")
    story.effects.clear()
    assert wish(story, "c", A) is None
    story.pass_time(60)
    assert answer(story) == f"{A} was asked for and did not come within 60 s: another pod has it"


def test_wish_that_the_pod_before_takes_waits_for_that_pod() -> None:
    """There is one address, and somebody before waits for any."""
    story = Story(warm(0, reuse_cooling_after=10.0), Limits(1, 2))
    story.start(observed("eni-0", 0, A), cooling=(Cooling(A, 1000.0),))
    story.ask("x", wait=60.0)
    assert wish(story, "c", A) is None
    story.pass_time(10)
    assert story.one(do.Grant).request == "x"
    assert story.pool.waiting and story.waited_for()["c"] is WaitsFor.RELEASE


def test_wish_for_a_stranded_pods_address_is_refused() -> None:
    story = Story(warm(0))
    held = Attachment(AttachmentKey("net", "a", "eth0"), A, "eni-9", 900.0)
    story.start(observed("eni-0", 0, B), attachments=(held,))
    assert "a pod has it, though no ENI of this node does" in (wish(story, "c", A) or "")


# At the limit of pods, on a full node


def test_wish_at_the_pod_limit_waits_for_the_end_of_any_pod() -> None:
    story = node(A, B, max_pods=1)
    story.ask("a", wanted=A)
    story.effects.clear()
    assert wish(story, "b", B) is None and story.waited_for()["b"] is WaitsFor.RELEASE
    story.give_back("a")
    assert answer(story) == B


def test_wish_at_the_pod_limit_is_refused_if_no_end_helps() -> None:
    story = node(A, B, max_pods=1)
    story.ask("a", wanted=A)
    story.effects.clear()
    story.ask("b", wanted=B, blocks_releases=True)
    assert story.one(do.Refuse).refusal.reason is Reason.POD_LIMIT


def test_wish_for_a_pods_address_takes_no_others_place() -> None:
    """Two pods; one waits for the address of the first, so one more may wait for that of the other."""
    story = full_node(reuse_cooling_after=10.0)
    assert wish(story, "c", A) is None
    story.ask("d", "e", wait=60.0)
    refuse = story.one(do.Refuse)
    assert refuse.request == "e" and "others wait for one already" in refuse.refusal.message
    assert list(story.pool.waiting) == ["c", "d"]
    story.give_back("b")
    story.pass_time(10)
    assert story.one(do.Grant).request == "d"


def test_wish_for_a_pods_address_leaves_the_node_open_to_others() -> None:
    story = node(A, B)
    story.ask("a", wanted=A)
    story.ask("c", wait=60.0, wanted=A)
    assert would_refuse(story.pool, story.now) is None


# Somebody else's


def test_wish_for_an_enis_own_address_is_refused() -> None:
    assert "it is the own address of eni-0" in (wish(node(A), "a", "10.0.0.4") or "")


def test_wish_for_what_others_put_on_the_eni_is_refused() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0, A, B), own=(OwnAddresses("eni-0", (A,), (B,)),))
    assert "it is somebody else's;" in (wish(story, "b", B) or "")


def test_wish_for_an_address_in_use_on_the_host_is_refused() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0, A), uses=Uses({A: ROUTE}))
    assert "it is somebody else's: somebody's route;" in (wish(story, "a", A) or "")


def test_own_address_that_somebody_uses_meanwhile_is_refused() -> None:
    story = node(A)
    story.ask("a")
    story.give_back("a")
    story.effects.clear()
    story.feed(on.UseSeen(IPv4Network(A), ROUTE))
    assert "somebody's route" in (wish(story, "a", A) or "")


def test_waiting_wish_is_refused_when_others_use_the_address() -> None:
    story = node(A)
    story.ask("a")
    story.give_back("a")
    story.effects.clear()
    assert wish(story, "c", A) is None
    story.feed(on.UseSeen(IPv4Network(A), ROUTE))
    assert "somebody's route" in (answer(story) or "")


# On its way back to EC2


def leaving() -> Story:
    """Two addresses are to go back, and their ENI is read first."""
    story = Story(warm(0, release_delay=0.0))
    story.start(observed("eni-0", 0, A, B))
    return story


def test_wish_for_a_leaving_address_takes_it_back() -> None:
    story = leaving()
    story.one(do.DescribeEni)
    assert story.pool.counts().releasing == 2
    assert wish(story, "a", A) == A


@pytest.mark.parametrize("given_back", [True, False])
def test_wish_for_what_ec2_takes_back_waits_for_its_answer(given_back: bool) -> None:
    story = leaving()
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, observed("eni-0", 0, A, B)))
    unassign = story.one(do.UnassignAddresses)
    story.effects.clear()
    assert wish(story, "a", A) is None and story.waited_for()["a"] is WaitsFor.EC2
    if given_back:
        story.feed(on.OperationDone(unassign.op))
        assert "no ENI of this node has it" in (answer(story) or "")
    else:
        story.fail(unassign, CloudErrorKind.IN_USE, unassign.action)
        assert answer(story) == A


def test_wish_for_a_leaving_address_waits_while_in_doubt() -> None:
    story = leaving()
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, observed("eni-0", 0, A, B)))
    unassign = story.one(do.UnassignAddresses)
    story.fail(unassign, CloudErrorKind.UNKNOWN_OUTCOME, unassign.action)
    story.effects.clear()
    assert wish(story, "a", A) is None, "it may be taken away yet"
    story.pass_time(10)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, observed("eni-0", 0, B)))
    assert "no ENI of this node has it" in (answer(story) or "")


# Nothing new is granted


def test_wish_on_a_drained_node_is_refused_as_any_other() -> None:
    story = node(A, B)
    story.ask("held", wanted=B)
    story.feed(on.NodeDrained())
    story.effects.clear()
    story.ask("a", wanted=A)
    assert story.one(do.Refuse).refusal.reason is Reason.DRAINED
    assert wish(story, "held", B) == B, "what it has it keeps"


def test_wish_is_refused_as_any_other_when_the_daemon_stops() -> None:
    story = node(A)
    story.feed(on.StopRequested())
    story.ask("a", wanted=A)
    assert story.one(do.Refuse).refusal.reason is Reason.DRAINING


def test_wish_on_a_node_without_any_address_is_refused() -> None:
    story = Story(warm(0), Limits(1, 1))
    story.start(observed("eni-0", 0))
    assert "no ENI of this node has it" in (wish(story, "a", A) or "")
