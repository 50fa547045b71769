"""The double's Query protocol against botocore's: what its serialiser writes is read, and its parser reads what is
written, for every action the double knows and any values. And the double's replies against moto's."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import boto3  # type: ignore[import-untyped]
import pytest
from botocore.parsers import create_parser  # type: ignore[import-untyped]
from botocore.serialize import create_serializer  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws

from ipamd.pool.model import Limits
from ipamd.sim.ec2 import wire
from ipamd.sim.ec2.actions import ACTIONS
from ipamd.sim.ec2.cloud import Delays, SimulatedCloud
from ipamd.sim.ec2.rules import Ask, Ec2Error

TEXT = st.text(st.characters(min_codepoint=0x20, exclude_categories=["Cs", "Cc", "Cn"]), min_size=1, max_size=8)
MOMENTS = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)).map(lambda m: m.replace(microsecond=0, tzinfo=UTC))


def values(shape: Any, depth: int = 0) -> st.SearchStrategy[Any]:
    """Any value of a shape of the service's model, but no empty lists and structures: the wire has none."""
    match shape.type_name:
        case "structure":
            members = {
                name: values(member, depth + 1)
                for name, member in shape.members.items()
                if depth < 3 or member.type_name not in ("structure", "list")
            }
            required = {name: members.pop(name) for name in shape.required_members if name in members}
            some = st.fixed_dictionaries(required, optional=members)
            return some if depth == 0 else some.filter(bool)
        case "list":
            return st.lists(values(shape.member, depth + 1), min_size=1, max_size=3)
        case "boolean":
            return st.booleans()
        case "double" | "float":
            return st.floats(allow_nan=False)
        case "integer" | "long":
            return st.integers(shape.metadata.get("min", -5), shape.metadata.get("max", 2**31 - 1))
        case "timestamp":
            return MOMENTS
        case "string":
            return TEXT
        case kind:
            raise AssertionError(f"a {kind} in the model of EC2")


def operation(action: str) -> Any:
    return wire.service_model().operation_model(action)


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_requests_are_read_as_botocore_writes_them(action: str) -> None:
    model = operation(action)
    serializer = create_serializer("ec2", include_validation=False)

    @given(values(model.input_shape))
    def check(parameters: dict[str, Any]) -> None:
        form = serializer.serialize_to_request(parameters, model)["body"]
        assert form["Action"] == action and form["Version"] == wire.VERSION
        assert wire.decode(action, {name: str(value) for name, value in form.items()}) == parameters

    check()


@pytest.mark.parametrize("action", sorted(a for a in ACTIONS if operation(a).output_shape is not None))
def test_replies_are_read_by_botocore_as_they_were_meant(action: str) -> None:
    shape = operation(action).output_shape
    parser = create_parser("ec2")

    @given(values(shape))
    def check(result: dict[str, Any]) -> None:
        body = wire.encode(action, "request-1", result)
        parsed = parser.parse({"body": body, "status_code": 200, "headers": {}}, shape)
        assert parsed.pop("ResponseMetadata")["RequestId"] == "request-1"
        assert parsed == result

    check()


@given(TEXT, TEXT)
def test_errors_are_read_by_botocore_as_they_were_meant(code: str, message: str) -> None:
    response = {"body": wire.encode_error("request-1", Ec2Error(code, message)), "status_code": 400, "headers": {}}
    parsed = create_parser("ec2").parse(response, operation("DescribeSubnets").output_shape)
    assert parsed["Error"] == {"Code": code, "Message": message}
    assert parsed["ResponseMetadata"]["RequestId"] == "request-1"


def test_a_reply_has_no_member_that_ec2_has_not() -> None:
    with pytest.raises(KeyError):
        wire.encode("DescribeSubnets", "request-1", {"Subnets": [{"Colour": "red"}]})


# moto, where it is right: the same steps there and here end in the same words.

SHOWN: dict[str, set[str]] = {
    "NetworkInterface": {
        "AvailabilityZone",
        "Description",
        "Groups",
        "InterfaceType",
        "MacAddress",
        "NetworkInterfaceId",
        "OwnerId",
        "PrivateIpAddress",
        "PrivateIpAddresses",
        "SourceDestCheck",
        "Status",
        "SubnetId",
        "TagSet",
        "VpcId",
    },
    "Attachment": {"AttachTime", "AttachmentId", "DeleteOnTermination", "DeviceIndex", "InstanceId", "Status"},
    "Subnet": {"AvailabilityZone", "AvailableIpAddressCount", "CidrBlock", "OwnerId", "State", "SubnetId", "VpcId"},
    "SecurityGroup": {"Description", "GroupId", "GroupName", "OwnerId", "VpcId"},
    "Ending": {"CurrentState", "InstanceId", "PreviousState"},
}
SAME = {  # members with equal values there and here; the others name things, or moto is wrong about them
    "NetworkInterface": {"Description", "InterfaceType", "OwnerId", "SourceDestCheck", "Status", "TagSet"},
    "Attachment": {"DeviceIndex", "Status"},
    "Subnet": {"AvailabilityZone", "AvailableIpAddressCount", "CidrBlock", "OwnerId", "State"},
    "SecurityGroup": {"GroupName", "OwnerId"},
    "Ending": {"CurrentState", "PreviousState"},
}


