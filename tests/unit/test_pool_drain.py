"""A node that an operator has drained: it keeps what pods have, and nothing else."""

from __future__ import annotations

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import Attachment, AttachmentKey, DropDrained, PutDrained, Reason
from ipamd.pool.outlook import would_refuse
from tests.unit.story import Story, addresses, observed, warm


def drained_story() -> Story:
    """Ten addresses, one of them a pod's."""
    story = Story(warm(5, cooldown=30.0, minimum_ips=8))
    story.start(observed("eni-0", 0, *addresses(9)))
    story.ask("a")
    story.feed(on.NodeDrained())
    return story


def test_what_is_free_goes_back_at_once_and_what_a_pod_has_stays() -> None:
    story = drained_story()
    assert PutDrained(story.now) in story.written()
    held = story.take(do.Grant)[0].attachment.address
    effect = story.one(do.DescribeEni)
    story.feed(on.EniObserved(effect.op, observed("eni-0", 0, *addresses(9))))
    given_back = story.one(do.UnassignAddresses)
    assert sorted((held, *given_back.addresses)) == sorted(addresses(9))
    story.feed(on.OperationDone(given_back.op))
    counts = story.pool.counts()
    assert (counts.assigned, counts.free, counts.total, counts.pending) == (1, 0, 1, 0)


def test_new_pods_and_those_that_wait_are_refused_until_it_ends() -> None:
    story = Story(warm(0))
    story.start()
    story.ask("waits")
    story.feed(on.NodeDrained())
    assert story.one(do.Refuse).refusal.reason is Reason.DRAINED
    story.ask("late")
    assert story.one(do.Refuse).refusal.reason is Reason.DRAINED
    refusal = would_refuse(story.pool, story.now)
    assert refusal is not None and refusal.reason is Reason.DRAINED and "ipamctl undrain" in refusal.message
    story.feed(on.NodeUndrained())
    assert DropDrained() in story.written()
    story.take(do.AssignAddresses)
    story.ask("welcome")
    assert not story.take(do.Refuse) and story.pool.waiting


def test_a_pod_that_asks_again_for_its_own_address_gets_it() -> None:
    story = drained_story()
    story.take(do.Grant)
    story.ask("a")
    assert story.one(do.Grant).request == "a"


def test_an_address_asked_for_by_name_is_refused_too() -> None:
    story = drained_story()
    key = AttachmentKey("net", "b", "eth0")
    story.feed(on.AllocationRequested("b", key, Attachment(key, "", "", 0).owner, story.now + 5, "10.0.0.12"))
    assert story.one(do.Refuse).refusal.reason is Reason.DRAINED


def test_what_cools_goes_back_once_its_flows_are_forgotten() -> None:
    story = Story(warm(0, cooldown=30.0))
    story.start(observed("eni-0", 0, *addresses(1)))
    story.ask("a")
    story.feed(on.NodeDrained())
    story.give_back("a")
    story.pass_time(31)
    effect = story.one(do.DescribeEni)
    story.feed(on.EniObserved(effect.op, observed("eni-0", 0, *addresses(1))))
    assert story.one(do.UnassignAddresses).addresses == addresses(1)


def test_twice_is_as_good_as_once() -> None:
    story = drained_story()
    since = story.pool.drained
    story.take(do.Note)
    story.now += 5
    story.feed(on.NodeDrained())
    assert story.pool.drained == since and not story.take(do.Note)
    story.feed(on.NodeUndrained())
    story.take(do.Note)
    story.feed(on.NodeUndrained())
    assert story.pool.drained is None and not story.take(do.Note)


def test_a_restart_remembers() -> None:
    story = Story(warm(5))
    story.start(observed("eni-0", 0, *addresses(2)), drained=900.0)
    story.ask("a")
    assert story.one(do.Refuse).refusal.reason is Reason.DRAINED
    assert not story.take(do.AssignAddresses)
    story.feed(on.TargetsChanged(warm(7)))
    assert story.pool.targets.warm_ips == 0 and story.pool.configured.warm_ips == 7
    story.feed(on.NodeUndrained())
    assert story.pool.targets.warm_ips == 7
