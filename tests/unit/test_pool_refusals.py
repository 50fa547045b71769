"""Whom the pool refuses, when, and with which words."""

from __future__ import annotations

import pytest

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import (
    CloudErrorKind,
    CloudFailure,
    CreatedEni,
    Limits,
    Reason,
    Targets,
)
from ipamd.pool.outlook import would_refuse
from tests.unit.story import SUBNET, Story, addresses, full_node, observed, warm


def test_a_full_node_refuses_at_once_and_says_what_the_limit_is() -> None:
    story = full_node()
    story.ask("c")
    refusal = story.one(do.Refuse).refusal
    assert refusal.reason is Reason.ENI_LIMIT
    assert "1 ENI with 2" in refusal.message and refusal.retry_after == 30.0
    assert dict(refusal.numbers)["assigned"] == 2


def test_address_cooling_past_deadline_refuses_with_wait_time() -> None:
    story = full_node(cooldown=100.0, reuse_cooling_after=100.0)
    story.give_back("a")
    story.ask("c")
    refusal = story.one(do.Refuse).refusal
    assert refusal.reason is Reason.ALL_COOLING and refusal.retry_after == pytest.approx(100.0)


def test_max_pods_has_a_reason_of_its_own() -> None:
    story = Story(Targets(warm_ips=0, max_pods=1, coalesce=0))
    story.start(observed("eni-0", 0, *addresses(2)))
    story.ask("a", "b", "c")
    assert story.one(do.Refuse).refusal.reason is Reason.POD_LIMIT


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (CloudErrorKind.NOT_AUTHORIZED, Reason.NOT_AUTHORIZED),
        (CloudErrorKind.SUBNET_FULL, Reason.SUBNET_EXHAUSTED),
    ],
)
def test_a_lasting_error_refuses_whoever_waits(kind: CloudErrorKind, reason: Reason) -> None:
    story = Story(warm(0))
    story.start()
    story.ask("a")
    story.fail(story.one(do.AssignAddresses), kind)
    if kind is CloudErrorKind.NOT_AUTHORIZED:  # another ENI may still be created, which is another action
        story.fail(story.one(do.CreateEni), kind, "CreateNetworkInterface")
    else:
        story.read_subnets(**{"subnet-1": 0})
    refusal = story.one(do.Refuse).refusal
    assert refusal.reason is reason
    assert ("EC2's words" in refusal.message or "subnet-1" in refusal.message) and refusal.retry_after is not None


def test_a_bad_security_group_is_named() -> None:
    story = Story(warm(0), Limits(2, 2))
    story.start(observed("eni-0", 0, "10.0.0.10"))
    story.ask("a", "b")
    story.fail(story.one(do.CreateEni), CloudErrorKind.SECURITY_GROUP_INVALID, "CreateNetworkInterface")
    assert story.one(do.Refuse).refusal.reason is Reason.SECURITY_GROUP_INVALID


def test_a_refused_request_is_for_an_operator_alone() -> None:
    story = Story(warm(0), Limits(2, 2))
    story.start(observed("eni-0", 0, "10.0.0.10"))
    story.ask("a", "b")
    story.fail(story.one(do.CreateEni), CloudErrorKind.INVALID, "CreateNetworkInterface")
    refusal = story.one(do.Refuse).refusal
    assert (refusal.reason, refusal.retry_after) == (Reason.REQUEST_REFUSED, None)


def test_a_subnet_that_ec2_refuses_leaves_the_others() -> None:
    story = Story(warm(0), Limits(2, 2), subnets=("subnet-1", "subnet-2"))
    story.start(observed("eni-0", 0, "10.0.0.10"))
    story.ask("a", "b")
    story.read_subnets(**{"subnet-1": 100, "subnet-2": 100})
    first = story.one(do.CreateEni)
    story.fail(first, CloudErrorKind.SUBNET_INVALID, "CreateNetworkInterface")
    second = story.one(do.CreateEni)
    assert {first.subnet_id, second.subnet_id} == {"subnet-1", "subnet-2"}
    assert not story.take(do.Refuse)


def test_throttling_makes_wait_and_is_named_at_the_deadline() -> None:
    story = Story(warm(0))
    story.start()
    story.ask("a", wait=0.5)
    story.fail(story.one(do.AssignAddresses), CloudErrorKind.THROTTLED)
    assert not story.take(do.Refuse)
    while not (refusals := story.take(do.Refuse)):
        story.pass_time(0.1)
        for effect in story.take(do.AssignAddresses):
            story.fail(effect, CloudErrorKind.THROTTLED)
    assert story.now == pytest.approx(1000.5)
    assert refusals[0].refusal.reason is Reason.THROTTLED


def test_a_time_out_names_a_failure_whose_next_try_is_under_way() -> None:
    story = Story(warm(0))
    story.start()
    story.ask("a", wait=10.0)
    story.fail(story.one(do.AssignAddresses), CloudErrorKind.TRANSIENT)
    story.pass_time(9.0)
    assert story.take(do.AssignAddresses)
    story.pass_time(1.0)
    assert story.one(do.Refuse).refusal.reason is Reason.CLOUD_UNAVAILABLE


