"""The gRPC servers on their Unix sockets: one for root with all services, health and reflection, and one for a group
that may look."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ipamd.api import bounds
from ipamd.api.listening import listen, serve_until_lost, until_lost
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
from ipamd.process.supervision import Unserved
from ipamd.settings import ApiSettings

log = structlog.get_logger("ipamd.api")

# Seconds for running calls on a socket that is no longer at its path.
LOST_GRACE = 0.5

SERVICES = (
    ipam_pb2.DESCRIPTOR.services_by_name["Ipam"].full_name,
    introspection_pb2.DESCRIPTOR.services_by_name["Introspection"].full_name,
    administration_pb2.DESCRIPTOR.services_by_name["Administration"].full_name,
)


@dataclass(frozen=True, slots=True)
class Services:
    """The servicers. While the daemon starts they are others than afterwards."""

    ipam: ipam_pb2_grpc.IpamServicer
    introspection: introspection_pb2_grpc.IntrospectionServicer
    administration: administration_pb2_grpc.AdministrationServicer


class _Methods(grpc.GenericRpcHandler):
    """The methods of one server. Servicers are added as to a server, and may be replaced while it serves: a running
    call ends with the servicer that it began with."""

    def __init__(self) -> None:
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._handlers.get(details.method)

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        self._handlers.update({f"/{service}/{name}": handler for name, handler in handlers.items()})

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """The same once more, in another form."""


class ApiServer:
    """`use` says who answers; it comes before `start`."""

    def __init__(self, settings: ApiSettings, times: CallTimes) -> None:
        self._settings = settings
        self._times = times
        self._served = False
        self._health = _Health()
        self._methods, self._readable = _Methods(), _Methods()
        for methods in (self._methods, self._readable):
            health_pb2_grpc.add_HealthServicer_to_server(self._health, methods)  # type: ignore[arg-type]
        self._server = self._make_main()

    def use(self, services: Services) -> None:
        """From now on these servicers answer new calls."""
        for methods in (self._methods, self._readable):
            introspection_pb2_grpc.add_IntrospectionServicer_to_server(services.introspection, methods)
        ipam_pb2_grpc.add_IpamServicer_to_server(services.ipam, self._methods)
        administration_pb2_grpc.add_AdministrationServicer_to_server(services.administration, self._methods)

    async def start(self) -> None:
        """Raises `SocketUnusable`; call `stop` in either case."""
        await self._serve()
        await self.set_serving(False)

    async def keep_served(self, well: Callable[[], None]) -> None:
        """Serve again each time that the socket was removed or replaced, until cancelled. Running calls are cut off
        then: the plugin repeats them. Raises `Unserved`."""
        while True:
            if not self._served:
                self._server = self._make_main()
                try:
                    await self._serve()
                except SocketUnusable as error:
                    raise Unserved(f"No pod can start or end: {error}.", socket=str(self._settings.socket)) from None
                log.warning("api.served_again", socket=str(self._settings.socket))
            well()
            await until_lost(self._settings.socket)
            self._served = False
            await self._server.stop(LOST_GRACE)

    async def _serve(self) -> None:
        """Raises `SocketUnusable`."""
        claim(self._settings)
        listen(self._server, self._settings.socket, 0o600, "api.socket")
        await self._server.start()
        self._served = True

    def _make_main(self) -> grpc.aio.Server:
        server = grpc.aio.server(
            interceptors=[self._times], options=bounds.main_options(), maximum_concurrent_rpcs=bounds.CALLS
        )
        server.add_generic_rpc_handlers((self._methods,))
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        return server

    async def serve_readers(self, well: Callable[[], None]) -> None:
        """Serve the reading group until cancelled; `well` is called each time that the socket is served. Raises
        `Unserved`."""
        path = self._settings.read_socket
        while True:
            try:
                group = reading_group(self._settings)
                await serve_until_lost(self._make_reader(), path, 0o660, "api.read_socket", well, group)
            except SocketUnusable as error:
                raise Unserved(f"The reading group is not served: {error}.", socket=str(path)) from None

    def _make_reader(self) -> grpc.aio.Server:
        server = grpc.aio.server(
            interceptors=[bounds.Pace(), self._times],
            options=bounds.reading_options(),
            maximum_concurrent_rpcs=bounds.readers() * bounds.CALLS_OF_READER,
        )
        server.add_generic_rpc_handlers((self._readable,))
        return server

    async def set_serving(self, serving: bool) -> None:
        state = health_pb2.HealthCheckResponse
        for service in ("", *SERVICES):
            await self._health.set(service, state.SERVING if serving else state.NOT_SERVING)

    async def stop(self, grace: float) -> None:
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace)
        if self._served:
            self._settings.socket.unlink(missing_ok=True)


class _Health(health.aio.HealthServicer):
    """Adds the method List, which the library lacks: each call of it would log a traceback."""

    async def List(self, request: Any, context: Any) -> Any:
        return health_pb2.HealthListResponse(  # type: ignore[attr-defined] # its stubs are older
            statuses={
                service: await self.Check(health_pb2.HealthCheckRequest(service=service), context)
                for service in ("", *SERVICES)
            }
        )
