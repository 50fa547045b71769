"""What lasts is said once at its beginning and once at its end, and is there in between."""

from __future__ import annotations

import pytest
import structlog

from ipamd.telemetry.conditions import Conditions

NAME = "metrics.not_served"


def test_a_condition_is_active_until_it_ends() -> None:
    conditions = Conditions()
    conditions.begin(NAME, "Port 1 is taken.")
    (active,) = conditions.active()
    assert (active.name, active.text) == (NAME, "Port 1 is taken.")
    conditions.end(NAME)
    assert not conditions.active()


def test_the_same_text_again_is_no_event() -> None:
    conditions = Conditions()
    with structlog.testing.capture_logs() as lines:
        conditions.begin(NAME, "Port 1 is taken.", listen="a:1")
        since = conditions.active()[0].since
        conditions.begin(NAME, "Port 1 is taken.", listen="a:1")
        conditions.begin(NAME, "Port 2 is taken.", listen="a:2")
        conditions.end(NAME)
        conditions.end(NAME)
    assert [(line["event"], line.get("listen")) for line in lines] == [
        (NAME, "a:1"),
        (NAME, "a:2"),
        ("condition.ended", None),
    ]
    assert conditions.active() == []
    assert since


def test_an_unknown_condition_is_refused() -> None:
    with pytest.raises(KeyError):
        Conditions().begin("no.such", "text")
