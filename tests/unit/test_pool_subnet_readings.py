"""What a subnet's reading is worth after a refusal, and what a growing pool says meanwhile."""

from __future__ import annotations

from random import Random

import pytest

from ipamd.pool import effects as do
from ipamd.pool.explain import explain_pool
from ipamd.pool.model import CloudErrorKind
from ipamd.pool.subnets import Subnets
from tests.unit.story import Story, addresses, observed, warm


def refused(*counts: int) -> Subnets:
    subnets = Subnets(("subnet-1",), Random(1))
    for count in counts:
        subnets.refused("subnet-1", count)
    return subnets


@pytest.mark.parametrize(
    ("available", "has_room", "at_most"),
    [(100, True, 4), (8, True, 4), (7, True, 7), (1, True, 1), (0, False, None)],
)
def test_reading_that_contradicts_the_refusal_is_older_than_it(
    available: int, has_room: bool, at_most: int | None
) -> None:
    subnets = refused(8, 12)
    assert subnets.observed("subnet-1", available, 5.0) is has_room
    subnet = subnets["subnet-1"]
    assert (subnet.at_most, subnet.in_doubt, subnet.available, subnet.read_at) == (
        at_most,
        not has_room,
        available,
        5.0,
    )


def test_reading_without_a_doubt_sets_no_limit() -> None:
    subnets = refused()
    assert subnets.observed("subnet-1", 0, 5.0) and subnets["subnet-1"].at_most is None


@pytest.mark.parametrize(("counts", "at_most"), [((8,), 4), ((8, 3), 1), ((), 2)])
def test_doubt_without_a_reading_halves_the_refused_call(counts: tuple[int, ...], at_most: int) -> None:
    subnets = refused(*counts)
    assert subnets.unreadable("subnet-1") and subnets["subnet-1"].at_most == at_most


def test_refused_call_for_one_address_is_not_halved() -> None:
    subnets = refused(1)
    assert not subnets.unreadable("subnet-1") and subnets["subnet-1"].in_doubt


def test_pool_grows_although_an_audit_failed() -> None:
    story = Story(warm(5))
    story.start(observed("eni-0", 0, *addresses(5)))
    story.pass_time(3 * 3600.0)
    story.fail(story.one(do.Audit), CloudErrorKind.TRANSIENT, "DescribeNetworkInterfaces")
    assert story.pool.backoffs.all_active(story.now)
    story.ask("a")
    explanation = explain_pool(story.pool, story.now)
    assert (explanation.state, explanation.headline) == ("growing", "1 address is on the way.")
