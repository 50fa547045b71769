"""The EC2 double at its worst, as the real client sees it: limits of requests, eventual consistency, ENIs that are
stuck, subnets that fill up, scripted faults, and other people's calls."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiobotocore.config import AioConfig  # type: ignore[import-untyped]
from aiobotocore.session import get_session  # type: ignore[import-untyped]
from botocore.exceptions import ClientError  # type: ignore[import-untyped]
from types_aiobotocore_ec2 import EC2Client

from ipamd.pool.model import Limits
from ipamd.sim.ec2.cloud import Delays, SimulatedCloud
from ipamd.sim.ec2.consistency import Lags, Sight
from ipamd.sim.ec2.faults import Fault, FaultError, Faults
from ipamd.sim.ec2.rules import Attachment, Ec2Error, Eni, Instance, Registry, Subnet
from ipamd.sim.ec2.rules.throttle import PUBLISHED, Bucket, Rate, Throttle
from ipamd.sim.imds import INSTANCE_HEADER
from ipamd.sim.servers import CloudServers, serve_on_loopback

LIMITS = {"m5.large": Limits(3, 10)}
AT_ONCE = Delays(create=0, attach=0, detach=0, assign=0, link=0, imds_lag=0)
LONG = 3600.0
SESSION = get_session()  # one for all: it reads the service's description once


@dataclass
class Vpc:
    cloud: SimulatedCloud
    servers: CloudServers
    subnet: Subnet
    instance: Instance
    ec2: EC2Client
    http: aiohttp.ClientSession

    async def control(self, what: str, body: Any) -> Any:
        async with self.http.post(f"{self.servers.control_url}/_control/{what}", json=body) as reply:
            assert reply.status == 200, await reply.text()
            return await reply.json()

    async def rejected(self, what: str, body: Any) -> str:
        async with self.http.post(f"{self.servers.control_url}/_control/{what}", json=body) as reply:
            assert reply.status == 400
            return str((await reply.json())["error"])

    async def shown(self, what: str) -> Any:
        async with self.http.get(f"{self.servers.control_url}/_control/{what}") as reply:
            assert reply.status == 200
            return await reply.json()

    async def create(self, secondary: int = 0) -> Eni:
        reply = await self.ec2.create_network_interface(
            SubnetId=self.subnet.id, SecondaryPrivateIpAddressCount=secondary
        )
        return self.cloud.enis.get(reply["NetworkInterface"]["NetworkInterfaceId"])

    async def attach(self, eni: Eni, index: int = 1) -> str:
        reply = await self.ec2.attach_network_interface(
            NetworkInterfaceId=eni.id, InstanceId=self.instance.id, DeviceIndex=index
        )
        return reply["AttachmentId"]

    async def assign(self, eni: Eni, count: int) -> list[str]:
        reply = await self.ec2.assign_private_ip_addresses(
            NetworkInterfaceId=eni.id, SecondaryPrivateIpAddressCount=count
        )
        return [item["PrivateIpAddress"] for item in reply["AssignedPrivateIpAddresses"]]

    async def described(self) -> dict[str, list[str]]:
        """Addresses by ENI."""
        enis = (await self.ec2.describe_network_interfaces())["NetworkInterfaces"]
        return {
            eni["NetworkInterfaceId"]: [item["PrivateIpAddress"] for item in eni["PrivateIpAddresses"]]
            for eni in enis
        }

    async def attachment(self, eni: Eni) -> str:
        """Its status as described; empty: none."""
        [found] = (await self.ec2.describe_network_interfaces(NetworkInterfaceIds=[eni.id]))["NetworkInterfaces"]
        return found["Attachment"]["Status"] if "Attachment" in found else ""

    async def metadata_macs(self) -> set[str]:
        base = f"{self.servers.imds_url}/latest"
        headers = {INSTANCE_HEADER: self.instance.id, "X-aws-ec2-metadata-token-ttl-seconds": "60"}
        async with self.http.put(f"{base}/api/token", headers=headers) as reply:
            headers["X-aws-ec2-metadata-token"] = await reply.text()
        async with self.http.get(f"{base}/meta-data/network/interfaces/macs", headers=headers) as reply:
            assert reply.status == 200
            return {line.rstrip("/") for line in (await reply.text()).splitlines()}

    def outcomes(self, action: str) -> list[str]:
        return [call["outcome"] for call in self.servers.calls.as_json() if call["action"] == action]


@asynccontextmanager
async def running(
    delays: Delays = AT_ONCE, lags: Lags | None = None, cidr: str = "10.0.0.0/24"
) -> AsyncIterator[Vpc]:
    cloud = SimulatedCloud("10.0.0.0/16", limits=LIMITS, delays=delays, lags=lags)
    subnet = cloud.add_subnet(cidr)
    instance = await cloud.add_instance("n1", "m5.large", subnet.id)
    who = cloud.keyring.credentials(instance.id)
    async with (
        serve_on_loopback(cloud) as servers,
        aiohttp.ClientSession() as http,
        SESSION.create_client(
            "ec2",
            endpoint_url=servers.ec2_url,
            region_name="eu-central-1",
            aws_access_key_id=who.access_key,
            aws_secret_access_key=who.secret_key,
            aws_session_token=who.token,
            config=AioConfig(retries={"total_max_attempts": 1}),
        ) as ec2,
    ):
        yield Vpc(cloud, servers, subnet, instance, ec2, http)


@pytest.fixture
async def vpc() -> AsyncIterator[Vpc]:
    async with running() as vpc:
        yield vpc


async def refused(call: Awaitable[Any]) -> str:
    """EC2's error code."""
    with pytest.raises(ClientError) as caught:
        await call
    return str(caught.value.response["Error"]["Code"])


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(3000):
        if await condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come")


