"""The control API of the double: state, calls, faults, and what it says to nonsense."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from ipamd.pool.model import Limits
from ipamd.sim.ec2.cloud import Delays, SimulatedCloud
from ipamd.sim.ec2.rules import Ask
from ipamd.sim.servers import CloudServers, serve_on_loopback

AT_ONCE = Delays(create=0, attach=0, detach=0, assign=0, link=0, imds_lag=0)


@pytest.fixture
async def cloud() -> SimulatedCloud:
    return SimulatedCloud("10.0.0.0/16", limits={"m5.large": Limits(3, 10)}, delays=AT_ONCE)


@pytest.fixture
async def servers(cloud: SimulatedCloud) -> AsyncIterator[CloudServers]:
    async with serve_on_loopback(cloud) as servers:
        yield servers


@pytest.fixture
async def control(servers: CloudServers) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(servers.control_url) as http:
        yield http


async def get(control: aiohttp.ClientSession, what: str) -> Any:
    async with control.get(f"/_control/{what}") as reply:
        assert reply.status == 200
        return await reply.json()


async def post(control: aiohttp.ClientSession, what: str, body: str) -> tuple[int, Any]:
    async with control.post(f"/_control/{what}", data=body) as reply:
        return reply.status, await reply.json()


async def describe(servers: CloudServers) -> int:
    who = f"{servers.cloud.keyring.operator.access_key}/20260101/x/ec2/aws4_request"
    headers = {"Authorization": f"AWS4-HMAC-SHA256 Credential={who}, more"}
    form = {"Action": "DescribeSubnets", "Version": "2016-11-15"}
    async with aiohttp.ClientSession() as http, http.post(servers.ec2_url, data=form, headers=headers) as reply:
        return reply.status


async def test_the_state_shows_everything(cloud: SimulatedCloud, control: aiohttp.ClientSession) -> None:
    assert await get(control, "state") == {"enis": [], "subnets": [], "instances": []}
    subnet = cloud.add_subnet("10.0.0.0/24")
    instance = await cloud.add_instance("n1", "m5.large", subnet.id)
    loose = await cloud.create_eni(subnet.id, Ask(2), tags={"k": "v"})
    state = await get(control, "state")
    assert state["subnets"] == [
        {"id": subnet.id, "cidr": "10.0.0.0/24", "zone": "eu-central-1a", "available": 247, "others": 0}
    ]
    assert state["instances"] == [
        {"id": instance.id, "name": "n1", "type": "m5.large", "state": "running"},
    ]
    primary, other = state["enis"]
    assert (primary["instance_id"], primary["device_index"]) == (instance.id, 0)
    assert (primary["status"], primary["attachment_status"]) == ("in-use", "attached")
    assert other == {
        "id": loose.id,
        "instance_id": None,
        "device_index": None,
        "network_card": None,
        "status": "available",
        "attachment_status": None,
        "delete_on_termination": None,
        "primary_ip": loose.addresses[0],
        "private_ips": loose.addresses,
        "prefixes": [],
        "mac": loose.mac,
        "subnet_id": subnet.id,
        "security_groups": [cloud.rules.default_group.id],
        "tags": {"k": "v"},
    }


async def test_faults_come_and_go_and_calls_are_listed(servers: CloudServers, control: aiohttp.ClientSession) -> None:
    fault = {"action": "DescribeSubnets", "error": "RequestLimitExceeded", "times": 1, "delay_s": 0}
    assert await post(control, "faults", json.dumps(fault)) == (200, {})
    assert [await describe(servers), await describe(servers)] == [503, 200]
    await post(control, "faults", '{"action": "*", "error": "InternalError", "after_effect": true}')
    assert await describe(servers) == 500
    assert (await post(control, "clear", ""))[0] == 200
    assert await describe(servers) == 200
    calls = await get(control, "calls")
    assert [call["outcome"] for call in calls] == ["RequestLimitExceeded", "ok", "InternalError", "ok"]
    assert {(call["action"], call["instance"]) for call in calls} == {("DescribeSubnets", "operator")}
    assert [call["time"] for call in calls] == sorted(call["time"] for call in calls)
    await post(control, "clear", '{"calls": true}')
    assert await get(control, "calls") == []


async def test_a_fault_has_struck_while_the_call_is_under_way(
    servers: CloudServers, control: aiohttp.ClientSession
) -> None:
    await post(control, "faults", '{"action": "DescribeSubnets", "delay_s": 60}')
    await post(control, "faults", '{"action": "*", "error": "InternalError", "times": 1, "after_s": 60}')
    call = asyncio.create_task(describe(servers))
    while not (await get(control, "faults"))[0]["struck"]:
        assert not call.done()
    assert await get(control, "faults") == [
        {"action": "DescribeSubnets", "error": "", "after_effect": False, "struck": 1},
        {"action": "*", "error": "InternalError", "after_effect": False, "struck": 0},
    ]
    call.cancel()


async def test_a_slow_call_still_succeeds(servers: CloudServers, control: aiohttp.ClientSession) -> None:
    await post(control, "faults", '{"action": "DescribeSubnets", "delay_s": 0.01, "times": 1}')
    assert await describe(servers) == 200


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object"),
        ("{}", "action"),
        ('{"action": "EatSubnets", "error": "InternalError"}', "name of an EC2 call"),
        ('{"action": ["*"], "error": "InternalError"}', "name of an EC2 call"),
        ('{"action": "*"}', "needs an error, a delay_s, or both"),
        ('{"action": "*", "error": "deny"}', "EC2 error code"),
        ('{"action": "*", "error": 503}', "EC2 error code"),
        ('{"action": "imds", "error": "InternalError"}', "HTTP status"),
        ('{"action": "*", "error": "InternalError", "times": 0}', "times"),
        ('{"action": "*", "error": "InternalError", "times": true}', "times"),
        ('{"action": "*", "error": "InternalError", "delay_s": "1"}', "delay_s"),
        ('{"action": "*", "error": "InternalError", "delay_s": -1}', "delay_s"),
        ('{"action": "*", "error": "InternalError", "delay_s": NaN}', "delay_s"),
        ('{"action": "*", "error": "InternalError", "after_effect": 1}', "after_effect"),
        ('{"action": "*", "error": "InternalError", "time": 1}', "unknown keys: time"),
    ],
)
async def test_faults_that_make_no_sense(control: aiohttp.ClientSession, body: str, hint: str) -> None:
    status, reply = await post(control, "faults", body)
    assert status == 400
    assert hint in reply["error"]


@pytest.mark.parametrize("body", ["{", "[]", '{"calls": 1}', '{"faults": true}'])
async def test_clears_that_make_no_sense(control: aiohttp.ClientSession, body: str) -> None:
    status, reply = await post(control, "clear", body)
    assert status == 400
    assert reply["error"]
