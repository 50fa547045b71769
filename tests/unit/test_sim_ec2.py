"""The EC2 double as the real client sees it: every rule that an address allocator can run into."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from aiobotocore.config import AioConfig  # type: ignore[import-untyped]
from aiobotocore.session import get_session  # type: ignore[import-untyped]
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError  # type: ignore[import-untyped]
from types_aiobotocore_ec2 import EC2Client

from ipamd.pool.model import Limits
from ipamd.sim.ec2.actions import ACTIONS
from ipamd.sim.ec2.cloud import Delays, SimulatedCloud
from ipamd.sim.ec2.credentials import Credentials
from ipamd.sim.ec2.faults import Fault
from ipamd.sim.ec2.rules import Ec2Error, Eni, Instance, Subnet
from ipamd.sim.servers import CloudServers, serve_on_loopback

LIMITS = {"m5.large": Limits(3, 10), "t3.nano": Limits(2, 2)}
AT_ONCE = Delays(create=0, attach=0, detach=0, assign=0, link=0, imds_lag=0, terminate=0)
NEVER = 3600.0
SESSION = get_session()  # one for all: it reads the service's description once


class Recorder:
    """Wiring that records its calls."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    async def plug(self, instance_id: str, eni_id: str, mac: str, device_index: int) -> None:
        self.told.append(("plug", instance_id, eni_id, mac, device_index))

    async def unplug(self, eni_id: str) -> None:
        self.told.append(("unplug", eni_id))

    async def deliver(self, eni_id: str, addresses: tuple[str, ...]) -> None:
        self.told.append(("deliver", eni_id, addresses))


@dataclass
class Vpc:
    cloud: SimulatedCloud
    servers: CloudServers
    wiring: Recorder
    subnet: Subnet
    instance: Instance
    ec2: EC2Client

    async def new_eni(self, secondary: int = 0, **more: Any) -> Eni:
        reply = await self.ec2.create_network_interface(
            SubnetId=self.subnet.id, SecondaryPrivateIpAddressCount=secondary, **more
        )
        return self.cloud.enis.get(reply["NetworkInterface"]["NetworkInterfaceId"])

    async def attached_eni(self, index: int = 1, secondary: int = 0) -> Eni:
        eni = await self.new_eni(secondary)
        await self.ec2.attach_network_interface(
            NetworkInterfaceId=eni.id, InstanceId=self.instance.id, DeviceIndex=index
        )
        await self.cloud.settle()
        return eni

    async def described(self, eni: Eni) -> Any:
        reply = await self.ec2.describe_network_interfaces(NetworkInterfaceIds=[eni.id])
        return reply["NetworkInterfaces"][0]


@asynccontextmanager
async def client(servers: CloudServers, who: Credentials, **config: Any) -> AsyncIterator[EC2Client]:
    async with SESSION.create_client(
        "ec2",
        endpoint_url=servers.ec2_url,
        region_name="eu-central-1",
        aws_access_key_id=who.access_key,
        aws_secret_access_key=who.secret_key,
        aws_session_token=who.token or None,
        config=AioConfig(retries={"total_max_attempts": 1}, parameter_validation=False, **config),
    ) as ec2:
        yield ec2


@asynccontextmanager
async def running(
    delays: Delays = AT_ONCE, cidr: str = "10.0.0.0/24", type: str = "m5.large", **config: Any
) -> AsyncIterator[Vpc]:
    wiring = Recorder()
    cloud = SimulatedCloud("10.0.0.0/16", limits=LIMITS, wiring=wiring, delays=delays)
    subnet = cloud.add_subnet(cidr)
    instance = await cloud.add_instance("n1", type, subnet.id)
    async with (
        serve_on_loopback(cloud) as servers,
        client(servers, cloud.keyring.credentials(instance.id), **config) as ec2,
    ):
        yield Vpc(cloud, servers, wiring, subnet, instance, ec2)


@pytest.fixture
async def vpc() -> AsyncIterator[Vpc]:
    async with running() as vpc:
        yield vpc


async def refused(call: Awaitable[Any]) -> tuple[str, int]:
    """EC2's error code and the HTTP status."""
    with pytest.raises(ClientError) as caught:
        await call
    response = caught.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come")


# Addresses


async def test_subnet_keeps_five_addresses_and_gives_each_other_once() -> None:
    async with running(cidr="10.0.1.0/28") as vpc:  # 16 - 5 = 11 addresses, one is the instance's
        given = list(vpc.instance.primary.addresses)
        eni = await vpc.attached_eni()
        given += eni.addresses
        reply = await vpc.ec2.assign_private_ip_addresses(NetworkInterfaceId=eni.id, SecondaryPrivateIpAddressCount=9)
        given += [item["PrivateIpAddress"] for item in reply["AssignedPrivateIpAddresses"]]
        usable = [str(address) for address in ipaddress.IPv4Network("10.0.1.0/28")][4:-1]
        assert sorted(given) == sorted(usable)
        subnets = (await vpc.ec2.describe_subnets(SubnetIds=[vpc.subnet.id]))["Subnets"]
        assert subnets[0]["AvailableIpAddressCount"] == 0
        full = ("InsufficientFreeAddressesInSubnet", 400)
        assert await refused(vpc.ec2.create_network_interface(SubnetId=vpc.subnet.id)) == full
        primary = vpc.instance.primary.id
        assert (
            await refused(
                vpc.ec2.assign_private_ip_addresses(NetworkInterfaceId=primary, SecondaryPrivateIpAddressCount=1)
            )
            == full
        )


