"""Which requests go by a proxy, and how it is configured: never those to the metadata service."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from ipamd.cloud.port import CloudError
from ipamd.cloud.proxies import ProxyUnusable, proxy_for, words
from ipamd.pool.model import CloudErrorKind as Kind
from tests.unit.cloud_world import World

EC2 = "https://ec2.eu-central-1.amazonaws.com"
ADDRESS = "http://10.0.0.4:8080"


@pytest.mark.parametrize(
    ("url", "variables", "proxy"),
    [
        (EC2, {}, ""),
        (EC2, {"HTTP_PROXY": "http://p:1"}, ""),
        (EC2, {"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        (EC2, {"https_proxy": "p:1"}, "http://p:1"),
        (EC2, {"HTTPS_PROXY": "//p:1"}, "http://p:1"),
        (EC2, {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "amazonaws.com"}, ""),
        (EC2, {"HTTPS_PROXY": "http://p:1", "NO_PROXY": ".example, 10.0.0.0/8"}, "http://p:1"),
        (ADDRESS, {"HTTP_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, ""),
        (ADDRESS, {"HTTP_PROXY": "http://p:1", "NO_PROXY": "10.1.0.0/16,nonsense/99"}, "http://p:1"),
        ("http://[fd00::1]:80", {"HTTP_PROXY": "http://p:1", "NO_PROXY": "fd00::/8"}, ""),
        (ADDRESS, {"HTTP_PROXY": "http://p:1", "NO_PROXY": "*"}, ""),
    ],
)
def test_the_proxy_of_a_url(
    world: World, monkeypatch: pytest.MonkeyPatch, url: str, variables: dict[str, str], proxy: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(url) == proxy


@pytest.mark.parametrize("proxy", ["socks5://p:1", "http://", "http://[p", "http://p:port", "ftp://p:21"])
async def test_a_proxy_of_no_usable_form_is_named_and_nothing_is_sent(
    world: World, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(ProxyUnusable):
        proxy_for(ADDRESS)
    async with world.adapter() as ec2:
        with pytest.raises(CloudError, match="HTTP_PROXY is no proxy") as caught:
            await ec2.delete_eni("eni-00000000000000000")
    assert caught.value.failure.kind is Kind.INVALID
    assert world.actions() == []


def test_a_password_in_the_proxy_is_not_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy.example:3128")
    assert words(EC2) == (
        "the request goes by HTTPS_PROXY=http://proxy.example:3128: check that proxy, or name "
        "ec2.eu-central-1.amazonaws.com in NO_PROXY"
    )


class Proxy:
    """It refuses all, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(f"{request.method} {request.url}")
        return web.Response(status=403, text="ERR_ACCESS_DENIED")


@pytest.fixture
async def proxy(world: World, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    proxy = Proxy()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", proxy.answer)
    async with TestServer(app) as server:
        monkeypatch.setenv("HTTP_PROXY", str(server.make_url("")).rstrip("/"))
        yield proxy


async def test_the_metadata_service_is_never_asked_through_a_proxy(world: World, proxy: Proxy) -> None:
    async with world.adapter() as ec2:
        with pytest.raises(CloudError) as caught:
            await ec2.describe_enis()
    # Whatever went there was for EC2, signed with credentials that came directly.
    assert proxy.asked == [f"POST {world.settings.endpoint}/"]
    told = str(caught.value)
    assert "HTTP 403" in told and "ERR_ACCESS_DENIED" in told
    assert "HTTP_PROXY=http://127.0.0.1" in told and "NO_PROXY" in told
    assert caught.value.failure.kind is Kind.TRANSIENT


async def test_network_in_no_proxy_holds_for_endpoint_that_is_address(
    world: World, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.0/8")
    async with world.adapter() as ec2:
        assert len(await ec2.describe_enis()) == 1
    assert proxy.asked == []


async def test_a_proxy_that_is_not_there_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "127.0.0.1:1")
    async with world.adapter() as ec2:
        with pytest.raises(CloudError, match=r"HTTP_PROXY=http://127.0.0.1:1.*NO_PROXY") as caught:
            await ec2.delete_eni("eni-00000000000000000")
    assert caught.value.failure.kind is Kind.TRANSIENT
