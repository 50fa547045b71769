"""The daemon's sockets, as the commands see them."""

from __future__ import annotations

import os
import socket as unix
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from ipamd.api.v1.administration_pb2_grpc import AdministrationStub
from ipamd.api.v1.introspection_pb2_grpc import IntrospectionStub
from ipamd.ctl.command import Failed

# Seconds for an answer that the daemon has in memory.
TIMEOUT = 5.0
# Seconds for one that it asks EC2 or the kernel for.
LONG_TIMEOUT = 60.0

# Beside the main socket, for a group that may look: setting api.read_group.
READ_SOCKET = "read.sock"


class Unavailable(Failed):
    """The daemon is not there, or no longer, or can't do it at the moment."""


@contextmanager
def introspection(socket: Path) -> Iterator[IntrospectionStub]:
    """Raises `Failed` when the daemon can't be asked, or refuses."""
    socket = readable(socket)
    with grpc.insecure_channel(f"unix:{socket}") as channel, explained(socket):
        yield IntrospectionStub(channel)


@contextmanager
def administration(socket: Path) -> Iterator[tuple[IntrospectionStub, AdministrationStub]]:
    """Raises `Failed` when the daemon can't be asked, or refuses."""
    with grpc.insecure_channel(f"unix:{socket}") as channel, explained(socket):
        yield IntrospectionStub(channel), AdministrationStub(channel)


def readable(socket: Path) -> Path:
    """The socket that reads only, where this user may open that one alone."""
    beside = socket.with_name(READ_SOCKET)
    if socket.exists() and not _may_open(socket) and beside.exists():
        return beside
    return socket


@contextmanager
def explained(socket: Path) -> Iterator[None]:
    """What goes wrong in it is raised as `Failed`."""
    try:
        yield
    except grpc.RpcError as error:
        raise failure(error, socket) from None


def failure(error: grpc.RpcError, socket: Path) -> Failed:
    code = error.code() if isinstance(error, grpc.Call) else None
    said = str(error.details() if isinstance(error, grpc.Call) else error)
    # gRPC has one code for a daemon that is not there and for one that says it can't at the moment.
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        if not socket.exists():
            why = "there is no such socket"
        elif not _may_open(socket):
            why = "you may not open it (try as root)"
        elif not listening(socket):
            why = "nobody answers"
        else:
            return Unavailable(said)
        return Unavailable(
            f"no daemon at {socket}: {why}. Is it running? (systemctl status ipamd; another place: --socket)"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Failed(f"the daemon at {socket} did not answer in time")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Failed(
            f"the daemon at {socket} does not know this command: it is of another version than ipamctl, restart it"
        )
    return Failed(said)


def listening(socket: Path) -> bool:
    """Whether somebody takes connections there, who may all the same refuse what is asked."""
    with unix.socket(unix.AF_UNIX, unix.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(socket))
        except OSError:
            return False
    return True


def _may_open(socket: Path) -> bool:
    return os.access(socket, os.R_OK | os.W_OK)