# Limits of requests


def test_a_bucket_is_full_at_first_and_fills_up_again() -> None:
    bucket = Bucket(Rate(2, 0.5), now=100)
    assert [bucket.take(100) for _ in range(3)] == [True, True, False]
    assert not bucket.take(101.9)
    assert bucket.take(102)
    assert bucket.tokens(1000) == 2  # never more than its capacity
    assert Bucket(Rate(0, 0), now=0).take(1000) is False


@pytest.mark.parametrize(
    ("action", "parameters", "capacity"),
    [
        ("AssignPrivateIpAddresses", {}, 100),
        ("AttachNetworkInterface", {}, 50),
        ("CreateNetworkInterface", {}, 100),
        ("DescribeInstances", {}, 50),
        ("DescribeInstances", {"MaxResults": 5}, 100),
        ("DescribeNetworkInterfaces", {"NetworkInterfaceIds": ["eni-1"]}, 50),
        ("DescribeNetworkInterfaces", {"Filters": []}, 100),
        ("DescribeNetworkInterfaces", {"NextToken": "x"}, 100),
        ("DescribeSubnets", {}, 100),
        ("DetachNetworkInterface", {}, 50),
        ("ModifyNetworkInterfaceAttribute", {}, 100),
    ],
)
def test_the_published_limits(action: str, parameters: dict[str, Any], capacity: int) -> None:
    """Of the table in AWS's "Request throttling for the Amazon EC2 API", some actions that the double has."""
    throttle = Throttle()
    throttle.limit({name: Rate(rate.capacity, 0) for name, rate in PUBLISHED.items()})
    for _ in range(capacity):
        throttle.take(action, parameters, 0.0)
    with pytest.raises(Ec2Error, match="RequestLimitExceeded"):
        throttle.take(action, parameters, 0.0)


async def test_too_many_requests_are_refused_and_do_nothing(vpc: Vpc) -> None:
    await vpc.control("throttle", {"on": True, "rates": {"CreateNetworkInterface": {"capacity": 2, "refill": 0}}})
    await vpc.create()
    await vpc.create()
    with pytest.raises(ClientError) as caught:
        await vpc.create()
    response = caught.value.response
    assert response["Error"]["Code"] == "RequestLimitExceeded"
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 503
    assert len(vpc.cloud.enis) == 3
    await vpc.ec2.describe_network_interfaces()  # each action has its own bucket
    assert vpc.outcomes("CreateNetworkInterface") == ["ok", "ok", "RequestLimitExceeded"]
    await vpc.control("throttle", {"on": False})
    await vpc.create()


async def test_without_filter_and_page_the_bucket_is_a_smaller_one(vpc: Vpc) -> None:
    rates = {"unfiltered": {"capacity": 1, "refill": 0}, "non-mutating": {"capacity": 2, "refill": 0}}
    await vpc.control("throttle", {"on": True, "rates": rates})
    describe = vpc.ec2.describe_network_interfaces
    await describe(NetworkInterfaceIds=[vpc.instance.primary.id])
    assert await refused(describe()) == "RequestLimitExceeded"
    await describe(MaxResults=5)
    await describe(Filters=[{"Name": "status", "Values": ["in-use"]}])
    assert await refused(describe(MaxResults=5)) == "RequestLimitExceeded"
    await vpc.ec2.describe_subnets()
    await vpc.ec2.describe_subnets()  # it has only one bucket, the larger one
    assert (await vpc.shown("throttle"))["tokens"] == {
        "DescribeNetworkInterfaces unfiltered": 0,
        "DescribeNetworkInterfaces": 0,
        "DescribeSubnets": 0,
    }


async def test_all_nodes_of_the_account_share_the_buckets(vpc: Vpc) -> None:
    other = await vpc.cloud.add_instance("n2", "m5.large", vpc.subnet.id)
    who = vpc.cloud.keyring.credentials(other.id)
    await vpc.control("throttle", {"on": True, "rates": {"DescribeSubnets": {"capacity": 1, "refill": 0}}})
    await vpc.ec2.describe_subnets()
    async with SESSION.create_client(
        "ec2",
        endpoint_url=vpc.servers.ec2_url,
        region_name="eu-central-1",
        aws_access_key_id=who.access_key,
        aws_secret_access_key=who.secret_key,
        aws_session_token=who.token,
        config=AioConfig(retries={"total_max_attempts": 1}),
    ) as ec2:
        assert await refused(ec2.describe_subnets()) == "RequestLimitExceeded"