async def test_assign_answers_the_new_addresses_only(vpc: Vpc) -> None:
    eni = await vpc.attached_eni(secondary=2)
    before = list(eni.addresses)
    reply = await vpc.ec2.assign_private_ip_addresses(NetworkInterfaceId=eni.id, SecondaryPrivateIpAddressCount=3)
    new = [item["PrivateIpAddress"] for item in reply["AssignedPrivateIpAddresses"]]
    assert len(new) == 3 and not set(new) & set(before)
    shown = (await vpc.described(eni))["PrivateIpAddresses"]
    assert [item["PrivateIpAddress"] for item in shown] == before + new
    assert [item["Primary"] for item in shown] == [True] + [False] * 5


async def test_unassigned_addresses_are_free_again(vpc: Vpc) -> None:
    eni = await vpc.attached_eni(secondary=3)
    gone = eni.addresses[1:3]
    available = vpc.subnet.available
    await vpc.ec2.unassign_private_ip_addresses(NetworkInterfaceId=eni.id, PrivateIpAddresses=gone)
    assert vpc.subnet.available == available + 2
    assert set(gone) <= set(vpc.subnet.take(vpc.subnet.available))


async def test_every_address_change_shows_in_the_subnets_free_count(vpc: Vpc) -> None:
    async def left() -> int:
        by_id: list[Any] = [{"Name": "subnet-id", "Values": [vpc.subnet.id]}]
        [shown] = (await vpc.ec2.describe_subnets(Filters=by_id))["Subnets"]
        return shown["AvailableIpAddressCount"]

    before = await left()
    assert before == 256 - 5 - 1
    eni = await vpc.new_eni(2)
    assert await left() == before - 3
    reply = await vpc.ec2.assign_private_ip_addresses(NetworkInterfaceId=eni.id, SecondaryPrivateIpAddressCount=4)
    assert await left() == before - 7
    one = reply["AssignedPrivateIpAddresses"][0]["PrivateIpAddress"]
    await vpc.ec2.unassign_private_ip_addresses(NetworkInterfaceId=eni.id, PrivateIpAddresses=[one])
    assert await left() == before - 6
    await vpc.ec2.attach_network_interface(NetworkInterfaceId=eni.id, InstanceId=vpc.instance.id, DeviceIndex=1)
    await vpc.cloud.settle()
    assert await left() == before - 6
    assert eni.attachment
    await vpc.ec2.detach_network_interface(AttachmentId=eni.attachment.id)
    await vpc.cloud.settle()
    assert await left() == before - 6
    await vpc.ec2.delete_network_interface(NetworkInterfaceId=eni.id)
    assert await left() == before


async def test_unassigning_is_all_or_nothing(vpc: Vpc) -> None:
    eni = await vpc.attached_eni(secondary=2)
    before = list(eni.addresses)
    for wrong in (before[0], vpc.instance.primary.addresses[0], "10.0.0.200", "nonsense"):
        outcome = await refused(
            vpc.ec2.unassign_private_ip_addresses(NetworkInterfaceId=eni.id, PrivateIpAddresses=[before[1], wrong])
        )
        assert outcome == ("InvalidParameterValue", 400)
        assert eni.addresses == before


async def test_calls_at_same_time_never_pass_limit_of_eni_together() -> None:
    async with running(Delays(create=0, attach=0, detach=0, assign=0.01, link=0, imds_lag=0)) as vpc:
        eni = await vpc.attached_eni()
        outcomes = await asyncio.gather(
            *(
                vpc.ec2.assign_private_ip_addresses(NetworkInterfaceId=eni.id, SecondaryPrivateIpAddressCount=2)
                for _ in range(7)
            ),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, dict) for outcome in outcomes) == 4  # 1 + 4 x 2 of 10
        assert len(set(eni.addresses)) == 9
        assert vpc.wiring.told[-1] == ("deliver", eni.id, tuple(eni.addresses))


async def test_an_eni_holds_what_its_instance_type_allows(vpc: Vpc) -> None:
    eni = await vpc.attached_eni(secondary=9)
    assert await refused(
        vpc.ec2.assign_private_ip_addresses(NetworkInterfaceId=eni.id, SecondaryPrivateIpAddressCount=1)
    ) == ("PrivateIpAddressLimitExceeded", 400)
    assert await refused(
        vpc.ec2.create_network_interface(SubnetId=vpc.subnet.id, SecondaryPrivateIpAddressCount=10)
    ) == ("PrivateIpAddressLimitExceeded", 400)


async def test_eni_with_too_many_addresses_for_type_is_not_attached() -> None:
    async with running(type="t3.nano") as vpc:
        eni = await vpc.new_eni(secondary=2)  # 3, and a t3.nano takes 2
        assert await refused(
            vpc.ec2.attach_network_interface(NetworkInterfaceId=eni.id, InstanceId=vpc.instance.id, DeviceIndex=1)
        ) == ("PrivateIpAddressLimitExceeded", 400)


# The life of an ENI


async def test_attaching_and_detaching_go_on_after_the_answer() -> None:
    async with running(Delays(create=0, attach=NEVER, detach=NEVER, assign=0, link=0, imds_lag=0)) as vpc:
        eni = await vpc.new_eni(secondary=1)
        assert (await vpc.described(eni))["Status"] == "available"
        reply = await vpc.ec2.attach_network_interface(
            NetworkInterfaceId=eni.id, InstanceId=vpc.instance.id, DeviceIndex=1
        )
        shown = await vpc.described(eni)
        assert shown["Status"] == "in-use"
        assert shown["Attachment"]["Status"] == "attaching"
        assert shown["Attachment"]["AttachmentId"] == reply["AttachmentId"]
        assert shown["Attachment"]["DeleteOnTermination"] is False
        assert await refused(vpc.ec2.detach_network_interface(AttachmentId=reply["AttachmentId"])) == (
            "IncorrectState",
            400,
        )
        assert not [told for told in vpc.wiring.told if told[0] == "plug" and told[2] == eni.id]


