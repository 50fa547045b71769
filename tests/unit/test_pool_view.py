"""What the pool shows: values of one moment, which stay as they are while the pool goes on."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from ipaddress import IPv4Network
from typing import Any

import pytest

from ipamd.pool import events as on
from ipamd.pool.model import AddressState, AttachmentKey, Owner, Use, Uses
from ipamd.pool.view import View
from tests.unit.story import Story, addresses, full_node, observed, warm

SHOWN: dict[str, Callable[[View, Story], Any]] = {
    "summary": lambda view, story: view.summary(story.now),
    "counts": lambda view, story: view.counts(),
    "subnets": lambda view, story: view.subnets(),
    "enis": lambda view, story: view.enis(),
    "place_of": lambda view, story: view.place_of("eni-0"),
    "served": lambda view, story: view.served(),
    "addresses": lambda view, story: tuple(view.addresses()),
    "attachments": lambda view, story: view.attachments(),
    "attachment": lambda view, story: view.attachment(AttachmentKey("net", "a", "eth0")),
    "held": lambda view, story: view.held(),
    "troubles": lambda view, story: view.troubles(),
    "requests": lambda view, story: view.requests(),
    "waiting": lambda view, story: view.waiting(story.now),
}


def is_fixed(value: Any) -> bool:
    """No part of it can be set, added or taken away."""
    if isinstance(value, tuple | frozenset):
        return all(is_fixed(part) for part in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        frozen: bool = value.__dataclass_params__.frozen  # type: ignore[attr-defined]
        return frozen and all(is_fixed(getattr(value, part.name)) for part in dataclasses.fields(value))
    return value is None or isinstance(value, str | int | float | bool | enum.Enum | IPv4Network)


def busy_story() -> Story:
    """A full node: two pods, a third that waits, and a back-off."""
    story = full_node()
    story.ask("c", wait=60.0)
    return story


@pytest.mark.parametrize("shown", SHOWN)
def test_view_shows_only_values_that_can_not_change(shown: str) -> None:
    story = busy_story()
    assert is_fixed(SHOWN[shown](View(story.pool), story))


@pytest.mark.parametrize("shown", SHOWN)
def test_what_was_shown_stays_when_the_pool_goes_on(shown: str) -> None:
    story = busy_story()
    view = View(story.pool)
    before = SHOWN[shown](view, story)
    copy = repr(before)
    story.give_back("a")
    story.pass_time(40.0)
    story.ask("d")
    assert repr(before) == copy


def test_each_public_method_without_an_explanation_is_looked_at() -> None:
    public = {name for name in vars(View) if not name.startswith("_")}
    words = {name for name in public if name.startswith(("explain_", "would_", "not_", "can_", "is_"))}
    plain = {"started", "drained", "targets", "released_at", "pod_at", "trouble_of"}  # one value, or of those above
    assert public - words - plain == set(SHOWN)


def test_summary_counts_what_others_hold() -> None:
    story = Story(warm(2))
    theirs = dataclasses.replace(observed("eni-9", 1), owned=False)
    story.start(observed("eni-0", 0, *addresses(3)), theirs)
    summary = View(story.pool).summary(story.now)
    assert (summary.started, summary.attached, summary.foreign_enis) == (True, 2, 1)
    assert sum(count for _, count in summary.by_state) == 2
    assert (summary.counts.free, summary.attachments, summary.oldest_cooling) == (3, 0, None)


def test_address_that_cools_says_when_it_was_released() -> None:
    story = full_node()
    story.give_back("a")
    view = View(story.pool)
    (cools,) = (address for address in view.addresses() if address.state is AddressState.COOLING)
    assert view.released_at(cools.ip) == cools.since == story.now == view.summary(story.now).oldest_cooling


def test_pod_at_knows_who_has_an_address_and_where() -> None:
    view = View(full_node().pool)
    (key, index) = view.pod_at(view.held()[0]) or (None, None)
    assert key == AttachmentKey("net", "a", "eth0") and index == 0
    assert view.pod_at("10.0.9.9") is None


def test_address_that_the_host_uses_is_shown_as_withheld() -> None:
    story = Story(warm(0))
    ip, use = addresses(1)[0], Use("route", "10.0.0.10 dev eth7")
    story.start(observed("eni-0", 0, ip))
    story.feed(on.UsesRead(Uses({ip: use}), ()))
    view = View(story.pool)
    (shown,) = view.addresses()
    assert (shown.use, shown.withheld) == (use, use)
    assert view.summary(story.now).withheld == ((ip, use),)


def test_waiting_is_explained_by_its_request() -> None:
    story = busy_story()
    view = View(story.pool)
    assert view.requests() == ("c",)
    assert view.waiting(story.now)[0].owner == Owner(pod_name="c")
    assert view.explain_waiting("c", "Pod c", story.now).state == "waiting"
    with pytest.raises(KeyError):
        view.explain_waiting("d", "Pod d", story.now)