async def test_limits_show_what_is_in_force(vpc: Vpc) -> None:
    assert await vpc.shown("throttle") == {"on": False, "rates": {}, "tokens": {}}
    await vpc.control("throttle", {"on": True, "rates": {"mutating": {"capacity": 7, "refill": 0.5}}})
    await vpc.create()
    shown = await vpc.shown("throttle")
    assert shown["on"] is True
    assert shown["rates"]["mutating"] == {"capacity": 7, "refill": 0.5}
    assert shown["rates"]["CreateNetworkInterface"] == {"capacity": 100, "refill": 5}
    assert list(shown["tokens"]) == ["CreateNetworkInterface"]


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        ([], "expected an object"),
        ({}, "on: expected true or false"),
        ({"on": 1}, "on: expected true or false"),
        ({"on": True, "rate": {}}, "unknown: rate"),
        ({"on": True, "rates": {"EatSubnets": {"capacity": 1, "refill": 1}}}, "unknown: EatSubnets"),
        ({"on": True, "rates": {"mutating": {"capacity": 1}}}, "mutating.refill: expected a number"),
        ({"on": True, "rates": {"mutating": {"capacity": -1, "refill": 1}}}, "mutating.capacity: expected a number"),
        ({"on": True, "rates": {"mutating": {"capacity": True, "refill": 1}}}, "mutating.capacity"),
        ({"on": True, "rates": {"mutating": 5}}, "expected an object"),
    ],
)
async def test_limits_that_make_no_sense(vpc: Vpc, body: Any, hint: str) -> None:
    assert hint in await vpc.rejected("throttle", body)
    assert (await vpc.shown("throttle"))["on"] is False


# Eventual consistency


async def test_a_new_eni_is_not_described_yet_and_changed_all_the_same() -> None:
    async with running(lags=Lags(new_eni=LONG)) as vpc:
        eni = await vpc.create(secondary=1)
        assert list(await vpc.described()) == [vpc.instance.primary.id]
        assert (
            await refused(vpc.ec2.describe_network_interfaces(NetworkInterfaceIds=[eni.id]))
            == "InvalidNetworkInterfaceID.NotFound"
        )
        await vpc.attach(eni)
        await vpc.assign(eni, 1)
        [reservation] = (await vpc.ec2.describe_instances())["Reservations"]
        shown = reservation["Instances"][0]["NetworkInterfaces"]
        assert [one["NetworkInterfaceId"] for one in shown] == [vpc.instance.primary.id]
        await vpc.control("lags", {})
        assert (await vpc.described())[eni.id] == eni.addresses


async def test_a_new_id_is_not_known_to_calls_that_change_it() -> None:
    async with running(lags=Lags(new_id=LONG)) as vpc:
        eni = await vpc.create(secondary=1)
        id, not_found = eni.id, "InvalidNetworkInterfaceID.NotFound"
        assert eni.id in await vpc.described()  # the one does not imply the other
        assert await refused(vpc.attach(eni)) == not_found
        assert await refused(vpc.assign(eni, 1)) == not_found
        assert await refused(vpc.ec2.delete_network_interface(NetworkInterfaceId=id)) == not_found
        assert await refused(vpc.ec2.create_tags(Resources=[id], Tags=[{"Key": "k", "Value": "v"}])) == not_found
        assert (
            await refused(vpc.ec2.modify_network_interface_attribute(NetworkInterfaceId=id, Groups=["sg-1"]))
            == not_found
        )
        assert (
            await refused(
                vpc.ec2.unassign_private_ip_addresses(NetworkInterfaceId=id, PrivateIpAddresses=eni.addresses[1:])
            )
            == not_found
        )
        eni.created -= LONG
        await vpc.attach(eni)


async def test_a_deleted_eni_is_still_described_and_cannot_be_changed() -> None:
    async with running(lags=Lags(gone_eni=LONG)) as vpc:
        eni = await vpc.create(secondary=1)
        before = await vpc.described()
        await vpc.ec2.delete_network_interface(NetworkInterfaceId=eni.id)
        assert await vpc.described() == before
        assert await vpc.attachment(eni) == ""
        assert await refused(vpc.attach(eni)) == "InvalidNetworkInterfaceID.NotFound"
        await vpc.control("lags", {"gone_eni": 0, "new_eni": 0.001})
        assert eni.id not in await vpc.described()