async def test_an_eni_that_is_being_detached_still_holds_its_place() -> None:
    async with running(Delays(create=0, attach=0, detach=NEVER, assign=0, link=0, imds_lag=0)) as vpc:
        eni = await vpc.attached_eni()
        assert eni.attachment
        id = eni.attachment.id
        await vpc.ec2.detach_network_interface(AttachmentId=id)
        assert (await vpc.described(eni))["Attachment"]["Status"] == "detaching"
        assert await refused(vpc.ec2.detach_network_interface(AttachmentId=id)) == ("IncorrectState", 400)
        assert await refused(vpc.ec2.delete_network_interface(NetworkInterfaceId=eni.id)) == (
            "InvalidParameterValue",
            400,
        )
        other = await vpc.new_eni()
        assert await refused(
            vpc.ec2.attach_network_interface(NetworkInterfaceId=other.id, InstanceId=vpc.instance.id, DeviceIndex=1)
        ) == ("InvalidParameterValue", 400)


async def test_the_wiring_hears_of_everything_in_order(vpc: Vpc) -> None:
    primary = vpc.instance.primary
    eni = await vpc.attached_eni(secondary=1)
    first, second = eni.addresses
    await vpc.ec2.unassign_private_ip_addresses(NetworkInterfaceId=eni.id, PrivateIpAddresses=[second])
    assert eni.attachment
    await vpc.ec2.detach_network_interface(AttachmentId=eni.attachment.id)
    await vpc.cloud.settle()
    assert "Attachment" not in await vpc.described(eni)
    await vpc.ec2.delete_network_interface(NetworkInterfaceId=eni.id)
    assert vpc.wiring.told == [
        ("plug", vpc.instance.id, primary.id, primary.mac, 0),
        ("deliver", primary.id, tuple(primary.addresses)),
        ("deliver", eni.id, (first, second)),
        ("plug", vpc.instance.id, eni.id, eni.mac, 1),
        ("deliver", eni.id, (first, second)),
        ("deliver", eni.id, (first,)),
        ("unplug", eni.id),
        ("deliver", eni.id, ()),
    ]
    assert vpc.subnet.available == 256 - 5 - 1


async def test_detaching_waits_for_a_link_that_is_still_to_come() -> None:
    async with running(Delays(create=0, attach=0, detach=0, assign=0, link=0.05, imds_lag=0)) as vpc:
        eni = await vpc.new_eni()
        reply = await vpc.ec2.attach_network_interface(
            NetworkInterfaceId=eni.id, InstanceId=vpc.instance.id, DeviceIndex=1
        )
        await until(lambda: eni.attachment is not None and eni.attachment.status == "attached")
        assert not eni.plugged
        await vpc.ec2.detach_network_interface(AttachmentId=reply["AttachmentId"])
        await vpc.cloud.settle()
        assert [told[0] for told in vpc.wiring.told if eni.id in told] == ["deliver", "plug", "deliver", "unplug"]


async def test_termination_takes_marked_enis_and_leaves_the_rest(vpc: Vpc) -> None:
    marked, left = await vpc.attached_eni(1), await vpc.attached_eni(2)
    assert marked.attachment
    await vpc.ec2.modify_network_interface_attribute(
        NetworkInterfaceId=marked.id,
        Attachment={"AttachmentId": marked.attachment.id, "DeleteOnTermination": True},
    )
    assert (await vpc.described(marked))["Attachment"]["DeleteOnTermination"] is True
    await vpc.cloud.terminate(vpc.instance.id)
    assert list(vpc.cloud.enis) == [left]
    assert left.status == "available"
    assert vpc.subnet.available == 256 - 5 - 1
    assert await refused(vpc.ec2.describe_instances()) == ("AuthFailure", 401)


async def states(vpc: Vpc, **ask: Any) -> dict[str, str]:
    """State by instance, as somebody else in the account is shown them."""
    async with client(vpc.servers, vpc.cloud.keyring.operator) as ec2:
        reservations = (await ec2.describe_instances(**ask))["Reservations"]
    return {item["InstanceId"]: item["State"]["Name"] for r in reservations for item in r["Instances"]}


