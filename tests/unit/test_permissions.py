"""What is found out about permissions at start, on the double: named when they are not there, and no false alarm."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import structlog

from ipamd.cloud.budget import RateBudget
from ipamd.cloud.ec2 import Ec2
from ipamd.cloud.iam import USES
from ipamd.cloud.ownership import INSTANCE_TAG
from ipamd.cloud.permissions import Node, Permissions
from ipamd.cloud.port import Identity, Priority
from ipamd.pool.model import Limits
from ipamd.settings import Ec2Settings, ImdsSettings
from ipamd.sim.ec2 import actions
from ipamd.sim.ec2.cloud import Delays, SimulatedCloud
from ipamd.sim.ec2.cloud import SimulatedCloud as Cloud
from ipamd.sim.ec2.faults import Fault
from ipamd.sim.ec2.wire import service_model
from ipamd.sim.servers import CloudServers, serve_on_loopback

# All but those that were called in earnest before, that another one covers, and that have no DryRun.
ASKED = (
    set(USES)
    - {"DescribeNetworkInterfaces", "DescribeInstanceTypes", "CreateTags"}
    - {action for action in USES if "DryRun" not in service_model().operation_model(action).input_shape.members}
)
AT_ONCE = Delays(create=0, attach=0, detach=0, assign=0, link=0, imds_lag=0)


class Stage:
    def __init__(self, servers: CloudServers, identity: Identity, ec2: Ec2, budget: RateBudget) -> None:
        self.servers, self.identity, self.ec2, self.budget = servers, identity, ec2, budget
        self.permissions = Permissions()

    async def grown(self) -> str:
        """There is an interface of ipamd's own."""
        cloud = self.servers.cloud
        eni = await cloud.create_eni(self.identity.subnet_id, tags={INSTANCE_TAG: self.identity.instance_id})
        cloud.attach_eni(eni.id, self.identity.instance_id, 1)
        await cloud.settle()
        return eni.id

    def deny(self, *names: str) -> None:
        for name in names:
            self.servers.faults.add(Fault(name, "UnauthorizedOperation"))

    async def examine(self, cluster: str = "", subnet: str = "") -> list[dict[str, object]]:
        """The events that were logged."""
        identity = self.identity
        node = Node(
            identity, await self.ec2.describe_enis(), subnet or identity.subnet_id, identity.security_groups, cluster
        )
        self.servers.calls.clear()
        before = _state(self.servers.cloud)
        with structlog.testing.capture_logs() as logs:
            await self.permissions.examine(self.ec2, node)
        assert _state(self.servers.cloud) == before
        return [dict(event) for event in logs if str(event["event"]).startswith("iam.")]

    @property
    def denied(self) -> set[str]:
        return {denied.action for denied in self.permissions.denied}


def _state(cloud: Cloud) -> list[tuple[object, ...]]:
    return [
        (eni.id, eni.addresses[:], dict(eni.tags), eni.attachment and (eni.attachment.id, eni.attachment.status))
        for eni in cloud.enis
    ]


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    cloud = SimulatedCloud("10.0.0.0/16", limits={"m5.large": Limits(3, 10)}, delays=AT_ONCE)
    subnet = cloud.add_subnet("10.0.0.0/24")
    instance = await cloud.add_instance("n1", "m5.large", subnet.id)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", cloud.keyring.operator.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", cloud.keyring.operator.secret_key)
    primary = instance.primary
    identity = Identity(
        instance.id, "m5.large", cloud.rules.region, "a", primary.mac, primary.id, primary.addresses[0], subnet.id,
        "10.0.0.0/24", cloud.rules.vpc_id, ("10.0.0.0/16",), (cloud.rules.default_group.id,),
    )  # fmt: skip
    budget = RateBudget()
    async with (
        serve_on_loopback(cloud) as servers,
        Ec2(Ec2Settings(endpoint=servers.ec2_url), ImdsSettings(), identity, budget) as ec2,
    ):
        yield Stage(servers, identity, ec2, budget)


async def test_a_role_that_may_do_all_is_one_line_in_the_log(stage: Stage) -> None:
    await stage.grown()
    (event,) = await stage.examine(cluster="prod")
    assert (event["event"], event["log_level"], event["unknown"]) == ("iam.checked", "info", {})
    assert set(stage.permissions.allowed) == ASKED
    assert stage.permissions.denied == ()
    calls = stage.servers.calls.as_json()
    assert {call["outcome"] for call in calls} == {"DryRunOperation"}
    assert len(calls) == len({call["action"] for call in calls}) == len(stage.permissions.allowed)


