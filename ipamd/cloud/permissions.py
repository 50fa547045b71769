"""Finds out at start which calls the role may not make, so that it is not the first full interface that shows it.

EC2 answers a call with DryRun=true by DryRunOperation if it would carry it out and by UnauthorizedOperation if the
policies forbid it ("Common query parameters" and "Error codes" in the Amazon EC2 API Reference). Any other answer
says nothing about permissions: it is kept as unknown and raises no alarm. What can't be asked:

- what bears on an interface of ipamd's own, before there is one: by a policy that is bound to its tag every other
  interface is rightly denied;
- AssignPrivateIpAddresses and UnassignPrivateIpAddresses, which have no DryRun. The first is what a starting node
  calls in earnest; without the second nothing is lost but idle addresses;
- CreateTags alone: it is part of CreateNetworkInterface, and a denial of that may mean either;
- what was answered in earnest before: DescribeNetworkInterfaces, DescribeInstanceTypes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from ipamd.cloud.ec2 import Ec2
from ipamd.cloud.iam import USES, Scope, Use, statements
from ipamd.cloud.port import CloudError, Identity, Priority
from ipamd.cloud.token import new_token
from ipamd.pool.model import ObservedEni

log = structlog.get_logger("ipamd.iam")


Question = tuple[str, Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class Denied:
    """`missing` are the statements, as JSON, of the least policy that would allow it; `message` is EC2's, `advice`
    what helps by it."""

    action: str
    use: Use
    missing: str
    message: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """What the questions are about. `enis` as EC2 described them; `subnet_id` and `security_groups` are those of a
    new ENI; `cluster` as in `ec2.cluster`."""

    identity: Identity
    enis: Sequence[ObservedEni]
    subnet_id: str
    security_groups: Sequence[str]
    cluster: str


class Permissions:
    """`denied` and `allowed` are actions; `unknown` has EC2's code for each that was asked without an answer that
    tells. All are empty until `examine` has gone so far."""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] = ()
        self.denied: tuple[Denied, ...] = ()
        self.unknown: dict[str, str] = {}

    async def examine(self, cloud: Ec2, node: Node) -> None:
        """Ask once for each action, after all others that use the budget, and log what is denied."""
        patient = cloud.at(Priority.RELEASE)
        for action, parameters in questions(cloud, node):
            try:
                await patient.dry_run(action, parameters)
            except CloudError as error:
                self._learn(action, error, node)
            else:
                # The first question is a read. An endpoint that answers it might carry out the next ones.
                log.warning("iam.not_checked", action=action, why="the endpoint does not know DryRun")
                return
        log.info("iam.checked", allowed=self.allowed, unknown=self.unknown)

    def _learn(self, action: str, error: CloudError, node: Node) -> None:
        match error.failure.code:
            case "DryRunOperation":
                self.allowed += (action,)
            case "UnauthorizedOperation":
                scope = Scope(cluster=node.cluster, region=node.identity.region)
                failure = error.failure
                denied = Denied(action, USES[action], _missing(action, scope), failure.message, failure.advice)
                self.denied += (denied,)
                _log(denied)
            case code:
                self.unknown[action] = code


def questions(cloud: Ec2, node: Node) -> Iterator[Question]:
    """One for each action that can be asked for, with the parameters that the adapter would send."""
    yield "DescribeSubnets", {}
    if node.cluster:
        yield "DescribeInstances", {}
    yield (
        "CreateNetworkInterface",
        {
            "SubnetId": node.subnet_id,
            "Groups": list(node.security_groups),
            "TagSpecifications": cloud.marks(new_token(0)),
        },
    )
    own = next((eni for eni in node.enis if eni.owned and eni.attachment_id), None)
    if own is not None:
        here = {"NetworkInterfaceId": own.id}
        attachment = {"AttachmentId": own.attachment_id}
        yield (
            "AttachNetworkInterface",
            {**here, "InstanceId": node.identity.instance_id, "DeviceIndex": own.device_index},
        )
        yield "ModifyNetworkInterfaceAttribute", {**here, "Attachment": {**attachment, "DeleteOnTermination": True}}
        yield "DetachNetworkInterface", attachment
        yield "DeleteNetworkInterface", here


def _missing(action: str, scope: Scope) -> str:
    """Narrowed to the action; a new interface is marked in the call that creates it, so that goes with it."""
    actions = {action, "CreateTags"} if action == "CreateNetworkInterface" else {action}
    named = [
        replace(statement, actions=tuple(sorted(actions & set(statement.actions)))) for statement in statements(scope)
    ]
    return json.dumps([statement.document() for statement in named if statement.actions])


def _log(denied: Denied) -> None:
    use = denied.use
    words = {
        "action": f"ec2:{denied.action}",
        "purpose": use.purpose,
        "without": use.without,
        "missing": denied.missing,
        "remedy": f"{denied.advice} See ipamctl iam-policy --explain.",
        "error": denied.message,
    }
    if use.needed:
        log.error("iam.denied", **words)
    else:
        log.warning("iam.denied", **words)
