"""What the role of a node must be allowed in EC2: each action, what it is for, and the least policy.

Which resources and condition keys an action knows: "Actions, resources, and condition keys for Amazon EC2" in the
Service Authorization Reference. Interfaces that ipamd made carry its tags, and whatever detaches, changes or deletes
one is bound to them. The primary ENI carries none of ours, so assigning and unassigning can be bound to the VPC only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ipamd.cloud.ownership import CLUSTER_TAG, INSTANCE_TAG
from ipamd.cloud.partitions import partition_of

VERSION: Final = "2012-10-17"


@dataclass(frozen=True, slots=True)
class Use:
    """`purpose`: what ipamd asks the action for; `without`: what does not work where it is denied. `needed`: pods may
    get no address without it. `release`: it serves to give back."""

    purpose: str
    without: str
    needed: bool = False
    release: bool = False


# Every action of the adapter, by its name in the API.
USES: Final[Mapping[str, Use]] = {
    "DescribeNetworkInterfaces": Use(
        "see the node's interfaces and their addresses, and those that ipamd made",
        "the daemon never starts to serve",
        needed=True,
    ),
    "DescribeSubnets": Use(
        "learn the CIDR of a further subnet, and whether a full one has room again",
        "no interface in a subnet of ec2.subnets can be used, and a full subnet is tried blindly",
        needed=True,
    ),
    "DescribeInstanceTypes": Use(
        "learn the limits of an instance type that is newer than ipamd",
        "the daemon never starts to serve on an instance of a type that it does not know",
    ),
    "DescribeInstances": Use(
        "find interfaces whose instance is gone (ec2.cluster)",
        "interfaces that terminated nodes have left behind stay, and keep their addresses",
        release=True,
    ),
    "AssignPrivateIpAddresses": Use(
        "put addresses for pods on an interface that is there, the primary one too",
        "pods get addresses from new interfaces only, or none",
        needed=True,
    ),
    "CreateNetworkInterface": Use(
        "add an interface once those that are there are full",
        "no more pods than fit the interfaces that are there",
        needed=True,
    ),
    "CreateTags": Use(
        "mark a new interface as ipamd's, in the call that creates it",
        "no interface can be created: ipamd could not recognise an unmarked one as its own",
        needed=True,
    ),
    "AttachNetworkInterface": Use(
        "give a new interface to this instance", "no more pods than fit the interfaces that are there", needed=True
    ),
    "ModifyNetworkInterfaceAttribute": Use(
        "let an interface end with its instance (DeleteOnTermination)",
        "a node that is terminated leaves its interfaces behind, with their addresses",
    ),
    "UnassignPrivateIpAddresses": Use(
        "give idle addresses back to the subnet", "idle addresses stay with this node", release=True
    ),
    "DetachNetworkInterface": Use(
        "give an idle interface back", "idle interfaces and their addresses stay with this node", release=True
    ),
    "DeleteNetworkInterface": Use(
        "delete an interface that was detached, or could not be attached",
        "interfaces that nobody uses are left in the account, with their addresses",
        release=True,
    ),
}


@dataclass(frozen=True, slots=True)
class Scope:
    """What narrows the policy; an empty string does not. `cluster` as in `ec2.cluster`, `vpc` the VPC's id.

    `release` False leaves out all that gives back.
    """

    cluster: str = ""
    vpc: str = ""
    region: str = ""
    account: str = ""
    release: bool = True

    @property
    def partition(self) -> str:
        """That of the region; the commercial one for none, or one that nobody knows."""
        return partition_of(self.region) or "aws"

    def arn(self, resource: str) -> str:
        return f"arn:{self.partition}:ec2:{self.region or '*'}:{self.account or '*'}:{resource}"


Condition = dict[str, dict[str, str]]


@dataclass(frozen=True, slots=True)
class Statement:
    """One of the policy: it allows the actions on the resources under the condition. `why` says what bounds it."""

    sid: str
    why: str
    actions: tuple[str, ...]
    resources: tuple[str, ...] = ("*",)
    condition: Condition = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As IAM writes it."""
        document: dict[str, Any] = {
            "Sid": self.sid,
            "Effect": "Allow",
            "Action": [f"ec2:{action}" for action in self.actions],
            "Resource": list(self.resources) if len(self.resources) > 1 else self.resources[0],
        }
        if self.condition:
            document["Condition"] = self.condition
        return document


def statements(scope: Scope) -> tuple[Statement, ...]:
    """The least that the daemon needs; every action in at least one of them."""
    interfaces, instances = scope.arn("network-interface/*"), scope.arn("instance/*")
    in_vpc: Condition = {"ArnEquals": {"ec2:Vpc": scope.arn(f"vpc/{scope.vpc}")}} if scope.vpc else {}
    reads = ["DescribeNetworkInterfaces", "DescribeSubnets", "DescribeInstanceTypes"]
    if scope.cluster:
        reads.append("DescribeInstances")
    every = (
        Statement(
            "Read",
            "EC2 has no narrower bounds for reading than the region",
            tuple(reads),
            condition={"StringEquals": {"ec2:Region": scope.region}} if scope.region else {},
        ),
        Statement(
            "Addresses",
            "the primary interface carries no tag of ipamd: the VPC is the narrowest bound",
            ("AssignPrivateIpAddresses", "UnassignPrivateIpAddresses"),
            (interfaces,),
            in_vpc,
        ),
        Statement(
            "CreateMarked",
            "no interface without ipamd's tag",
            ("CreateNetworkInterface",),
            (interfaces,),
            _tagged("aws:RequestTag", scope),
        ),
        Statement(
            "CreateWhere",
            "the subnets and security groups of new interfaces",
            ("CreateNetworkInterface",),
            (scope.arn("subnet/*"), scope.arn("security-group/*")),
            in_vpc,
        ),
        Statement(
            "MarkNew",
            "tags in the call that creates, and never later: nothing can be made ipamd's that is not",
            ("CreateTags",),
            (interfaces,),
            {"StringEquals": {"ec2:CreateAction": "CreateNetworkInterface"}},
        ),
        Statement(
            "OwnInterfaces",
            "interfaces that ipamd made, and no other",
            (
                "AttachNetworkInterface",
                "ModifyNetworkInterfaceAttribute",
                "DetachNetworkInterface",
                "DeleteNetworkInterface",
            ),
            (interfaces,),
            _tagged("aws:ResourceTag", scope),
        ),
        Statement(
            "Instances",
            "the other end of an attachment; the interface's tag bounds these calls",
            ("AttachNetworkInterface", "ModifyNetworkInterfaceAttribute", "DetachNetworkInterface"),
            (instances,),
        ),
    )
    return every if scope.release else tuple(_without_release(every))


def document(scope: Scope) -> dict[str, Any]:
    """The policy as IAM takes it, ready for `json.dumps`."""
    return {"Version": VERSION, "Statement": [statement.document() for statement in statements(scope)]}


def _without_release(every: tuple[Statement, ...]) -> Iterator[Statement]:
    for statement in every:
        left = tuple(action for action in statement.actions if not USES[action].release)
        yield replace(statement, actions=left)


def _tagged(key: str, scope: Scope) -> Condition:
    if scope.cluster:
        return {"StringEquals": {f"{key}/{CLUSTER_TAG}": scope.cluster}}
    return {"Null": {f"{key}/{INSTANCE_TAG}": "false"}}
