"""The paths of the gRPC sockets. This module does not import gRPC, which is slow to import."""

from __future__ import annotations

import grp
import os
import socket
from pathlib import Path

from ipamd.settings import ApiSettings


class SocketUnusable(Exception):
    """The socket's path can't be served; the message says why."""


def claim(settings: ApiSettings) -> None:
    """Remove the sockets of a dead daemon; never those of a live one. Call this before anything on the node is
    changed: a second daemon must do no harm. Raises `SocketUnusable`."""
    claim_path(settings.socket, "api.socket")


def reading_group(settings: ApiSettings) -> int:
    """The id of the group that may look. Raises `SocketUnusable`."""
    name = settings.read_group
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise SocketUnusable(
            f"api.read_group: there is no group {name!r} on this host (groupadd --system {name})"
        ) from None


def claim_path(path: Path, setting: str) -> None:
    """The same of the socket that `setting` names. Raises `SocketUnusable`."""
    if len(os.fsencode(path)) > 107:
        raise SocketUnusable(f"{setting} {path} is longer than the 107 bytes that a Unix socket's path may have")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise SocketUnusable(f"{setting} {path} can't be served: {path.parent} can't be written")
        if not os.path.lexists(path):
            return
        if not path.is_socket():
            raise SocketUnusable(f"{setting} {path} is no socket: remove it, or set another path")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            else:
                raise SocketUnusable(
                    f"{setting} {path}: another ipamd serves it: stop that one, or give this one its own {setting}"
                )
    except OSError as error:
        raise SocketUnusable(f"{setting} {path} can't be served: {error.strerror or error}") from None
