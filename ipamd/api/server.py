"""The gRPC server on its Unix socket: our services, health and reflection."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ipamd.api.introspection import IntrospectionService
from ipamd.api.ipam import IpamService
from ipamd.api.v1 import introspection_pb2, introspection_pb2_grpc, ipam_pb2, ipam_pb2_grpc

SERVICES = (
    ipam_pb2.DESCRIPTOR.services_by_name["Ipam"].full_name,
    introspection_pb2.DESCRIPTOR.services_by_name["Introspection"].full_name,
)


class SocketUnusable(Exception):
    """The socket's path can't be served; the message says why."""


class ApiServer:
    def __init__(self, path: Path, ipam: IpamService, introspection: IntrospectionService) -> None:
        self._path = path
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        ipam_pb2_grpc.add_IpamServicer_to_server(ipam, self._server)
        introspection_pb2_grpc.add_IntrospectionServicer_to_server(introspection, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    async def start(self) -> None:
        """Serve root alone. Raises `SocketUnusable`."""
        claim(self._path)
        before = os.umask(0o177)
        try:
            self._server.add_insecure_port(f"unix:{self._path}")
        except RuntimeError as error:
            raise SocketUnusable(f"api.socket {self._path} can't be served: {error}") from None
        finally:
            os.umask(before)
        await self._server.start()
        await self.set_serving(False)

    async def set_serving(self, serving: bool) -> None:
        state = health_pb2.HealthCheckResponse
        for service in ("", *SERVICES):
            await self._health.set(service, state.SERVING if serving else state.NOT_SERVING)

    async def stop(self, grace: float) -> None:
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace)
        self._path.unlink(missing_ok=True)


def claim(path: Path) -> None:
    """Take away the socket of a daemon that died; never that of one that lives. To be called before anything is
    changed on the node: a second daemon on it must do no harm. Raises `SocketUnusable`."""
    if len(os.fsencode(path)) > 107:
        raise SocketUnusable(f"api.socket {path} is longer than the 107 bytes that a Unix socket's path may have")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not path.exists():
            return
        if not path.is_socket():
            raise SocketUnusable(f"api.socket {path} is no socket: remove it, or set another path")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            else:
                raise SocketUnusable(
                    f"api.socket {path}: another ipamd serves it: stop that one, or give this one its own api.socket"
                )
    except OSError as error:
        raise SocketUnusable(f"api.socket {path} can't be served: {error.strerror or error}") from None
