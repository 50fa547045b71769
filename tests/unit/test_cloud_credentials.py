"""Where credentials come from, what goes wrong there, and that one line says so before a call is sent."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from ipamd.cloud import credentials
from ipamd.cloud import imds as imds_module
from ipamd.cloud.ec2 import Ec2
from ipamd.cloud.port import CloudError
from ipamd.pool.model import CloudErrorKind as Kind
from ipamd.sim.ec2.faults import Fault
from ipamd.sim.imds import ROLE
from ipamd.telemetry.conditions import Conditions
from tests.unit.cloud_world import World

NOWHERE = "eni-00000000000000000"
SOON = "2199-01-01T00:00:00Z"
GOOD = {
    "Code": "Success",
    "AccessKeyId": "ASIATEST",
    "SecretAccessKey": "secret",
    "Token": "token",
    "Expiration": SOON,
}


@pytest.fixture(autouse=True)
def one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imds_module, "ATTEMPTS", 1)
    monkeypatch.setattr(imds_module, "TIMEOUT", 20.0)


async def refused(ec2: Ec2) -> CloudError:
    """Of a mutation: what was not sent is never of unknown outcome."""
    with pytest.raises(CloudError) as caught:
        await ec2.delete_eni(NOWHERE)
    failure = caught.value.failure
    assert failure.action == "DeleteNetworkInterface"
    assert failure.kind in (Kind.TRANSIENT, Kind.NOT_AUTHORIZED, Kind.INVALID)
    assert "\n" not in failure.message and len(failure.message) < 1500
    return caught.value


class Agent:
    """A container credentials endpoint, such as EKS Pod Identity's agent."""

    document: object = GOOD

    async def answer(self, _: web.Request) -> web.Response:
        return web.Response(text=self.document if isinstance(self.document, str) else json.dumps(self.document))


@pytest.fixture
async def agent(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agent]:
    agent = Agent()
    app = web.Application()
    app.router.add_get("/v1/credentials", agent.answer)
    async with TestServer(app) as server:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", str(server.make_url("/v1/credentials")))
        yield agent


# What providers raise


def missing(folder: Path) -> Path:
    return folder / "nonexistent"


def folder_instead(folder: Path) -> Path:
    return folder


def with_newlines(folder: Path) -> Path:
    file = folder / "token"
    file.write_text("a\nb\r\n")
    return file


def no_text(folder: Path) -> Path:
    file = folder / "token"
    file.write_bytes(b"\xff\xfe\x00")
    return file


TOKENS = [missing, folder_instead, with_newlines, no_text]


@pytest.mark.parametrize("token", TOKENS)
async def test_an_odd_token_file_of_a_container_is_named(
    world: World, agent: Agent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: Callable[[Path], Path]
) -> None:
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(token(tmp_path)))
    async with world.adapter() as ec2:
        assert f"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE={token(tmp_path)}" in str(await refused(ec2))
    assert world.actions() == []


@pytest.mark.parametrize("token", TOKENS)
async def test_an_odd_token_file_of_a_web_identity_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: Callable[[Path], Path]
) -> None:
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/pods")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token(tmp_path)))
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    async with world.adapter() as ec2:
        assert f"AWS_WEB_IDENTITY_TOKEN_FILE={token(tmp_path)}" in str(await refused(ec2))


ODD_DOCUMENTS = [
    *(None, [], "", "no JSON", 7, {}),
    *({**GOOD, "Expiration": odd} for odd in (None, 7, [1], "yesterday", "2001-01-01T00:00:00Z", "99999-01-01")),
    *({**GOOD, "AccessKeyId": odd} for odd in (None, [], "two\nlines")),
    *({**GOOD, "SecretAccessKey": odd} for odd in (7, {}, "")),
    *({**GOOD, "Token": odd} for odd in ("two\nlines", ["token"])),
    *({name: GOOD[name] for name in GOOD if name != left_out} for left_out in GOOD if left_out != "Code"),
]


@pytest.mark.parametrize("document", ODD_DOCUMENTS)
async def test_an_odd_document_of_a_container_agent_is_a_typed_failure(
    world: World, agent: Agent, monkeypatch: pytest.MonkeyPatch, document: object
) -> None:
    monkeypatch.setattr("aiobotocore.utils.AioContainerMetadataFetcher.SLEEP_TIME", 0)
    agent.document = document
    async with world.adapter() as ec2:
        assert "container-role" in str(await refused(ec2))


