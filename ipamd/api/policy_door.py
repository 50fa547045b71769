"""Answers what the policy agent asks at ipamd.sock when it starts: the mode, and the identity of this node. Without
an answer the agent ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from ipamd.api.listening import serve_until_lost
from ipamd.api.place import SocketUnusable
from ipamd.cloud.port import Identity
from ipamd.policy.aws import policy_agent_pb2 as pb
from ipamd.policy.aws import policy_agent_pb2_grpc
from ipamd.process.supervision import Unserved
from ipamd.settings import PolicySettings

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

# The agent asks once, and nobody else does.
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_allowed_incoming_connections", 8),
    ("grpc.max_receive_message_length", 1 << 10),
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.max_connection_idle_ms", 60_000),
)


class PolicyConfiguration(policy_agent_pb2_grpc.ConfigServerBackendServicer):
    def __init__(self, mode: str, identity: Identity) -> None:
        self._reply = pb.NetworkPolicyAgentConfigReply(
            NetworkPolicyMode=mode,
            NodeIPv4=identity.primary_ip,
            InstanceID=identity.instance_id,
            Region=identity.region,
        )

    async def GetNetworkPolicyConfigs(self, request: Any, context: Context) -> pb.NetworkPolicyAgentConfigReply:
        return self._reply


async def serve(settings: PolicySettings, identity: Identity, well: Callable[[], None]) -> None:
    """Serve until cancelled, anew each time that the socket is lost. Raises `Unserved`."""
    configuration, path = PolicyConfiguration(settings.mode, identity), settings.socket
    while True:
        server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=8)
        policy_agent_pb2_grpc.add_ConfigServerBackendServicer_to_server(configuration, server)
        try:
            await serve_until_lost(server, path, 0o600, "policy.dir", well)
        except SocketUnusable as error:
            text = f"AWS's network policy agent can't start on this node: {error}."
            raise Unserved(text, socket=str(path)) from None
