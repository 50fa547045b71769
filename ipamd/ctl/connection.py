"""The daemon's socket, as the commands see it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from ipamd.api.v1.introspection_pb2_grpc import IntrospectionStub
from ipamd.ctl.command import Failed

# Seconds for an answer that the daemon has in memory.
TIMEOUT = 5.0


@contextmanager
def introspection(socket: Path) -> Iterator[IntrospectionStub]:
    """Raises `Failed` when the daemon can't be asked, or refuses."""
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        try:
            yield IntrospectionStub(channel)
        except grpc.RpcError as error:
            raise Failed(_explain(error, socket)) from None


def _explain(error: grpc.RpcError, socket: Path) -> str:
    code = error.code() if isinstance(error, grpc.Call) else None
    if code is grpc.StatusCode.UNAVAILABLE:
        if not socket.exists():
            why = "there is no such socket"
        elif not os.access(socket, os.R_OK | os.W_OK):
            why = "you may not open it (try as root)"
        else:
            why = "nobody answers"
        return f"no daemon at {socket}: {why}. Is it running? (systemctl status ipamd; another place: --socket)"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"the daemon at {socket} did not answer within {TIMEOUT:.0f} s"
    return str(error.details() if isinstance(error, grpc.Call) else error)
