"""The IAM policy: judged by AWS's own list of actions and conditions, and by an evaluator that nobody here wrote,
against what the double's EC2 is asked in the whole life of an interface."""

from __future__ import annotations

import ast
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from ipamd.cloud import iam
from ipamd.cloud.budget import RateBudget
from ipamd.cloud.ec2 import Ec2
from ipamd.cloud.iam import USES, Scope, document, statements
from ipamd.cloud.model import ACTIONS
from ipamd.cloud.ownership import CLUSTER_TAG, INSTANCE_TAG
from ipamd.cloud.port import CloudError, Identity
from ipamd.cloud.token import new_token
from ipamd.ctl.__main__ import main
from ipamd.pool.model import CloudErrorKind, Limits
from ipamd.settings import Ec2Settings, ImdsSettings
from ipamd.sim.ec2 import wire
from ipamd.sim.ec2.api import Ec2Api
from ipamd.sim.ec2.cloud import ACCOUNT, Delays, SimulatedCloud
from ipamd.sim.ec2.faults import CallLog, Faults
from ipamd.sim.ec2.rules import Ec2Error, Eni
from tests.unit.iam_judges import allows, findings

ROOT = Path(__file__).resolve().parents[2]
REGION = "eu-central-1"
AT_ONCE = Delays(create=0, attach=0, detach=0, assign=0, link=0, imds_lag=0)
SCOPES = {
    "plain": Scope(),
    "cluster": Scope(cluster="prod"),
    "no release": Scope(cluster="prod", release=False),
    "all": Scope("prod", "vpc-0123456789abcdef0", REGION, ACCOUNT),
    "china": Scope(region="cn-north-1", account=ACCOUNT),
}


def named(policy: dict[str, Any]) -> set[str]:
    return {action.removeprefix("ec2:") for statement in policy["Statement"] for action in _list(statement["Action"])}


def _list(one_or_more: str | list[str]) -> list[str]:
    return [one_or_more] if isinstance(one_or_more, str) else one_or_more


def test_the_policy_names_exactly_what_the_adapter_calls() -> None:
    tree = ast.parse((ROOT / "ipamd/cloud/ec2.py").read_text())
    sent = {
        call.args[0].value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in ("_call", "_pages")
        if isinstance(call.args[0], ast.Constant)
    }
    assert len(sent) > 5
    assert sent == set(ACTIONS)
    assert sent | {"CreateTags"} == set(USES) == named(document(Scope(cluster="prod")))  # tags go with the creation
    assert set(USES) - named(document(Scope())) == {"DescribeInstances"}
    kept = named(document(Scope(cluster="prod", release=False)))
    assert set(USES) - kept == {action for action, use in USES.items() if use.release}


def test_the_readme_names_them_too() -> None:
    blocks = [block for block in (ROOT / "README.md").read_text().split("```")[1::2] if '"ec2:' in block]
    for block in blocks:
        assert named(json.loads(block.removeprefix("json"))) == set(USES)
    assert blocks or "ipamctl iam-policy" in (ROOT / "README.md").read_text()


def test_the_page_about_it_shows_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["iam-policy", "--cluster", "prod"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == document(Scope(cluster="prod"))
    assert f"```json\n{printed}```" in (ROOT / "docs/iam.md").read_text()


def test_the_command_explains_every_action_and_takes_no_nonsense(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["iam-policy", "--cluster", "prod", "--explain"]) == 0
    explained = capsys.readouterr().out
    assert all(action in explained and use.purpose in explained for action, use in USES.items())
    for words in (["--vpc", "v"], ["--cluster", "a*"], ["--account", "1"], ["--region", "here"]):
        with pytest.raises(SystemExit) as ended:
            main(["iam-policy", *words])
        assert ended.value.code == 2 and words[0] in capsys.readouterr().err


@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)
def test_every_action_takes_its_bounding_conditions(scope: Scope) -> None:
    assert findings(document(scope)) == []


def test_the_judge_of_that_would_notice() -> None:
    wrong = iam.Statement("S", "", ("DescribeSubnets",), ("arn:aws:ec2:*:*:subnet/*",))
    unknown = iam.Statement(
        "S", "", ("DeleteNetworkInterface",), condition={"StringEquals": {"ec2:CreateAction": "x"}}
    )
    for statement in (wrong, unknown):
        assert findings({"Version": iam.VERSION, "Statement": [statement.document()]})


def test_arns_are_those_of_the_partition() -> None:
    assert Scope().arn("vpc/v") == "arn:aws:ec2:*:*:vpc/v"
    assert Scope(region="cn-north-1", account="1").arn("vpc/v") == "arn:aws-cn:ec2:cn-north-1:1:vpc/v"
    assert Scope(region="us-gov-west-1").arn("vpc/v") == "arn:aws-us-gov:ec2:us-gov-west-1:*:vpc/v"


