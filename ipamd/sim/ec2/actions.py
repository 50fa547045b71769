"""The EC2 calls that the double answers: from decoded parameters to the cloud's rules and back to reply values.

Each action names the parameters that it takes. One that EC2 has and the double hasn't is refused, never ignored, so
a test can't pass because the double overlooked what was asked of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from ipamd.sim.ec2 import views
from ipamd.sim.ec2.cloud import ACCOUNT, SimulatedCloud
from ipamd.sim.ec2.filters import page, select
from ipamd.sim.ec2.rules import Ask, Ec2Error, Registry

T = TypeVar("T")
Parameters = dict[str, Any]
Result = Mapping[str, Any] | None
Perform = Callable[[SimulatedCloud, Parameters], Awaitable[Result]]


@dataclass(frozen=True, slots=True)
class Action:
    perform: Perform
    takes: frozenset[str]


ACTIONS: Final[dict[str, Action]] = {}


def action(*takes: str) -> Callable[[Perform], Perform]:
    """Register a function as the action that its name in camel case says."""

    def register(perform: Perform) -> Perform:
        name = "".join(word.capitalize() for word in perform.__name__.split("_"))
        ACTIONS[name] = Action(perform, frozenset({*takes, "DryRun"}))
        return perform

    return register


def lookup(name: str, parameters: Parameters) -> Action:
    """Raises `Ec2Error` for what the double doesn't do."""
    found = ACTIONS.get(name)
    if found is None:
        raise Ec2Error("InvalidAction", f"The action {name} is not valid for this web service.")
    if foreign := sorted(parameters.keys() - found.takes):
        raise Ec2Error("UnsupportedOperation", f"{name} is simulated without {', '.join(foreign)}")
    return found


async def perform(found: Action, cloud: SimulatedCloud, parameters: Parameters) -> Result:
    """Carry the call out, or only say that it would be: a dry run of what names something unknown is refused as in
    earnest, and nothing else is looked at. Raises `Ec2Error`."""
    if not parameters.get("DryRun"):
        return await found.perform(cloud, parameters)
    for key, registry in (
        ("NetworkInterfaceId", cloud.enis),
        ("SubnetId", cloud.subnets),
        ("InstanceId", cloud.instances),
        ("AttachmentId", cloud.rules.attached),
    ):
        if key in parameters:
            registry.get(parameters[key])
    raise Ec2Error("DryRunOperation", "Request would have succeeded, but DryRun flag is set.")


@action("NetworkInterfaceIds", "Filters", "MaxResults", "NextToken")
async def describe_network_interfaces(cloud: SimulatedCloud, p: Parameters) -> Result:
    enis = _named(cloud.described(), p, "NetworkInterfaceIds")
    chosen = select(enis, p.get("Filters", ()), views.eni_fields(cloud), lambda eni: eni.tags)
    part, token = page(chosen, p.get("MaxResults"), p.get("NextToken", ""))
    return {"NetworkInterfaces": [views.eni(cloud, eni) for eni in part], "NextToken": token}


@action("InstanceIds", "Filters", "MaxResults", "NextToken")
async def describe_instances(cloud: SimulatedCloud, p: Parameters) -> Result:
    instances = _named(cloud.described_instances(), p, "InstanceIds")
    chosen = select(
        instances, p.get("Filters", ()), views.instance_fields(cloud), lambda instance: {"Name": instance.name}
    )
    part, token = page(chosen, p.get("MaxResults"), p.get("NextToken", ""))
    reservations = [
        {"ReservationId": f"r-{one.id[2:]}", "OwnerId": ACCOUNT, "Instances": [views.instance(cloud, one)]}
        for one in part
    ]
    return {"Reservations": reservations, "NextToken": token}