async def test_new_addresses_show_late_and_removed_ones_linger() -> None:
    async with running(lags=Lags(new_address=LONG, gone_address=LONG)) as vpc:
        eni = await vpc.create(secondary=2)
        primary, first, second = eni.addresses
        [third] = await vpc.assign(eni, 1)
        await vpc.ec2.unassign_private_ip_addresses(NetworkInterfaceId=eni.id, PrivateIpAddresses=[first])
        assert eni.addresses == [primary, second, third]
        assert (await vpc.described())[eni.id] == [primary, second, first]
        await vpc.control("lags", {"gone_address": LONG})
        assert (await vpc.described())[eni.id] == [primary, second, third, first]
        await vpc.control("lags", {})
        assert (await vpc.described())[eni.id] == [primary, second, third]


async def test_an_address_that_is_not_described_yet_is_nobody_elses() -> None:
    """Changes act on the truth: neither given out twice, nor over the limit."""
    async with running(lags=Lags(new_address=LONG)) as vpc:
        eni = await vpc.create()
        await vpc.attach(eni)
        first, second = await vpc.assign(eni, 4), await vpc.assign(eni, 5)
        assert not set(first) & set(second)
        assert (await vpc.described())[eni.id] == eni.addresses[:1]
        assert (
            await refused(
                vpc.ec2.assign_private_ip_addresses(NetworkInterfaceId=eni.id, SecondaryPrivateIpAddressCount=1)
            )
            == "PrivateIpAddressLimitExceeded"
        )
        await vpc.ec2.unassign_private_ip_addresses(NetworkInterfaceId=eni.id, PrivateIpAddresses=first)


async def test_the_state_of_an_attachment_shows_later() -> None:
    async with running(lags=Lags(attachment=LONG)) as vpc:
        eni = await vpc.create()
        await vpc.attach(eni)
        await vpc.cloud.settle()
        assert await vpc.attachment(eni) == ""
        assert await refused(vpc.attach(eni)) == "InvalidNetworkInterface.InUse"
        await vpc.control("lags", {})
        assert await vpc.attachment(eni) == "attached"


async def test_an_instance_boots_with_an_eni_that_everybody_knows() -> None:
    async with running(lags=Lags(LONG, LONG, LONG, LONG, LONG, LONG)) as vpc:
        primary = vpc.instance.primary
        assert await vpc.described() == {primary.id: primary.addresses}
        assert await vpc.attachment(primary) == "attached"
        await vpc.assign(primary, 1)


def test_what_is_seen_when() -> None:
    """Every lag on the clock, one ENI's life long."""
    subnet = Subnet("subnet-1", "10.0.0.0/24", "a", Random(1))
    eni = Eni("eni-1", subnet, "06:00:00:00:00:01", ["10.0.0.4", "10.0.0.5"], (), created=100.0)
    enis: Registry[Eni] = Registry("eni", "networkInterface", "InvalidNetworkInterfaceID")
    enis.add(eni.id, eni)
    sight = Sight(Lags(new_eni=2, gone_eni=7, new_address=3, gone_address=5, attachment=4, new_id=1))

    def seen(now: float) -> tuple[list[str], str] | None:
        found = list(sight.described(enis, now))
        return (found[0].addresses, found[0].status) if found else None

    sight.note(eni, 100)
    assert not sight.knows(eni, 100.9) and sight.knows(eni, 101)
    assert seen(101.9) is None
    assert seen(102) == (["10.0.0.4", "10.0.0.5"], "available")  # what it was created with comes with it
    eni.addresses = [*eni.addresses, "10.0.0.6"]
    sight.note(eni, 110)
    assert seen(112.9) == (["10.0.0.4", "10.0.0.5"], "available")
    assert seen(113) == (["10.0.0.4", "10.0.0.5", "10.0.0.6"], "available")
    eni.addresses = ["10.0.0.4", "10.0.0.6"]
    sight.note(eni, 120)
    assert seen(124.9) == (["10.0.0.4", "10.0.0.6", "10.0.0.5"], "available")
    assert seen(125) == (["10.0.0.4", "10.0.0.6"], "available")
    eni.attachment = Attachment("eni-attach-1", "i-1", 1, False, 130)
    sight.note(eni, 130)
    assert seen(133.9) == (["10.0.0.4", "10.0.0.6"], "available")
    assert seen(134) == (["10.0.0.4", "10.0.0.6"], "in-use")
    eni.attachment = None
    sight.note(eni, 140)
    assert seen(143.9) == (["10.0.0.4", "10.0.0.6"], "in-use")
    sight.bury(eni, 150)
    enis.remove(eni.id)
    eni.addresses = []
    assert seen(156.9) == (["10.0.0.4", "10.0.0.6"], "available")
    assert seen(157) is None