@pytest.fixture
def moto_ec2(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        yield boto3.client("ec2", region_name="eu-central-1")


def in_moto(ec2: Any) -> dict[str, Any]:
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/24", AvailabilityZone="eu-central-1a")["Subnet"][
        "SubnetId"
    ]
    image = ec2.describe_images()["Images"][0]["ImageId"]
    run = ec2.run_instances(ImageId=image, InstanceType="m5.large", SubnetId=subnet, MinCount=1, MaxCount=1)
    eni = ec2.create_network_interface(
        SubnetId=subnet,
        Description="d",
        SecondaryPrivateIpAddressCount=3,
        TagSpecifications=[{"ResourceType": "network-interface", "Tags": [{"Key": "k", "Value": "v"}]}],
    )["NetworkInterface"]["NetworkInterfaceId"]
    ec2.attach_network_interface(NetworkInterfaceId=eni, InstanceId=run["Instances"][0]["InstanceId"], DeviceIndex=1)
    found = ec2.describe_network_interfaces(NetworkInterfaceIds=[eni])["NetworkInterfaces"][0]
    return {
        "NetworkInterface": found,
        "Attachment": found["Attachment"],
        "Subnet": ec2.describe_subnets(SubnetIds=[subnet])["Subnets"][0],
        "Ending": ec2.terminate_instances(InstanceIds=[run["Instances"][0]["InstanceId"]])["TerminatingInstances"][0],
        "SecurityGroup": ec2.describe_security_groups(Filters=[{"Name": "vpc-id", "Values": [vpc]}])[
            "SecurityGroups"
        ][0],
        "Types": ec2.describe_instance_types(InstanceTypes=["m5.large"])["InstanceTypes"][0]["NetworkInfo"],
    }


async def here() -> dict[str, Any]:
    delays = Delays(create=0, attach=0, detach=0, assign=0, link=0, imds_lag=0)
    cloud = SimulatedCloud("10.0.0.0/16", limits={"m5.large": Limits(3, 10)}, delays=delays)
    subnet = cloud.add_subnet("10.0.0.0/24")
    instance = await cloud.add_instance("n1", "m5.large", subnet.id)
    eni = await cloud.create_eni(subnet.id, Ask(3), description="d", tags={"k": "v"})
    cloud.attach_eni(eni.id, instance.id, 1)
    await cloud.settle()

    async def ask(action: str, parameters: dict[str, Any]) -> Any:
        body = wire.encode(action, "r", await ACTIONS[action].perform(cloud, parameters))
        return create_parser("ec2").parse(
            {"body": body, "status_code": 200, "headers": {}}, operation(action).output_shape
        )

    found = (await ask("DescribeNetworkInterfaces", {"NetworkInterfaceIds": [eni.id]}))["NetworkInterfaces"][0]
    return {
        "NetworkInterface": found,
        "Attachment": found["Attachment"],
        "Subnet": (await ask("DescribeSubnets", {}))["Subnets"][0],
        "SecurityGroup": (await ask("DescribeSecurityGroups", {}))["SecurityGroups"][0],
        "Ending": (await ask("TerminateInstances", {"InstanceIds": [instance.id]}))["TerminatingInstances"][0],
        "Types": (await ask("DescribeInstanceTypes", {}))["InstanceTypes"][0]["NetworkInfo"],
    }


async def test_the_double_shows_what_moto_shows(moto_ec2: Any) -> None:
    theirs, ours = in_moto(moto_ec2), await here()
    for kind, members in SHOWN.items():
        assert members <= theirs[kind].keys(), kind
        assert members <= ours[kind].keys(), kind
        for member in members:
            assert type(ours[kind][member]) is type(theirs[kind][member]), (kind, member)
        assert {m: ours[kind][m] for m in SAME[kind]} == {m: theirs[kind][m] for m in SAME[kind]}
    primary = [[a["Primary"] for a in side["NetworkInterface"]["PrivateIpAddresses"]] for side in (ours, theirs)]
    assert primary[0] == primary[1] == [True, False, False, False]
    for member in ("MaximumNetworkInterfaces", "Ipv4AddressesPerInterface", "MaximumNetworkCards"):
        assert ours["Types"][member] == theirs["Types"][member]
