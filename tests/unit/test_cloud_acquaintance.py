"""The start between the metadata service and EC2: what one of them says in a bad moment is not kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from ipamd.cloud.acquaintance import Acquaintance
from ipamd.cloud.budget import RateBudget
from ipamd.cloud.ec2 import Ec2
from ipamd.cloud.imds import Imds
from ipamd.cloud.port import CloudError, Identity
from ipamd.pool.model import Limits
from ipamd.settings import Ec2Settings
from ipamd.sim.ec2.faults import Fault
from tests.unit.cloud_world import World


@asynccontextmanager
async def acquaintance(world: World, identity: Identity, by_region: bool = False) -> AsyncIterator[Acquaintance]:
    def client(who: Identity) -> Ec2:
        elsewhere = Ec2Settings(endpoint="http://127.0.0.1:1")
        settings = elsewhere if by_region and who.region != world.cloud.rules.region else world.settings
        return Ec2(settings, world.imds_settings, who, RateBudget())

    async with Imds(world.imds_settings.endpoint) as imds, Acquaintance(imds, identity, client) as made:
        yield made


async def test_one_try_is_enough_as_a_rule(world: World) -> None:
    async with acquaintance(world, world.identity) as meeting:
        known = await meeting.make()
    assert (known.identity, known.limits) == (world.identity, Limits(3, 10))
    assert [eni.id for eni in known.enis] == [world.identity.primary_eni_id]


@pytest.mark.parametrize(
    "wrong",
    [
        {"instance_type": "new8.large"},
        {"instance_id": "i-00000000000000000"},
        {"primary_eni_id": "eni-00000000000000000"},
        {"primary_ip": "10.0.0.9"},
        {"subnet_id": "subnet-00000000000000000"},
        {"region": "eu-nowhere-1"},
    ],
)
async def test_what_was_wrong_for_a_moment_is_read_again(world: World, wrong: dict[str, str]) -> None:
    async with acquaintance(world, replace(world.identity, **wrong), by_region=True) as meeting:
        with pytest.raises(CloudError):
            await meeting.make()
        assert (await meeting.make()).identity == world.identity


async def test_ec2_is_asked_again_though_the_metadata_service_is_away(world: World) -> None:
    async with acquaintance(world, world.identity) as meeting:
        world.faults.add(Fault("DescribeNetworkInterfaces", "InternalError", times=1))
        with pytest.raises(CloudError):
            await meeting.make()
        world.faults.add(Fault("imds", "403"))
        assert (await meeting.make()).identity == world.identity
