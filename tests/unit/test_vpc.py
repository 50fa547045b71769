"""Which networks count as the VPC's, while it gets CIDRs and loses some."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Network

import pytest
from structlog.testing import capture_logs

from ipamd.cloud.port import CloudError, Identity
from ipamd.cloud.vpc import OUTSIDE, Vpc
from ipamd.pool.cidrs import KEPT, CidrsChanged, VpcCidrs
from ipamd.pool.model import CloudErrorKind, CloudFailure
from ipamd.telemetry.conditions import Conditions

IDENTITY = Identity(
    "i-1", "m5.large", "eu-west-1", "eu-west-1a", "02:eni-0", "eni-0", "10.0.0.4", "subnet-1", "10.0.0.0/24", "vpc-1",
    ("10.0.0.0/16",), ("sg-1",),
)  # fmt: skip


def test_new_cidr_counts_at_once() -> None:
    cidrs = VpcCidrs(["10.0.0.0/16"])
    assert cidrs.observed(["100.64.0.0/16", "10.0.0.0/16"], 0) == CidrsChanged(("100.64.0.0/16",), ())
    assert cidrs.all == ("10.0.0.0/16", "100.64.0.0/16")
    assert not cidrs.observed(["100.64.0.0/16", "10.0.0.0/16"], 1)


def test_missing_cidr_counts_for_a_day() -> None:
    cidrs = VpcCidrs(["10.0.0.0/16", "100.64.0.0/16"])
    assert not cidrs.observed(["10.0.0.0/16"], 1000)
    assert not cidrs.observed(["10.0.0.0/16"], 999 + KEPT)
    assert cidrs.all == ("10.0.0.0/16", "100.64.0.0/16")
    assert cidrs.observed(["10.0.0.0/16"], 1000 + KEPT) == CidrsChanged((), ("100.64.0.0/16",))
    assert cidrs.all == ("10.0.0.0/16",)


def test_cidr_that_comes_back_is_missed_anew() -> None:
    cidrs = VpcCidrs(["10.0.0.0/16", "100.64.0.0/16"])
    cidrs.observed(["10.0.0.0/16"], 0)
    cidrs.observed(["10.0.0.0/16", "100.64.0.0/16"], KEPT - 1)
    assert not cidrs.observed(["10.0.0.0/16"], KEPT)
    assert not cidrs.observed(["10.0.0.0/16"], 2 * KEPT - 1)


class Stage:
    def __init__(self) -> None:
        self.answer: tuple[str, ...] | CloudError = ("10.0.0.0/16",)
        self.conditions = Conditions()
        self.vpc = Vpc(IDENTITY, self.read, self.conditions, lambda: 0.0)

    async def read(self) -> tuple[str, ...]:
        if isinstance(self.answer, CloudError):
            raise self.answer
        return self.answer

    def doubts(self) -> list[str]:
        return [condition.name for condition in self.conditions.active()]


async def test_look_tells_what_the_vpc_has_got() -> None:
    stage = Stage()
    assert not await stage.vpc.look()
    stage.answer = ("10.0.0.0/16", "100.64.0.0/16")
    with capture_logs() as logs:
        assert await stage.vpc.look()
    assert [(entry["event"], entry["cidrs"]) for entry in logs] == [("vpc.cidrs_added", ["100.64.0.0/16"])]
    assert stage.vpc.networks == ("10.0.0.0/16", "100.64.0.0/16")
    assert stage.vpc.overlaps(IPv4Network("100.64.7.0/24")) and not stage.vpc.overlaps(IPv4Network("10.1.0.0/16"))


async def test_subnet_outside_counts_and_is_doubted() -> None:
    stage = Stage()
    assert stage.doubts() == []
    stage.vpc.learn("subnet-2", "100.64.1.0/24")
    assert stage.vpc.networks == ("10.0.0.0/16", "100.64.1.0/24")
    assert stage.doubts() == [OUTSIDE]
    assert "subnet-2 (100.64.1.0/24)" in stage.conditions.active()[0].text
    stage.answer = ("10.0.0.0/16", "100.64.0.0/16")
    await stage.vpc.look()
    assert stage.doubts() == [] and stage.vpc.networks == stage.answer


async def test_service_that_does_not_answer_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    stage.answer = CloudError(CloudFailure(CloudErrorKind.TRANSIENT, "IMDS", "Timeout", "no answer"))
    with capture_logs() as logs:
        assert not await stage.vpc.look()
    assert [entry["event"] for entry in logs] == ["vpc.cidrs_unread"]
    assert stage.vpc.networks == ("10.0.0.0/16",)

    async def hang() -> tuple[str, ...]:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr("ipamd.cloud.vpc.PATIENCE", 0.01)
    assert not await Vpc(IDENTITY, hang, Conditions(), lambda: 0.0).look()