async def test_an_instance_ends_in_steps_and_is_forgotten(vpc: Vpc) -> None:
    id, other = vpc.instance.id, await vpc.cloud.add_instance("n2", "m5.large", vpc.subnet.id)
    eni = await vpc.attached_eni()
    ending = {"InstanceIds": [id]}

    async def perform(action: str) -> Any:
        return await ACTIONS[action].perform(vpc.cloud, dict(ending))  # in no time: nothing else happens meanwhile

    first, again, shown = [await perform(f"{what}Instances") for what in ("Terminate", "Terminate", "Describe")]
    running, down = {"Code": 16, "Name": "running"}, {"Code": 32, "Name": "shutting-down"}
    assert first == {"TerminatingInstances": [{"InstanceId": id, "CurrentState": down, "PreviousState": running}]}
    assert again == {"TerminatingInstances": [{"InstanceId": id, "CurrentState": down, "PreviousState": down}]}
    assert shown["Reservations"][0]["Instances"][0]["State"] == down
    assert eni.status == "in-use", "it goes when the instance is terminated"

    await vpc.cloud.settle()
    assert eni.status == "available"
    both: list[Any] = [{"Name": "instance-id", "Values": [id, other.id]}]
    assert await states(vpc, Filters=both) == {id: "terminated", other.id: "running"}
    assert await states(vpc, InstanceIds=[id]) == {id: "terminated"}
    unknown = ("InvalidInstanceID.NotFound", 400)
    async with client(vpc.servers, vpc.cloud.keyring.operator) as ec2:
        assert await refused(ec2.terminate_instances(InstanceIds=[other.id, f"i-{NOBODY}"])) == unknown
        assert (await ec2.terminate_instances(InstanceIds=[id]))["TerminatingInstances"][0]["CurrentState"][
            "Code"
        ] == 48
    vpc.cloud.rules.forget = 0
    assert await states(vpc, Filters=both) == {other.id: "running"}
    assert await refused(states(vpc, InstanceIds=[id])) == unknown


async def test_the_device_index_must_be_free(vpc: Vpc) -> None:
    await vpc.attached_eni(1)
    eni = await vpc.new_eni()
    for index in (0, 1, -1):
        assert await refused(
            vpc.ec2.attach_network_interface(NetworkInterfaceId=eni.id, InstanceId=vpc.instance.id, DeviceIndex=index)
        ) == ("InvalidParameterValue", 400)


async def test_an_instance_takes_as_many_enis_as_its_type_allows(vpc: Vpc) -> None:
    await vpc.attached_eni(1)
    await vpc.attached_eni(2)
    eni = await vpc.new_eni()
    assert await refused(
        vpc.ec2.attach_network_interface(NetworkInterfaceId=eni.id, InstanceId=vpc.instance.id, DeviceIndex=3)
    ) == ("AttachmentLimitExceeded", 400)


async def test_an_eni_in_use_is_neither_attached_nor_deleted(vpc: Vpc) -> None:
    eni = await vpc.attached_eni()
    other = await vpc.cloud.add_instance("n2", "m5.large", vpc.subnet.id)
    assert await refused(
        vpc.ec2.attach_network_interface(NetworkInterfaceId=eni.id, InstanceId=other.id, DeviceIndex=1)
    ) == ("InvalidNetworkInterface.InUse", 400)
    assert await refused(vpc.ec2.delete_network_interface(NetworkInterfaceId=eni.id)) == (
        "InvalidParameterValue",
        400,
    )


async def test_the_primary_eni_is_not_detached(vpc: Vpc) -> None:
    attachment = vpc.instance.primary.attachment
    assert attachment
    assert await refused(vpc.ec2.detach_network_interface(AttachmentId=attachment.id)) == (
        "OperationNotPermitted",
        400,
    )


async def test_an_eni_stays_in_its_zone(vpc: Vpc) -> None:
    elsewhere = vpc.cloud.add_subnet("10.0.9.0/24", zone="eu-central-1b")
    reply = await vpc.ec2.create_network_interface(SubnetId=elsewhere.id)
    assert await refused(
        vpc.ec2.attach_network_interface(
            NetworkInterfaceId=reply["NetworkInterface"]["NetworkInterfaceId"],
            InstanceId=vpc.instance.id,
            DeviceIndex=1,
        )
    ) == ("InvalidParameterCombination", 400)


async def test_nothing_is_attached_to_a_terminated_instance(vpc: Vpc) -> None:
    other = await vpc.cloud.add_instance("n2", "m5.large", vpc.subnet.id)
    await vpc.cloud.terminate(other.id)
    eni = await vpc.new_eni()
    assert await refused(
        vpc.ec2.attach_network_interface(NetworkInterfaceId=eni.id, InstanceId=other.id, DeviceIndex=1)
    ) == ("IncorrectState", 400)
    states = {
        item["InstanceId"]: item["State"]["Name"]
        for reservation in (await vpc.ec2.describe_instances())["Reservations"]
        for item in reservation["Instances"]
    }
    assert states == {vpc.instance.id: "running", other.id: "terminated"}


async def test_the_account_has_a_quota_of_enis(vpc: Vpc) -> None:
    vpc.cloud.rules.eni_quota = len(vpc.cloud.enis)
    assert await refused(vpc.ec2.create_network_interface(SubnetId=vpc.subnet.id)) == (
        "NetworkInterfaceLimitExceeded",
        400,
    )


async def test_unknown_instance_types_are_refused(vpc: Vpc) -> None:
    with pytest.raises(Ec2Error) as caught:
        await vpc.cloud.add_instance("n2", "m5.lagre", vpc.subnet.id)
    assert caught.value.code == "InvalidInstanceType"
    assert await refused(vpc.ec2.describe_instance_types(InstanceTypes=["m5.lagre"])) == (  # type: ignore[list-item]
        "InvalidInstanceType",
        400,
    )


@pytest.mark.parametrize("cidr", ["10.1.0.0/24", "10.0.0.128/25", "10.0.0.1/24"])
async def test_subnets_lie_in_the_vpc_and_apart(vpc: Vpc, cidr: str) -> None:
    with pytest.raises(ValueError):
        vpc.cloud.add_subnet(cidr)


# ClientToken and tags


