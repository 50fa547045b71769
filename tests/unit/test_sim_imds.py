"""Instance metadata of the double: tokens, the tree, its lag behind EC2, and credentials that EC2 then accepts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

import aiohttp
import pytest
from aiobotocore.session import AioSession  # type: ignore[import-untyped]
from aiobotocore.utils import AioInstanceMetadataFetcher  # type: ignore[import-untyped]

from ipamd.pool.model import Limits
from ipamd.sim.ec2.cloud import Delays, SimulatedCloud
from ipamd.sim.ec2.faults import Fault
from ipamd.sim.ec2.metadata import EniMetadata, Lagging
from ipamd.sim.ec2.rules import Ask, Instance, Subnet
from ipamd.sim.imds import INSTANCE_HEADER, ROLE
from ipamd.sim.servers import CloudServers, serve_on_loopback

TTL = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN = "X-aws-ec2-metadata-token"
AT_ONCE = Delays(create=0, attach=0, detach=0, assign=0, link=0, imds_lag=0)


@dataclass
class Node:
    cloud: SimulatedCloud
    servers: CloudServers
    subnet: Subnet
    instance: Instance
    http: aiohttp.ClientSession

    async def token(self, ttl: str = "60", instance: Instance | None = None) -> str:
        headers = {TTL: ttl, INSTANCE_HEADER: (instance or self.instance).id}
        async with self.http.put("/latest/api/token", headers=headers) as reply:
            assert reply.status == 200
            assert reply.headers[TTL] == ttl
            return await reply.text()

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        if TOKEN not in headers:
            headers[TOKEN] = await self.token()
        headers.setdefault(INSTANCE_HEADER, self.instance.id)
        async with self.http.get(path, headers=headers) as reply:
            return reply.status, await reply.text()

    async def text(self, path: str) -> str:
        status, text = await self.get(f"/latest/{path}")
        assert status == 200, text
        return text


@asynccontextmanager
async def running(delays: Delays = AT_ONCE) -> AsyncIterator[Node]:
    cloud = SimulatedCloud("10.0.0.0/16", limits={"m5.large": Limits(3, 10)}, delays=delays)
    subnet = cloud.add_subnet("10.0.0.0/24")
    instance = await cloud.add_instance("n1", "m5.large", subnet.id)
    async with serve_on_loopback(cloud) as servers, aiohttp.ClientSession(servers.imds_url) as http:
        yield Node(cloud, servers, subnet, instance, http)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with running() as node:
        yield node


async def test_an_instance_reads_who_and_where_it_is(node: Node) -> None:
    instance, primary = node.instance, node.instance.primary
    assert await node.text("meta-data/instance-id") == instance.id
    assert await node.text("meta-data/instance-type") == "m5.large"
    assert await node.text("meta-data/mac") == primary.mac
    assert await node.text("meta-data/local-ipv4") == primary.addresses[0]
    assert await node.text("meta-data/placement/region") == "eu-central-1"
    assert await node.text("meta-data/placement/availability-zone") == "eu-central-1a"
    assert await node.text("meta-data/services/partition") == "aws"
    document = json.loads(await node.text("dynamic/instance-identity/document"))
    assert document["instanceId"] == instance.id
    assert document["region"] == "eu-central-1"
    assert document["privateIp"] == primary.addresses[0]


async def test_every_eni_is_a_directory_under_its_mac(node: Node) -> None:
    eni = await node.cloud.create_eni(node.subnet.id, Ask(2))
    node.cloud.attach_eni(eni.id, node.instance.id, 1)
    await node.cloud.settle()
    macs = "meta-data/network/interfaces/macs"
    assert await node.text(macs) == f"{node.instance.primary.mac}/\n{eni.mac}/"
    facts = {
        "interface-id": eni.id,
        "device-number": "1",
        "local-ipv4s": "\n".join(eni.addresses),
        "subnet-id": node.subnet.id,
        "subnet-ipv4-cidr-block": "10.0.0.0/24",
        "vpc-id": node.cloud.rules.vpc_id,
        "vpc-ipv4-cidr-blocks": "10.0.0.0/16",
        "security-group-ids": node.cloud.rules.default_group.id,
    }
    for name, value in facts.items():
        assert await node.text(f"{macs}/{eni.mac}/{name}") == value
    assert set(facts) <= set((await node.text(f"{macs}/{eni.mac}/")).split("\n"))


async def test_listings_and_what_is_not_there(node: Node) -> None:
    assert (await node.text("")).split("\n") == ["dynamic/", "meta-data/"]
    listing = (await node.text("meta-data/")).split("\n")
    assert {"instance-id", "iam/", "network/", "placement/"} <= set(listing)
    for path in ("/latest/meta-data/colour", "/latest/meta-data/mac/x", "/2016/meta-data/", "/latest/user-data"):
        assert (await node.get(path))[0] == 404


async def test_nothing_is_told_without_a_token(node: Node) -> None:
    other = await node.cloud.add_instance("n2", "m5.large", node.subnet.id)
    for token in ("", "made-up", await node.token(instance=other)):
        assert (await node.get("/latest/meta-data/mac", **{TOKEN: token}))[0] == 401
    token = await node.token()
    assert (await node.get("/latest/meta-data/mac", **{TOKEN: token}))[0] == 200


async def test_a_token_ends(node: Node) -> None:
    token = await node.token(ttl="1")
    for _ in range(300):
        if (await node.get("/latest/meta-data/mac", **{TOKEN: token}))[0] == 401:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("it is still good after its time")


@pytest.mark.parametrize("ttl", ["", "0", "21601", "-5", "long"])
async def test_a_token_has_a_life_of_a_second_to_six_hours(node: Node, ttl: str) -> None:
    headers = {TTL: ttl, INSTANCE_HEADER: node.instance.id}
    async with node.http.put("/latest/api/token", headers=headers) as reply:
        assert reply.status == 400


async def test_no_token_through_a_proxy(node: Node) -> None:
    headers = {TTL: "60", INSTANCE_HEADER: node.instance.id, "X-Forwarded-For": "10.0.0.4"}
    async with node.http.put("/latest/api/token", headers=headers) as reply:
        assert reply.status == 403


async def test_only_running_instances_are_told_anything(node: Node) -> None:
    async with node.http.put("/latest/api/token", headers={TTL: "60"}) as reply:
        assert reply.status == 404
        assert "127.0.0.1 is no running instance's address" in await reply.text()
    token = await node.token()
    await node.cloud.terminate(node.instance.id)
    assert (await node.get("/latest/meta-data/mac", **{TOKEN: token}))[0] == 404


async def test_any_address_of_an_instance_tells_which_it_is(node: Node) -> None:
    eni = await node.cloud.create_eni(node.subnet.id, Ask(1))
    assert node.cloud.instance_at(eni.addresses[1]) is None
    node.cloud.attach_eni(eni.id, node.instance.id, 1)
    for address in (*node.instance.primary.addresses, *eni.addresses):
        assert node.cloud.instance_at(address) is node.instance
    assert node.cloud.instance_at("10.0.0.99") is None


async def test_metadata_is_behind_ec2() -> None:
    async with running(Delays(create=0, attach=0, detach=0, assign=0, link=0, imds_lag=3600)) as node:
        path = f"meta-data/network/interfaces/macs/{node.instance.primary.mac}/local-ipv4s"
        first = await node.text(path)
        await node.cloud.assign(node.instance.primary.id, Ask(2))
        assert await node.text(path) == first == node.instance.primary.addresses[0]
    async with running() as node:
        path = f"meta-data/network/interfaces/macs/{node.instance.primary.mac}/local-ipv4s"
        await node.cloud.assign(node.instance.primary.id, Ask(2))
        assert (await node.text(path)).split("\n") == node.instance.primary.addresses


def test_each_change_shows_after_the_lag() -> None:
    def enis(count: int) -> tuple[EniMetadata, ...]:
        subnet = Subnet("subnet-1", "10.0.0.0/24", "a", Random(1))
        return tuple(EniMetadata(f"eni-{n}", "", n, (), subnet, ()) for n in range(count))

    lagging = Lagging(2.0)
    assert lagging.read(10.0) == ()
    for at, count in ((10.0, 1), (11.0, 2), (11.5, 3)):
        lagging.record(at, enis(count))
    assert [len(lagging.read(at)) for at in (10.0, 12.9, 13.0, 13.4, 13.5, 99.0)] == [1, 1, 2, 2, 3, 3]


async def test_eni_shows_once_it_is_attached_and_no_longer_than_that(node: Node) -> None:
    macs = "meta-data/network/interfaces/macs"
    eni = await node.cloud.create_eni(node.subnet.id)
    attachment = node.cloud.attach_eni(eni.id, node.instance.id, 1)
    assert eni.mac not in await node.text(macs) or attachment.status == "attached"
    await node.cloud.settle()
    assert eni.mac in await node.text(macs)
    node.cloud.detach_eni(attachment.id)
    await node.cloud.settle()
    assert eni.mac not in await node.text(macs)


async def test_botocore_gets_credentials_that_ec2_accepts(node: Node) -> None:
    fetcher = AioInstanceMetadataFetcher(
        timeout=5,
        num_attempts=1,
        base_url=node.servers.imds_url + "/",
        config={"ec2_metadata_service_endpoint": node.servers.imds_url},
    )
    # The fetcher has no way to send a header; the instance's address is where it calls from instead.
    node.instance.primary.addresses[0] = "127.0.0.1"
    found = await fetcher.retrieve_iam_role_credentials()
    assert found["role_name"] == ROLE
    async with AioSession().create_client(
        "ec2",
        endpoint_url=node.servers.ec2_url,
        region_name="eu-central-1",
        aws_access_key_id=found["access_key"],
        aws_secret_access_key=found["secret_key"],
        aws_session_token=found["token"],
    ) as ec2:
        await ec2.describe_subnets()
    assert node.servers.calls.as_json()[-1]["instance"] == node.instance.id


async def test_renewed_credentials_come_early_and_old_ones_stay_valid(node: Node) -> None:
    path = f"meta-data/iam/security-credentials/{ROLE}"
    first = json.loads(await node.text(path))
    assert first == json.loads(await node.text(path))
    node.cloud.keyring.lifetime *= 10  # now less than a quarter of a life is left
    second = json.loads(await node.text(path))
    assert second["AccessKeyId"] != first["AccessKeyId"]
    assert second["Expiration"] > first["Expiration"]
    headers = {
        "Authorization": f"AWS4-HMAC-SHA256 Credential={first['AccessKeyId']}/20260101/x/ec2/aws4_request, more",
        "X-Amz-Security-Token": first["Token"],
    }
    assert node.cloud.keyring.caller(headers) == node.instance.id


async def test_faults_of_metadata(node: Node) -> None:
    node.servers.faults.add(Fault("imds", "503", times=1))
    async with node.http.put("/latest/api/token", headers={TTL: "60"}) as reply:
        assert reply.status == 503
    token = await node.token()
    node.servers.faults.add(Fault("imds", "401", times=1))
    assert (await node.get("/latest/meta-data/mac", **{TOKEN: token}))[0] == 401
    node.servers.faults.add(Fault("imds", "timeout", delay=0))  # always: aiohttp repeats a GET that was cut off
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await node.get("/latest/meta-data/mac", **{TOKEN: token})
    node.servers.faults.clear()
    node.servers.faults.add(Fault("*", "InternalError"))  # any EC2 call: metadata isn't one
    assert (await node.get("/latest/meta-data/mac", **{TOKEN: token}))[0] == 200