CONFIG = "[default]\nregion = eu-central-1\n"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("credential_process = /nonexistent", "custom-process"),
        ("credential_process = /bin/false", "custom-process"),
        ("credential_process = /bin/echo no JSON", "custom-process"),
        ("credential_process = /bin/echo null", "custom-process"),
        ("credential_process = /bin/echo {}", "custom-process"),
        ("credential_process = 'unbalanced", "custom-process"),
        ("role_arn = arn:aws:iam::1:role/r\ncredential_source = Nowhere", "assume-role"),
        ("role_arn = arn:aws:iam::1:role/r\nsource_profile = other", "assume-role"),
        ("role_arn = arn:aws:iam::1:role/r\nsource_profile = default", "assume-role"),
        ("sso_session = gone\nsso_account_id = 1\nsso_role_name = r", "sso"),
        ("sso_start_url = https://x\nsso_region = x\nsso_account_id = 1\nsso_role_name = r", "sso"),
        ("aws_access_key_id = AKIA", "config-file"),
    ],
)
async def test_an_odd_profile_is_a_typed_failure(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config: str, expected: str
) -> None:
    file = tmp_path / "config"
    file.write_text(CONFIG + config)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
    monkeypatch.setenv("HOME", str(tmp_path))
    async with world.adapter() as ec2:
        told = str(await refused(ec2))
    assert expected in told and f"AWS_CONFIG_FILE={file}" in told