async def test_a_client_token_makes_creation_happen_once() -> None:
    async with running(Delays(create=0.01, attach=0, detach=0, assign=0, link=0, imds_lag=0)) as vpc:
        ask: dict[str, Any] = {"secondary": 2, "ClientToken": "t1", "Description": "a"}
        first, twin = await asyncio.gather(vpc.new_eni(**ask), vpc.new_eni(**ask))
        assert first is twin
        assert first is await vpc.new_eni(**ask)
        assert len(vpc.cloud.enis) == 2  # with the instance's primary
        for change in ({"secondary": 3}, {"Description": "b"}, {"Groups": [vpc.cloud.rules.default_group.id]}):
            with pytest.raises(ClientError, match="IdempotentParameterMismatch"):
                await vpc.new_eni(**(ask | change))
        assert await vpc.new_eni(**(ask | {"ClientToken": "t2"})) is not first


async def test_a_call_that_failed_does_not_use_up_its_token(vpc: Vpc) -> None:
    vpc.cloud.rules.eni_quota = 0
    with pytest.raises(ClientError, match="NetworkInterfaceLimitExceeded"):
        await vpc.new_eni(ClientToken="t")
    vpc.cloud.rules.eni_quota = 10
    await vpc.new_eni(ClientToken="t")


async def test_tags_come_with_creation_and_later(vpc: Vpc) -> None:
    eni = await vpc.new_eni(
        TagSpecifications=[{"ResourceType": "network-interface", "Tags": [{"Key": "a", "Value": "1"}]}]
    )
    await vpc.ec2.create_tags(Resources=[eni.id], Tags=[{"Key": "a", "Value": "2"}, {"Key": "b", "Value": ""}])
    assert (await vpc.described(eni))["TagSet"] == [{"Key": "a", "Value": "2"}, {"Key": "b", "Value": ""}]
    bad: list[Any] = [{"Key": "aws:x", "Value": ""}]
    assert await refused(vpc.ec2.create_tags(Resources=[eni.id], Tags=bad)) == ("InvalidParameterValue", 400)
    many: list[Any] = [{"Key": str(n), "Value": ""} for n in range(49)]
    assert await refused(vpc.ec2.create_tags(Resources=[eni.id], Tags=many)) == ("TagLimitExceeded", 400)
    with pytest.raises(ClientError, match="InvalidParameterValue"):
        await vpc.new_eni(TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "a", "Value": "1"}]}])


async def test_security_groups_are_given_at_creation_and_changed_later(vpc: Vpc) -> None:
    group = vpc.cloud.add_security_group("pods")
    eni = await vpc.new_eni()
    assert [item["GroupName"] for item in (await vpc.described(eni))["Groups"]] == ["default"]
    await vpc.ec2.modify_network_interface_attribute(NetworkInterfaceId=eni.id, Groups=[group.id])
    assert [item["GroupId"] for item in (await vpc.described(eni))["Groups"]] == [group.id]
    assert (await vpc.new_eni(Groups=[group.id])).groups == (group,)


# Things that do not exist

NOBODY = "0123456789abcdef0"
Call = Callable[[Vpc], Awaitable[Any]]
MISSING: dict[str, Call] = {
    "InvalidNetworkInterfaceID.NotFound": lambda v: v.ec2.delete_network_interface(
        NetworkInterfaceId=f"eni-{NOBODY}"
    ),
    "InvalidNetworkInterfaceID.Malformed": lambda v: v.ec2.delete_network_interface(NetworkInterfaceId="eni-1"),
    "InvalidAttachmentID.NotFound": lambda v: v.ec2.detach_network_interface(AttachmentId=f"eni-attach-{NOBODY}"),
    "InvalidAttachmentID.Malformed": lambda v: v.ec2.detach_network_interface(AttachmentId=f"eni-{NOBODY}"),
    "InvalidSubnetID.NotFound": lambda v: v.ec2.create_network_interface(SubnetId=f"subnet-{NOBODY}"),
    "InvalidSubnetID.Malformed": lambda v: v.ec2.describe_subnets(SubnetIds=["subnet"]),
    "InvalidSecurityGroupID.NotFound": lambda v: v.ec2.create_network_interface(
        SubnetId=v.subnet.id, Groups=[f"sg-{NOBODY}"]
    ),
    "InvalidGroup.NotFound": lambda v: v.ec2.describe_security_groups(GroupIds=[f"sg-{NOBODY}"]),
    "InvalidInstanceID.NotFound": lambda v: v.ec2.describe_instances(InstanceIds=[f"i-{NOBODY}"]),
    "InvalidInstanceID.Malformed": lambda v: v.ec2.describe_instances(InstanceIds=["n1"]),
}


@pytest.mark.parametrize("code", MISSING)
async def test_unknown_ids(vpc: Vpc, code: str) -> None:
    assert await refused(MISSING[code](vpc)) == (code, 400)


async def test_every_missing_id_is_named(vpc: Vpc) -> None:
    ids = [f"eni-{NOBODY}", vpc.instance.primary.id, "eni-01234567"]
    with pytest.raises(ClientError, match=f"'eni-{NOBODY}, eni-01234567' do not exist"):
        await vpc.ec2.describe_network_interfaces(NetworkInterfaceIds=ids)


async def test_an_attachment_of_another_eni_is_not_modified(vpc: Vpc) -> None:
    eni, attachment = await vpc.new_eni(), vpc.instance.primary.attachment
    assert attachment
    assert await refused(
        vpc.ec2.modify_network_interface_attribute(
            NetworkInterfaceId=eni.id, Attachment={"AttachmentId": attachment.id, "DeleteOnTermination": False}
        )
    ) == ("InvalidAttachmentID.NotFound", 400)


# Describe: filters and pages


