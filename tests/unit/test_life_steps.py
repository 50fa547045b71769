"""The next step of an ENI in each state."""

from __future__ import annotations

from typing import get_args

import pytest

from ipamd.pool import effects as do
from ipamd.pool.eni import Address, Eni
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
from ipamd.pool.life.steps import next_step, termination_step
from ipamd.pool.model import AddressState
from tests.unit.test_life_states import reach

NOW = 100.0
LIVES: tuple[type[Life], ...] = get_args(Life)


def eni_in(life: Life, **fields: object) -> Eni:
    eni = reach(type(life))
    assert eni is not None
    eni.life = life  # with the data that the case is about
    eni.mac, eni.attachment_id = "02:1", "attach-1"
    if isinstance(life, Ready | Draining | Detaching) and fields.pop("leaving", True):
        eni.leaving["10.0.0.9"] = Address("10.0.0.9", eni, AddressState.RELEASING, 0.0)
    for name, value in fields.items():
        setattr(eni, name, value)
    return eni


def step(eni: Eni, creating: bool = False) -> object:
    return next_step(eni, 7, creating, NOW)


READ = do.DescribeEni(7, "eni-1")
LEAVING = ("10.0.0.9",)


@pytest.mark.parametrize(
    ("life", "expected"),
    [
        (Creating("token"), do.CreateEni(7, "token", "subnet-1", 0)),
        (Attaching(), do.AttachEni(7, "eni-1", 1)),
        (Configuring(), do.ConfigureLink(7, "eni-1", "02:1", 1, "subnet-1")),
        (Ready(), READ),
        (Ready(verified=True), do.UnassignAddresses(7, "eni-1", LEAVING)),
        (Draining(), READ),
        (Draining(verified=True), do.DetachEni(7, "eni-1", "attach-1", LEAVING)),
        (Detaching(), READ),
        (Detached(), do.DeleteEni(7, "eni-1")),
        (Deleting(), do.DeleteEni(7, "eni-1")),
        (Foreign(), None),
    ],
)
def test_next_step_of_an_eni(life: Life, expected: object) -> None:
    assert step(eni_in(life)) == expected


def test_a_ready_eni_that_gives_nothing_back_has_no_step() -> None:
    assert step(eni_in(Ready(), leaving=False)) is None


@pytest.mark.parametrize("kind", [k for k in LIVES if k not in (Creating, Foreign)])
def test_an_unsure_eni_is_read_before_anything_else(kind: type[Life]) -> None:
    life = kind(verified=True) if kind in (Ready, Draining) else kind()  # type: ignore[call-arg]
    assert step(eni_in(life, unsure=True)) == READ


def test_an_unsure_creation_is_repeated_with_its_token() -> None:
    assert step(eni_in(Creating("token"), unsure=True)) == do.CreateEni(7, "token", "subnet-1", 0)


def test_a_ready_eni_is_not_read_while_addresses_are_asked_for() -> None:
    """What an answer has brought could not be distinguished from foreign addresses."""
    assert step(eni_in(Ready(), unsure=True, pending=2)) is None


@pytest.mark.parametrize("kind", LIVES)
def test_an_eni_takes_no_step_while_it_is_busy_or_held_back(kind: type[Life]) -> None:
    life = Creating("token") if kind is Creating else kind()  # type: ignore[call-arg]
    assert step(eni_in(life, busy=3)) is None
    assert step(eni_in(life, retry_at=NOW + 0.1)) is None


def test_a_pause_ends_at_its_time() -> None:
    assert step(eni_in(Attaching(), retry_at=NOW)) == do.AttachEni(7, "eni-1", 1)
    due = eni_in(Ready(), keep_on_termination=True, modify_at=NOW)
    assert termination_step(due, 7, NOW) == do.SetDeleteOnTermination(7, "eni-1", "attach-1")


def test_an_unexplained_eni_is_not_deleted_during_a_creation() -> None:
    assert step(eni_in(Deleting()), creating=True) is None
    assert step(eni_in(Detached()), creating=True) == do.DeleteEni(7, "eni-1"), "that one is known"


@pytest.mark.parametrize("kind", LIVES)
def test_delete_on_termination_is_set_only_while_serving(kind: type[Life]) -> None:
    life = Creating("token") if kind is Creating else kind()  # type: ignore[call-arg]
    due = eni_in(life, keep_on_termination=True)
    expected = do.SetDeleteOnTermination(7, "eni-1", "attach-1") if kind in (Configuring, Ready) else None
    assert termination_step(due, 7, NOW) == expected


@pytest.mark.parametrize("reason", [{"modifying": 3}, {"modify_at": NOW + 0.1}, {"keep_on_termination": False}])
def test_delete_on_termination_is_set_once(reason: dict[str, object]) -> None:
    eni = eni_in(Ready(), **{"keep_on_termination": True, **reason})
    assert termination_step(eni, 7, NOW) is None