def test_failures_that_come_together_are_one_step_of_back_off() -> None:
    story = Story(warm(0))
    story.start(observed(), observed("eni-1", 1, owned=True), observed("eni-2", 2, owned=True))
    story.ask(*(f"pod-{n}" for n in range(27)))
    for ask in story.take(do.AssignAddresses):
        story.fail(ask, CloudErrorKind.THROTTLED)
        story.now += 0.001
    (backoff,) = story.pool.backoffs.all_active(story.now)
    assert backoff.attempts == 1 and backoff.until - story.now <= 1.0


def test_ec2s_words_are_cut_to_what_fits_into_an_answer() -> None:
    story = Story(warm(0))
    story.start()
    story.ask("a")
    effect = story.one(do.AssignAddresses)
    words = "Encoded authorization failure message: " + "x" * 5000
    story.feed(on.OperationFailed(effect.op, CloudFailure(CloudErrorKind.NOT_AUTHORIZED, effect.action, "No", words)))
    effect = story.one(do.CreateEni)
    story.feed(on.OperationFailed(effect.op, CloudFailure(CloudErrorKind.NOT_AUTHORIZED, effect.action, "No", words)))
    refusal = story.one(do.Refuse).refusal
    assert "Encoded authorization" in refusal.message and len(refusal.message) < 1000


def test_at_the_pod_limit_neither_cooling_nor_ec2_is_blamed() -> None:
    story = Story(warm(0, max_pods=2))
    story.start(observed("eni-0", 0, *addresses(3)))
    story.ask("a", "b")
    story.give_back("a")
    story.ask("c", "d")
    assert story.one(do.Refuse).refusal.reason is Reason.POD_LIMIT


def test_free_address_beyond_pod_limit_does_not_make_node_ready() -> None:
    story = Story(warm(0, max_pods=1))
    story.start(observed("eni-0", 0, *addresses(2)))
    assert would_refuse(story.pool, story.now) is None
    story.ask("a")
    refusal = would_refuse(story.pool, story.now)
    assert refusal is not None and refusal.reason is Reason.POD_LIMIT


def test_node_without_warm_target_serves_once_its_enis_are_ready() -> None:
    story = Story(warm(0))
    story.feed(on.Started((observed(),)))
    assert not story.pool.can_serve()
    story.feed(on.LinkReady(story.one(do.ConfigureLink).op, "eth0", SUBNET))
    assert story.pool.can_serve()


def test_a_time_out_without_error_is_called_one() -> None:
    story = Story(warm(0))
    story.start()
    story.ask("a", wait=2.0)
    story.pass_time(2.0)
    assert story.one(do.Refuse).refusal.reason is Reason.TIMEOUT


def test_before_the_inventory_is_known_requests_wait() -> None:
    story = Story(warm(0))
    story.ask("a", wait=2.0)
    assert (reason := would_refuse(story.pool, story.now)) and reason.reason is Reason.NOT_READY
    story.pass_time(2.0)
    assert story.one(do.Refuse).refusal.reason is Reason.NOT_READY


def test_a_stopping_daemon_refuses() -> None:
    story = Story(warm(0))
    story.start()
    story.ask("a")
    story.feed(on.StopRequested())
    assert story.one(do.Refuse).refusal.reason is Reason.DRAINING


def test_stopping_daemon_schedules_no_wakeup_for_growth() -> None:
    story = Story(warm(0, coalesce=0.05))
    story.start()
    story.ask("a")
    story.feed(on.StopRequested())
    story.pass_time(0.1)
    assert story.take(do.Wake)[-1].at is None


def test_a_time_out_names_what_it_waited_for() -> None:
    story = Story(warm(0), Limits(2, 2))
    story.start(observed("eni-0", 0, "10.0.0.10"))
    story.ask("a", "b")
    create = story.one(do.CreateEni)
    story.feed(on.EniCreated(create.op, CreatedEni("eni-7", "02:7", "subnet-1", "10.0.0.5", ("10.0.0.30",))))
    story.pass_time(5)
    story.feed(on.EniAttached(story.one(do.AttachEni).op, "attach-7"))
    story.pass_time(25)
    refusal = story.one(do.Refuse).refusal
    assert refusal.reason is Reason.TIMEOUT
    assert refusal.message == "no address came within 30 s: the interface of eni-7 is not there after 25 s"


def test_no_more_wait_than_can_be_served() -> None:
    story = Story(warm(0))
    story.start()
    story.ask(*(f"{n}" for n in range(1000)))
    assert len(story.pool.waiting) == 27 and len(story.take(do.Refuse)) == 973


def test_a_limit_that_was_set_is_named_as_such() -> None:
    story = Story(warm(0, max_enis=1))
    story.start(observed("eni-0", 0, *addresses(9)))
    story.ask(*(f"{n}" for n in range(10)))
    refusal = story.one(do.Refuse).refusal
    assert refusal.reason is Reason.ENI_LIMIT and "pool.max_enis allows no more: 1 ENI " in refusal.message