@action("SubnetIds", "Filters", "MaxResults", "NextToken")
async def describe_subnets(cloud: SimulatedCloud, p: Parameters) -> Result:
    subnets = _named(cloud.subnets, p, "SubnetIds")
    chosen = select(subnets, p.get("Filters", ()), views.subnet_fields(cloud), lambda _: {})
    part, token = page(chosen, p.get("MaxResults"), p.get("NextToken", ""))
    return {"Subnets": [views.subnet(cloud, subnet) for subnet in part], "NextToken": token}


@action("GroupIds", "Filters", "MaxResults", "NextToken")
async def describe_security_groups(cloud: SimulatedCloud, p: Parameters) -> Result:
    for id in p.get("GroupIds", ()):
        if id not in cloud.rules.groups:
            raise Ec2Error("InvalidGroup.NotFound", f"The security group '{id}' does not exist")
    groups = _named(cloud.rules.groups, p, "GroupIds")
    chosen = select(groups, p.get("Filters", ()), views.group_fields(cloud), lambda _: {})
    part, token = page(chosen, p.get("MaxResults"), p.get("NextToken", ""))
    return {"SecurityGroups": [views.group(cloud, group) for group in part], "NextToken": token}


@action("InstanceIds")
async def terminate_instances(cloud: SimulatedCloud, p: Parameters) -> Result:
    changes = cloud.terminate_instances(p["InstanceIds"])
    return {"TerminatingInstances": [views.state_change(*change) for change in changes]}


@action("InstanceTypes", "Filters", "MaxResults", "NextToken")
async def describe_instance_types(cloud: SimulatedCloud, p: Parameters) -> Result:
    wanted = p.get("InstanceTypes") or list(cloud.rules.limits)
    if unknown := [name for name in wanted if name not in cloud.rules.limits]:
        raise Ec2Error(
            "InvalidInstanceType", f"The following supplied instance types do not exist: [{', '.join(unknown)}]"
        )
    types = [(name, cloud.rules.limits[name]) for name in wanted]
    chosen = select(types, p.get("Filters", ()), views.instance_type_fields())
    part, token = page(chosen, p.get("MaxResults", 100), p.get("NextToken", ""))
    return {"InstanceTypes": [views.instance_type(*item) for item in part], "NextToken": token}


@action(
    "SubnetId", "Description", "Groups", "SecondaryPrivateIpAddressCount", "Ipv4PrefixCount", "Ipv4Prefixes",
    "TagSpecifications", "ClientToken",
)  # fmt: skip
async def create_network_interface(cloud: SimulatedCloud, p: Parameters) -> Result:
    tags: dict[str, str] = {}
    for specification in p.get("TagSpecifications", ()):
        if (kind := specification.get("ResourceType")) != "network-interface":
            raise Ec2Error("InvalidParameterValue", f"'{kind}' can't be tagged by this call.")
        tags |= _tags(specification.get("Tags", ()))
    eni = await cloud.create_eni(
        p["SubnetId"],
        _ask(p, [prefix.get("Ipv4Prefix", "") for prefix in p.get("Ipv4Prefixes", ())]),
        group_ids=p.get("Groups", ()),
        description=p.get("Description", ""),
        tags=tags,
        token=p.get("ClientToken", ""),
    )
    return {"NetworkInterface": views.eni(cloud, eni), "ClientToken": p.get("ClientToken")}


@action("NetworkInterfaceId", "InstanceId", "DeviceIndex", "NetworkCardIndex")
async def attach_network_interface(cloud: SimulatedCloud, p: Parameters) -> Result:
    card = p.get("NetworkCardIndex", 0)
    attachment = cloud.attach_eni(p["NetworkInterfaceId"], p["InstanceId"], p["DeviceIndex"], card)
    return {"AttachmentId": attachment.id, "NetworkCardIndex": attachment.network_card}


@action("AttachmentId", "Force")
async def detach_network_interface(cloud: SimulatedCloud, p: Parameters) -> Result:
    cloud.detach_eni(p["AttachmentId"], force=p.get("Force", False))
    return None