def test_an_address_that_comes_back_is_new_again() -> None:
    subnet = Subnet("subnet-1", "10.0.0.0/24", "a", Random(1))
    eni = Eni("eni-1", subnet, "06:00:00:00:00:01", ["10.0.0.4", "10.0.0.5"], (), created=100.0)
    enis: Registry[Eni] = Registry("eni", "networkInterface", "InvalidNetworkInterfaceID")
    enis.add(eni.id, eni)
    sight = Sight(Lags(new_address=3))
    for now, addresses in ((100, ["10.0.0.4", "10.0.0.5"]), (110, ["10.0.0.4"]), (120, ["10.0.0.4", "10.0.0.5"])):
        eni.addresses = addresses
        sight.note(eni, now)
    seen = {now: len(next(iter(sight.described(enis, now))).addresses) for now in (120, 122, 123)}
    assert seen == {120: 1, 122: 1, 123: 2}


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        ([], "expected an object"),
        ({"new_vpc": 1}, "unknown: new_vpc; known are attachment, gone_address, gone_eni"),
        ({"new_eni": "1"}, "new_eni: expected a number, 0 to 3600"),
        ({"new_eni": 3601}, "new_eni: expected a number, 0 to 3600"),
    ],
)
async def test_lags_that_make_no_sense(vpc: Vpc, body: Any, hint: str) -> None:
    assert hint in await vpc.rejected("lags", body)


async def test_metadata_omits_an_eni_for_a_while(vpc: Vpc) -> None:
    primary = vpc.instance.primary
    enis = [await vpc.create(), await vpc.create()]
    for index, eni in enumerate(enis, 1):
        await vpc.attach(eni, index)
    await vpc.cloud.settle()
    assert await vpc.metadata_macs() == {primary.mac, *(eni.mac for eni in enis)}
    await vpc.control("faults", {"action": "imds", "error": "omit", "eni_id": enis[0].id, "times": 2})
    for _ in range(2):  # the token does not use it up
        assert await vpc.metadata_macs() == {primary.mac, enis[1].mac}
    assert await vpc.metadata_macs() == {primary.mac, *(eni.mac for eni in enis)}
    await vpc.control("faults", {"action": "imds", "error": "omit"})
    assert await vpc.metadata_macs() == {primary.mac}
    assert await vpc.attachment(enis[0]) == "attached"
    await vpc.control("clear", {})
    assert await vpc.metadata_macs() == {primary.mac, *(eni.mac for eni in enis)}


# Attaching and detaching


@pytest.mark.parametrize("force", [False, True])
async def test_an_eni_is_stuck_attaching(vpc: Vpc, force: bool) -> None:
    await vpc.control("faults", {"action": "AttachNetworkInterface", "error": "stuck", "times": 1})
    eni = await vpc.create()
    attachment = await vpc.attach(eni)
    await vpc.cloud.settle()  # all but what is stuck
    await asyncio.sleep(0.05)
    assert await vpc.attachment(eni) == "attaching"
    assert not eni.plugged
    assert await refused(vpc.ec2.detach_network_interface(AttachmentId=attachment)) == "IncorrectState"
    if force:
        await vpc.ec2.detach_network_interface(AttachmentId=attachment, Force=True)
        await vpc.cloud.settle()
        assert await vpc.attachment(eni) == ""
        assert not eni.plugged
        await vpc.ec2.delete_network_interface(NetworkInterfaceId=eni.id)
    else:
        await vpc.control("clear", {})
        await vpc.cloud.settle()
        assert await vpc.attachment(eni) == "attached"
        assert eni.plugged


@pytest.mark.parametrize("force", [False, True])
async def test_an_eni_is_stuck_detaching(vpc: Vpc, force: bool) -> None:
    eni = await vpc.create()
    attachment = await vpc.attach(eni)
    await vpc.cloud.settle()
    await vpc.control("faults", {"action": "DetachNetworkInterface", "error": "stuck"})
    await vpc.ec2.detach_network_interface(AttachmentId=attachment)
    await vpc.cloud.settle()
    await asyncio.sleep(0.05)
    assert await vpc.attachment(eni) == "detaching"
    assert eni.plugged
    assert await refused(vpc.ec2.delete_network_interface(NetworkInterfaceId=eni.id)) == "InvalidParameterValue"
    if force:
        await vpc.ec2.detach_network_interface(AttachmentId=attachment, Force=True)
    else:
        await vpc.control("clear", {})
    await vpc.cloud.settle()
    assert await vpc.attachment(eni) == ""
    assert not eni.plugged


async def test_an_eni_is_stuck_for_a_while(vpc: Vpc) -> None:
    await vpc.control("faults", {"action": "AttachNetworkInterface", "error": "stuck", "delay_s": 0.2})
    eni = await vpc.create()
    await vpc.attach(eni)
    assert await vpc.attachment(eni) == "attaching"

    async def attached() -> bool:
        return await vpc.attachment(eni) == "attached"

    await until(attached)


async def test_a_stuck_eni_does_not_survive_its_instance(vpc: Vpc) -> None:
    await vpc.control("faults", {"action": "AttachNetworkInterface", "error": "stuck"})
    eni = await vpc.create()
    await vpc.attach(eni)
    await vpc.cloud.terminate(vpc.instance.id)
    assert eni.attachment is None and not eni.plugged


