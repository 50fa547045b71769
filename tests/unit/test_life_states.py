"""An ENI's states: which follow each other, and what no state leaves behind in the next."""

from __future__ import annotations

import ast
from dataclasses import replace
from ipaddress import IPv4Network
from itertools import product
from pathlib import Path
from typing import get_args

import pytest

from ipamd.pool import effects as do
from ipamd.pool import events as on
from ipamd.pool.eni import Address, Eni
from ipamd.pool.failures import GIVEN_UP_AFTER
from ipamd.pool.life.states import (
    TRANSITIONS,
    Attaching,
    Configuring,
    Creating,
    Deleting,
    Detached,
    Detaching,
    Draining,
    IllegalTransition,
    Life,
    Ready,
)
from ipamd.pool.model import AddressState, CloudErrorKind, CreatedEni, EniState, Intent, Limits, Use
from tests.unit.story import Story, addresses, observed, warm

ROOT = Path(__file__).resolve().parents[2]
LIVES: tuple[type[Life], ...] = get_args(Life)


def alive(kind: type[Life]) -> Life:
    return Creating("token") if kind is Creating else kind()  # type: ignore[call-arg]


def reach(kind: type[Life]) -> Eni | None:
    """An ENI in this state, by any way that the table allows; None: there is none."""
    ways: dict[type[Life] | None, list[type[Life]]] = {None: []}
    todo: list[type[Life] | None] = [None]
    while todo:
        before = todo.pop(0)
        for start, end in TRANSITIONS:
            if start is before and end not in ways:
                ways[end] = [*ways[before], end]
                todo.append(end)
    if kind not in ways:
        return None
    first, *others = ways[kind]
    eni = Eni("eni-1", alive(first), 1, 9, "subnet-1")
    for number, other in enumerate(others):
        eni.become(alive(other), float(number))
    return eni


@pytest.mark.parametrize("kind", LIVES)
def test_every_state_can_be_reached(kind: type[Life]) -> None:
    eni = reach(kind)
    assert eni is not None and type(eni.life) is kind and eni.state is kind.state


@pytest.mark.parametrize("kind", LIVES)
def test_eni_only_becomes_what_the_table_allows(kind: type[Life]) -> None:
    for after in LIVES:
        eni = reach(kind)
        assert eni is not None
        if (kind, after) in TRANSITIONS:
            eni.become(alive(after), 5.0)
            assert type(eni.life) is after and eni.since == 5.0
            continue
        with pytest.raises(IllegalTransition, match=rf"eni-1: can't become {after.__name__}; .*{kind.__name__} at"):
            eni.become(alive(after), 5.0)
        assert type(eni.life) is kind, "an error changes nothing"


@pytest.mark.parametrize("kind", LIVES)
def test_eni_begins_only_as_the_table_allows(kind: type[Life]) -> None:
    if (None, kind) in TRANSITIONS:
        assert Eni("eni-1", alive(kind), 1, 9, "subnet-1").state is kind.state
        return
    with pytest.raises(IllegalTransition):
        Eni("eni-1", alive(kind), 1, 9, "subnet-1")


def test_every_state_of_operators_is_a_state_of_life() -> None:
    assert {kind.state for kind in LIVES} == set(EniState)


def test_no_transition_leads_to_its_own_state() -> None:
    assert not [way for way in TRANSITIONS if way[0] is way[1]]


def test_table_of_transitions_is_frozen() -> None:
    with pytest.raises(TypeError):
        TRANSITIONS[Deleting, Ready] = "risen"  # type: ignore[index]


def test_nothing_but_become_sets_a_state() -> None:
    setters = set()
    for file in (ROOT / "ipamd").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else []
            flat = [t for target in targets for t in (target.elts if isinstance(target, ast.Tuple) else (target,))]
            for target in flat:
                if isinstance(target, ast.Attribute) and target.attr == "life":
                    setters.add(f"{file.relative_to(ROOT)}:{ast.unparse(target)}")
    assert setters == {"ipamd/pool/eni.py:self.life"}


def test_eni_keeps_no_data_of_its_attachment_when_it_ends() -> None:
    for before, after in product((Configuring, Ready), (Attaching,)):
        eni = reach(before)
        assert eni is not None
        eni.attachment_id, eni.keep_on_termination, eni.modifying, eni.modify_at = "attach-1", True, 7, 9.0
        eni.in_limbo = True
        eni.become(after(), 5.0)
        assert (eni.attachment_id, eni.keep_on_termination, eni.modifying, eni.modify_at) == ("", False, 0, 0.0)
        assert not eni.in_limbo


def test_eni_can_not_be_attached_anew_while_addresses_leave_it() -> None:
    eni = reach(Ready)
    assert eni is not None
    eni.leaving["10.0.0.9"] = Address("10.0.0.9", eni, AddressState.RELEASING, 0.0)
    with pytest.raises(IllegalTransition, match="1 of its addresses are still leaving"):
        eni.become(Attaching(), 5.0)


@pytest.mark.parametrize("kind", [Detaching, Attaching])
def test_eni_can_not_be_deleted_with_free_addresses(kind: type[Life]) -> None:
    eni = reach(kind)
    assert eni is not None
    eni.free["10.0.0.9"] = Address("10.0.0.9", eni, AddressState.FREE, 0.0)
    with pytest.raises(IllegalTransition, match="1 of its addresses are still free"):
        eni.become(Detached() if kind is Detaching else Deleting(), 5.0)


def test_verification_ends_with_its_state() -> None:
    eni = reach(Draining)
    assert eni is not None and isinstance(eni.life, Draining)
    eni.life.verified = True
    eni.become(Ready(), 5.0)
    assert eni.life == Ready(verified=False)


