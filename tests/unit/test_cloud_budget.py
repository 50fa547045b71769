"""The budget of EC2 calls: its figures, its rules in virtual time, and its face in asyncio."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from ipamd.cloud.budget import (
    MEMORY,
    PASSED_OVER_AT_MOST,
    Bucket,
    RateBudget,
    Share,
    Ticket,
    share_of,
)
from ipamd.cloud.port import CloudError, Priority
from ipamd.pool.model import CloudErrorKind, CloudFailure
from ipamd.sim.ec2.rules.throttle import BARE_READ, CHANGE, PUBLISHED, READ

ACTIONS = (
    "AssignPrivateIpAddresses",
    "AttachNetworkInterface",
    "CreateNetworkInterface",
    "DeleteNetworkInterface",
    "DescribeInstanceTypes",
    "DescribeNetworkInterfaces",
    "DescribeSubnets",
    "DetachNetworkInterface",
    "ModifyNetworkInterfaceAttribute",
    "UnassignPrivateIpAddresses",
)
# Two calls at once, then one a second.
SHARE = Share(burst=2, rate=1.0, floor=0.1, ceiling=4.0, increase=0.1)


@pytest.fixture
def bucket() -> Bucket:
    return Bucket("AttachNetworkInterface", SHARE, 0.0)


def ask(bucket: Bucket, priority: Priority, count: int, now: float = 0.0) -> list[Ticket]:
    return [bucket.ask(priority, now) for _ in range(count)]


def drained(bucket: Bucket, now: float = 0.0) -> list[Ticket]:
    """The calls that take all the tokens."""
    ask(bucket, Priority.POD, round(bucket.capacity), now)
    return bucket.admit(now)


def next_in_turn(bucket: Bucket, now: float) -> tuple[Ticket, float]:
    """Whom the next token goes to, and when."""
    due = bucket.due(now)
    assert due is not None and due >= now
    (ticket,) = bucket.admit(due)
    return ticket, due


# Figures


@pytest.mark.parametrize("action", ACTIONS)
def test_a_node_takes_a_cautious_share_of_what_the_account_has(action: str) -> None:
    category = READ if action.startswith("Describe") else CHANGE
    if action == "DescribeNetworkInterfaces":
        category = BARE_READ
    account = PUBLISHED.get(action, PUBLISHED[category])
    share = share_of(action)
    assert share.burst == pytest.approx(account.capacity / 5)
    assert share.rate == pytest.approx(account.refill / 10)
    assert share.ceiling == pytest.approx(account.refill / 2)
    assert 0 < share.floor < share.rate


def test_a_node_of_a_common_type_attaches_all_its_enis_at_once() -> None:
    assert share_of("AttachNetworkInterface").burst >= 8


# The rules


def test_a_burst_goes_at_once_and_the_rest_at_the_rate(bucket: Bucket) -> None:
    tickets = ask(bucket, Priority.POD, 4)
    assert bucket.admit(0.0) == tickets[:2]
    assert bucket.due(0.0) == pytest.approx(1.0)
    assert bucket.admit(0.5) == []
    assert bucket.admit(1.0) == [tickets[2]]
    assert bucket.admit(2.0) == [tickets[3]]
    assert bucket.due(2.0) is None


def test_tokens_are_saved_up_to_the_burst_only(bucket: Bucket) -> None:
    drained(bucket)
    ask(bucket, Priority.POD, 5, 100.0)
    assert len(bucket.admit(100.0)) == 2


def test_a_clock_of_seconds_since_the_epoch_wakes_in_time() -> None:
    epoch = 1.7e9
    bucket = Bucket("CreateNetworkInterface", share_of("CreateNetworkInterface"), epoch)
    drained(bucket, epoch)
    now = epoch
    ask(bucket, Priority.POD, 50, now)
    for _ in range(50):
        _, now = next_in_turn(bucket, now)


def test_pods_go_before_warm_fill_and_warm_fill_before_release(bucket: Bucket) -> None:
    drained(bucket)
    release, warm, pod, second_pod = (
        bucket.ask(priority, 0.0) for priority in (Priority.RELEASE, Priority.WARM, Priority.POD, Priority.POD)
    )
    now, order = 0.0, []
    while bucket.due(now) is not None:
        ticket, now = next_in_turn(bucket, now)
        order.append(ticket)
    assert order == [pod, second_pod, warm, release]


def test_nobody_starves(bucket: Bucket) -> None:
    drained(bucket)
    now = 0.0
    ask(bucket, Priority.WARM, 20)
    ask(bucket, Priority.RELEASE, 20)
    served: list[Priority] = []
    for _ in range(101):
        bucket.ask(Priority.POD, now)
        ticket, now = next_in_turn(bucket, now)
        served.append(ticket.priority)
    assert served[:PASSED_OVER_AT_MOST] == [Priority.POD] * PASSED_OVER_AT_MOST
    assert Counter(served) == {Priority.POD: 81, Priority.WARM: 10, Priority.RELEASE: 10}


def test_a_class_that_came_lately_has_not_been_passed_over(bucket: Bucket) -> None:
    drained(bucket)
    early = ask(bucket, Priority.RELEASE, 1)[0]
    now = 0.0
    for _ in range(PASSED_OVER_AT_MOST):
        bucket.ask(Priority.POD, now)
        _, now = next_in_turn(bucket, now)
    bucket.abandon(early, now)
    late = bucket.ask(Priority.RELEASE, now)
    pod = bucket.ask(Priority.POD, now)
    first, now = next_in_turn(bucket, now)
    second, now = next_in_turn(bucket, now)
    assert [first, second] == [pod, late]


def test_throttling_halves_the_rate_and_empties_the_bucket(bucket: Bucket) -> None:
    (ticket,) = ask(bucket, Priority.POD, 1)
    bucket.admit(0.0)
    bucket.throttled(ticket, 0.0)
    view = bucket.view(0.0)
    assert (view.rate, view.tokens, view.throttled) == (0.5, 0.0, 1)
    ask(bucket, Priority.POD, 1)
    assert bucket.due(0.0) == pytest.approx(2.0)


def test_calls_under_way_together_halve_it_once(bucket: Bucket) -> None:
    for ticket in drained(bucket):
        bucket.throttled(ticket, 0.1)
    assert (bucket.rate, bucket.throttled_calls) == (0.5, 2)
    ask(bucket, Priority.POD, 1, 0.1)
    ticket, now = next_in_turn(bucket, 0.1)
    bucket.throttled(ticket, now)
    assert bucket.rate == 0.25


def test_a_success_sent_before_a_decrease_does_not_undo_it(bucket: Bucket) -> None:
    throttled, succeeded = drained(bucket)
    bucket.throttled(throttled, 0.1)
    bucket.succeeded(succeeded, 0.2)
    assert bucket.rate == 0.5


def test_rate_stays_above_its_floor_and_saves_a_whole_token(bucket: Bucket) -> None:
    now = 0.0
    for _ in range(20):
        bucket.ask(Priority.POD, now)
        ticket, now = next_in_turn(bucket, now)
        bucket.throttled(ticket, now)
    assert (bucket.rate, bucket.capacity) == (SHARE.floor, 1.0)


def test_a_rate_that_was_not_used_up_does_not_grow(bucket: Bucket) -> None:
    for second in range(0, 100, 10):
        (ticket,) = ask(bucket, Priority.POD, 1, second)
        assert bucket.admit(second) == [ticket]
        bucket.succeeded(ticket, second)
    assert bucket.rate == SHARE.rate


def test_fully_used_rate_grows_each_second_up_to_its_ceiling(bucket: Bucket) -> None:
    drained(bucket)
    ask(bucket, Priority.POD, 1000)
    now = 0.0
    while now < 10.0:
        ticket, now = next_in_turn(bucket, now)
        bucket.succeeded(ticket, now)
    assert bucket.rate == pytest.approx(SHARE.rate + 10 * SHARE.increase, rel=0.1)
    while now < 100.0:
        ticket, now = next_in_turn(bucket, now)
        bucket.succeeded(ticket, now)
    assert bucket.rate == SHARE.ceiling


def test_a_rate_below_its_share_recovers_by_any_success(bucket: Bucket) -> None:
    bucket.throttled(drained(bucket)[0], 0.0)
    for second in range(10, 200, 10):
        (ticket,) = ask(bucket, Priority.POD, 1, second)
        assert bucket.admit(second) == [ticket]
        bucket.succeeded(ticket, second)
    assert bucket.rate == SHARE.rate


def test_what_was_learnt_is_forgotten(bucket: Bucket) -> None:
    bucket.throttled(drained(bucket)[0], 0.0)
    assert bucket.view(MEMORY - 1).rate == 0.5
    assert bucket.view(MEMORY).rate == SHARE.rate


def test_who_gives_up_costs_nothing(bucket: Bucket) -> None:
    first, second, third = ask(bucket, Priority.POD, 3)
    assert bucket.admit(0.0) == [first, second]
    bucket.abandon(first, 0.0)
    assert bucket.admit(0.0) == [third]
    (fourth,) = ask(bucket, Priority.POD, 1)
    bucket.abandon(fourth, 0.5)
    assert bucket.due(0.5) is None


def test_waits_are_measured_by_priority(bucket: Bucket) -> None:
    ask(bucket, Priority.WARM, 3)
    bucket.admit(0.0)
    bucket.admit(1.0)
    (given_up,) = ask(bucket, Priority.RELEASE, 1, 1.0)
    bucket.abandon(given_up, 1.25)
    bucket.ask(Priority.POD, 1.25)
    view = bucket.view(1.25)
    warm, release = view.waits[Priority.WARM], view.waits[Priority.RELEASE]
    assert (warm.count, warm.delayed, warm.abandoned, warm.total, warm.longest) == (3, 1, 0, 1.0, 1.0)
    assert (release.count, release.delayed, release.abandoned, release.total) == (1, 1, 1, 0.25)
    assert view.waiting == {Priority.POD: 1, Priority.WARM: 0, Priority.RELEASE: 0}


# The face in asyncio

FAST = Share(burst=1, rate=200.0, floor=100.0, ceiling=400.0, increase=1.0)
SLOW = Share(burst=1, rate=0.001, floor=0.001, ceiling=0.001, increase=0.001)


def failure(kind: CloudErrorKind) -> CloudError:
    return CloudError(CloudFailure(kind, "AttachNetworkInterface", "Code", "message"))


async def until_waiting(budget: RateBudget, count: int) -> None:
    while sum(sum(bucket.waiting.values()) for bucket in budget.view()) < count:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def call(budget: RateBudget, priority: Priority, order: list[Priority] | None = None) -> None:
    async with budget.admit("AttachNetworkInterface", priority):
        if order is not None:
            order.append(priority)


async def test_calls_go_in_order_of_priority() -> None:
    budget = RateBudget(share=lambda _: FAST)
    order: list[Priority] = []
    await call(budget, Priority.POD)
    async with asyncio.TaskGroup() as tasks:
        for priority in (Priority.RELEASE, Priority.WARM, Priority.POD):
            tasks.create_task(call(budget, priority, order))
    assert order == [Priority.POD, Priority.WARM, Priority.RELEASE]


async def test_actions_do_not_wait_for_each_other() -> None:
    budget = RateBudget(share=lambda _: SLOW)
    await call(budget, Priority.POD)
    waiting = asyncio.create_task(call(budget, Priority.POD))
    await until_waiting(budget, 1)
    async with budget.admit("CreateNetworkInterface", Priority.RELEASE):
        assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_throttled_call_lowers_rate_and_passes_error_on() -> None:
    budget = RateBudget(share=lambda _: FAST)
    with pytest.raises(CloudError):
        async with budget.admit("AttachNetworkInterface", Priority.POD):
            raise failure(CloudErrorKind.THROTTLED)
    (view,) = budget.view()
    assert (view.rate, view.throttled) == (FAST.rate / 2, 1)


async def test_other_failures_say_nothing_about_the_rate() -> None:
    budget = RateBudget(clock=lambda: 0.0, share=lambda _: share_of("AttachNetworkInterface"))
    before = share_of("AttachNetworkInterface").rate
    for error in (failure(CloudErrorKind.TRANSIENT), failure(CloudErrorKind.SUBNET_FULL), RuntimeError("a fault")):
        with pytest.raises(type(error)):
            async with budget.admit("AttachNetworkInterface", Priority.POD):
                raise error
    (view,) = budget.view()
    assert (view.rate, view.throttled) == (before, 0)
    assert view.waits[Priority.POD].delayed == 0


async def test_success_of_calls_that_waited_raises_the_rate() -> None:
    budget = RateBudget(share=lambda _: FAST)
    await asyncio.gather(*(call(budget, Priority.POD) for _ in range(5)))
    (view,) = budget.view()
    assert view.rate > FAST.rate


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    budget = RateBudget(share=lambda _: SLOW)
    await call(budget, Priority.POD)
    waiting = [asyncio.create_task(call(budget, Priority.POD)) for _ in range(3)]
    await until_waiting(budget, 3)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert all(task.cancelled() for task in waiting)
    (view,) = budget.view()
    assert view.waiting[Priority.POD] == 0
    assert view.waits[Priority.POD].abandoned == 3
    assert not budget._alarms and not budget._answers


async def test_call_cancelled_at_admission_passes_its_token_on() -> None:
    """The token comes in the same turn in which the caller is cancelled."""
    now = 0.0
    budget = RateBudget(clock=lambda: now, share=lambda _: SLOW)
    await call(budget, Priority.POD)
    first, second = (asyncio.create_task(call(budget, Priority.POD)) for _ in range(2))
    await until_waiting(budget, 2)
    now = 1 / SLOW.rate
    # A new call makes the budget look whose turn it is, before the cancelled one hears of it.
    third = asyncio.create_task(call(budget, Priority.RELEASE))
    first.cancel()
    await second
    assert first.cancelled()
    third.cancel()
    await asyncio.gather(third, return_exceptions=True)


async def test_closed_budget_sends_nothing_and_leaves_nothing_behind() -> None:
    budget = RateBudget(share=lambda _: SLOW)
    await call(budget, Priority.POD)
    waiting = [asyncio.create_task(call(budget, priority)) for priority in Priority for _ in range(2)]
    await until_waiting(budget, 6)
    budget.close()
    late = asyncio.create_task(call(budget, Priority.POD))
    await asyncio.wait([*waiting, late])
    assert all(task.cancelled() for task in (*waiting, late))
    (view,) = budget.view()
    assert sum(view.waiting.values()) == 0
    assert sum(waits.abandoned for waits in view.waits.values()) == 7
    assert not budget._alarms and not budget._answers


async def test_running_call_completes_when_the_budget_closes() -> None:
    budget = RateBudget(share=lambda _: SLOW)
    async with budget.admit("AttachNetworkInterface", Priority.POD):
        budget.close()
    (view,) = budget.view()
    assert view.waits[Priority.POD].abandoned == 0