async def test_metadata_goes_on_showing_what_was_detached_by_force(vpc: Vpc) -> None:
    primary, eni = vpc.instance.primary, await vpc.create()
    attachment = await vpc.attach(eni)
    await vpc.cloud.settle()
    await vpc.ec2.detach_network_interface(AttachmentId=attachment, Force=True)
    await vpc.cloud.settle()
    assert await vpc.attachment(eni) == ""
    assert await vpc.metadata_macs() == {primary.mac, eni.mac}
    attachment = await vpc.attach(eni)  # back again, and this time it goes in peace
    await vpc.cloud.settle()
    await vpc.ec2.detach_network_interface(AttachmentId=attachment)
    await vpc.cloud.settle()
    assert await vpc.metadata_macs() == {primary.mac}


async def test_force_does_not_detach_the_primary_eni(vpc: Vpc) -> None:
    assert vpc.instance.primary.attachment
    id = vpc.instance.primary.attachment.id
    assert await refused(vpc.ec2.detach_network_interface(AttachmentId=id, Force=True)) == "OperationNotPermitted"


# Calls that are held up


@pytest.mark.parametrize("after_effect", [False, True])
async def test_a_held_call_goes_on_without_its_client(vpc: Vpc, after_effect: bool) -> None:
    async def made() -> bool:
        return len(vpc.cloud.enis) == 2

    async def over() -> bool:
        return bool(vpc.servers.calls.as_json())

    await vpc.control("faults", {"action": "CreateNetworkInterface", "error": "held", "after_effect": after_effect})
    call = asyncio.create_task(vpc.create())
    while not (await vpc.shown("faults"))[0]["struck"]:
        assert not call.done()
    if after_effect:
        await until(made)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert len(vpc.cloud.enis) == 1 + after_effect
    await vpc.control("clear", {})
    await until(over)
    assert [one["outcome"] for one in vpc.servers.calls.as_json()] == ["ok"]
    assert await made()


# Subnets that fill up


async def test_others_take_addresses_and_give_them_back() -> None:
    async with running(cidr="10.0.1.0/27") as vpc:  # 32 - 5 = 27 addresses, one is the instance's

        async def available() -> int:
            return (await vpc.ec2.describe_subnets())["Subnets"][0]["AvailableIpAddressCount"]

        await vpc.control("subnets", {"subnet_id": vpc.subnet.id, "others": 23})
        assert await available() == 3
        with pytest.raises(ClientError, match="3 free addresses, fewer than the 4 requested") as caught:
            await vpc.assign(vpc.instance.primary, 4)  # all or none
        assert caught.value.response["Error"]["Code"] == "InsufficientFreeAddressesInSubnet"
        assert len(vpc.instance.primary.addresses) == 1
        assert len(await vpc.assign(vpc.instance.primary, 3)) == 3
        assert await refused(vpc.create()) == "InsufficientFreeAddressesInSubnet"
        assert "0 free addresses, fewer than the 7 requested" in await vpc.rejected(
            "subnets", {"subnet_id": vpc.subnet.id, "others": 30}
        )
        await vpc.control("subnets", {"subnet_id": vpc.subnet.id, "others": 21})
        assert await available() == 2
        assert (await vpc.shown("state"))["subnets"][0]["others"] == 21
        await vpc.create(secondary=1)
        await vpc.control("subnets", {"subnet_id": vpc.subnet.id, "others": 0})
        assert await available() == 21
        await vpc.ec2.unassign_private_ip_addresses(
            NetworkInterfaceId=vpc.instance.primary.id, PrivateIpAddresses=vpc.instance.primary.addresses[1:]
        )
        assert await available() == 24


async def test_an_address_given_back_may_be_somebody_elses() -> None:
    async with running(cidr="10.0.1.0/28") as vpc:
        [address] = await vpc.assign(vpc.instance.primary, 1)
        await vpc.control("subnets", {"subnet_id": vpc.subnet.id, "others": 9})
        await vpc.ec2.unassign_private_ip_addresses(
            NetworkInterfaceId=vpc.instance.primary.id, PrivateIpAddresses=[address]
        )
        await vpc.control("subnets", {"subnet_id": vpc.subnet.id, "others": 10})
        assert await refused(vpc.create()) == "InsufficientFreeAddressesInSubnet"


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        ({"others": 1}, "subnet_id: expected the id of a subnet"),
        ({"subnet_id": "subnet-00000000", "others": 1}, "InvalidSubnetID.NotFound"),
        ({"subnet_id": "subnet-00000000"}, "others: expected a number of addresses"),
        ({"subnet_id": "subnet-00000000", "others": -1}, "others: expected a number of addresses"),
        ({"subnet_id": "subnet-00000000", "others": True}, "others: expected a number of addresses"),
    ],
)
async def test_other_people_who_make_no_sense(vpc: Vpc, body: Any, hint: str) -> None:
    assert hint in await vpc.rejected("subnets", body)


# Partial answers