async def test_filters_of_network_interfaces(vpc: Vpc) -> None:
    primary = vpc.instance.primary
    attached = await vpc.attached_eni(secondary=1)
    group = vpc.cloud.add_security_group("pods")
    loose = await vpc.new_eni(
        Description="pod * pool",
        Groups=[group.id],
        TagSpecifications=[{"ResourceType": "network-interface", "Tags": [{"Key": "k", "Value": "v*1"}]}],
    )

    async def found(name: str, *values: str) -> list[Eni]:
        reply = await vpc.ec2.describe_network_interfaces(Filters=[{"Name": name, "Values": list(values)}])
        return [vpc.cloud.enis.get(item["NetworkInterfaceId"]) for item in reply["NetworkInterfaces"]]

    assert await found("attachment.instance-id", vpc.instance.id) == [primary, attached]
    assert await found("attachment.status", "attached", "detaching") == [primary, attached]
    assert await found("status", "available") == [loose]
    assert await found("status", "in-use", "available") == [primary, attached, loose]
    assert await found("tag:k", "v*") == [loose]
    assert await found("tag:k", r"v\*?") == [loose]
    assert await found("tag:k", "v?2") == []
    assert await found("tag:other", "*") == []
    assert await found("tag-key", "k") == [loose]
    assert await found("subnet-id", vpc.subnet.id) == [primary, attached, loose]
    assert await found("vpc-id", "vpc-other") == []
    assert await found("network-interface-id", loose.id) == [loose]
    assert await found("private-ip-address", attached.addresses[1]) == [attached]
    assert await found("group-id", group.id) == [loose]
    assert await found("description", r"pod \* *") == [loose]
    assert await found("description", r"pod \?*") == []
    both: list[Any] = [{"Name": "status", "Values": ["in-use"]}, {"Name": "group-id", "Values": [group.id]}]
    assert not (await vpc.ec2.describe_network_interfaces(Filters=both))["NetworkInterfaces"]


async def test_filters_of_other_resources(vpc: Vpc) -> None:
    other = vpc.cloud.add_subnet("10.0.9.0/24", zone="eu-central-1b")
    by_room: list[Any] = [{"Name": "available-ip-address-count", "Values": ["251"]}]
    assert [s["SubnetId"] for s in (await vpc.ec2.describe_subnets(Filters=by_room))["Subnets"]] == [other.id]
    by_zone: list[Any] = [{"Name": "availability-zone", "Values": ["*b"]}]
    assert [s["SubnetId"] for s in (await vpc.ec2.describe_subnets(Filters=by_zone))["Subnets"]] == [other.id]
    by_name: list[Any] = [{"Name": "group-name", "Values": ["default"]}]
    groups = (await vpc.ec2.describe_security_groups(Filters=by_name))["SecurityGroups"]
    assert [group["GroupId"] for group in groups] == [vpc.cloud.rules.default_group.id]
    by_tag: list[Any] = [{"Name": "tag:Name", "Values": ["n1"]}]
    reservations = (await vpc.ec2.describe_instances(Filters=by_tag))["Reservations"]
    assert [item["InstanceId"] for r in reservations for item in r["Instances"]] == [vpc.instance.id]
    by_type: list[Any] = [{"Name": "instance-type", "Values": ["t3.*"]}]
    types = (await vpc.ec2.describe_instance_types(Filters=by_type))["InstanceTypes"]
    assert [(t["InstanceType"], t["NetworkInfo"]["MaximumNetworkInterfaces"]) for t in types] == [("t3.nano", 2)]


@pytest.mark.parametrize(
    "filter", [{"Name": "colour", "Values": ["red"]}, {"Name": "status"}, {"Name": "tag", "Values": ["x"]}]
)
async def test_filters_that_mean_nothing_are_refused(vpc: Vpc, filter: Any) -> None:
    assert await refused(vpc.ec2.describe_network_interfaces(Filters=[filter])) == ("InvalidParameterValue", 400)


async def test_whose_an_eni_is_stands_in_its_tags(vpc: Vpc) -> None:
    """The look for what nobody remembers: of this cluster, attached nowhere, of these nodes, made long ago."""

    async def made(tags: dict[str, str]) -> str:
        pairs: list[Any] = [{"Key": key, "Value": value} for key, value in tags.items()]
        return (await vpc.new_eni(TagSpecifications=[{"ResourceType": "network-interface", "Tags": pairs}])).id

    async def found(filters: dict[str, list[str]]) -> list[str]:
        asked: list[Any] = [{"Name": name, "Values": values} for name, values in filters.items()]
        enis = (await vpc.ec2.describe_network_interfaces(Filters=asked))["NetworkInterfaces"]
        return [eni["NetworkInterfaceId"] for eni in enis]

    ours = {"ipamd.io/cluster": "prod", "ipamd.io/created": "2026-01-01T00:00:00Z"}
    first = await made({**ours, "ipamd.io/instance": "i-1"})
    second = await made({**ours, "ipamd.io/instance": "i-2"})
    await made({"ipamd.io/cluster": "test", "ipamd.io/instance": "i-1"})
    await made({"ipamd.io/instance": "i-1"})
    available = {"status": ["available"], "tag:ipamd.io/cluster": ["prod"]}
    assert await found(available) == [first, second]
    assert await found({**available, "tag:ipamd.io/instance": ["i-0", "i-2", "i-3"]}) == [second]
    assert await found({"tag-key": ["ipamd.io/created", "other"]}) == [first, second]
    await vpc.ec2.attach_network_interface(NetworkInterfaceId=first, InstanceId=vpc.instance.id, DeviceIndex=1)
    assert await found(available) == [second]
    shown = (await vpc.described(vpc.cloud.enis.get(second)))["TagSet"]
    assert {"Key": "ipamd.io/created", "Value": "2026-01-01T00:00:00Z"} in shown


