"""The metadata client against a server that can be slow, broken, forgetful or closed."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from ipamd.cloud import imds as module
from ipamd.cloud.imds import Imds
from ipamd.cloud.port import CloudError, Identity
from ipamd.pool.model import CloudErrorKind as Kind

MAC = "06:11:22:33:44:55"
ENI = f"network/interfaces/macs/{MAC}"
IDENTITY = Identity(
    instance_id="i-0123456789abcdef0",
    instance_type="m5.large",
    region="eu-central-1",
    availability_zone="eu-central-1a",
    primary_mac=MAC,
    primary_eni_id="eni-0123456789abcdef0",
    primary_ip="10.0.0.4",
    subnet_id="subnet-1",
    subnet_cidr="10.0.0.0/24",
    vpc_id="vpc-1",
    vpc_cidrs=("10.0.0.0/16", "100.64.0.0/16"),
    security_groups=("sg-1", "sg-2"),
)


class Service:
    """IMDSv2. `upset` maps "token" or "*" to statuses that are answered first, one each; 0 is a hanging answer."""

    def __init__(self) -> None:
        self.values = {
            "mac": MAC,
            "instance-id": IDENTITY.instance_id,
            "instance-type": IDENTITY.instance_type,
            "placement/region": IDENTITY.region,
            "placement/availability-zone": IDENTITY.availability_zone,
            "local-ipv4": IDENTITY.primary_ip,
            f"{ENI}/interface-id": IDENTITY.primary_eni_id,
            f"{ENI}/subnet-id": IDENTITY.subnet_id,
            f"{ENI}/subnet-ipv4-cidr-block": IDENTITY.subnet_cidr,
            f"{ENI}/vpc-id": IDENTITY.vpc_id,
            f"{ENI}/vpc-ipv4-cidr-blocks": "10.0.0.0/16\n100.64.0.0/16\n",
            f"{ENI}/security-group-ids": "sg-1\nsg-2",
        }
        self.tokens: list[str] = []
        self.requests: Counter[str] = Counter()
        self.upset: dict[str, list[int]] = {}
        self.next_token: str | None = None
        self.document: str | None = None
        self.released = asyncio.Event()

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_put("/latest/api/token", self.token)
        app.router.add_get("/latest/dynamic/instance-identity/document", self.identity_document)
        app.router.add_get("/latest/meta-data/{path:.*}", self.value)
        return app

    async def token(self, request: web.Request) -> web.Response:
        self.requests["token"] += 1
        assert 1 <= int(request.headers["X-aws-ec2-metadata-token-ttl-seconds"]) <= 21600
        if refusal := await self.misbehave("token"):
            return refusal
        if self.next_token is not None:
            text, self.next_token = self.next_token, None
            return web.Response(text=text)
        self.tokens.append(f"token-{len(self.tokens)}")
        return web.Response(text=self.tokens[-1])

    async def identity_document(self, request: web.Request) -> web.Response:
        return web.Response(status=404) if self.document is None else web.Response(text=self.document)

    async def value(self, request: web.Request) -> web.Response:
        path = request.match_info["path"]
        self.requests[path] += 1
        if request.headers.get("X-aws-ec2-metadata-token") not in self.tokens:
            return web.Response(status=401)
        if refusal := await self.misbehave("*"):
            return refusal
        if path not in self.values:
            return web.Response(status=404)
        return web.Response(text=self.values[path])

    async def misbehave(self, what: str) -> web.Response | None:
        if not self.upset.get(what):
            return None
        status = self.upset[what].pop(0)
        if status == 0:
            await self.released.wait()
        return web.Response(status=status or 500, text="<html>no</html>")


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    yield Service()


@pytest.fixture
async def server(service: Service) -> AsyncIterator[TestServer]:
    async with TestServer(service.application()) as server:
        yield server
        service.released.set()


@pytest.fixture
async def imds(server: TestServer) -> AsyncIterator[Imds]:
    async with Imds(str(server.make_url("/"))) as imds:
        yield imds


async def failure(imds: Imds, path: str = "instance-id") -> CloudError:
    with pytest.raises(CloudError) as caught:
        await imds.read(path)
    assert caught.value.failure.action == "IMDS"
    return caught.value


async def test_identity_with_one_token(imds: Imds, service: Service) -> None:
    assert await imds.identity() == IDENTITY
    assert service.requests["token"] == 1


async def test_concurrent_reads_share_one_token(imds: Imds, service: Service) -> None:
    await asyncio.gather(*(imds.read("instance-id") for _ in range(20)))
    assert service.requests["token"] == 1


async def test_a_token_is_renewed_before_it_ends(
    imds: Imds, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    await imds.read("instance-id")
    now += module.TOKEN_SECONDS * 0.49
    await imds.read("instance-id")
    assert service.requests["token"] == 1
    now += module.TOKEN_SECONDS * 0.02
    await imds.read("instance-id")
    assert service.requests["token"] == 2


async def test_a_refused_token_is_renewed_once(imds: Imds, service: Service) -> None:
    await imds.read("instance-id")
    service.tokens[:] = ["none of the earlier ones"]
    assert await asyncio.gather(*(imds.read("instance-id") for _ in range(5))) == [IDENTITY.instance_id] * 5
    assert service.requests["token"] == 2


async def test_a_service_that_refuses_every_token_is_reported(imds: Imds, service: Service) -> None:
    service.upset["*"] = [401] * 10
    error = await failure(imds)
    assert error.failure.kind is Kind.NOT_AUTHORIZED
    assert service.requests == {"token": 2, "instance-id": 2}


@pytest.mark.parametrize("status", [500, 503, 429])
@pytest.mark.parametrize("what", ["token", "*"])
async def test_a_short_disorder_is_waited_out(imds: Imds, service: Service, what: str, status: int) -> None:
    service.upset[what] = [status] * 4
    assert await imds.read("instance-id") == IDENTITY.instance_id
    assert service.requests["token" if what == "token" else "instance-id"] == 5


async def test_a_long_disorder_is_transient(imds: Imds, service: Service) -> None:
    service.upset["token"] = [503] * 5
    error = await failure(imds)
    assert error.failure.kind is Kind.TRANSIENT
    assert error.failure.code == "503"
    assert service.requests["token"] == 5


async def test_disabled_imds_is_named_with_remedy_and_not_asked_again(imds: Imds, service: Service) -> None:
    service.upset["token"] = [403]
    error = await failure(imds)
    assert error.failure.kind is Kind.NOT_AUTHORIZED
    assert "--http-endpoint enabled" in str(error)
    assert service.requests["token"] == 1


async def test_what_is_not_there_is_not_found(imds: Imds, service: Service) -> None:
    assert (await failure(imds, "no-such-thing")).failure.kind is Kind.NOT_FOUND
    service.values["instance-id"] = "\n"
    assert (await failure(imds)).failure.kind is Kind.NOT_FOUND


@pytest.mark.parametrize("token", ["a\x01b", "two\nlines", "\x1b[2J", "", "x" * 5000, "\u00e9"])
async def test_a_token_that_is_none_is_not_used(imds: Imds, service: Service, token: str) -> None:
    service.next_token = token
    assert (await failure(imds)).failure.kind is Kind.TRANSIENT
    assert await imds.read("instance-id") == IDENTITY.instance_id


@pytest.mark.parametrize("status", [301, 400, 403, 405, 503])
async def test_a_token_that_gets_no_answer_is_not_kept(imds: Imds, service: Service, status: int) -> None:
    await imds.read("instance-id")
    service.upset["*"] = [status] * 10
    await failure(imds)
    service.upset.clear()
    before = service.requests["token"]
    assert await imds.read("instance-id") == IDENTITY.instance_id
    assert service.requests["token"] == before + 1


ODD = ["", "<html>", "banana", "\x1b[2J", "x" * 300_000, "two\nlines", "-1", "../..", "\u202e", "10.0.0.0/33", "null"]


@pytest.mark.parametrize("field", [*Service().values])
async def test_an_odd_value_is_a_typed_failure_and_learnt_anew(imds: Imds, service: Service, field: str) -> None:
    right = service.values[field]
    for odd in ODD:
        service.values[field] = odd
        try:
            found = await imds.identity()
        except CloudError as error:
            assert error.failure.action == "IMDS"
            assert error.failure.kind in (Kind.INVALID, Kind.NOT_FOUND, Kind.TRANSIENT)
            assert len(str(error)) < 1500
        else:
            assert odd in ("banana", "null", "-1", "two\nlines"), found  # such as a zone of that name
    service.values[field] = right
    assert await imds.identity() == IDENTITY


async def test_a_document_that_contradicts_is_believed_in_the_end(imds: Imds, service: Service) -> None:
    service.document = '{"instanceType": "t3.nano", "region": "eu-central-1"}'
    for _ in range(module.BELIEVED_AFTER - 1):
        with pytest.raises(CloudError, match=r"contradicts itself: instance_type is m5\.large"):
            await imds.identity()
    assert await imds.identity() == IDENTITY


@pytest.mark.parametrize("document", ["", "null", "[]", "<html>", '{"instanceType": 7}', "{", "[" * 100_000])
async def test_a_document_that_is_none_says_nothing(imds: Imds, service: Service, document: str) -> None:
    service.document = document
    assert await imds.identity() == IDENTITY


async def test_silence_is_cut_short_and_points_to_the_hop_limit(
    server: TestServer, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.05)
    service.upset["token"] = [0] * 5
    async with Imds(str(server.make_url(""))) as imds:
        error = await failure(imds)
    assert error.failure.kind is Kind.TRANSIENT
    assert "--http-put-response-hop-limit 2" in str(error)
    assert service.requests["token"] == 5


async def test_a_slow_answer_is_tried_again(
    server: TestServer, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.5)
    service.upset["*"] = [0]
    async with Imds(str(server.make_url(""))) as imds:
        assert await imds.read("instance-id") == IDENTITY.instance_id


async def test_nobody_there(service: Service) -> None:
    with socket.socket() as bound:  # bound but not listening: refused for sure
        bound.bind(("127.0.0.1", 0))
        async with Imds(f"http://127.0.0.1:{bound.getsockname()[1]}") as imds:
            error = await failure(imds)
    assert error.failure.kind is Kind.TRANSIENT
    assert "imds.endpoint" in str(error)


@pytest.mark.parametrize("endpoint", ["169.254.169.254", "http://", "ftp://169.254.169.254", ""])
async def test_an_endpoint_that_is_no_url_is_named(endpoint: str, service: Service) -> None:
    async with Imds(endpoint) as imds:
        error = await failure(imds)
    assert error.failure.kind is Kind.INVALID
    assert f"imds.endpoint {endpoint.rstrip('/')!r}" in str(error)


async def test_nonsense_is_not_taken_for_an_identity(imds: Imds, service: Service) -> None:
    service.values["local-ipv4"] = "<html>log in here</html>"
    with pytest.raises(CloudError, match="nonsense") as caught:
        await imds.identity()
    assert caught.value.failure.kind is Kind.INVALID
    service.values["local-ipv4"] = "10.0.0.9"
    assert await imds.identity() == replace(IDENTITY, primary_ip="10.0.0.9")


async def test_cidrs_of_the_vpc_are_read_alone(imds: Imds, service: Service) -> None:
    assert await imds.vpc_cidrs(MAC) == IDENTITY.vpc_cidrs
    assert service.requests == {"token": 1, f"{ENI}/vpc-ipv4-cidr-blocks": 1}


@pytest.mark.parametrize("text", ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.1/16", "10.0.0.0/29", "<html>"])
async def test_cidrs_that_no_vpc_has_are_refused(imds: Imds, service: Service, text: str) -> None:
    service.values[f"{ENI}/vpc-ipv4-cidr-blocks"] = f"10.0.0.0/16 {text}"
    with pytest.raises(CloudError, match="vpc-ipv4-cidr-blocks"):
        await imds.vpc_cidrs(MAC)
