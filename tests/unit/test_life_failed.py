"""What each failure of each call on an ENI means: every cell of the table, and what follows from it."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest

from ipamd.pool import effects as do
from ipamd.pool.life.failed import FAILED, Failed
from ipamd.pool.model import CloudErrorKind

CALLS: tuple[type[do.EniOperation], ...] = get_args(do.EniOperation)
GIVING_BACK = (do.UnassignAddresses, do.DetachEni)
Kind = CloudErrorKind


def test_every_failure_of_every_call_on_an_eni_is_decided() -> None:
    assert set(FAILED) == set(product(CALLS, CloudErrorKind))


def test_table_of_failures_is_frozen() -> None:
    with pytest.raises(TypeError):
        FAILED[do.DeleteEni, Kind.IN_USE] = Failed.GONE  # type: ignore[index]


def cells(verdict: Failed) -> set[tuple[type[do.EniOperation], CloudErrorKind]]:
    return {cell for cell, found in FAILED.items() if found is verdict}


def test_only_calls_that_change_something_can_stay_open() -> None:
    """Deleting and DeleteOnTermination can be repeated without harm, so they ask none."""
    changing = (do.CreateEni, do.AttachEni, do.AssignAddresses, *GIVING_BACK)
    assert cells(Failed.UNANSWERED) == {(call, Kind.UNKNOWN_OUTCOME) for call in changing}


def test_creation_is_unsaid_for_causes_checked_before_its_token() -> None:
    kinds = (Kind.THROTTLED, Kind.TRANSIENT, Kind.NOT_AUTHORIZED, Kind.UNRECORDED)
    assert cells(Failed.UNSAID) == {(do.CreateEni, kind) for kind in kinds}


def test_verdicts_of_one_call_belong_to_no_other() -> None:
    assert cells(Failed.GONE) == {(do.DeleteEni, Kind.NOT_FOUND)}
    assert cells(Failed.NO_SLOT) == {(do.AttachEni, Kind.ATTACHMENT_LIMIT)}
    assert cells(Failed.INDEX_TAKEN) == {(do.AttachEni, Kind.INCORRECT_STATE)}


def test_an_eni_is_read_when_ec2_contradicts_the_pool() -> None:
    assert cells(Failed.READ) == {
        (do.AttachEni, Kind.NOT_FOUND),
        (do.AssignAddresses, Kind.NOT_FOUND),
        (do.AssignAddresses, Kind.ENI_ADDRESS_LIMIT),
        *product(GIVING_BACK, (Kind.NOT_FOUND, Kind.ENI_ADDRESS_LIMIT, Kind.INCORRECT_STATE)),
        (do.DeleteEni, Kind.INCORRECT_STATE),
    }


@pytest.mark.parametrize("call", [do.DescribeEni, do.ConfigureLink, do.SetDeleteOnTermination])
def test_failure_of_a_call_that_can_be_repeated_says_nothing(call: type[do.EniOperation]) -> None:
    assert {FAILED[call, kind] for kind in CloudErrorKind} == {Failed.AGAIN}


def test_an_attachment_is_repeated_only_for_passing_causes() -> None:
    passing = {Kind.THROTTLED, Kind.TRANSIENT, Kind.UNRECORDED}
    assert {kind for kind in CloudErrorKind if FAILED[do.AttachEni, kind] is Failed.AGAIN} == passing


def test_what_could_not_be_given_back_stays_in_service() -> None:
    for call in GIVING_BACK:
        stays = {kind for kind in CloudErrorKind if FAILED[call, kind] is Failed.REFUSED}
        assert stays == set(CloudErrorKind) - {
            Kind.UNKNOWN_OUTCOME,
            Kind.NOT_FOUND,
            Kind.ENI_ADDRESS_LIMIT,
            Kind.INCORRECT_STATE,
        }