async def test_a_call_takes_two_hundred_values_of_filters(vpc: Vpc) -> None:
    def asking(*counts: int) -> Awaitable[Any]:
        ids = [[f"i-{number:017x}" for number in range(count)] for count in counts]
        filters: list[Any] = [{"Name": "attachment.instance-id", "Values": values} for values in ids]
        return vpc.ec2.describe_network_interfaces(Filters=filters)

    assert (await asking(150, 50))["NetworkInterfaces"] == []
    assert await refused(asking(150, 51)) == ("FilterLimitExceeded", 400)
    long: list[Any] = [{"Name": "tag:Name", "Values": ["x" * 256]}]
    assert await refused(vpc.ec2.describe_instances(Filters=long)) == ("FilterLimitExceeded", 400)


async def test_pages(vpc: Vpc) -> None:
    for _ in range(12):
        await vpc.new_eni()
    pages = [
        [eni["NetworkInterfaceId"] for eni in page["NetworkInterfaces"]]
        async for page in vpc.ec2.get_paginator("describe_network_interfaces").paginate(
            PaginationConfig={"PageSize": 5}
        )
    ]
    assert [len(page) for page in pages] == [5, 5, 3]
    assert [id for page in pages for id in page] == [eni.id for eni in vpc.cloud.enis]
    too_few = vpc.ec2.describe_network_interfaces(MaxResults=4)
    assert await refused(too_few) == ("InvalidParameterValue", 400)
    with_ids = vpc.ec2.describe_network_interfaces(MaxResults=5, NetworkInterfaceIds=[vpc.instance.primary.id])
    assert await refused(with_ids) == ("InvalidParameterCombination", 400)
    for token in ("nonsense", "YWZ0ZXI=", "!"):
        assert await refused(vpc.ec2.describe_network_interfaces(NextToken=token)) == ("InvalidNextToken", 400)


# Requests that are wrong in themselves


async def test_requests_are_checked_against_the_model(vpc: Vpc) -> None:
    ec2, eni = vpc.ec2, vpc.instance.primary.id
    wrong: list[tuple[str, Awaitable[Any]]] = [
        ("MissingParameter", ec2.create_network_interface()),  # type: ignore[call-arg]
        ("MissingParameter", ec2.assign_private_ip_addresses(NetworkInterfaceId=eni)),
        ("MissingParameter", ec2.unassign_private_ip_addresses(NetworkInterfaceId=eni)),
        (
            "MissingParameter",
            ec2.modify_network_interface_attribute(NetworkInterfaceId=eni, Attachment={"DeleteOnTermination": True}),
        ),
        ("InvalidParameterCombination", ec2.modify_network_interface_attribute(NetworkInterfaceId=eni)),
        (
            "InvalidParameterValue",
            ec2.assign_private_ip_addresses(NetworkInterfaceId=eni, SecondaryPrivateIpAddressCount=0),
        ),
        (
            "InvalidParameterValue",
            ec2.create_network_interface(SubnetId=vpc.subnet.id, SecondaryPrivateIpAddressCount=-1),
        ),
        (
            "InvalidParameterValue",
            ec2.attach_network_interface(
                NetworkInterfaceId=eni, InstanceId=vpc.instance.id, DeviceIndex=1, NetworkCardIndex=1
            ),
        ),
        ("UnsupportedOperation", ec2.create_network_interface(SubnetId=vpc.subnet.id, Ipv6PrefixCount=1)),
        ("InvalidAction", ec2.describe_vpcs()),
    ]
    for code, call in wrong:
        assert (await refused(call))[0] == code
    assert list(vpc.cloud.enis) == [vpc.instance.primary]


async def test_a_dry_run_changes_nothing(vpc: Vpc) -> None:
    ask = vpc.ec2.create_network_interface(SubnetId=vpc.subnet.id, DryRun=True)
    assert await refused(ask) == ("DryRunOperation", 412)
    assert len(vpc.cloud.enis) == 1


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ({"Version": "2016-11-15"}, "MissingAction"),
        ({"Action": "DescribeSubnets"}, "NoSuchVersion"),
        ({"Action": "DescribeSubnets", "Version": "2013-10-15"}, "NoSuchVersion"),
        ({"Action": "EatSubnets", "Version": "2016-11-15"}, "InvalidAction"),
        ({"Action": "DescribeSubnets", "Version": "2016-11-15", "Colour": "red"}, "UnknownParameter"),
        ({"Action": "DescribeSubnets", "Version": "2016-11-15", "SubnetId.x": "a"}, "UnknownParameter"),
        ({"Action": "DescribeSubnets", "Version": "2016-11-15", "SubnetId": "a"}, "UnknownParameter"),
        ({"Action": "DescribeSubnets", "Version": "2016-11-15", "DryRun.1": "true"}, "UnknownParameter"),
        ({"Action": "DescribeSubnets", "Version": "2016-11-15", "MaxResults": "six"}, "InvalidParameterValue"),
        ({"Action": "DescribeSubnets", "Version": "2016-11-15", "DryRun": "perhaps"}, "InvalidParameterValue"),
    ],
)
async def test_forms_that_no_client_sends(vpc: Vpc, form: dict[str, str], code: str) -> None:
    key = vpc.cloud.keyring.operator.access_key
    scope = f"{key}/20260101/eu-central-1/ec2/aws4_request"
    headers = {"Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0"}
    async with aiohttp.ClientSession() as http, http.post(vpc.servers.ec2_url, data=form, headers=headers) as reply:
        assert reply.status == 400
        assert f"<Response><Errors><Error><Code>{code}</Code>" in await reply.text()


