"""The double's three faces on sockets that were opened elsewhere, most likely in another network namespace."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack, asynccontextmanager
from typing import Final

from aiohttp import web

from ipamd.sim import control, imds
from ipamd.sim.ec2 import wire
from ipamd.sim.ec2.api import Ec2Api
from ipamd.sim.ec2.cloud import SimulatedCloud
from ipamd.sim.ec2.faults import CallLog, Fault, Faults
from ipamd.sim.ec2.rules.throttle import Throttle
from ipamd.sim.imds import DEFAULT_HOP_LIMIT

_GRACE: Final = 0.1  # seconds for calls in flight when the servers stop


class CloudServers:
    """Serves one cloud: the EC2 API, instance metadata and control. Takes over the listening sockets.

    `script` holds the faults to begin with, whose time runs from `start`; `hop_limit` is that of metadata tokens.
    """

    def __init__(
        self,
        cloud: SimulatedCloud,
        *,
        ec2: socket.socket,
        imds: socket.socket,
        control: socket.socket,
        throttle: Throttle | None = None,
        script: Iterable[Fault] = (),
        hop_limit: int = DEFAULT_HOP_LIMIT,
    ) -> None:
        self.cloud = cloud
        self.faults = Faults()
        self.calls = CallLog()
        self.throttle = throttle or Throttle()
        self._script = tuple(script)
        self._hop_limit = hop_limit
        self._sockets = {"ec2": ec2, "imds": imds, "control": control}
        self._runners: list[web.AppRunner] = []

    @property
    def ec2_url(self) -> str:
        return _url(self._sockets["ec2"])

    @property
    def imds_url(self) -> str:
        return _url(self._sockets["imds"])

    @property
    def control_url(self) -> str:
        return _url(self._sockets["control"])

    async def start(self) -> None:
        await asyncio.to_thread(wire.service_model)  # not in the time of the first call
        applications = {
            "ec2": Ec2Api(self.cloud, self.faults, self.calls, self.throttle).application(),
            "imds": imds.Imds(self.cloud, self.faults, self._hop_limit).application(),
            "control": control.Control(self.cloud, self.faults, self.calls, self.throttle).application(),
        }
        for fault in self._script:
            self.faults.add(fault)
        for name, application in applications.items():
            runner = web.AppRunner(application, access_log=None, shutdown_timeout=_GRACE)
            self._runners.append(runner)
            await runner.setup()
            await web.SockSite(runner, self._sockets[name]).start()

    async def stop(self) -> None:
        """Stop serving, and what goes on in the cloud; closes the sockets. The cloud's state can still be read."""
        for runner in self._runners:
            await runner.cleanup()
        for listener in self._sockets.values():
            listener.close()
        await self.cloud.close()


@asynccontextmanager
async def serve_on_loopback(cloud: SimulatedCloud) -> AsyncIterator[CloudServers]:
    """A cloud without packets, served on free ports of 127.0.0.1."""
    with ExitStack() as stack:
        ec2, imds, control = (stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3))
        servers = CloudServers(cloud, ec2=ec2, imds=imds, control=control)
        try:
            await servers.start()
            yield servers
        finally:
            await servers.stop()


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()
    return f"http://{host}:{port}"