# A whole life


@dataclass(frozen=True)
class Asked:
    """One thing that IAM is asked when EC2 is called: may this be done to that?"""

    action: str
    resource: str
    context: tuple[tuple[str, str], ...]

    def allowed(self, policy: dict[str, Any]) -> bool:
        return allows(policy, f"ec2:{self.action}", self.resource, dict(self.context))


class Guarded:
    """The double behind a policy. What IAM is asked for each call: the table of the Service Authorization
    Reference."""

    def __init__(self, policy: dict[str, Any]) -> None:
        self.policy = policy
        self.asked: list[Asked] = []
        limits = {"m5.large": Limits(3, 10), "new9.large": Limits(5, 7)}
        self.cloud = SimulatedCloud("10.0.0.0/16", limits=limits, delays=AT_ONCE, region=REGION)
        self.cloud.rules.vpc_id = "vpc-0123456789abcdef0"
        self.subnet = self.cloud.add_subnet("10.0.0.0/24")
        application = Ec2Api(self.cloud, Faults(), CallLog()).application()
        application.middlewares.append(self._guard)
        self.server = TestServer(application)

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        form = {name: str(value) for name, value in (await request.post()).items()}
        questions = list(self._questions(form["Action"], wire.decode(form["Action"], form)))
        self.asked += questions
        if all(question.allowed(self.policy) for question in questions):
            return await handler(request)
        words = "You are not authorized to perform this operation. Encoded authorization failure message: Zm9vYmFy"
        error = Ec2Error("UnauthorizedOperation", words)
        return web.Response(status=error.status, body=wire.encode_error("r", error), content_type="text/xml")

    def _questions(self, action: str, p: dict[str, Any]) -> Iterator[Asked]:
        if action.startswith("Describe"):
            yield self._ask(action, "*", {})
        elif action == "CreateNetworkInterface":
            tags = {tag["Key"]: tag["Value"] for tags in p.get("TagSpecifications", ()) for tag in tags["Tags"]}
            requested = {f"aws:RequestTag/{key}": value for key, value in tags.items()}
            yield self._ask(action, "network-interface/*", requested)
            yield self._ask(action, f"subnet/{p['SubnetId']}", self._vpc)
            for group in p["Groups"]:
                yield self._ask(action, f"security-group/{group}", self._vpc)
            if tags:
                yield self._ask("CreateTags", "network-interface/*", {**requested, "ec2:CreateAction": action})
        else:
            if action == "DetachNetworkInterface":
                eni, attachment = self.cloud.rules.attachment(p["AttachmentId"])
                instance = attachment.instance_id
            else:
                eni = self.cloud.enis.get(p["NetworkInterfaceId"])
                instance = p.get("InstanceId") or (eni.attachment.instance_id if eni.attachment else "")
            tags = {f"aws:ResourceTag/{key}": value for key, value in eni.tags.items()}
            yield self._ask(action, f"network-interface/{eni.id}", {**tags, **self._vpc})
            if action in ("AttachNetworkInterface", "DetachNetworkInterface", "ModifyNetworkInterfaceAttribute"):
                yield self._ask(action, f"instance/{instance}", {})

    @property
    def _vpc(self) -> dict[str, str]:
        return {"ec2:Vpc": f"arn:aws:ec2:{REGION}:{ACCOUNT}:vpc/{self.cloud.rules.vpc_id}"}

    def _ask(self, action: str, resource: str, context: dict[str, str]) -> Asked:
        arn = resource if resource == "*" else f"arn:aws:ec2:{REGION}:{ACCOUNT}:{resource}"
        return Asked(action, arn, tuple({**context, "ec2:Region": REGION}.items()))


