"""On a full node an ADD waits for the end of a pod: who waits, for what, in which order, and how long."""

from __future__ import annotations

import pytest

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.explain import explain_pool, explain_waiting
from ipamd.pool.model import AttachmentKey, CloudErrorKind, Limits, Owner, Reason
from ipamd.pool.outlook import would_refuse
from ipamd.pool.queue import WaitsFor
from tests.unit.story import Story, addresses, full_node, observed, warm

A, B = addresses(2)


def full(**more: float) -> Story:
    """Two addresses, both in use: an address is used again 10 s after its release."""
    return full_node(**{"reuse_cooling_after": 10.0, **more})


def granted(story: Story) -> list[str]:
    return [grant.request for grant in story.take(do.Grant)]


def refused(story: Story) -> dict[str, Reason]:
    return {refuse.request: refuse.refusal.reason for refuse in story.take(do.Refuse)}


def test_an_add_on_a_full_node_gets_an_ending_pods_address() -> None:
    story = full()
    story.ask("c", wait=60.0)
    assert not story.take(do.Refuse) and story.waited_for() == {"c": WaitsFor.RELEASE}
    story.pass_time(3)
    story.give_back("a")
    assert story.waited_for() == {"c": WaitsFor.COOLDOWN}
    story.wake()
    assert story.now == pytest.approx(1013.0), "as soon as it may be"
    assert granted(story) == ["c"]


def test_adds_on_a_full_node_are_served_in_their_order() -> None:
    story = full()
    story.ask("c", "d", wait=60.0)
    story.give_back("b")
    story.pass_time(1)
    story.give_back("a")
    story.wake()
    assert granted(story) == ["c"]
    story.wake()
    assert granted(story) == ["d"]
    assert story.now == pytest.approx(1011.0)


def test_no_more_adds_wait_than_the_node_has_addresses() -> None:
    story = full()
    story.ask("c", "d", "e", wait=60.0)
    refuse = story.one(do.Refuse)
    assert (refuse.request, refuse.refusal.reason) == ("e", Reason.ENI_LIMIT)
    assert refuse.refusal.message.endswith("; others wait for one already")
    assert dict(refuse.refusal.numbers)["before"] == 2


def test_an_add_that_no_release_helps_in_time_is_refused_at_once() -> None:
    story = full()
    story.ask("c", wait=10.0)
    assert refused(story) == {"c": Reason.ENI_LIMIT}
    story.ask("d", wait=10.1)
    assert not story.take(do.Refuse)


def test_an_add_without_a_release_is_refused_at_its_deadline() -> None:
    story = full()
    story.ask("c", wait=45.0)
    story.pass_time(44.9)
    assert not story.take(do.Refuse)
    story.wake()
    assert story.now == pytest.approx(1045.0)
    refusal = story.one(do.Refuse).refusal
    assert refusal.reason is Reason.ENI_LIMIT and refusal.message.endswith("; none became free in time")


def test_an_add_waits_no_longer_than_the_setting() -> None:
    story = full(allocate_wait=20.0)
    story.ask("c", wait=60.0)
    story.pass_time(20.0)
    assert refused(story) == {"c": Reason.ENI_LIMIT}


def test_at_the_pod_limit_the_end_of_a_pod_makes_room_at_once() -> None:
    story = Story(warm(0, max_pods=1))
    story.start(observed("eni-0", 0, *addresses(2)))
    story.ask("a", "b", "c", wait=60.0)
    assert granted(story) == ["a"]
    assert refused(story) == {"c": Reason.POD_LIMIT}, "one may wait for one pod's end"
    assert story.waited_for() == {"b": WaitsFor.RELEASE}
    story.give_back("a")
    assert granted(story) == ["b"], "another address is free: none has to cool"


def test_an_exhausted_subnet_lets_as_many_wait_as_pods_may_end() -> None:
    story = Story(warm(0, reuse_cooling_after=10.0))
    story.start(observed("eni-0", 0, A))
    story.ask("a", "b", wait=60.0)
    story.fail(story.one(do.AssignAddresses), CloudErrorKind.SUBNET_FULL)
    story.read_subnets(**{"subnet-1": 0})
    story.ask("c", wait=60.0)
    assert granted(story) == ["a"] and refused(story) == {"c": Reason.SUBNET_EXHAUSTED}
    story.give_back("a")
    story.pass_time(10)
    assert granted(story) == ["b"]


@pytest.mark.parametrize("kind", [CloudErrorKind.THROTTLED, CloudErrorKind.TRANSIENT])
def test_what_passes_by_itself_refuses_nobody(kind: CloudErrorKind) -> None:
    story = Story(warm(0))
    story.start()
    story.ask("a", wait=60.0)
    story.fail(story.one(do.AssignAddresses), kind)
    assert not story.take(do.Refuse) and story.waited_for() == {"a": WaitsFor.EC2}


