"""How long what has failed is left alone."""

from __future__ import annotations

from random import Random

import pytest

from ipamd.pool.backoff import PATIENT_CAP, POLICIES, Backoffs, eni_scope, subnet_scope
from ipamd.pool.model import CloudErrorKind, CloudFailure


class Longest(Random):
    """Draws the whole step each time."""

    def uniform(self, a: float, b: float) -> float:
        return b


def failure(
    kind: CloudErrorKind = CloudErrorKind.TRANSIENT, action: str = "AssignPrivateIpAddresses"
) -> CloudFailure:
    return CloudFailure(kind, action, "Code", "words")


def backoffs() -> Backoffs:
    return Backoffs(Longest())


def fail_in_a_row(found: Backoffs, times: int, kind: CloudErrorKind, action: str) -> float:
    """Fails again as soon as each back-off is over; returns the last one's length."""
    now = length = 0.0
    for _ in range(times):
        length = found.failed("scope", failure(kind, action), now).until - now
        now += length
    return length


def test_step_doubles_up_to_the_cap() -> None:
    policy = POLICIES[CloudErrorKind.TRANSIENT]
    steps = [fail_in_a_row(backoffs(), times, CloudErrorKind.TRANSIENT, "Any") for times in (1, 2, 3, 40)]
    assert steps == [policy.base, min(policy.base * 2, policy.cap), min(policy.base * 4, policy.cap), policy.cap]


def test_step_is_drawn_between_a_tenth_and_the_whole() -> None:
    base = POLICIES[CloudErrorKind.TRANSIENT].base
    drawn = [Backoffs(Random(seed)).failed("scope", failure(), 0.0).until for seed in range(200)]
    assert min(drawn) >= base / 10 and max(drawn) <= base and max(drawn) - min(drawn) > base / 2


def test_failures_under_way_together_count_once() -> None:
    found = backoffs()
    first = found.failed("scope", failure(), 0.0)
    assert found.failed("scope", failure(), first.until - 0.1) is first
    assert found.failed("scope", failure(), first.until).attempts == 2


def test_another_kind_of_failure_replaces_the_back_off() -> None:
    found = backoffs()
    found.failed("scope", failure(), 0.0)
    second = found.failed("scope", failure(CloudErrorKind.THROTTLED), 0.1)
    assert second.attempts == 2 and second.failure.kind is CloudErrorKind.THROTTLED


def test_other_actions_wait_up_to_the_cap_of_the_kind() -> None:
    kind = CloudErrorKind.ATTACHMENT_LIMIT
    assert POLICIES[kind].lasting
    assert fail_in_a_row(backoffs(), 40, kind, "Any") == POLICIES[kind].cap < PATIENT_CAP


def test_success_ends_the_back_offs_of_its_scopes_alone() -> None:
    found = backoffs()
    for scope in (eni_scope("eni-0"), eni_scope("eni-1"), subnet_scope("subnet-1")):
        found.failed(scope, failure(), 0.0)
    found.succeeded(eni_scope("eni-0"), subnet_scope("subnet-1"), "never failed")
    assert [backoff.scope for backoff in found.all_active(0.0)] == [eni_scope("eni-1")]
    assert found.attempts(eni_scope("eni-0")) == 0 and found.attempts(eni_scope("eni-0"), eni_scope("eni-1")) == 1


@pytest.fixture
def two() -> tuple[Backoffs, float, float]:
    """A short back-off and a long one, and their ends."""
    found = backoffs()
    short = found.failed("short", failure(), 0.0).until
    long = found.failed("long", failure(CloudErrorKind.ATTACHMENT_LIMIT), 0.0).until
    assert short < long
    return found, short, long


def test_longest_back_off_of_the_scopes_is_in_force(two: tuple[Backoffs, float, float]) -> None:
    found, short, long = two
    assert found.active(0.0, "short", "long", "none") is found.active(0.0, "long")
    assert found.active(short, "short") is None and found.active(short, "long") is not None
    assert found.active(long, "short", "long") is None and found.all_active(long) == []


def test_next_end_is_the_soonest_to_come(two: tuple[Backoffs, float, float]) -> None:
    found, short, long = two
    assert (found.next_end(0.0), found.next_end(short), found.next_end(long)) == (short, long, None)


def test_back_off_that_ended_after_a_time_was_in_force_then(two: tuple[Backoffs, float, float]) -> None:
    found, short, _ = two
    assert [backoff.scope for backoff in found.since(short)] == ["long"]
    assert len(found.since(short - 0.1)) == 2
