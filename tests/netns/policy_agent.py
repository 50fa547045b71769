"""A stand-in for AWS's network policy agent at its socket: it keeps filters by pods' names and finds links by theirs,
as that one does, and filters nothing."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ipamd.policy.aws import policy_agent_pb2 as pb
from ipamd.policy.aws import policy_agent_pb2_grpc
from ipamd.sim import netns

Pod = tuple[str, str]  # namespace, name


class PolicyAgent(policy_agent_pb2_grpc.NPBackendServicer):
    """`filters`: by pod, the real name of the link that it is filtered at. `calls`: what came, in order. While
    `holding` is set, EnforceNpToPod is answered only after it."""

    def __init__(self, folder: Path, host: str) -> None:
        self._socket = folder / "npa.sock"
        self._host = host
        self._server: grpc.aio.Server | None = None
        self.filters: dict[Pod, str] = {}
        self.calls: list[tuple[str, Pod]] = []
        self.modes: set[str] = set()
        self.holding: asyncio.Event | None = None

    async def start(self) -> None:
        self._server = grpc.aio.server()
        policy_agent_pb2_grpc.add_NPBackendServicer_to_server(self, self._server)
        status = health.aio.HealthServicer()
        await status.set("grpc.health.v1.np-agent", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(status, self._server)
        self._server.add_insecure_port(f"unix:{self._socket}")
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None
            self._socket.unlink(missing_ok=True)

    async def EnforceNpToPod(self, request: Any, context: Any) -> Any:
        pod = (request.K8S_POD_NAMESPACE, request.K8S_POD_NAME)
        self.calls.append(("enforce", pod))
        self.modes.add(request.NETWORK_POLICY_MODE)
        assert request.InterfaceCount == 1
        if self.holding is not None:
            await self.holding.wait()
        if pod not in self.filters:
            try:
                self.filters[pod] = self._link(pod)
            except OSError as error:
                await context.abort(grpc.StatusCode.UNKNOWN, f"Link not found: {error}")
        return pb.EnforceNpReply(Success=True)

    async def DeletePodNp(self, request: Any, context: Any) -> Any:
        pod = (request.K8S_POD_NAMESPACE, request.K8S_POD_NAME)
        self.calls.append(("delete", pod))
        self.filters.pop(pod, None)
        return pb.DeleteNpReply(Success=True)

    def _link(self, pod: Pod) -> str:
        """By the name that it must have, in the node's network namespace."""
        name = "eni" + hashlib.sha1(".".join(pod).encode()).hexdigest()[:11]
        return netns.run_in(self._host, lambda: socket.if_indextoname(socket.if_nametoindex(name)))
