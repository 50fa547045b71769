"""Where new addresses come from when a subnet has few or none."""

from __future__ import annotations

import pytest

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.model import (
    CloudErrorKind,
    Limits,
    Reason,
)
from tests.unit.story import Story, addresses, observed, warm


def test_one_full_subnet_does_not_stop_the_other() -> None:
    story = Story(warm(0), Limits(3, 2), ("subnet-1", "subnet-2"))
    story.start(observed("eni-0", 0, "10.0.0.10"))
    story.ask("a", "b")
    story.read_subnets(**{"subnet-1": 1000, "subnet-2": 0})
    create = story.one(do.CreateEni)
    assert create.subnet_id == "subnet-1"
    story.fail(create, CloudErrorKind.SUBNET_FULL, "CreateNetworkInterface")
    assert story.one(do.CreateEni).subnet_id == "subnet-2"
    assert story.one(do.DescribeSubnets).subnet_ids == ("subnet-1",)
    assert not story.take(do.Refuse)


def test_new_enis_spread_over_subnets_by_their_free_addresses() -> None:
    story = Story(warm(0), Limits(400, 3), ("subnet-1", "subnet-2", "subnet-3"))
    story.start(observed("eni-0", 0, *addresses(2)))
    story.ask(*(f"{n}" for n in range(602)))
    assert not story.take(do.CreateEni)  # where to is not known yet
    story.read_subnets(**{"subnet-1": 9000, "subnet-2": 3000, "subnet-3": 0})
    chosen = [effect.subnet_id for effect in story.take(do.CreateEni)]
    assert len(chosen) == 300 and chosen.count("subnet-3") == 0
    assert 50 < chosen.count("subnet-2") < 100


def test_a_subnet_with_room_for_the_whole_eni_is_preferred() -> None:
    """An ENI that gets only the last few addresses takes a slot of the instance all the same."""
    for seed in range(20):
        story = Story(warm(0), Limits(3, 10), ("subnet-1", "subnet-2"))
        story.pool.subnets._random.seed(seed)
        story.start(observed("eni-0", 0, *addresses(9)))
        story.ask(*(f"{n}" for n in range(9)))
        assert len(story.take(do.Grant)) == 9
        story.ask("a")
        story.read_subnets(**{"subnet-1": 1, "subnet-2": 3})
        assert story.one(do.CreateEni).subnet_id == "subnet-2"


def test_subnets_that_may_not_be_read_are_used_in_order() -> None:
    story = Story(warm(0), Limits(3, 3), ("subnet-1", "subnet-2"))
    story.start(observed("eni-0", 0, *addresses(2)))
    story.ask("a", "b", "c")
    story.fail(story.one(do.DescribeSubnets), CloudErrorKind.NOT_AUTHORIZED, "DescribeSubnets")
    assert story.one(do.CreateEni).subnet_id == "subnet-1"
    assert not story.take(do.Refuse)


def fill_up(story: Story, left: int, readable: bool) -> list[int]:
    """EC2 gives all that is asked for or nothing; returns what was asked for, call by call."""
    asked = []
    for _ in range(20):
        story.pass_time(0.02)
        for ask in story.take(do.AssignAddresses):
            asked.append(ask.count)
            if ask.count > left:
                story.fail(ask, CloudErrorKind.SUBNET_FULL)
            else:
                story.feed(on.AddressesAssigned(ask.op, addresses(ask.count, 10 + left)))
                left -= ask.count
        for look in story.take(do.DescribeSubnets):
            if readable:
                story.feed(on.SubnetsObserved(look.op, (("subnet-1", left),)))
            else:
                story.fail(look, CloudErrorKind.NOT_AUTHORIZED, "DescribeSubnets")
    assert left == 0
    return asked


@pytest.mark.parametrize(("readable", "calls"), [(True, [5, 3, 2]), (False, [5, 2, 3, 1, 2, 1])])
def test_the_last_addresses_of_a_subnet_are_used(readable: bool, calls: list[int]) -> None:
    story = Story(warm(0, coalesce=0.01))
    story.start()
    story.ask("a", "b", "c", "d", "e")
    assert fill_up(story, 3, readable) == calls
    assert len(story.take(do.Grant)) == 3
    assert {refuse.refusal.reason for refuse in story.take(do.Refuse)} == {Reason.SUBNET_EXHAUSTED}
    assert not story.take(do.CreateEni)


def test_a_full_subnet_is_read_and_not_asked_until_it_has_room() -> None:
    story = Story(warm(3))
    story.start()
    story.fail(story.one(do.AssignAddresses), CloudErrorKind.SUBNET_FULL)
    story.read_subnets(**{"subnet-1": 0})
    for _ in range(3):
        story.pass_time(story.pool.backoffs.all_active(story.now)[0].until - story.now)
        assert not story.take(do.AssignAddresses)
        story.read_subnets(**{"subnet-1": 0})
    story.pass_time(story.pool.backoffs.all_active(story.now)[0].until - story.now)
    story.read_subnets(**{"subnet-1": 2})
    assert story.one(do.AssignAddresses).count == 2
