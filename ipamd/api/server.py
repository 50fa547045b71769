"""The gRPC servers on their Unix sockets: one for root with all services, health and reflection, and one for a group
that may look."""

from __future__ import annotations

import grp
import os
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ipamd.api.administration import AdministrationService
from ipamd.api.introspection import IntrospectionService
from ipamd.api.ipam import IpamService
from ipamd.api.place import SocketUnusable, claim, reading_group
from ipamd.api.timing import CallTimes
from ipamd.api.v1 import (
    administration_pb2,
    administration_pb2_grpc,
    introspection_pb2,
    introspection_pb2_grpc,
    ipam_pb2,
    ipam_pb2_grpc,
)
from ipamd.settings import ApiSettings

SERVICES = (
    ipam_pb2.DESCRIPTOR.services_by_name["Ipam"].full_name,
    introspection_pb2.DESCRIPTOR.services_by_name["Introspection"].full_name,
    administration_pb2.DESCRIPTOR.services_by_name["Administration"].full_name,
)


class ApiServer:
    def __init__(
        self,
        settings: ApiSettings,
        ipam: IpamService,
        introspection: IntrospectionService,
        administration: AdministrationService,
        times: CallTimes,
    ) -> None:
        self._settings = settings
        self._times = times
        self._introspection = introspection
        self._health = _Health()
        self._server = self._make()
        ipam_pb2_grpc.add_IpamServicer_to_server(ipam, self._server)
        introspection_pb2_grpc.add_IntrospectionServicer_to_server(introspection, self._server)
        administration_pb2_grpc.add_AdministrationServicer_to_server(administration, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        self._reader: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Raises `SocketUnusable`."""
        claim(self._settings)
        _listen(self._server, self._settings.socket, 0o600, "api.socket")
        await self._server.start()
        await self.set_serving(False)
        if self._settings.read_group:
            await self._start_reader()

    async def _start_reader(self) -> None:
        self._reader = self._make()
        introspection_pb2_grpc.add_IntrospectionServicer_to_server(self._introspection, self._reader)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._reader)
        _listen(self._reader, self._settings.read_socket, 0o660, "api.read_socket", reading_group(self._settings))
        await self._reader.start()

    def _make(self) -> grpc.aio.Server:
        return grpc.aio.server(interceptors=[self._times], options=[("grpc.so_reuseport", 0)])

    async def set_serving(self, serving: bool) -> None:
        state = health_pb2.HealthCheckResponse
        for service in ("", *SERVICES):
            await self._health.set(service, state.SERVING if serving else state.NOT_SERVING)

    async def stop(self, grace: float) -> None:
        await self._health.enter_graceful_shutdown()
        if self._reader is not None:
            await self._reader.stop(grace)
            self._settings.read_socket.unlink(missing_ok=True)
        await self._server.stop(grace)
        self._settings.socket.unlink(missing_ok=True)


class _Health(health.aio.HealthServicer):
    """With the method List, which the library leaves out: each call of it ended in a traceback in the log."""

    async def List(self, request: Any, context: Any) -> Any:
        return health_pb2.HealthListResponse(  # type: ignore[attr-defined] # its stubs are older
            statuses={
                service: await self.Check(health_pb2.HealthCheckRequest(service=service), context)
                for service in ("", *SERVICES)
            }
        )


def _listen(server: grpc.aio.Server, path: Path, mode: int, setting: str, group: int | None = None) -> None:
    """Raises `SocketUnusable`."""
    before = os.umask(0o177)  # nobody else from its first moment on
    try:
        server.add_insecure_port(f"unix:{path}")
        if group is not None:
            _give(path, group, setting)
        path.chmod(mode)
    except (OSError, RuntimeError) as error:
        raise SocketUnusable(f"{setting} {path} can't be served: {error}") from None
    finally:
        os.umask(before)


def _give(path: Path, group: int, setting: str) -> None:
    """Raises `SocketUnusable`, OSError."""
    try:
        os.chown(path, -1, group)
    except PermissionError:
        # chown(2): it takes CAP_CHOWN, which the systemd unit withholds, or to be in the group.
        raise SocketUnusable(
            f"{setting} {path} can't be given to the group {grp.getgrgid(group).gr_name}: let the daemon be in it, "
            "as the drop-in readers.conf of docs/systemd.md does"
        ) from None