# In the pool


def test_room_of_a_detached_eni_is_counted_once() -> None:
    """Its slot will be free, and nothing that is on it now comes back beside what fills that slot anew."""
    story = Story(warm(0, release_delay=0.0), Limits(2, 5))
    shown = observed("eni-1", 1, *addresses(4), owned=True)
    story.start(observed("eni-0", 0), shown)
    story.pass_time(0)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, shown))
    story.feed(on.OperationDone(story.one(do.DetachEni).op))
    assert story.pool.obtainable() == 4 + 4, "the primary ENI and the slot"


def test_addresses_of_an_eni_that_is_given_up_leave_with_it() -> None:
    story = Story(warm(5))
    story.start(observed("eni-0", 0, *addresses(9, 100)))
    story.ask(*[f"p{n}" for n in range(9)])
    create = story.one(do.CreateEni)
    created = on.EniCreated(create.op, CreatedEni("eni-1", "02:1", "subnet-1", "10.0.0.5", addresses(create.count)))
    story.feed(created)
    story.now += GIVEN_UP_AFTER + 1
    story.fail(story.one(do.AttachEni), CloudErrorKind.TRANSIENT, "AttachNetworkInterface")
    eni = story.pool.inventory.enis["eni-1"]
    assert isinstance(eni.life, Deleting) and not eni.free and len(eni.leaving) == create.count
    assert {a.state for a in eni.addresses.values()} == {AddressState.RELEASING}


def test_restart_serves_no_address_of_an_eni_that_it_deletes() -> None:
    story = Story(warm(0))
    story.start(observed("eni-0", 0), observed("eni-1", None, *addresses(2), owned=True))
    eni = story.pool.inventory.enis["eni-1"]
    assert isinstance(eni.life, Deleting) and list(eni.leaving) == [*addresses(2)] and not eni.free


def test_answer_for_an_ended_attachment_says_nothing_of_the_next() -> None:
    """DeleteOnTermination was set on an attachment; the ENI was detached by somebody and attached again since."""
    shown = observed("eni-1", 1, *addresses(1), owned=True)
    story = Story(warm(1))
    story.start(observed("eni-0", 0), replace(shown, delete_on_termination=False))
    late = story.one(do.SetDeleteOnTermination)
    story.feed(on.DeviceGone("eni-1"))
    off = observed("eni-1", None, *addresses(1), owned=True)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, off))
    story.feed(on.EniAttached(story.one(do.AttachEni).op, "attach-2"))
    anew = story.one(do.SetDeleteOnTermination)
    assert anew.attachment_id == "attach-2"
    story.feed(on.OperationDone(late.op))
    eni = story.pool.inventory.enis["eni-1"]
    assert eni.keep_on_termination and eni.modifying == anew.op
    story.feed(on.OperationDone(anew.op))
    assert not eni.keep_on_termination


def test_addresses_taken_back_while_detaching_leave_with_eni() -> None:
    """Something uses one of them, so all are taken back; then EC2 turns out to have detached the ENI."""
    story = Story(warm(0, release_delay=0.0))
    shown = observed("eni-1", 1, *addresses(3), owned=True)
    story.start(observed("eni-0", 0), shown)
    story.pass_time(0)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, shown))
    story.fail(story.one(do.DetachEni), CloudErrorKind.UNKNOWN_OUTCOME, "DetachNetworkInterface")
    story.feed(on.UseSeen(IPv4Network("10.0.0.10/32"), Use("route", "10.0.0.10 dev cni0", "cni0")))
    story.pass_time(60)
    story.feed(on.EniObserved(story.one(do.DescribeEni).op, observed("eni-1", None, *addresses(3), owned=True)))
    eni = story.pool.inventory.enis["eni-1"]
    assert isinstance(eni.life, Detached) and not eni.free and list(eni.leaving) == ["10.0.0.11", "10.0.0.12"]


def test_reading_for_an_older_record_says_nothing_of_the_eni() -> None:
    """A restart finds an ENI that nobody remembers, reads it, and learns meanwhile that a creation has brought it."""
    story = Story(warm(3))
    intent = Intent("token-9", do.CreateEni.action, story.now, subnet_id="subnet-1", count=2)
    story.start(observed("eni-0", 0), observed("eni-1", None, "10.0.0.10", "x", owned=True), intents=(intent,))
    early = story.one(do.DescribeEni)
    created = CreatedEni("eni-1", "02:1", "subnet-1", "10.0.0.5", ("10.0.0.10", "10.0.0.11"))
    story.feed(on.EniCreated(story.one(do.CreateEni).op, created))
    story.written()
    story.feed(on.EniObserved(early.op, None))
    eni = story.pool.inventory.enis["eni-1"]
    assert isinstance(eni.life, Attaching) and len(eni.addresses) == 2
    assert not story.written(), "its records are those of the creation"


def test_deletion_of_an_older_record_makes_its_eni_unsure() -> None:
    story = Story(warm(3))
    story.start(observed("eni-0", 0, *addresses(9, 100)), observed("eni-1", None, "10.0.0.10", owned=True))
    delete = story.one(do.DeleteEni)
    story.ask(*[f"p{n}" for n in range(9)])
    created = CreatedEni("eni-1", "02:1", "subnet-1", "10.0.0.5", addresses(3))
    story.feed(on.EniCreated(story.one(do.CreateEni).op, created))
    story.feed(on.OperationDone(delete.op))
    eni = story.pool.inventory.enis["eni-1"]
    assert isinstance(eni.life, Attaching) and eni.unsure
    assert all(address.eni is eni for address in eni.addresses.values())
