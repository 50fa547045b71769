"""Serving gRPC at a path in the file system, whose owner and mode say who may call."""

from __future__ import annotations

import asyncio
import grp
import os
from collections.abc import Callable
from pathlib import Path

import grpc

from ipamd.api.place import SocketUnusable, claim_path

# Seconds between two checks that a socket is still at its path.
LOOK = 2.0


async def serve_until_lost(
    server: grpc.aio.Server, path: Path, mode: int, setting: str, well: Callable[[], None], group: int | None = None
) -> None:
    """Start a server at the path, remove what a dead one left there, and stop the server once the socket is lost.
    `well` is called as soon as the path is served. Raises `SocketUnusable`."""
    ours = False
    try:
        claim_path(path, setting)
        ours = True
        listen(server, path, mode, setting, group)
        await server.start()
        well()
        await until_lost(path)
        ours = False
    finally:
        if ours:
            path.unlink(missing_ok=True)
        await server.stop(0)


async def until_lost(path: Path) -> None:
    """Return once the path of a served socket holds something else, or nothing."""
    before = _inode(path)
    while before is not None and _inode(path) == before:  # noqa: ASYNC110 - no event where inotify is used up
        await asyncio.sleep(LOOK)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def listen(server: grpc.aio.Server, path: Path, mode: int, setting: str, group: int | None = None) -> None:
    """Raises `SocketUnusable`."""
    before = os.umask(0o177)  # closed to others from its first moment on
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
    if path.stat().st_gid == group:
        return  # its folder did it (setgid)
    try:
        os.chown(path, -1, group)
    except PermissionError:
        # chown(2): it takes CAP_CHOWN, which the systemd unit withholds, or to be in the group.
        raise SocketUnusable(
            f"{setting} {path} can't be given to the group {grp.getgrgid(group).gr_name}: let its folder be of that "
            "group and setgid, or the daemon be in the group, as the drop-in readers.conf of docs/systemd.md does"
        ) from None