async def test_half_of_the_addresses(vpc: Vpc) -> None:
    await vpc.control("faults", {"action": "AssignPrivateIpAddresses", "error": "partial", "times": 2})
    primary = vpc.instance.primary
    given = await vpc.assign(primary, 5)
    assert len(given) == 2
    assert primary.addresses[1:] == given
    assert len(await vpc.assign(primary, 1)) == 1  # less would be none
    assert len(await vpc.assign(primary, 4)) == 4


async def test_an_empty_page_is_not_the_last(vpc: Vpc) -> None:
    enis = {vpc.instance.primary.id, *[(await vpc.create()).id for _ in range(6)]}
    await vpc.control(
        "faults", {"action": "DescribeNetworkInterfaces", "error": "partial", "times": 1, "after_calls": 1}
    )
    describe = vpc.ec2.describe_network_interfaces
    pages, token = [], ""
    while True:
        page = await (describe(MaxResults=5, NextToken=token) if token else describe(MaxResults=5))
        pages.append([eni["NetworkInterfaceId"] for eni in page["NetworkInterfaces"]])
        if not (token := page.get("NextToken", "")):
            break
    assert [len(page) for page in pages] == [5, 0, 2]
    assert set(itertools.chain(*pages)) == enis


# Scripts


async def test_a_script_strikes_by_numbers_of_calls(vpc: Vpc) -> None:
    script = [
        {"action": "DescribeSubnets", "error": "InternalError", "after_calls": 2, "times": 1},
        {"action": "DescribeSubnets", "error": "Unavailable", "after_calls": 4, "times": 2},
    ]
    await vpc.control("faults", script)
    for _ in range(7):
        try:
            await vpc.ec2.describe_subnets()
        except ClientError:
            pass
    assert vpc.outcomes("DescribeSubnets") == ["ok", "ok", "InternalError", "ok", "Unavailable", "Unavailable", "ok"]


def test_a_script_strikes_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr("ipamd.sim.ec2.faults.time", clock)
    faults = Faults()
    faults.add(Fault("*", "InternalError", after=10, lasting=5))
    faults.add(Fault("imds", "omit", after=12, eni="eni-1"))
    struck = []
    for clock.now in (100.0, 109.9, 110.0, 114.9, 115.0, 200.0):
        struck.append((bool(faults.take("DescribeSubnets")), faults.omissions()))
    assert struck == [
        (False, set()),
        (False, set()),
        (True, set()),
        (True, {"eni-1"}),
        (False, {"eni-1"}),
        (False, {"eni-1"}),
    ]
    assert faults.take("imds") is None  # what is omitted is no error


def test_chance_is_the_same_with_the_same_seed() -> None:
    def struck(seed: int, probability: float) -> list[bool]:
        faults = Faults()
        faults.add(Fault("*", "InternalError", probability=probability, seed=seed))
        return [bool(faults.take("DescribeSubnets")) for _ in range(1000)]

    assert struck(1, 0.3) == struck(1, 0.3) != struck(2, 0.3)
    assert 250 < sum(struck(1, 0.3)) < 350
    assert sum(struck(1, 0)) == 0
    assert sum(struck(1, 1)) == 1000


async def test_a_script_with_one_mistake_is_not_begun(vpc: Vpc) -> None:
    script = [{"action": "*", "error": "InternalError"}, {"action": "*"}]
    assert await vpc.rejected("faults", script) == "fault 2: a fault needs an error, a delay_s, or both"
    await vpc.ec2.describe_subnets()


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        ({"action": "CreateNetworkInterface", "error": "stuck"}, "AttachNetworkInterface and DetachNetworkInterface"),
        ({"action": "CreateNetworkInterface", "error": "partial"}, "AssignPrivateIpAddresses and Describe"),
        ({"action": "*", "error": "omit"}, "is for imds only"),
        ({"action": "AttachNetworkInterface", "error": "stuck", "after_effect": True}, "after_effect"),
        ({"action": "imds", "error": "omit", "delay_s": 1}, "delay_s"),
        ({"action": "imds", "error": "omit", "eni_id": 5}, "eni_id"),
        ({"action": "imds", "error": "503", "eni_id": "eni-1"}, 'goes with the error "omit" only'),
        ({"action": "*", "error": "InternalError", "probability": 1.5}, "probability: expected a number, 0 to 1"),
        ({"action": "*", "error": "InternalError", "seed": -1}, "seed: expected a whole number"),
        ({"action": "*", "error": "InternalError", "after_calls": 0.5}, "after_calls: expected a whole number"),
        ({"action": "*", "error": "InternalError", "after_s": "1"}, "after_s: expected a number, 0 to 3600"),
        ({"action": "*", "error": "InternalError", "for_s": -1}, "for_s: expected a number, 0 to 3600"),
        ([[]], "expected an object"),
    ],
)
async def test_conditions_and_effects_that_make_no_sense(vpc: Vpc, body: Any, hint: str) -> None:
    assert hint in await vpc.rejected("faults", body)