@dataclass
class Node:
    guarded: Guarded
    ec2: Ec2
    identity: Identity

    async def foreign(self, **tags: str) -> Eni:
        """Somebody else's interface, attached to this instance."""
        eni = await self.guarded.cloud.create_eni(self.guarded.subnet.id, tags=tags)
        self.guarded.cloud.attach_eni(eni.id, self.identity.instance_id, 2)
        await self.guarded.cloud.settle()
        return eni

    async def live(self, *, release: bool = True) -> None:
        """Every call that a daemon makes."""
        ec2, settle = self.ec2, self.guarded.cloud.settle
        await ec2.instance_limits("new9.large")
        await ec2.describe_enis()
        await ec2.describe_eni(self.identity.primary_eni_id)
        await ec2.subnet_cidr(self.guarded.subnet.id)
        await ec2.available_addresses((self.guarded.subnet.id,))
        primary = await ec2.assign_addresses(self.identity.primary_eni_id, 3)
        eni = await ec2.create_eni(
            token=new_token(1e9),
            subnet_id=self.guarded.subnet.id,
            security_groups=self.identity.security_groups,
            address_count=2,
        )
        attachment = await ec2.attach_eni(eni.id, 1)
        await settle()
        await ec2.set_delete_on_termination(eni.id, attachment)
        await ec2.assign_addresses(eni.id, 2)
        if release:
            await ec2.unassign_addresses(self.identity.primary_eni_id, primary[:1])
            await ec2.unassign_addresses(eni.id, eni.addresses[:1])
            await ec2.detach_eni(attachment)
            await settle()
            await ec2.delete_eni(eni.id)
            await self.guarded.cloud.create_eni(
                self.guarded.subnet.id, tags={INSTANCE_TAG: "i-00000000000000001", CLUSTER_TAG: "prod"}
            )
            for left in await ec2.describe_abandoned():
                await ec2.delete_eni(left.id)


@asynccontextmanager
async def node(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    guarded = Guarded(document(scope))
    instance = await guarded.cloud.add_instance("n1", "m5.large", guarded.subnet.id)
    credentials = guarded.cloud.keyring.operator
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", credentials.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", credentials.secret_key)
    primary = instance.primary
    identity = Identity(
        instance.id, "m5.large", REGION, f"{REGION}a", primary.mac, primary.id, primary.addresses[0],
        guarded.subnet.id, "10.0.0.0/25", guarded.cloud.rules.vpc_id, ("10.0.0.0/16",),
        (guarded.cloud.rules.default_group.id,),
    )  # fmt: skip
    async with guarded.server:
        settings = Ec2Settings(endpoint=str(guarded.server.make_url("")), cluster=scope.cluster)
        other_subnet = replace(identity, subnet_id="subnet-0")  # so that this one's CIDR is asked for
        async with Ec2(settings, ImdsSettings(), other_subnet, RateBudget()) as ec2:
            yield Node(guarded, ec2, identity)
    await guarded.cloud.close()


@pytest.mark.parametrize("name", ["plain", "cluster", "no release", "all"])
async def test_a_whole_life_is_allowed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scope = SCOPES[name]
    async with node(scope, monkeypatch) as here:
        await here.live(release=scope.release)
        done = {asked.action for asked in here.guarded.asked}
    assert done == named(document(scope))


async def test_nothing_can_be_left_out_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with node(SCOPES["all"], monkeypatch) as here:
        await here.live()
        asked = here.guarded.asked
    every = statements(SCOPES["all"])
    for index, statement in enumerate(every):
        for action in statement.actions:
            less = replace(statement, actions=tuple({*statement.actions} - {action}))
            policy = {"Statement": [each.document() for each in (*every[:index], less, *every[index + 1 :])]}
            assert not all(question.allowed(policy) for question in asked), (statement.sid, action)


@pytest.mark.parametrize("name", ["plain", "cluster", "all"])
async def test_somebody_elses_interface_is_out_of_reach(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with node(SCOPES[name], monkeypatch) as here:
        # With a cluster, that of another cluster's node is a stranger's, too.
        tags = {INSTANCE_TAG: here.identity.instance_id, CLUSTER_TAG: "test"} if SCOPES[name].cluster else {}
        eni = await here.foreign(**tags)
        assert eni.attachment is not None
        for call in (
            here.ec2.delete_eni(eni.id),
            here.ec2.attach_eni(eni.id, 1),
            here.ec2.detach_eni(eni.attachment.id),
            here.ec2.set_delete_on_termination(eni.id, eni.attachment.id),
        ):
            with pytest.raises(CloudError) as caught:
                await call
            assert caught.value.failure.kind is CloudErrorKind.NOT_AUTHORIZED
            assert "ipamctl iam-policy" in caught.value.failure.message and "Zm9" not in caught.value.failure.message
        assert eni.attachment.status == "attached"


async def test_another_vpc_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    async with node(SCOPES["all"], monkeypatch) as here:
        here.guarded.cloud.rules.vpc_id = "vpc-00000000000000000"
        with pytest.raises(CloudError) as caught:
            await here.ec2.assign_addresses(here.identity.primary_eni_id, 1)
        assert caught.value.failure.kind is CloudErrorKind.NOT_AUTHORIZED
        with pytest.raises(CloudError) as caught:
            await here.ec2.create_eni(
                token=new_token(1e9),
                subnet_id=here.guarded.subnet.id,
                security_groups=here.identity.security_groups,
                address_count=0,
            )
        assert caught.value.failure.kind is CloudErrorKind.NOT_AUTHORIZED
