"""Which addresses are held back because something on the host uses them, and what stays contested."""

from __future__ import annotations

from ipamd.pool import effects as do
from ipamd.pool.model import OwnAddresses, Uses
from tests.unit.test_pool_uses import ROUTE, A, B, C, node, read, see


def test_used_address_is_withheld_and_a_foreign_one_is_not() -> None:
    story = node(own=(OwnAddresses("eni-0", (A, B), (C,)),), uses=Uses({A: ROUTE}))
    story.ask("pod")
    assert story.one(do.Grant).attachment.address == B
    assert story.pool.inventory.withheld() == {A: ROUTE}


def test_nothing_is_withheld_without_a_use() -> None:
    story = node(own=(OwnAddresses("eni-0", (A, B), (C,)),))
    assert story.pool.inventory.withheld() == {}


def test_contest_ends_with_the_pod_and_spares_the_other() -> None:
    story = node()
    story.ask("a", "b")
    (first, second) = (grant.attachment.address for grant in story.take(do.Grant))
    see(story, first, ROUTE)
    see(story, second, ROUTE)
    assert story.pool.contested == {first: ROUTE, second: ROUTE}
    story.give_back("a")
    assert story.pool.contested == {second: ROUTE}
    read(story)
    assert story.pool.contested == {}
