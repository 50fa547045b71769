"""Resources in the words of EC2's replies (botocore's names), and what its filters look at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from ipamd.cloud.limits import network_cards
from ipamd.pool.model import Limits
from ipamd.sim.ec2.cloud import ACCOUNT, SimulatedCloud
from ipamd.sim.ec2.filters import Fields
from ipamd.sim.ec2.rules import Attachment, Eni, Instance, SecurityGroup, Subnet

_STATE_CODES: Final = {"running": 16, "shutting-down": 32, "terminated": 48}  # EC2's InstanceState


def eni(cloud: SimulatedCloud, item: Eni) -> dict[str, Any]:
    """NetworkInterface."""
    return {
        "NetworkInterfaceId": item.id,
        "SubnetId": item.subnet.id,
        "VpcId": cloud.rules.vpc_id,
        "AvailabilityZone": item.subnet.zone,
        "Description": item.description,
        "OwnerId": ACCOUNT,
        "RequesterManaged": False,
        "Status": item.status,
        "MacAddress": item.mac,
        "InterfaceType": "interface",
        "PrivateIpAddress": item.addresses[0] if item.addresses else None,
        "PrivateDnsName": private_dns_name(cloud, item.addresses[0]) if item.addresses else None,
        "SourceDestCheck": True,
        "Groups": _groups(item.groups),
        "Attachment": _attachment(item.attachment) if item.attachment else None,
        "TagSet": _tags(item.tags),
        "PrivateIpAddresses": [
            {
                "PrivateIpAddress": address,
                "PrivateDnsName": private_dns_name(cloud, address),
                "Primary": index == 0,
            }
            for index, address in enumerate(item.addresses)
        ],
        "Ipv4Prefixes": [{"Ipv4Prefix": prefix} for prefix in item.prefixes],
    }


def _attachment(item: Attachment) -> dict[str, Any]:
    return {
        "AttachmentId": item.id,
        "InstanceId": item.instance_id,
        "InstanceOwnerId": ACCOUNT,
        "DeviceIndex": item.device_index,
        "NetworkCardIndex": item.network_card,
        "Status": item.status,
        "AttachTime": _time(item.since),
        "DeleteOnTermination": item.delete_on_termination,
    }


def instance(cloud: SimulatedCloud, item: Instance) -> dict[str, Any]:
    """Instance, without what has no meaning here (images, disks, keys)."""
    gone = not item.primary.addresses
    return {
        "InstanceId": item.id,
        "InstanceType": item.type,
        "State": _instance_state(item.state),
        "LaunchTime": _time(item.launched),
        "Placement": {"AvailabilityZone": item.primary.subnet.zone, "Tenancy": "default"},
        "PrivateIpAddress": None if gone else item.primary.addresses[0],
        "PrivateDnsName": "" if gone else private_dns_name(cloud, item.primary.addresses[0]),
        "SubnetId": None if gone else item.primary.subnet.id,
        "VpcId": None if gone else cloud.rules.vpc_id,
        "SourceDestCheck": True,
        "SecurityGroups": [] if gone else _groups(item.primary.groups),
        "Tags": _tags({"Name": item.name}),
        "NetworkInterfaces": [
            _eni_of_instance(cloud, one)
            for one in cloud.described()
            if one.attachment and one.attachment.instance_id == item.id
        ],
    }


def state_change(item: Instance, previous: str) -> dict[str, Any]:
    """InstanceStateChange."""
    return {
        "InstanceId": item.id,
        "CurrentState": _instance_state(item.state),
        "PreviousState": _instance_state(previous),
    }


def _instance_state(name: str) -> dict[str, Any]:
    return {"Code": _STATE_CODES[name], "Name": name}


def _eni_of_instance(cloud: SimulatedCloud, item: Eni) -> dict[str, Any]:
    """InstanceNetworkInterface: a NetworkInterface with fewer members."""
    view = eni(cloud, item)
    left_out = ("AvailabilityZone", "RequesterManaged", "TagSet")
    attachment = {k: v for k, v in view["Attachment"].items() if k not in ("InstanceId", "InstanceOwnerId")}
    return {k: v for k, v in view.items() if k not in left_out} | {"Attachment": attachment}


def subnet(cloud: SimulatedCloud, item: Subnet) -> dict[str, Any]:
    """Subnet."""
    return {
        "SubnetId": item.id,
        "SubnetArn": f"arn:aws:ec2:{cloud.rules.region}:{ACCOUNT}:subnet/{item.id}",
        "VpcId": cloud.rules.vpc_id,
        "OwnerId": ACCOUNT,
        "State": "available",
        "CidrBlock": str(item.network),
        "AvailabilityZone": item.zone,
        "AvailableIpAddressCount": item.available,
        "DefaultForAz": False,
        "MapPublicIpOnLaunch": False,
        "AssignIpv6AddressOnCreation": False,
        "Ipv6CidrBlockAssociationSet": [],
        "Tags": [],
    }


def group(cloud: SimulatedCloud, item: SecurityGroup) -> dict[str, Any]:
    """SecurityGroup. It has no rules: the packet fabric knows none."""
    return {
        "GroupId": item.id,
        "GroupName": item.name,
        "Description": item.name,
        "OwnerId": ACCOUNT,
        "VpcId": cloud.rules.vpc_id,
        "IpPermissions": [],
        "IpPermissionsEgress": [],
        "Tags": [],
    }


def instance_type(name: str, limits: Limits) -> dict[str, Any]:
    """InstanceTypeInfo, as far as it concerns networking."""
    cards = network_cards(name)
    return {
        "InstanceType": name,
        "NetworkInfo": {
            "MaximumNetworkInterfaces": limits.max_enis * cards,
            "Ipv4AddressesPerInterface": limits.addresses_per_eni,
            "MaximumNetworkCards": cards,
            "DefaultNetworkCardIndex": 0,
            "NetworkCards": [
                {"NetworkCardIndex": card, "MaximumNetworkInterfaces": limits.max_enis} for card in range(cards)
            ],
        },
    }


def private_dns_name(cloud: SimulatedCloud, address: str) -> str:
    return f"ip-{address.replace('.', '-')}.{cloud.rules.region}.compute.internal"


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _groups(groups: Iterable[SecurityGroup]) -> list[dict[str, str]]:
    return [{"GroupId": item.id, "GroupName": item.name} for item in groups]


def _tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def eni_fields(cloud: SimulatedCloud) -> Fields[Eni]:
    return {
        "attachment.attachment-id": lambda e: [e.attachment.id] if e.attachment else [],
        "attachment.device-index": lambda e: [str(e.attachment.device_index)] if e.attachment else [],
        "attachment.instance-id": lambda e: [e.attachment.instance_id] if e.attachment else [],
        "attachment.status": lambda e: [e.attachment.status] if e.attachment else [],
        "availability-zone": lambda e: [e.subnet.zone],
        "description": lambda e: [e.description],
        "group-id": lambda e: [item.id for item in e.groups],
        "mac-address": lambda e: [e.mac],
        "network-interface-id": lambda e: [e.id],
        "private-ip-address": lambda e: e.addresses,
        "addresses.private-ip-address": lambda e: e.addresses,
        "status": lambda e: [e.status],
        "subnet-id": lambda e: [e.subnet.id],
        "vpc-id": lambda e: [cloud.rules.vpc_id],
    }


def instance_fields(cloud: SimulatedCloud) -> Fields[Instance]:
    return {
        "availability-zone": lambda i: [i.primary.subnet.zone],
        "instance-id": lambda i: [i.id],
        "instance-state-name": lambda i: [i.state],
        "instance-type": lambda i: [i.type],
        "private-ip-address": lambda i: i.primary.addresses[:1],
        "subnet-id": lambda i: [i.primary.subnet.id],
        "vpc-id": lambda i: [cloud.rules.vpc_id],
    }


def subnet_fields(cloud: SimulatedCloud) -> Fields[Subnet]:
    return {
        "availability-zone": lambda s: [s.zone],
        "available-ip-address-count": lambda s: [str(s.available)],
        "cidr-block": lambda s: [str(s.network)],
        "subnet-id": lambda s: [s.id],
        "vpc-id": lambda s: [cloud.rules.vpc_id],
    }


def group_fields(cloud: SimulatedCloud) -> Fields[SecurityGroup]:
    return {
        "group-id": lambda g: [g.id],
        "group-name": lambda g: [g.name],
        "vpc-id": lambda g: [cloud.rules.vpc_id],
    }


def instance_type_fields() -> Fields[tuple[str, Limits]]:
    return {"instance-type": lambda item: [item[0]]}
