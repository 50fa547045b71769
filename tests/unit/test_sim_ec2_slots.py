"""The double's network cards and /28 prefixes, by botocore's client and parser."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ipamd.pool.model import Limits
from ipamd.sim.ec2.cloud import SimulatedCloud
from ipamd.sim.imds import Imds
from tests.unit import test_sim_ec2
from tests.unit.test_sim_ec2 import Vpc, refused, running

P4D = "p4d.24xlarge"  # four cards of 15 ENIs


@pytest.fixture
async def vpc(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Vpc]:
    limits = {P4D: Limits(15, 50), "m5.large": Limits(3, 10), "m4.large": Limits(2, 10), "p5.48xlarge": Limits(2, 50)}
    monkeypatch.setattr(test_sim_ec2, "LIMITS", limits)
    async with running() as vpc:
        yield vpc


async def attach(vpc: Vpc, instance: str, index: int, card: int) -> Any:
    eni = await vpc.new_eni(0)
    return await vpc.ec2.attach_network_interface(
        NetworkInterfaceId=eni.id, InstanceId=instance, DeviceIndex=index, NetworkCardIndex=card
    )


async def prefixes_of(vpc: Vpc) -> list[str]:
    found = await vpc.described(vpc.instance.primary)
    return [item["Ipv4Prefix"] for item in found["Ipv4Prefixes"]]


async def available(vpc: Vpc) -> int:
    return int((await vpc.ec2.describe_subnets())["Subnets"][0]["AvailableIpAddressCount"])


async def assign(vpc: Vpc, **what: Any) -> Any:
    return await vpc.ec2.assign_private_ip_addresses(NetworkInterfaceId=vpc.instance.primary.id, **what)


# Network cards


async def test_each_card_has_its_own_device_indexes(vpc: Vpc) -> None:
    instance = await vpc.cloud.add_instance("gpu", P4D, vpc.subnet.id)
    for card in range(4):
        reply = await attach(vpc, instance.id, 1, card)
        assert reply["NetworkCardIndex"] == card
    code, _ = await refused(attach(vpc, instance.id, 1, 2))
    assert code == "InvalidParameterValue"
    filters = [{"Name": "attachment.instance-id", "Values": [instance.id]}]
    found = (await vpc.ec2.describe_network_interfaces(Filters=filters))["NetworkInterfaces"]
    places = {(eni["Attachment"]["NetworkCardIndex"], eni["Attachment"]["DeviceIndex"]) for eni in found}
    assert places == {(0, 0), (0, 1), (1, 1), (2, 1), (3, 1)}


async def test_each_card_takes_as_many_enis_as_its_limit(vpc: Vpc) -> None:
    instance = await vpc.cloud.add_instance("gpu", "p5.48xlarge", vpc.subnet.id)
    for index, card in ((1, 0), (0, 1), (1, 1), (0, 31)):
        await attach(vpc, instance.id, index, card)
    assert (await refused(attach(vpc, instance.id, 2, 0)))[0] == "AttachmentLimitExceeded"
    assert (await refused(attach(vpc, instance.id, 2, 1)))[0] == "AttachmentLimitExceeded"


@pytest.mark.parametrize(("type", "card"), [("m5.large", 1), (P4D, 4)])
async def test_a_card_that_the_type_lacks_is_refused(vpc: Vpc, type: str, card: int) -> None:
    instance = await vpc.cloud.add_instance("n2", type, vpc.subnet.id)
    assert (await refused(attach(vpc, instance.id, 1, card)))[0] == "InvalidParameterValue"


async def test_a_types_cards_are_described(vpc: Vpc) -> None:
    (found,) = (await vpc.ec2.describe_instance_types(InstanceTypes=[P4D]))["InstanceTypes"]
    network = found["NetworkInfo"]
    assert (network["MaximumNetworkCards"], network["MaximumNetworkInterfaces"]) == (4, 60)
    assert [card["MaximumNetworkInterfaces"] for card in network["NetworkCards"]] == [15] * 4


async def test_metadata_name_the_card_of_all_but_card_zero(vpc: Vpc) -> None:
    instance = await vpc.cloud.add_instance("gpu", P4D, vpc.subnet.id)
    await attach(vpc, instance.id, 0, 1)
    await vpc.cloud.settle()
    await assign(vpc, Ipv4PrefixCount=1)
    macs: Any = Imds(vpc.cloud, vpc.servers.faults)._tree(instance, set())["meta-data"]
    shown = macs["network"]["interfaces"]["macs"]
    assert macs["mac"] == instance.primary.mac
    assert sorted(eni.get("network-card", "") for eni in shown.values()) == ["", "1"]


# Prefixes


async def test_prefixes_are_whole_blocks_and_lower_what_is_left(vpc: Vpc) -> None:
    before = await available(vpc)
    reply = await assign(vpc, Ipv4PrefixCount=2)
    given = [item["Ipv4Prefix"] for item in reply["AssignedIpv4Prefixes"]]
    assert given == await prefixes_of(vpc) and await available(vpc) == before - 32
    blocks = [ipaddress.IPv4Network(prefix) for prefix in given]
    assert all(b.prefixlen == 28 and b.subnet_of(vpc.subnet.network) for b in blocks)
    taken = {ipaddress.IPv4Address(ip) for ip in vpc.instance.primary.addresses}
    assert not any(ip in block for ip in taken for block in blocks)
    what, eni, delivered = vpc.wiring.told[-1]
    assert (what, eni) == ("deliver", vpc.instance.primary.id)
    assert {str(address) for block in blocks for address in block} <= set(delivered)


async def test_a_prefix_takes_one_slot_of_its_eni(vpc: Vpc) -> None:
    await assign(vpc, Ipv4PrefixCount=4)
    assert (await refused(assign(vpc, SecondaryPrivateIpAddressCount=6)))[0] == "PrivateIpAddressLimitExceeded"
    await assign(vpc, SecondaryPrivateIpAddressCount=5)
    assert (await refused(assign(vpc, Ipv4PrefixCount=1)))[0] == "PrivateIpAddressLimitExceeded"


async def test_a_prefix_goes_as_a_whole_and_is_free_again(vpc: Vpc) -> None:
    before = await available(vpc)
    await assign(vpc, Ipv4PrefixCount=1)
    (prefix,) = await prefixes_of(vpc)
    eni = vpc.instance.primary.id
    inside = str(ipaddress.IPv4Network(prefix)[3])
    call = vpc.ec2.unassign_private_ip_addresses
    assert (await refused(call(NetworkInterfaceId=eni, PrivateIpAddresses=[inside])))[0] == "InvalidParameterValue"
    await call(NetworkInterfaceId=eni, Ipv4Prefixes=[prefix])
    assert await prefixes_of(vpc) == [] and await available(vpc) == before
    assert (await refused(call(NetworkInterfaceId=eni, Ipv4Prefixes=[prefix])))[0] == "InvalidParameterValue"


async def test_without_a_whole_block_none_is_given(vpc: Vpc) -> None:
    vpc.subnet.others = await available(vpc) - 20
    assert (await refused(assign(vpc, Ipv4PrefixCount=2)))[0] == "InsufficientCidrBlocks"
    assert await prefixes_of(vpc) == []


@pytest.mark.parametrize(
    ("prefix", "code"),
    [
        ("10.0.0.16/29", "InvalidParameterValue"),
        ("10.0.0.17/28", "InvalidParameterValue"),
        ("10.9.0.0/28", "InvalidParameterValue"),
        ("banana", "InvalidParameterValue"),
        ("10.0.0.0/28", "InvalidIPAddress.InUse"),
    ],
)
async def test_a_named_prefix_must_be_a_free_block(vpc: Vpc, prefix: str, code: str) -> None:
    assert (await refused(assign(vpc, Ipv4Prefixes=[prefix])))[0] == code
    await assign(vpc, Ipv4Prefixes=["10.0.0.16/28"])
    assert await prefixes_of(vpc) == ["10.0.0.16/28"]


async def test_one_kind_of_address_is_asked_for_in_a_call(vpc: Vpc) -> None:
    both = {"Ipv4PrefixCount": 1, "SecondaryPrivateIpAddressCount": 1}
    assert (await refused(assign(vpc, **both)))[0] == "InvalidParameterCombination"
    create = vpc.ec2.create_network_interface(SubnetId=vpc.subnet.id, **both)  # type: ignore[arg-type]
    assert (await refused(create))[0] == "InvalidParameterCombination"


async def test_an_eni_is_made_with_prefixes(vpc: Vpc) -> None:
    before = await available(vpc)
    reply = await vpc.ec2.create_network_interface(SubnetId=vpc.subnet.id, Ipv4PrefixCount=1)
    eni = reply["NetworkInterface"]
    assert len(eni["Ipv4Prefixes"]) == 1 and await available(vpc) == before - 17
    await vpc.ec2.delete_network_interface(NetworkInterfaceId=eni["NetworkInterfaceId"])
    assert await available(vpc) == before


async def test_an_instance_without_nitro_takes_no_prefix(vpc: Vpc) -> None:
    instance = await vpc.cloud.add_instance("old", "m4.large", vpc.subnet.id)
    call = vpc.ec2.assign_private_ip_addresses(NetworkInterfaceId=instance.primary.id, Ipv4PrefixCount=1)
    assert (await refused(call))[0] == "UnsupportedOperation"


def test_a_subnet_smaller_than_a_block_has_none() -> None:
    cloud = SimulatedCloud("10.0.0.0/16", limits={"m5.large": Limits(3, 10)})
    with pytest.raises(Exception, match="InsufficientCidrBlocks"):
        cloud.add_subnet("10.0.0.0/29").take_prefixes(1)
