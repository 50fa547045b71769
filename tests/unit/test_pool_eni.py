"""One ENI by itself: its room, its accounts, and what it refuses to leave behind."""

from __future__ import annotations

import pytest

from ipamd.pool.effects import AssignAddresses
from ipamd.pool.eni import Address, Eni
from ipamd.pool.life.states import (
    Attaching,
    Configuring,
    Deleting,
    Detached,
    Detaching,
    Draining,
    IllegalTransition,
    Ready,
)
from ipamd.pool.model import AddressState, DropIntent, Intent


def ready(capacity: int = 9) -> Eni:
    eni = Eni("eni-1", Configuring(), 1, capacity, "subnet-1")
    eni.become(Ready(), 1.0)
    return eni


def put(eni: Eni, *ips: str, state: AddressState = AddressState.FREE) -> None:
    for ip in ips:
        eni.addresses[ip] = Address(ip, eni, state, 0.0)
        if state is AddressState.FREE:
            eni.free[ip] = eni.addresses[ip]
        if state is AddressState.RELEASING:
            eni.leaving[ip] = eni.addresses[ip]


def test_room_is_what_addresses_prefixes_and_calls_leave() -> None:
    eni = ready(capacity=9)
    assert eni.room == 9
    put(eni, "10.0.0.10", "10.0.0.11")
    eni.prefixes = ("10.0.1.0/28",)
    eni.pending = 3
    assert (eni.held, eni.occupied, eni.room) == (2, 3, 3)
    eni.pending = 20
    assert eni.room == 0


def test_refused_slot_and_those_above_it_are_withheld() -> None:
    eni = ready(capacity=9)
    assert eni.withheld == 0
    eni.refused = 7
    assert (eni.withheld, eni.room) == (3, 6)


@pytest.mark.parametrize(
    ("came", "explained"),
    [
        (0, ()),
        (2, ("t2",)),
        (3, ("t3",)),
        (5, ("t2", "t3")),
        (9, ("t2", "t3", "t4")),
        (1, None),
        (8, None),
        (10, None),
    ],
)
def test_addresses_are_ours_if_lost_calls_add_up_to_them(came: int, explained: tuple[str, ...] | None) -> None:
    eni = ready()
    for count in (2, 3, 4):
        eni.unaccounted[f"t{count}"] = Intent(f"t{count}", AssignAddresses.action, 0.0, eni_id="eni-1", count=count)
    records = eni.explain(came)
    assert records == (None if explained is None else [DropIntent(token) for token in explained])
    assert eni.unaccounted.keys() == {"t2", "t3", "t4"} - set(explained or ())


def test_lost_call_of_before_the_reading_will_bring_nothing() -> None:
    eni = ready()
    for at in (10.0, 20.0, 30.0):
        eni.unaccounted[f"at {at:g}"] = Intent(f"at {at:g}", AssignAddresses.action, at, eni_id="eni-1", count=1)
    assert eni.explain_no_more(20.0) == [DropIntent("at 10"), DropIntent("at 20")]
    assert list(eni.unaccounted) == ["at 30"]


def test_eni_stays_attached_while_addresses_are_leaving() -> None:
    eni = ready()
    put(eni, "10.0.0.10", state=AddressState.RELEASING)
    with pytest.raises(IllegalTransition, match="1 of its addresses are still leaving"):
        eni.become(Attaching(), 2.0)
    eni.become(Configuring(), 2.0)
    assert [name for _, name in eni.story] == ["Configuring", "Ready", "Configuring"]


def test_eni_is_not_detached_while_addresses_are_free() -> None:
    eni = ready()
    put(eni, "10.0.0.10")
    eni.become(Draining(), 2.0)
    eni.become(Detaching(), 3.0)
    with pytest.raises(IllegalTransition, match="1 of its addresses are still free"):
        eni.become(Detached(), 4.0)
    eni.free.clear()
    eni.become(Detached(), 4.0)
    eni.become(Deleting(), 5.0)


def test_detachment_ends_what_only_attached_enis_have() -> None:
    eni = ready()
    eni.attachment_id, eni.keep_on_termination, eni.in_limbo = "attach-1", True, True
    eni.modifying, eni.modify_at = 7, 9.0
    eni.become(Draining(), 2.0)
    eni.become(Detaching(), 3.0)
    assert (eni.attachment_id, eni.modifying, eni.in_limbo) == ("attach-1", 7, True)
    eni.become(Detached(), 4.0)
    assert (eni.attachment_id, eni.keep_on_termination, eni.in_limbo) == ("", False, False)
    assert (eni.modifying, eni.modify_at) == (0, 0.0)


def test_eni_is_counted_on_again_once_it_serves() -> None:
    eni = Eni("eni-1", Configuring(), 1, 9, "subnet-1")
    eni.unfulfilled = True
    eni.become(Ready(), 1.0)
    assert not eni.unfulfilled


@pytest.mark.parametrize("life", [Ready(verified=True), Draining(verified=True)])
def test_what_leaves_is_read_again_after_a_doubt(life: Ready | Draining) -> None:
    eni = ready()
    if isinstance(life, Draining):
        eni.become(life, 2.0)
    else:
        eni.become(Draining(), 2.0)
        eni.become(life, 3.0)
    eni.unverify()
    assert eni.life == type(life)(verified=False)


@pytest.mark.parametrize("fault", ["leaving", "unsure", "keep_on_termination"])
def test_serving_eni_is_at_rest_without_a_task(fault: str) -> None:
    eni = ready()
    assert eni.at_rest
    if fault == "leaving":
        put(eni, "10.0.0.10", state=AddressState.RELEASING)
    else:
        setattr(eni, fault, True)
    assert not eni.at_rest


@pytest.mark.parametrize(("name", "value"), [("busy", 1), ("pending", 1), ("unsure", True)])
def test_serving_eni_is_quiet_without_a_call_or_doubt(name: str, value: int) -> None:
    eni = ready()
    assert eni.quiet
    setattr(eni, name, value)
    assert not eni.quiet


def test_own_addresses_leave_out_the_foreign_ones() -> None:
    eni = ready()
    put(eni, "10.0.0.10", "10.0.0.11")
    eni.addresses["10.0.0.11"].theirs = True
    assert (eni.own().addresses, eni.own().foreign) == (("10.0.0.10",), ("10.0.0.11",))
