"""The agent at its socket: the calls that the VPC CNI's plugin makes.

The socket counts only where it and its folder are root's alone: nobody else may say that policies are enforced.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ipamd.policy.aws import policy_agent_pb2 as pb
from ipamd.policy.aws import policy_agent_pb2_grpc
from ipamd.policy.pods import Pod
from ipamd.pool.quoting import cut

# Seconds for the agent's word that it is there.
_CHECK = 2.0
_HEALTH: Final = "grpc.health.v1.np-agent"
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
)


# Of gRPC's statuses those that no answer of the agent's own has.
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


class AgentFailed(Exception):
    """The agent does not do what it was asked for; the message says why. `away`: it does not answer at all."""

    def __init__(self, message: str, *, away: bool) -> None:
        super().__init__(message)
        self.away = away


class Agent:
    """`socket`: where it listens. Each call raises `AgentFailed`."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=_OPTIONS)
        self._calls = policy_agent_pb2_grpc.NPBackendStub(self._channel)
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def enforce(self, pod: Pod, mode: str) -> None:
        """Its link is up and has the name that the agent looks for."""
        request = pb.EnforceNpRequest(
            K8S_POD_NAME=pod.name, K8S_POD_NAMESPACE=pod.namespace, NETWORK_POLICY_MODE=mode, InterfaceCount=1
        )
        async with self._asked():
            reply = await self._calls.EnforceNpToPod(request)
            if not reply.Success:
                raise AgentFailed(f"it refuses {pod} without a reason", away=False)

    async def forget(self, pod: Pod) -> None:
        """Whatever it holds by the pod's name. That it holds nothing is fine."""
        request = pb.DeleteNpRequest(K8S_POD_NAME=pod.name, K8S_POD_NAMESPACE=pod.namespace)
        async with self._asked():
            await self._calls.DeletePodNp(request)

    async def check(self) -> None:
        """Whether it answers."""
        async with self._asked():
            await self._health.Check(health_pb2.HealthCheckRequest(service=_HEALTH), timeout=_CHECK)

    @asynccontextmanager
    async def _asked(self) -> AsyncIterator[None]:
        self._trust()
        try:
            yield
        except grpc.aio.AioRpcError as error:
            words = cut(error.details() or error.code().name, 300)
            raise AgentFailed(f"{self.socket}: {words}", away=error.code() in _AWAY) from None

    def _trust(self) -> None:
        """Raises `AgentFailed`."""
        folder = self.socket.parent
        for path, of_kind, kind, others in (
            (folder, stat.S_ISDIR, "folder", stat.S_IWGRP | stat.S_IWOTH),
            (self.socket, stat.S_ISSOCK, "socket", 0),
        ):
            try:
                found = path.lstat()
            except OSError as error:
                raise AgentFailed(f"{path}: {error.strerror or error}", away=True) from None
            if not of_kind(found.st_mode):
                raise AgentFailed(f"{path} is no {kind}", away=True)
            if found.st_uid != os.geteuid() or found.st_mode & others:
                raise AgentFailed(f"{path} is not root's alone, so who listens is not believed", away=True)
