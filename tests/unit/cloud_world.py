"""What the tests of the EC2 adapter share: the project's own double on loopback, and an adapter in front of it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from botocore.loaders import Loader

from ipamd.cloud import model
from ipamd.cloud.budget import RateBudget
from ipamd.cloud.ec2 import Ec2
from ipamd.cloud.imds import Imds
from ipamd.cloud.ownership import CLUSTER_TAG, CREATED_TAG, INSTANCE_TAG
from ipamd.cloud.port import CloudError, Identity
from ipamd.pool.model import CloudErrorKind as Kind
from ipamd.pool.model import CreatedEni, Limits
from ipamd.settings import Ec2Settings, ImdsSettings
from ipamd.sim.ec2.api import Ec2Api
from ipamd.sim.ec2.cloud import Delays, SimulatedCloud
from ipamd.sim.ec2.faults import CallLog, Faults
from ipamd.sim.ec2.rules import Instance
from ipamd.sim.ec2.rules.throttle import Throttle
from ipamd.sim.imds import INSTANCE_HEADER
from ipamd.sim.imds import Imds as SimulatedImds

SUBNET = "10.0.0.0/26"
LIMITS = {"m5.large": Limits(3, 10), "new9.large": Limits(5, 7)}
AT_ONCE = Delays(create=0, attach=0, detach=0, assign=0, link=0, imds_lag=0)
MODELS = Loader()


class World:
    """The double on loopback, and the adapter of one instance in it."""

    def __init__(self) -> None:
        self.cloud = SimulatedCloud("10.0.0.0/16", limits=LIMITS, delays=AT_ONCE)
        self.faults, self.calls, self.throttle = Faults(), CallLog(), Throttle()
        self.subnet = self.cloud.add_subnet(SUBNET)
        self.instance: Instance
        self.ec2: Ec2
        self.identity: Identity
        self.ec2_server = TestServer(Ec2Api(self.cloud, self.faults, self.calls, self.throttle).application())
        metadata = SimulatedImds(self.cloud, self.faults).application()
        metadata.middlewares.append(self.name_the_instance)
        self.imds_server = TestServer(metadata)
        self.has_role = True
        self.metadata: dict[str, str] = {}  # what the end of a path answers instead
        self.settings = Ec2Settings(tags={"team": "net"}, timeout=5)

    @web.middleware
    async def name_the_instance(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Loopback is no instance's address, and botocore can't be made to send the double's header."""
        if "/iam/" in request.path and not self.has_role:
            raise web.HTTPNotFound
        for end, text in self.metadata.items():
            if request.path.endswith(end):
                return web.Response(text=text)
        return await handler(request.clone(headers={**request.headers, INSTANCE_HEADER: self.instance.id}))

    async def start(self) -> None:
        self.instance = await self.cloud.add_instance("n1", "m5.large", self.subnet.id)
        await self.ec2_server.start_server()
        await self.imds_server.start_server()
        self.settings = self.settings.model_copy(update={"endpoint": str(self.ec2_server.make_url(""))})
        self.imds_settings = ImdsSettings(endpoint=str(self.imds_server.make_url("")))
        async with Imds(self.imds_settings.endpoint) as imds:
            self.identity = await imds.identity()

    async def stop(self) -> None:
        await self.ec2_server.close()
        await self.imds_server.close()
        await self.cloud.close()

    def adapter(self, budget: RateBudget | None = None, **changes: object) -> Ec2:
        settings = self.settings.model_copy(update=changes)
        return Ec2(settings, self.imds_settings, self.identity, budget or RateBudget())

    async def left_behind(self, maker: str, cluster: str = "prod") -> str:
        """An unattached ENI of another instance."""
        tags = {INSTANCE_TAG: maker, CLUSTER_TAG: cluster, CREATED_TAG: "2026-01-31T12:00:00+00:00"}
        return (await self.cloud.create_eni(self.subnet.id, tags=tags)).id

    def actions(self) -> list[tuple[str, str]]:
        return [(call["action"], call["outcome"]) for call in self.calls.as_json()]

    async def create(self, count: int = 2, token: str = "t") -> CreatedEni:
        groups = self.identity.security_groups
        return await self.ec2.create_eni(
            token=token, subnet_id=self.subnet.id, security_groups=groups, address_count=count
        )

    async def attached(self, count: int = 2, index: int = 1) -> tuple[CreatedEni, str]:
        eni = await self.create(count, token=f"t{index}")
        attachment = await self.ec2.attach_eni(eni.id, index)
        await self.cloud.settle()
        return eni, attachment


@asynccontextmanager
async def serving_world() -> AsyncIterator[World]:
    world = World()
    await world.start()
    try:
        async with world.adapter() as world.ec2:
            yield world
    finally:
        await world.stop()


def shut_out(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """No configuration from outside, and the EC2 model, 150 ms of JSON, read once for all."""
    for name in os.environ:
        if name.startswith("AWS_") or name.lower() in ("http_proxy", "https_proxy", "no_proxy"):
            monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(folder / "none"))
    monkeypatch.setattr(model, "loader", lambda: MODELS)


async def kind_of(call: Awaitable[object]) -> Kind:
    with pytest.raises(CloudError) as caught:
        await call
    return caught.value.failure.kind
