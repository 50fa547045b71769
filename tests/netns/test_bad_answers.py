"""A daemon whose EC2 and metadata service answer nonsense for a while: one line says so, and it serves after it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.netns.boxed import Daemon, box, cloud_enis, control, secondary

pytestmark = pytest.mark.netns

Fault = Mapping[str, Any]
DESCRIBE = "DescribeNetworkInterfaces"
CREDENTIALS = "security-credentials/ipamd-node"
REFUSAL = json.dumps({"Code": "AssumeRoleUnauthorizedAccess", "Message": "EC2 cannot assume the role ipamd-node."})
EXPIRED = {"Code": "Success", "AccessKeyId": "A", "SecretAccessKey": "s", "Token": "t", "Expiration": "yesterday"}


def lacks(element: str, action: str = DESCRIBE) -> Fault:
    return {"action": action, "error": "lacks", "element": element, "times": 1}


def answer(body: str, status: int = 200, content_type: str = "text/xml") -> Fault:
    answered = {"body": body, "status": status, "content_type": content_type}
    return {"action": DESCRIBE, "error": "answer", "times": 1, **answered}


def metadata(path: str, body: str) -> Fault:
    return {"action": "imds", "error": "answer", "path": path, "body": body, "times": 1}


# What each try at the start meets, and what its line must say.
AT_START: dict[str, list[tuple[Fault, str]]] = {
    # A try makes two calls, and the first finds no interface.
    "fields": [
        ({**lacks("macAddress"), "times": 2}, "lacks MacAddress for eni-"),
        ({**lacks("deviceIndex"), "times": 2}, "lacks DeviceIndex for eni-"),
        (lacks("networkInterfaceSet"), "lacks NetworkInterfaces"),
    ],
    "answers": [
        (answer("<html>no such page", 404, "text/html"), "HTTP 404, text/html"),
        (answer("<AnotherResponse/>"), "HTTP 200, text/xml"),
        (answer(""), "empty body"),
    ],
    "metadata": [
        (metadata("api/token", "a\x01b\ncookie: x"), "gave a token that is none"),
        (metadata("meta-data/instance-type", "t3.nano"), "contradicts itself: instance_type is t3.nano"),
        ({**metadata("placement/region", "<html>"), "after_calls": 1}, "region is '<html>'"),
    ],
    "credentials": [
        (metadata(CREDENTIALS, "null"), "credentials that can't be read"),
        (metadata(CREDENTIALS, json.dumps(EXPIRED)), "expiration"),
        (metadata(CREDENTIALS, REFUSAL), "check its trust policy"),
    ],
}


def quiet(daemon: Daemon) -> None:
    assert "Traceback" not in daemon.log.read_text()
    assert not daemon.events("operation.crashed")


@pytest.mark.parametrize("kind", AT_START)
async def test_nonsense_at_the_start_is_named_and_outlived(tmp_path: Path, prefix: str, kind: str) -> None:
    async with box(tmp_path, prefix) as (daemon, vpc):
        for fault, _ in AT_START[kind]:
            await control(vpc, "faults", fault)
        await daemon.ready()
        told = [event["error"] for event in daemon.events("ec2.unavailable", "imds.unavailable")]
        for line, (_, words) in zip(told, AT_START[kind], strict=True):
            assert words.lower() in line.lower()
        quiet(daemon)
        assert await daemon.address("a")


async def test_a_region_of_a_bad_moment_is_not_kept(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix) as (daemon, vpc):
        wrong = metadata("placement/region", "eu-nowhere-1")
        await control(vpc, "faults", [wrong, metadata("instance-identity/document", "{}")])
        await control(vpc, "faults", {"action": DESCRIBE, "error": "AuthFailure", "times": 1})
        await daemon.ready()
        changed = await daemon.seen("node.identity_changed")
        assert changed["region"].startswith("eu-nowhere-1 -> ")
        quiet(daemon)


async def test_a_creation_with_an_odd_reply_is_settled(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_WARM_IPS=1) as (daemon, vpc):
        await daemon.ready()
        await control(vpc, "faults", lacks("macAddress", "CreateNetworkInterface"))
        await control(vpc, "faults", lacks("attachmentId", "AttachNetworkInterface"))
        enis = len(vpc.cloud.enis)
        for name in "abcdefghijkl":
            assert await daemon.address(name)
        failed = daemon.events("ec2.failed")
        assert {event["action"] for event in failed} <= {"CreateNetworkInterface", "AttachNetworkInterface"}
        assert {event["kind"] for event in failed} == {"unknown-outcome"}
        assert len(vpc.cloud.enis) <= enis + 2
        quiet(daemon)


async def test_runtime_credential_failure_is_no_unknown_outcome(tmp_path: Path, prefix: str) -> None:
    async with box(tmp_path, prefix, POOL_WARM_IPS=1) as (daemon, vpc):
        await daemon.ready()
        instance = daemon.node.instance_id
        vpc.cloud.keyring.revoke(instance)
        await control(vpc, "faults", {**metadata(CREDENTIALS, "null"), "times": 2})
        assert await daemon.address("a")
        await daemon.settled(1)
        failed = daemon.events("ec2.failed")
        assert {event["kind"] for event in failed} <= {"not-authorized", "transient"}
        assert any("credentials that can't be read" in event["error"] for event in failed)
        quiet(daemon)


def assigned(eni: str, *addresses: str) -> Fault:
    """EC2 assigns what it was asked for, and its reply names these instead."""
    items = "".join(f"<item><privateIpAddress>{each}</privateIpAddress></item>" for each in addresses)
    body = (
        '<AssignPrivateIpAddressesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>1</requestId>'
        f"<networkInterfaceId>{eni}</networkInterfaceId><return>true</return>"
        f"<assignedPrivateIpAddressesSet>{items}</assignedPrivateIpAddressesSet></AssignPrivateIpAddressesResponse>"
    )
    return {
        "action": "AssignPrivateIpAddresses",
        "error": "answer",
        "times": 1,
        "after_effect": True,
        "body": body,
        "content_type": "text/xml",
    }


@pytest.mark.parametrize("odd", ["primary", "10.9.9.9", "10.0.0.1", "banana"])
async def test_addresses_that_can_not_be_are_not_granted(tmp_path: Path, prefix: str, odd: str) -> None:
    """What EC2 has assigned meanwhile is found by reading the ENI, and granted."""
    async with box(tmp_path, prefix, POOL_WARM_IPS=3) as (daemon, vpc):
        eni = next(iter(await cloud_enis(vpc)))
        named = str(daemon.node.primary_ip) if odd == "primary" else odd
        await control(vpc, "faults", assigned(eni, named, "10.0.0.5", "10.0.0.6"))
        await daemon.ready()
        await daemon.settled(free=3)
        addresses = {await daemon.address(name) for name in ("a", "b", "c")}
        assert addresses <= secondary(await cloud_enis(vpc)) and named not in addresses


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"AWS_WEB_IDENTITY_TOKEN_FILE": "/nonexistent/token", "AWS_ROLE_ARN": "arn:aws:iam::1:role/r"},
            "AWS_WEB_IDENTITY_TOKEN_FILE=/nonexistent/token",
        ),
        ({"AWS_EC2_METADATA_DISABLED": "true"}, "AWS_EC2_METADATA_DISABLED=true"),
        ({"HTTP_PROXY": "http://127.0.0.1:9"}, "HTTP_PROXY=http://127.0.0.1:9"),
    ],
    ids=["token file", "disabled", "proxy"],
)
async def test_what_keeps_the_daemon_from_ec2_is_named(
    tmp_path: Path, prefix: str, variables: dict[str, str], words: str
) -> None:
    async with box(tmp_path, prefix) as (daemon, _):
        daemon.settings |= variables
        await daemon.start()
        assert words in (await daemon.seen("ec2.unavailable"))["error"]
        assert daemon.process is not None and daemon.process.exit_code is None
        quiet(daemon)