def test_contradictory_faults_are_refused_in_every_spelling() -> None:
    with pytest.raises(FaultError):
        Fault("DescribeSubnets", "stuck")
    with pytest.raises(FaultError):
        Fault("DescribeSubnets", "InternalError", eni="eni-1")


async def test_a_script_from_the_beginning() -> None:
    cloud = SimulatedCloud("10.0.0.0/16", limits=LIMITS, delays=AT_ONCE)
    listeners = {name: socket.create_server(("127.0.0.1", 0)) for name in ("ec2", "imds", "control")}
    throttle = Throttle()
    throttle.limit({"DescribeInstances": Rate(0, 0)})
    script = [Fault("DescribeSubnets", "Unavailable")]
    servers = CloudServers(cloud, **listeners, throttle=throttle, script=script)
    try:
        await servers.start()
        async with SESSION.create_client(
            "ec2",
            endpoint_url=servers.ec2_url,
            region_name="eu-central-1",
            aws_access_key_id=cloud.keyring.operator.access_key,
            aws_secret_access_key=cloud.keyring.operator.secret_key,
            config=AioConfig(retries={"total_max_attempts": 1}),
        ) as ec2:
            assert await refused(ec2.describe_subnets()) == "Unavailable"
            assert await refused(ec2.describe_instances(MaxResults=5)) == "RequestLimitExceeded"
    finally:
        await servers.stop()


# Other people


async def test_somebody_else_changes_the_addresses_of_a_node(vpc: Vpc) -> None:
    primary = vpc.instance.primary
    own = await vpc.assign(primary, 2)
    reply = await vpc.control(
        "ec2",
        {
            "action": "AssignPrivateIpAddresses",
            "parameters": {"NetworkInterfaceId": primary.id, "SecondaryPrivateIpAddressCount": 1},
        },
    )
    [foreign] = [item["PrivateIpAddress"] for item in reply["AssignedPrivateIpAddresses"]]
    parameters = {"NetworkInterfaceId": primary.id, "PrivateIpAddresses": own[:1]}
    await vpc.control("ec2", {"action": "UnassignPrivateIpAddresses", "parameters": parameters})
    assert (await vpc.described())[primary.id] == [primary.addresses[0], own[1], foreign]
    assert {call["instance"] for call in vpc.servers.calls.as_json()} == {"operator", vpc.instance.id}


async def test_somebody_else_attaches_an_eni_and_takes_it_away(vpc: Vpc) -> None:
    async def call(action: str, **parameters: Any) -> Any:
        return await vpc.control("ec2", {"action": action, "parameters": parameters})

    created = await call("CreateNetworkInterface", SubnetId=vpc.subnet.id, Description="theirs")
    id = created["NetworkInterface"]["NetworkInterfaceId"]
    attached = await call("AttachNetworkInterface", NetworkInterfaceId=id, InstanceId=vpc.instance.id, DeviceIndex=2)
    await vpc.cloud.settle()
    assert await vpc.attachment(vpc.cloud.enis.get(id)) == "attached"
    described = await call("DescribeNetworkInterfaces", NetworkInterfaceIds=[id])
    assert described["NetworkInterfaces"][0]["Attachment"]["AttachTime"]  # times have a form in JSON
    await call("DetachNetworkInterface", AttachmentId=attached["AttachmentId"], Force=True)
    await vpc.cloud.settle()
    assert await call("DeleteNetworkInterface", NetworkInterfaceId=id) == {}
    assert id not in await vpc.described()


async def test_neither_faults_nor_limits_befall_somebody_else(vpc: Vpc) -> None:
    await vpc.control("faults", {"action": "*", "error": "InternalError"})
    await vpc.control("throttle", {"on": True, "rates": {"non-mutating": {"capacity": 0, "refill": 0}}})
    assert (await vpc.control("ec2", {"action": "DescribeSubnets"}))["Subnets"]


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        ({}, "expected an object like"),
        ({"action": "DescribeSubnets", "parameters": []}, "expected an object like"),
        ({"action": "EatSubnets"}, "InvalidAction"),
        ({"action": "RunInstances", "parameters": {"MinCount": 1, "MaxCount": 1}}, "InvalidAction"),
        ({"action": "DeleteNetworkInterface"}, 'Missing required parameter in input: "NetworkInterfaceId"'),
        (
            {"action": "DescribeSubnets", "parameters": {"SubnetIds": "subnet-1"}},
            "Invalid type for parameter SubnetIds",
        ),
        ({"action": "DescribeSubnets", "parameters": {"SubnetIds": ["subnet-1"]}}, "InvalidSubnetID.Malformed"),
        ({"action": "DescribeSubnets", "who": "me"}, "unknown: who"),
    ],
)
async def test_other_peoples_calls_that_make_no_sense(vpc: Vpc, body: Any, hint: str) -> None:
    assert hint in await vpc.rejected("ec2", body)