@action("NetworkInterfaceId")
async def delete_network_interface(cloud: SimulatedCloud, p: Parameters) -> Result:
    await cloud.delete_eni(p["NetworkInterfaceId"])
    return None


@action("NetworkInterfaceId", "Attachment", "Groups")
async def modify_network_interface_attribute(cloud: SimulatedCloud, p: Parameters) -> Result:
    if ("Attachment" in p) == ("Groups" in p):
        raise Ec2Error("InvalidParameterCombination", "Exactly one attribute can be modified in a request")
    if "Groups" in p:
        cloud.set_groups(p["NetworkInterfaceId"], p["Groups"])
        return None
    attachment = p["Attachment"]
    for name in ("AttachmentId", "DeleteOnTermination"):
        if name not in attachment:
            raise Ec2Error("MissingParameter", f"The request must contain the parameter Attachment.{name}")
    cloud.set_delete_on_termination(
        p["NetworkInterfaceId"], attachment["AttachmentId"], attachment["DeleteOnTermination"]
    )
    return None


@action("NetworkInterfaceId", "SecondaryPrivateIpAddressCount", "Ipv4PrefixCount", "Ipv4Prefixes")
async def assign_private_ip_addresses(cloud: SimulatedCloud, p: Parameters) -> Result:
    wanted = [name for name in ("SecondaryPrivateIpAddressCount", "Ipv4PrefixCount", "Ipv4Prefixes") if name in p]
    if not wanted:
        raise Ec2Error("MissingParameter", "The request must contain the parameter SecondaryPrivateIpAddressCount")
    if len(wanted) > 1:  # whether EC2 takes addresses and prefixes in one request is not documented
        raise Ec2Error("InvalidParameterCombination", f"{' and '.join(wanted)} can't be used in the same request")
    new = await cloud.assign(p["NetworkInterfaceId"], _ask(p, p.get("Ipv4Prefixes", ())))
    if wanted == ["SecondaryPrivateIpAddressCount"]:
        given = {"AssignedPrivateIpAddresses": [{"PrivateIpAddress": address} for address in new]}
    else:
        given = {"AssignedIpv4Prefixes": [{"Ipv4Prefix": prefix} for prefix in new]}
    return {"NetworkInterfaceId": p["NetworkInterfaceId"], **given}


@action("NetworkInterfaceId", "PrivateIpAddresses", "Ipv4Prefixes")
async def unassign_private_ip_addresses(cloud: SimulatedCloud, p: Parameters) -> Result:
    addresses, prefixes = p.get("PrivateIpAddresses", ()), p.get("Ipv4Prefixes", ())
    if not (addresses or prefixes):
        raise Ec2Error("MissingParameter", "The request must contain the parameter PrivateIpAddress")
    await cloud.unassign(p["NetworkInterfaceId"], addresses, prefixes)
    return None


@action("Resources", "Tags")
async def create_tags(cloud: SimulatedCloud, p: Parameters) -> Result:
    cloud.tag(p["Resources"], _tags(p["Tags"]))
    return None


def _named(registry: Registry[T], p: Parameters, key: str) -> list[T]:
    """The resources whose ids are given, or all. Ids and pages don't go together, as in EC2."""
    if key not in p:
        return list(registry)
    if "MaxResults" in p or "NextToken" in p:
        raise Ec2Error("InvalidParameterCombination", f"The parameter MaxResults cannot be used with {key}")
    return registry.get_all(p[key])


def _ask(p: Parameters, named_prefixes: Iterable[str]) -> Ask:
    return Ask(p.get("SecondaryPrivateIpAddressCount", 0), p.get("Ipv4PrefixCount", 0), tuple(named_prefixes))


def _tags(tags: Sequence[Mapping[str, str]]) -> dict[str, str]:
    return {tag.get("Key", ""): tag.get("Value", "") for tag in tags}
