"""Connections of the commands to the daemon's sockets."""

from __future__ import annotations

import grp
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from ipamd.api.v1.administration_pb2_grpc import AdministrationStub
from ipamd.api.v1.introspection_pb2_grpc import IntrospectionStub
from ipamd.ctl.command import Failed
from ipamd.ctl.sockets import DEFAULT_SOCKET, LONGEST, read_socket
from ipamd.neighbours.peer import listener

# Seconds for an answer from the daemon's memory.
TIMEOUT = 5.0
# Seconds for an answer that needs EC2 or the kernel.
LONG_TIMEOUT = 60.0

_REMEDY_DENIED = "Use sudo, or have api.read_group name a group of yours (docs/config.md): its members may look."


class Unavailable(Failed):
    """The daemon is not there, or no longer, or can't do it at the moment."""


@contextmanager
def introspection(socket: Path) -> Iterator[IntrospectionStub]:
    """Raises `Failed` when the daemon can't be asked, or refuses."""
    socket = readable(_possible(socket))
    with grpc.insecure_channel(f"unix:{socket}") as channel, explained(socket):
        yield IntrospectionStub(channel)


@contextmanager
def administration(socket: Path) -> Iterator[tuple[IntrospectionStub, AdministrationStub]]:
    """Raises `Failed` when the daemon can't be asked, or refuses."""
    _possible(socket)
    with grpc.insecure_channel(f"unix:{socket}") as channel, explained(socket):
        yield IntrospectionStub(channel), AdministrationStub(channel)


def _possible(socket: Path) -> Path:
    """Raises `Failed` for a path that is too long: gRPC would print lines of its own."""
    if (length := len(os.fsencode(socket))) > LONGEST:
        raise Failed(f"{socket} has {length} bytes, and a Unix socket's path at most {LONGEST}")
    return socket


def readable(socket: Path) -> Path:
    """The readers' socket if this user may open only that one."""
    if not _may_open(socket) and _may_open(beside := read_socket(socket)):
        return beside
    return socket


@contextmanager
def explained(socket: Path) -> Iterator[None]:
    """Turns errors inside into `Failed`."""
    try:
        yield
    except grpc.RpcError as error:
        raise failure(error, socket) from None


def failure(error: grpc.RpcError, socket: Path) -> Failed:
    code = error.code() if isinstance(error, grpc.Call) else None
    said = str(error.details() if isinstance(error, grpc.Call) else error)
    # gRPC has one code for an absent daemon and for one that refuses at the moment.
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return _obstacle(socket) or Unavailable(said)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Failed(f"the daemon at {socket} did not answer in time ({_listener(socket)})")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Failed(
            f"{_listener(socket)} at {socket} does not know this command: it is another program, or an ipamd of "
            "another version (restart it)"
        )
    return Failed(said)


def _obstacle(socket: Path) -> Failed | None:
    """The reason why no daemon can be asked there: `Unavailable` if one may come. None if one can be asked."""
    try:
        mode = socket.stat().st_mode
    except FileNotFoundError:
        return Unavailable(f"no daemon at {socket}: there is no such socket. {_is_it_running()}")
    except PermissionError:
        return Failed(f"{socket}: permission denied: its folder is closed to this user. {_REMEDY_DENIED}")
    except OSError as error:
        return Failed(f"{socket} can't be a socket: {error.strerror}")
    if not stat.S_ISSOCK(mode):
        return Failed(f"{socket} is no socket: name the daemon's with --socket ({DEFAULT_SOCKET} is usual)")
    if not _may_open(socket):
        return Failed(f"{socket}: permission denied: it belongs to {_owners(socket)}. {_REMEDY_DENIED}")
    if not listening(socket):
        return Unavailable(f"no daemon at {socket}: nobody answers. {_is_it_running()}")
    if not _speaks_grpc(socket):
        who = _listener(socket)
        return Failed(f"{who} at {socket} does not answer as ipamd does: is that the socket of another program?")
    return None


def _is_it_running() -> str:
    from ipamd.install.hosting import hosting

    return f"Is it running? ({hosting().look}; another place: --socket)"


def _owners(socket: Path) -> str:
    status = socket.stat()
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    # connect(2) needs write permission: the mode says whether the group has it.
    return f"group {group}, and this user is not in it" if status.st_mode & stat.S_IWGRP else "root"


def listening(socket: Path) -> bool:
    """Whether a process accepts connections there. It may still refuse requests."""
    return listener(socket) is not None


def _listener(socket: Path) -> str:
    """The process that listens there, if visible: "process containerd (pid 412)"."""
    pid = listener(socket)
    if not pid:
        return "the process"
    try:
        return f"process {Path(f'/proc/{pid}/comm').read_text().strip()} (pid {pid})"
    except OSError:
        return f"process {pid}"


def _speaks_grpc(socket: Path) -> bool:
    """Whether an HTTP/2 server greets within a second."""
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=1)
        except grpc.FutureTimeoutError:
            return False
    return True


def _may_open(socket: Path) -> bool:
    return os.access(socket, os.R_OK | os.W_OK)
