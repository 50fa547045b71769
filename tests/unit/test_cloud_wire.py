"""What comes in the place of EC2 and of those who have credentials is read up to a bound."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from ipamd.cloud import wire
from ipamd.cloud.port import CloudError
from ipamd.pool.model import CloudErrorKind as Kind
from tests.unit.cloud_world import World

PART = bytes(1 << 16)


class Endless:
    """Answers with more and more, until the client has enough. `sent` counts bytes."""

    def __init__(self) -> None:
        self.sent = 0
        self.status = 200

    async def answer(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=self.status, headers={"Content-Type": "text/xml"})
        await response.prepare(request)
        try:
            while self.sent < 1 << 30:
                await response.write(PART)
                self.sent += len(PART)
        except ConnectionError:
            pass
        return response


@pytest.fixture
async def endless() -> AsyncIterator[tuple[Endless, str]]:
    endless = Endless()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", endless.answer)
    server = TestServer(application)
    await server.start_server()
    yield endless, str(server.make_url("/"))
    await server.close()


@pytest.mark.parametrize("status", [200, 400, 503])
async def test_an_answer_without_an_end_is_cut_off(
    world: World, endless: tuple[Endless, str], monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(wire, "LONGEST", 1 << 20)
    server, url = endless
    server.status = status
    async with world.adapter(endpoint=url) as ec2:
        with pytest.raises(CloudError, match="more than 1048576 bytes") as caught:
            await ec2.describe_eni("eni-00000000000000000")
        assert caught.value.failure.kind is Kind.TRANSIENT
        assert server.sent < 1 << 26, "what the sockets hold, and no more"
        with pytest.raises(CloudError) as caught:
            await ec2.assign_addresses("eni-00000000000000000", 1)
        assert caught.value.failure.kind is Kind.UNKNOWN_OUTCOME


@pytest.mark.parametrize("service", ["container agent", "STS"])
async def test_credentials_without_an_end_are_cut_off(
    world: World, endless: tuple[Endless, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, service: str
) -> None:
    monkeypatch.setattr(wire, "LONGEST", 1 << 20)
    server, url = endless
    if service == "STS":
        token = tmp_path / "token"
        token.write_text("identity")
        monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/pods")
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    else:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}v1/credentials")
    async with world.adapter() as ec2:
        with pytest.raises(CloudError, match="more than 1048576 bytes") as caught:
            await ec2.describe_enis()
    assert caught.value.failure.kind is Kind.TRANSIENT
    assert server.sent < 1 << 26, "what the sockets hold, and no more"


async def test_an_answer_as_long_as_allowed_is_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    body = wire._body

    async def noted(response: Any) -> bytes:
        read = await body(response)
        seen.append(len(read))
        return read

    monkeypatch.setattr(wire, "_body", noted)
    async with world.adapter() as ec2:
        await ec2.describe_enis()
        monkeypatch.setattr(wire, "LONGEST", max(seen))
        await ec2.describe_enis()
