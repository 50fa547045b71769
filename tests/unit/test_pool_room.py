"""The sentence that says what a node has room for."""

from __future__ import annotations

from ipamd.pool.explain_slots import others, room
from ipamd.pool.model import LearntLimit, Limits
from tests.unit.story import Story, addresses, observed, warm


def node(*enis: tuple[str, int, bool], **targets: float) -> Story:
    """A primary ENI with 2 of 9 addresses, and these: (id, device index, ours)."""
    story = Story(warm(0, slack=20, **targets), Limits(4, 10))
    further = [observed(name, index, owned=owned) for name, index, owned in enis]
    story.start(observed("eni-0", 0, *addresses(2)), *further)
    return story


def test_room_counts_slots_of_enis_and_enis_to_come() -> None:
    text = room(node().pool)
    assert text.startswith("Room: 7 more addresses on the ENIs that are there, and 3 more ENIs with 9 each ")
    assert text.endswith("(the instance type allows 4).")


def test_foreign_eni_gives_no_room_and_takes_a_slot() -> None:
    story = node(("eni-x", 1, False))
    assert room(story.pool).startswith("Room: 7 more addresses on the ENIs that are there, and 2 more ENIs ")
    assert others(story.pool) == ["Somebody else's ENIs hold slots of the instance: eni-x."]


def test_own_further_eni_gives_its_room() -> None:
    assert room(node(("eni-1", 1, True)).pool).startswith(
        "Room: 16 more addresses on the ENIs that are there, and 2 "
    )


def test_setting_that_allows_fewer_enis_is_named() -> None:
    text = room(node(max_enis=1).pool)
    assert "and no more ENIs with 9 each (pool.max_enis allows 1)" in text


def test_enis_above_the_limit_are_counted() -> None:
    text = room(node(("eni-1", 1, True), ("eni-2", 2, True), max_enis=2).pool)
    assert "and no more ENIs with 9 each (pool.max_enis allows 2, and there are 3)" in text


def test_pod_limit_is_named_where_it_is_lower() -> None:
    assert room(node(max_pods=12).pool).endswith("; pool.max_pods lets 12 be in use.")
    assert "pool.max_pods" not in room(node(max_pods=99).pool)


def test_limit_that_ec2_taught_is_named() -> None:
    story = Story(warm(0, slack=20), Limits(4, 10))
    story.start(observed("eni-0", 0, *addresses(2)), limit=LearntLimit(2, 900.0))
    assert "1 more ENI with 9 each (EC2 turned out to allow 2)" in room(story.pool)