def test_a_drained_node_refuses_at_once_what_waits_for_a_release() -> None:
    story = full()
    story.ask("c", wait=60.0)
    story.feed(on.NodeDrained())
    assert refused(story) == {"c": Reason.DRAINED}
    story.ask("d", wait=60.0)
    assert refused(story) == {"d": Reason.DRAINED}


def test_a_node_without_pods_lets_nobody_wait_for_one() -> None:
    story = Story(warm(0, max_pods=0, reuse_cooling_after=0.0), Limits(1, 1))
    story.start(observed("eni-0", 0))
    story.ask("a", wait=60.0)
    assert refused(story) == {"a": Reason.ENI_LIMIT}


def test_a_runtime_that_holds_back_releases_is_refused_at_once() -> None:
    story = full()
    story.ask("c", wait=60.0, blocks_releases=True)
    assert refused(story) == {"c": Reason.ENI_LIMIT}
    story.give_back("a")
    story.ask("d", wait=60.0, blocks_releases=True)
    assert not story.take(do.Refuse), "an address that cools comes by itself"
    story.pass_time(10)
    assert granted(story) == ["d"]


def test_a_del_ends_the_wait_of_its_own_add_alone() -> None:
    story = full()
    story.ask("c", "d", wait=60.0)
    story.give_back("c")
    assert refused(story) == {"c": Reason.RELEASED}
    story.feed(on.AllocationCancelled("d"))
    assert not story.pool.waiting
    story.give_back("a")
    story.pass_time(60)
    assert not story.take(do.Grant), "nobody waits any more"


def test_a_place_in_the_queue_that_is_free_again_is_taken() -> None:
    story = full()
    story.ask("c", "d", wait=60.0)
    story.feed(on.AllocationCancelled("c"))
    story.ask("e", wait=60.0)
    assert list(story.pool.waiting) == ["d", "e"] and not story.take(do.Refuse)


def test_an_address_asked_for_by_name_is_not_replaced_by_another() -> None:
    story = Story(warm(0, max_pods=1))
    story.start(observed("eni-0", 0, A, B))
    story.ask("a", wait=60.0, wanted=B)
    assert story.one(do.Grant).attachment.address == B
    story.ask("b", wait=60.0, wanted=A)
    story.give_back("a")
    assert story.one(do.Grant).attachment.address == A


def test_who_waits_for_an_address_by_name_holds_up_nobody() -> None:
    story = full()
    story.ask("c", wait=60.0, wanted=A)
    story.ask("d", wait=60.0)
    story.give_back("b")
    story.pass_time(10)
    assert granted(story) == ["d"]
    story.pass_time(50)
    refusal = story.one(do.Refuse).refusal
    assert refusal.reason is Reason.ADDRESS_UNAVAILABLE
    assert refusal.message == f"{A} was asked for and did not come within 60 s: another pod has it"


def test_a_full_node_is_called_full_while_somebody_waits() -> None:
    story = full()
    story.ask("c", wait=60.0)
    found = would_refuse(story.pool, story.now)
    assert found is not None and found.reason is Reason.ENI_LIMIT
    headline = explain_pool(story.pool, story.now).headline
    assert headline.startswith("No further pod can get an address before one of the node's pods ends: all 2")


def test_the_explanation_of_a_wait_says_what_it_waits_for() -> None:
    story = full()
    story.ask("c", wait=60.0)

    def because() -> str:
        return " ".join(explain_waiting(story.pool, story.pool.waiting["c"], "shop/c", story.now).because)

    assert "It gets the address of a pod of this node that ends, 10 s after its end." in because()
    story.give_back("a")
    assert "It gets an address that was released a moment ago, as soon as that has cooled." in because()


def test_a_waiting_pod_has_others_looked_after_again() -> None:
    """Somebody else's ENI keeps it from an address: the pool looks while it waits, not at its next try."""
    story = Story(warm(0, reuse_cooling_after=10.0), Limits(2, 2))
    story.start(observed("eni-0", 0, A), observed("eni-x", 1))
    story.ask("a", "b", wait=60.0)
    story.take(do.Grant)
    looks = 0
    while story.now < 1059:
        for audit in story.take(do.Audit):
            looks += 1
            story.feed(on.Audited(audit.op, (observed("eni-0", 0, A), observed("eni-x", 1)), (), ()))
        story.wake()
    assert looks >= 3, "at once, and then ever more rarely"


def test_the_same_attachment_asked_twice_gets_one_address() -> None:
    story = full()
    key = AttachmentKey("net", "c", "eth0")
    for request in ("first", "second"):
        story.feed(on.AllocationRequested(request, key, Owner(), story.now + 60))
    story.give_back("a")
    story.pass_time(10)
    assert granted(story) == ["first", "second"]
