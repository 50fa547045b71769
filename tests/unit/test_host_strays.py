"""Which links count as left behind: never somebody else's, and never one of an ADD under way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ipamd.host.links import Link
from ipamd.host.strays import LASTS, Strays
from ipamd.settings import MOST_ENIS, HostSettings

STRAY = Link(9, "ipm0123456789ab", "0a:59:00:00:00:01", 9001, True, 1501)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Stage:
    def __init__(self) -> None:
        self.clock = Clock()
        self.attached: set[str] = set()
        self.routed: set[str] = set()
        network: Any = None  # not asked here
        self.strays = Strays(network, HostSettings(), lambda: self.attached, self.clock)

    def found(self, *links: Link) -> list[Link]:
        return self.strays.left_behind(links, self.routed)

    def found_after(self, seconds: float, *links: Link) -> list[Link]:
        self.clock.now += seconds
        return self.found(*links)


def test_nobodys_link_is_found_once_it_has_lasted() -> None:
    stage = Stage()
    assert stage.found(STRAY) == []
    assert stage.found_after(LASTS - 1, STRAY) == []
    assert stage.found_after(1, STRAY) == [STRAY]


def test_link_of_an_add_under_way_is_left_alone() -> None:
    stage = Stage()
    stage.found(STRAY)
    stage.attached = {STRAY.name}
    assert stage.found_after(LASTS, STRAY) == []
    stage.attached = set()
    assert stage.found_after(LASTS, STRAY) == [], "its time begins anew"


def test_next_link_of_the_same_name_begins_anew() -> None:
    stage = Stage()
    stage.found(STRAY)
    assert stage.found_after(LASTS, replace(STRAY, index=10)) == []


@pytest.mark.parametrize(
    "link",
    [
        replace(STRAY, name="ipm1"),
        replace(STRAY, name="ipm0123456789AB"),
        replace(STRAY, name="veth0123456789a"),
        replace(STRAY, group=0),
        replace(STRAY, group=1499),
        replace(STRAY, group=1500 + MOST_ENIS + 1),
    ],
)
def test_link_of_others_is_left_alone(link: Link) -> None:
    stage = Stage()
    stage.found(link)
    assert stage.found_after(LASTS, link) == []


def test_link_that_a_route_leads_to_is_left_alone() -> None:
    stage = Stage()
    stage.routed = {STRAY.name}
    stage.found(STRAY)
    assert stage.found_after(LASTS, STRAY) == []
