"""What each reading of an ENI means in each state: every cell of the table, told from the ENI and what EC2 shows."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.eni import Eni
from ipamd.pool.life.seen import APPEARS_WITHIN, SEEN, Seen, Sighting, seen, sighting
from ipamd.pool.life.states import (
    Attaching,
    Configuring,
    Creating,
    Deleting,
    Detached,
    Detaching,
    Draining,
    Foreign,
    Life,
    Ready,
)
from ipamd.pool.model import CloudErrorKind, EniState, ObservedEni
from tests.unit.story import Story, addresses, observed, warm
from tests.unit.test_life_states import reach

READ: tuple[type[Life], ...] = tuple(kind for kind in get_args(Life) if kind not in (Creating, Foreign))
NOW, CREATED = 10_000.0, 5_000.0
ATTACHED = observed("eni-1", 1, owned=True)

# How EC2 shows it, and whether its last step is a moment ago.
SHOWN: dict[Sighting, tuple[ObservedEni | None, bool]] = {
    Sighting.ABSENT_EARLY: (None, True),
    Sighting.ABSENT: (None, False),
    Sighting.NOT_OURS: (replace(ATTACHED, owned=False), False),
    Sighting.UNATTACHED_EARLY: (observed("eni-1", None, owned=True), True),
    Sighting.UNATTACHED: (observed("eni-1", None, owned=True), False),
    Sighting.DETACHING: (replace(ATTACHED, attachment_status="detaching"), False),
    Sighting.ATTACHED_EARLY: (ATTACHED, True),
    Sighting.ATTACHED: (ATTACHED, False),
}

# Every cell a second time, by state: a change of the table has to be meant.
EXPECTED: dict[type[Life], dict[Sighting, Seen]] = {
    kind: {Sighting.ABSENT_EARLY: Seen.NOT_YET, Sighting.ABSENT: Seen.FORGET, Sighting.NOT_OURS: Seen.FORGET}
    for kind in READ
}
OFF = (Sighting.UNATTACHED_EARLY, Sighting.UNATTACHED)
HERE = (Sighting.ATTACHED_EARLY, Sighting.ATTACHED)
EXPECTED[Attaching] |= dict.fromkeys(OFF, Seen.AS_EXPECTED) | dict.fromkeys(
    (Sighting.DETACHING, *HERE), Seen.ATTACHED
)
EXPECTED[Configuring] |= dict.fromkeys(OFF, Seen.ATTACH) | dict.fromkeys(HERE, Seen.AS_EXPECTED)
EXPECTED[Configuring][Sighting.DETACHING] = Seen.NO_INTERFACE
EXPECTED[Ready] |= {Sighting.UNATTACHED_EARLY: Seen.READ_AGAIN, Sighting.UNATTACHED: Seen.ATTACH}
EXPECTED[Ready] |= dict.fromkeys((Sighting.DETACHING, *HERE), Seen.SERVING)
EXPECTED[Draining] |= dict.fromkeys((*OFF, Sighting.DETACHING, *HERE), Seen.MAY_GO)
EXPECTED[Detaching] |= dict.fromkeys((*OFF, Sighting.DETACHING), Seen.DETACHED) | dict.fromkeys(HERE, Seen.STAYS)
EXPECTED[Detached] |= dict.fromkeys(OFF, Seen.SLOT_FREE)
EXPECTED[Detached] |= dict.fromkeys((Sighting.DETACHING, Sighting.ATTACHED_EARLY), Seen.SLOT_HELD)
EXPECTED[Detached][Sighting.ATTACHED] = Seen.ATTACHED
EXPECTED[Deleting] |= dict.fromkeys(OFF, Seen.AS_EXPECTED) | dict.fromkeys(HERE, Seen.ATTACHED)
EXPECTED[Deleting][Sighting.DETACHING] = Seen.SLOT_HELD


def test_every_sighting_is_decided_in_every_state_that_is_read() -> None:
    assert set(SEEN) == set(product(READ, Sighting))


def eni_in(kind: type[Life], early: bool) -> Eni:
    eni = reach(kind)
    assert eni is not None
    eni.since, eni.created_at = (NOW - 1, NOW - 1) if early else (CREATED, CREATED)
    return eni


@pytest.mark.parametrize(("kind", "what"), list(product(READ, Sighting)))
def test_reading_means_what_is_written_here(kind: type[Life], what: Sighting) -> None:
    shown, early = SHOWN[what]
    eni = eni_in(kind, early)
    assert sighting(eni, shown, NOW) is what
    assert seen(eni, shown, NOW) is EXPECTED[kind][what]


def test_primary_eni_is_never_forgotten_because_it_is_not_shown() -> None:
    eni = eni_in(Ready, early=False)
    eni.primary = True
    assert sighting(eni, None, NOW) is Sighting.ABSENT_EARLY


def test_primary_eni_needs_no_tag_to_be_ours() -> None:
    shown = replace(ATTACHED, owned=False, primary=True)
    assert sighting(eni_in(Ready, early=False), shown, NOW) is Sighting.ATTACHED


def test_early_ends_when_ec2_should_show_everything() -> None:
    eni = eni_in(Ready, early=False)
    off = observed("eni-1", None, owned=True)
    assert sighting(eni, off, eni.since + APPEARS_WITHIN - 0.1) is Sighting.UNATTACHED_EARLY
    assert sighting(eni, off, eni.since + APPEARS_WITHIN) is Sighting.UNATTACHED


@pytest.mark.parametrize("kind", [Creating, Foreign])
def test_an_eni_that_is_never_read_has_no_cell(kind: type[Life]) -> None:
    eni = reach(kind)
    assert eni is not None
    with pytest.raises(KeyError):
        seen(eni, ATTACHED, NOW)


# What follows, where no story elsewhere tells it


def test_eni_to_be_deleted_is_not_served_while_it_is_detached() -> None:
    """Somebody detaches the ENI that a restart wants to delete: it is deleted after that, not attached anew."""
    story = Story(warm(0))
    story.start(observed("eni-0", 0), observed("eni-1", None, *addresses(2), owned=True))
    story.fail(story.one(do.DeleteEni), CloudErrorKind.INCORRECT_STATE, "DeleteNetworkInterface")
    story.pass_time(200)
    going = replace(observed("eni-1", 1, *addresses(2), owned=True), attachment_status="detaching")
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, going))
    eni = story.pool.inventory.enis["eni-1"]
    assert isinstance(eni.life, Detached) and eni.state is EniState.DELETING
    assert not story.take(do.ConfigureLink) and not story.take(do.SetDeleteOnTermination)
    story.pass_time(10)
    assert story.one(do.DeleteEni).eni_id == "eni-1"