async def test_questions_wait_behind_all_other_calls(stage: Stage) -> None:
    await stage.grown()
    await stage.examine()
    waits = {bucket.action: bucket.waits for bucket in stage.budget.view()}
    assert waits["DetachNetworkInterface"][Priority.RELEASE].count == 1
    assert (
        sum(each[Priority.POD].count for action, each in waits.items() if action != "DescribeNetworkInterfaces") == 0
    )


@pytest.mark.parametrize("action", sorted(ASKED))
async def test_what_is_denied_is_named_with_what_is_missing(stage: Stage, action: str) -> None:
    await stage.grown()
    stage.deny(action)
    denied, checked = await stage.examine(cluster="prod")
    assert checked["event"] == "iam.checked" and stage.denied == {action}
    assert (denied["event"], denied["action"]) == ("iam.denied", f"ec2:{action}")
    assert denied["log_level"] == ("error" if USES[action].needed else "warning")
    assert (denied["purpose"], denied["without"]) == (USES[action].purpose, USES[action].without)
    statements = json.loads(str(denied["missing"]))
    named = {name for statement in statements for name in statement["Action"]}
    assert named == {f"ec2:{action}"} | ({"ec2:CreateTags"} if action == "CreateNetworkInterface" else set())
    assert any("prod" in json.dumps(statement) for statement in statements) == (
        action in ("CreateNetworkInterface", "AttachNetworkInterface", "ModifyNetworkInterfaceAttribute",
                   "DetachNetworkInterface", "DeleteNetworkInterface")
    )  # fmt: skip


async def test_without_interface_of_its_own_nothing_is_asked_about_one(stage: Stage) -> None:
    stage.deny("*")
    await stage.servers.cloud.create_eni(stage.identity.subnet_id)  # somebody else's: rightly out of reach
    stage.servers.faults.clear()
    stage.deny(
        "AttachNetworkInterface", "DetachNetworkInterface", "DeleteNetworkInterface", "UnassignPrivateIpAddresses"
    )
    (event,) = await stage.examine()
    assert event["allowed"] == ("DescribeSubnets", "CreateNetworkInterface")


async def test_another_answer_is_no_alarm(stage: Stage) -> None:
    eni = await stage.grown()
    node = Node(
        stage.identity,
        await stage.ec2.describe_enis(),
        "subnet-00000000000000000",
        stage.identity.security_groups,
        "",
    )
    attachment = stage.servers.cloud.enis.get(eni).attachment
    assert attachment is not None
    stage.servers.cloud.detach_eni(attachment.id)
    await stage.servers.cloud.settle()
    await stage.permissions.examine(stage.ec2, node)
    assert stage.permissions.denied == ()
    assert stage.permissions.unknown == {
        "CreateNetworkInterface": "InvalidSubnetID.NotFound",
        "DetachNetworkInterface": "InvalidAttachmentID.NotFound",
    }


async def test_credentials_that_are_no_good_are_not_a_denial(stage: Stage) -> None:
    await stage.grown()
    enis = await stage.ec2.describe_enis()
    stage.servers.cloud.keyring.revoke("operator")
    node = Node(stage.identity, enis, stage.identity.subnet_id, stage.identity.security_groups, "")
    await stage.permissions.examine(stage.ec2, node)
    assert stage.permissions.denied == () and set(stage.permissions.unknown.values()) == {"AuthFailure"}


async def test_permission_check_stops_when_endpoint_ignores_dry_run(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def heedless(found: actions.Action, cloud: Cloud, parameters: actions.Parameters) -> actions.Result:
        return await found.perform(cloud, parameters)

    await stage.grown()
    monkeypatch.setattr(actions, "perform", heedless)
    (event,) = await stage.examine()
    assert event["event"] == "iam.not_checked"
    assert [(call["action"], call["outcome"]) for call in stage.servers.calls.as_json()] == [
        ("DescribeSubnets", "ok")
    ]


async def test_a_dry_run_uses_up_no_fault_and_heeds_only_a_denial(stage: Stage) -> None:
    """Of the double: a test's script is for the calls that do something."""
    stage.servers.faults.add(Fault("DescribeSubnets", "InternalError", times=1))
    stage.servers.faults.add(Fault("CreateNetworkInterface", "UnauthorizedOperation", times=1))
    await stage.examine()
    assert stage.denied == {"CreateNetworkInterface"} and "DescribeSubnets" in stage.permissions.allowed
    assert [fault["struck"] for fault in stage.servers.faults.as_json()] == [0, 0]