@pytest.mark.parametrize("config", ["no section", "[default", "\xff", "[default]\nregion"])
async def test_a_broken_configuration_file_is_a_typed_failure(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config: str
) -> None:
    file = tmp_path / "config"
    file.write_text(config, "latin-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
    async with world.adapter() as ec2:
        with pytest.raises(CloudError) as caught:
            await ec2.delete_eni(NOWHERE)
    assert caught.value.failure.kind is not Kind.UNKNOWN_OUTCOME
    assert world.actions() == []


async def test_a_profile_that_is_not_there_is_a_typed_failure(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "gone")
    async with world.adapter() as ec2:
        with pytest.raises(CloudError, match="gone") as caught:
            await ec2.delete_eni(NOWHERE)
    assert caught.value.failure.kind is Kind.INVALID
    assert world.actions() == []


@pytest.mark.parametrize("text", [None, "", "no certificate"])
async def test_certificates_that_can_not_be_used_are_named(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None
) -> None:
    bundle = tmp_path / "ca.pem"
    if text is not None:
        bundle.write_text(text)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    async with world.adapter() as ec2:
        assert f"the certificates in {bundle} (AWS_CA_BUNDLE) can't be used" in str(await refused(ec2))
        monkeypatch.delenv("AWS_CA_BUNDLE")
    assert world.actions() == []


async def test_a_provider_that_hangs_is_waited_for_once(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    script = tmp_path / "hang"
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script.write_text(f"#!/bin/sh\necho x >> {started}\nexec cat {gate}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    config = tmp_path / "config"
    config.write_text(f"{CONFIG}credential_process = {script}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setattr(credentials, "PATIENCE", 0.5)
    async with world.adapter() as ec2:
        for _ in range(3):
            assert (await refused(ec2)).failure.code == "Timeout"
        gate.write_text("no JSON")
        with pytest.raises(CloudError):
            await ec2._connection.credentials._begin()
    assert started.read_text().count("x") == 1


# The role of the instance


LIST, DOCUMENT = "/iam/security-credentials/", f"/iam/security-credentials/{ROLE}"


async def test_an_instance_without_a_role_is_told_so(world: World) -> None:
    world.has_role = False
    async with world.adapter() as ec2:
        failure = (await refused(ec2)).failure
    assert (failure.kind, failure.code) == (Kind.NOT_AUTHORIZED, "NoRole")
    assert "this instance has no role" in failure.message


async def test_a_role_that_ec2_may_not_assume_is_quoted(world: World) -> None:
    words = "EC2 cannot assume the role node. Please see documentation."
    refusal = {"Code": "AssumeRoleUnauthorizedAccess", "Message": words, "LastUpdated": SOON}
    world.metadata[DOCUMENT] = json.dumps(refusal)
    async with world.adapter() as ec2:
        failure = (await refused(ec2)).failure
    assert failure.kind is Kind.NOT_AUTHORIZED
    assert words in failure.message and "check its trust policy" in failure.message


@pytest.mark.parametrize("field", [*GOOD, "document"])
@pytest.mark.parametrize(
    "value", [None, 7, "", [], {}, "two\nlines", "\x1b[2J", "x" * 100_000, "2026-13-01T99:00:00Z"]
)
async def test_an_odd_document_of_the_role_is_a_typed_failure_or_works(
    world: World, field: str, value: object
) -> None:
    text = json.dumps(value if field == "document" else {**GOOD, field: value})
    world.metadata[DOCUMENT] = value if field == "document" and isinstance(value, str) else text
    async with world.adapter() as ec2:
        with pytest.raises(CloudError) as caught:  # those that can be read are not of the double
            await ec2.delete_eni(NOWHERE)
    assert caught.value.failure.kind in (Kind.TRANSIENT, Kind.NOT_AUTHORIZED)
    assert len(caught.value.failure.message) < 1500


@pytest.mark.parametrize("name", ["../../x", "<html>", "a b", "x" * 65, "\x1b[2J"])
async def test_a_name_that_is_no_roles_is_not_asked_for(world: World, name: str) -> None:
    world.metadata[LIST] = name
    async with world.adapter() as ec2:
        assert (await refused(ec2)).failure.code == "UnreadableCredentials"


async def test_disabled_metadata_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    async with world.adapter() as ec2:
        assert "AWS_EC2_METADATA_DISABLED=true" in str(await refused(ec2))


@pytest.mark.parametrize("half", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
async def test_half_a_key_pair_is_named(world: World, monkeypatch: pytest.MonkeyPatch, half: str) -> None:
    monkeypatch.setenv(half, "half")
    world.has_role = False
    async with world.adapter() as ec2:
        assert f"only {half} of the pair" in str(await refused(ec2))


async def test_empty_variables_are_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "")
    async with world.adapter() as ec2:
        assert "AWS_CONTAINER_CREDENTIALS_FULL_URI is set and empty" in str(await refused(ec2))


# Learnt anew


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidClientTokenId", "AuthFailure", "RequestExpired"])
async def test_refused_credentials_are_looked_for_anew(world: World, code: str) -> None:
    await world.ec2.describe_enis()
    before = world.ec2._connection.credentials.key_in_use
    world.cloud.keyring.revoke(world.instance.id)
    world.faults.add(Fault("DeleteNetworkInterface", code, times=1))
    with pytest.raises(CloudError):
        await world.ec2.delete_eni(NOWHERE)
    assert len(await world.ec2.describe_enis()) == 1
    assert world.ec2._connection.credentials.key_in_use not in ("", before)


async def test_denied_credentials_are_compared_with_those_of_now(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "LOOK_AGAIN", 0)
    await world.ec2.describe_enis()
    found = world.ec2._connection.credentials
    before = found.key_in_use
    world.cloud.keyring._current.clear()  # another role: the former one's stay good
    world.faults.add(Fault("DeleteNetworkInterface", "UnauthorizedOperation", times=1))
    with pytest.raises(CloudError):
        await world.ec2.delete_eni(NOWHERE)
    await world.ec2.describe_enis()
    assert found._search is not None
    await found._search
    assert found.key_in_use != before


async def test_good_credentials_outlive_a_failing_look_for_others(world: World) -> None:
    await world.ec2.describe_enis()
    found, conditions = world.ec2._connection.credentials, Conditions()
    found._outdated, found._conditions = True, conditions
    world.has_role = False
    for _ in range(2):
        assert len(await world.ec2.describe_enis()) == 1
        await asyncio.wait({found._begin()})
    (condition,) = conditions.active()
    assert condition.name == "credentials.not_renewed" and "no role" in condition.text
    world.has_role = True
    await asyncio.wait({found._begin()})
    await asyncio.sleep(0)
    assert not conditions.active()


async def test_credentials_near_their_end_are_renewed_beside_the_call(world: World) -> None:
    await world.ec2.describe_enis()
    found = world.ec2._connection.credentials
    before = found.key_in_use
    found._found._expiry_time = datetime.now(UTC) + timedelta(minutes=5)
    world.cloud.keyring._current.clear()
    await world.ec2.describe_enis()
    assert found._search is not None
    await found._search
    assert found.key_in_use != before