# Who calls


async def test_calls_are_attributed_by_the_credentials_they_carry(vpc: Vpc) -> None:
    other = await vpc.cloud.add_instance("n2", "m5.large", vpc.subnet.id)
    await vpc.ec2.describe_subnets()
    async with client(vpc.servers, vpc.cloud.keyring.credentials(other.id)) as ec2:
        await ec2.describe_subnets()
    async with client(vpc.servers, vpc.cloud.keyring.operator) as ec2:
        await ec2.describe_subnets()
    assert [call["instance"] for call in vpc.servers.calls.as_json()] == [vpc.instance.id, other.id, "operator"]


async def test_credentials_that_are_unknown_incomplete_or_expired(vpc: Vpc) -> None:
    keyring = vpc.cloud.keyring
    stranger = SimulatedCloud("10.0.0.0/16", limits=LIMITS).keyring.operator
    async with client(vpc.servers, stranger) as ec2:
        assert await refused(ec2.describe_subnets()) == ("AuthFailure", 401)
    assert vpc.servers.calls.as_json()[-1]["instance"] is None
    good = keyring.credentials(vpc.instance.id)
    without_token = Credentials(good.owner, good.access_key, good.secret_key, "", good.issued, good.expires)
    async with client(vpc.servers, without_token) as ec2:
        assert await refused(ec2.describe_subnets()) == ("AuthFailure", 401)
    keyring.lifetime = 0
    other = await vpc.cloud.add_instance("n2", "m5.large", vpc.subnet.id)
    async with client(vpc.servers, keyring.credentials(other.id)) as ec2:
        assert await refused(ec2.describe_subnets()) == ("RequestExpired", 400)


# Faults


def calls_of(vpc: Vpc) -> list[tuple[str, str]]:
    return [(call["action"], call["outcome"]) for call in vpc.servers.calls.as_json()]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("RequestLimitExceeded", 503),
        ("InternalError", 500),
        ("Unavailable", 503),
        ("UnauthorizedOperation", 403),
        ("InvalidSubnetID.NotFound", 400),
    ],
)
async def test_a_fault_fails_as_often_as_it_says(vpc: Vpc, code: str, status: int) -> None:
    vpc.servers.faults.add(Fault("CreateNetworkInterface", code, times=2))
    await vpc.ec2.describe_subnets()
    for _ in range(2):
        assert await refused(vpc.ec2.create_network_interface(SubnetId=vpc.subnet.id)) == (code, status)
    await vpc.new_eni()
    assert len(vpc.cloud.enis) == 2
    assert calls_of(vpc) == [
        ("DescribeSubnets", "ok"),
        ("CreateNetworkInterface", code),
        ("CreateNetworkInterface", code),
        ("CreateNetworkInterface", "ok"),
    ]


async def test_a_fault_without_a_number_lasts_until_it_is_cleared(vpc: Vpc) -> None:
    vpc.servers.faults.add(Fault("*", "UnauthorizedOperation"))
    for _ in range(3):
        assert await refused(vpc.ec2.describe_subnets()) == ("UnauthorizedOperation", 403)
    vpc.servers.faults.clear()
    await vpc.ec2.describe_subnets()


async def test_a_fault_after_the_effect(vpc: Vpc) -> None:
    eni = await vpc.attached_eni()
    vpc.servers.faults.add(Fault("AssignPrivateIpAddresses", "InternalError", times=1, after_effect=True))
    assert await refused(
        vpc.ec2.assign_private_ip_addresses(NetworkInterfaceId=eni.id, SecondaryPrivateIpAddressCount=2)
    ) == ("InternalError", 500)
    assert len(eni.addresses) == 3


async def test_a_connection_dropped_after_the_effect(vpc: Vpc) -> None:
    eni = await vpc.attached_eni()
    vpc.servers.faults.add(Fault("AssignPrivateIpAddresses", "timeout", times=1, delay=0, after_effect=True))
    with pytest.raises(ConnectionClosedError):
        await vpc.ec2.assign_private_ip_addresses(NetworkInterfaceId=eni.id, SecondaryPrivateIpAddressCount=2)
    assert len(eni.addresses) == 3
    assert calls_of(vpc)[-1] == ("AssignPrivateIpAddresses", "timeout")


async def test_a_call_that_is_never_answered() -> None:
    async with running(read_timeout=0.2) as vpc:
        vpc.servers.faults.add(Fault("CreateNetworkInterface", "timeout", times=1))
        with pytest.raises(ReadTimeoutError):
            await vpc.new_eni()
        assert len(vpc.cloud.enis) == 1
        await until(lambda: bool(calls_of(vpc)))  # the double notices that the client hung up
        assert calls_of(vpc) == [("CreateNetworkInterface", "timeout")]


async def test_stopping_does_not_wait_for_calls_that_hang() -> None:
    async with running() as vpc:
        vpc.servers.faults.add(Fault("CreateNetworkInterface", "timeout", after_effect=True))
        hanging = asyncio.ensure_future(vpc.new_eni())
        await until(lambda: len(vpc.cloud.enis) == 2)
        await asyncio.wait_for(vpc.servers.stop(), 10)
        with pytest.raises(ConnectionClosedError):
            await hanging
