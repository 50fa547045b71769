"""The EC2 adapter against moto, an independent reading of the same API, in what moto gets right.

Left out is what moto gets wrong: limits, ClientToken, DeleteOnTermination, and AssignPrivateIpAddresses' reply,
which names all addresses of the ENI.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import boto3
import pytest
import requests
from aiohttp import web
from aiohttp.test_utils import TestServer
from moto import mock_aws

from ipamd.cloud.budget import RateBudget
from ipamd.cloud.ec2 import Ec2
from ipamd.cloud.port import CloudError, Identity
from ipamd.pool.model import CloudErrorKind as Kind
from ipamd.pool.model import Limits
from ipamd.settings import Ec2Settings, ImdsSettings

REGION = "eu-central-1"


async def answer(request: web.Request) -> web.Response:
    """moto takes over `requests` within this process; this gives it a port (its own server would need Flask)."""
    headers = {name: request.headers[name] for name in ("Content-Type", "Authorization")}
    url = f"https://ec2.{REGION}.amazonaws.com/"
    said = await asyncio.to_thread(requests.post, url, data=await request.read(), headers=headers)
    return web.Response(status=said.status_code, body=said.content, content_type="text/xml")


@dataclass(frozen=True)
class World:
    ec2: Ec2
    instance_id: str
    subnet_id: str
    group_id: str


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws():
        aws = boto3.client("ec2", REGION)
        vpc = aws.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        # moto draws addresses at random, also twice: in a large subnet it hardly does
        subnet = aws.create_subnet(VpcId=vpc, CidrBlock="10.0.128.0/17")["Subnet"]["SubnetId"]
        group = aws.create_security_group(GroupName="pods", Description="pods", VpcId=vpc)["GroupId"]
        image = aws.describe_images()["Images"][0]["ImageId"]
        (instance,) = aws.run_instances(
            ImageId=image, InstanceType="m5.large", SubnetId=subnet, MinCount=1, MaxCount=1
        )["Instances"]
        (primary,) = instance["NetworkInterfaces"]
        identity = Identity(
            instance_id=instance["InstanceId"],
            instance_type="m5.large",
            region=REGION,
            availability_zone=f"{REGION}a",
            primary_mac=primary["MacAddress"],
            primary_eni_id=primary["NetworkInterfaceId"],
            primary_ip=instance["PrivateIpAddress"],
            subnet_id=subnet,
            subnet_cidr="10.0.128.0/17",
            vpc_id=vpc,
            vpc_cidrs=("10.0.0.0/16",),
            security_groups=(group,),
        )
        app = web.Application()
        app.router.add_post("/", answer)
        async with TestServer(app) as server:
            settings = Ec2Settings(endpoint=str(server.make_url("")))
            async with Ec2(settings, ImdsSettings(), identity, RateBudget()) as ec2:
                yield World(ec2, instance["InstanceId"], subnet, group)


async def test_the_primary_eni_is_seen(world: World) -> None:
    (primary,) = await world.ec2.describe_enis()
    assert (primary.primary, primary.owned, primary.device_index) == (True, False, 0)
    assert primary.subnet_id == world.subnet_id


async def test_the_life_of_an_eni(world: World) -> None:
    ec2 = world.ec2
    eni = await ec2.create_eni(
        token="t", subnet_id=world.subnet_id, security_groups=(world.group_id,), address_count=3
    )
    assert len(eni.addresses) == 3 and eni.primary_ip not in eni.addresses
    left_over = {found.id: found for found in await ec2.describe_enis()}[eni.id]
    assert left_over.owned and left_over.device_index is None
    attachment = await ec2.attach_eni(eni.id, 1)
    seen = await ec2.describe_eni(eni.id)
    assert seen is not None and seen.owned and not seen.primary
    assert (seen.device_index, seen.attachment_id, seen.attachment_status) == (1, attachment, "attached")
    await ec2.set_delete_on_termination(eni.id, attachment)
    assigned = await ec2.assign_addresses(eni.id, 2)
    seen = await ec2.describe_eni(eni.id)
    assert seen is not None and len(seen.addresses) == 5 and {*seen.addresses} <= {*assigned}
    await ec2.unassign_addresses(eni.id, eni.addresses)
    seen = await ec2.describe_eni(eni.id)
    assert seen is not None and {*seen.addresses} == {*assigned} - {*eni.addresses, eni.primary_ip}
    await ec2.detach_eni(attachment)
    await ec2.delete_eni(eni.id)
    assert await ec2.describe_eni(eni.id) is None


async def test_instance_types_and_subnets_are_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipamd.cloud.ec2.limits_of", lambda _: None)  # as if the table did not know them
    assert await world.ec2.instance_limits("m5.large") == Limits(3, 10)
    assert await world.ec2.instance_limits("p4d.24xlarge") == Limits(15, 50)
    aws = boto3.client("ec2", REGION)
    vpc = aws.describe_subnets(SubnetIds=[world.subnet_id])["Subnets"][0]["VpcId"]
    subnet = aws.create_subnet(VpcId=vpc, CidrBlock="10.0.9.0/24")["Subnet"]["SubnetId"]
    assert await world.ec2.subnet_cidr(subnet) == "10.0.9.0/24"


@pytest.mark.parametrize(
    "call",
    [
        lambda ec2: ec2.delete_eni("eni-00000000000000000"),
        lambda ec2: ec2.attach_eni("eni-00000000000000000", 1),
        lambda ec2: ec2.detach_eni("eni-attach-00000000000000000"),
    ],
    ids=["delete", "attach", "detach"],
)
async def test_what_moto_does_not_know_is_not_found(world: World, call: Callable[[Ec2], Awaitable[object]]) -> None:
    with pytest.raises(CloudError) as caught:
        await call(world.ec2)
    assert caught.value.failure.kind is Kind.NOT_FOUND
