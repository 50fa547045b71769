"""Settings of the right form that can't work on this machine: something else is in the place of a file, socket or
folder, or a plugin of the chain is missing.

Nothing is opened, made or removed. The daemon would find out at its next start.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ipamd.neighbours.chain import faults
from ipamd.settings import Settings

# Of a database in WAL mode (sqlite.org/wal.html): SQLite opens these, too.
_LEDGER_FILES = ("", "-wal", "-shm")

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISREG, "a file"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISLNK, "a link that leads nowhere"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """`ends_the_start`: the daemon can't start with it. Otherwise it starts without the feature concerned."""

    key: str
    text: str
    ends_the_start: bool


def obstacles(settings: Settings) -> Iterator[Obstacle]:
    for suffix in _LEDGER_FILES:
        yield from _at("ledger.path", Path(f"{settings.ledger.path}{suffix}"), "a file", True)
    yield from _at("api.socket", settings.api.socket, "a socket", True)
    if settings.api.read_group:
        yield from _at("api.read_socket", settings.api.read_socket, "a socket", False)
    yield from _at("cni.spool_dir", settings.cni.spool_dir, "a folder", False)
    if settings.cni.conf_dir is not None:
        yield from _at("cni.conf_dir", settings.cni.conf_dir, "a folder", False)
    for fault in faults(settings.cni.chain):
        yield Obstacle("cni.chain", f"cni.chain: {fault}", False)


def _at(key: str, path: Path, wanted: str, ends_the_start: bool) -> Iterator[Obstacle]:
    """Check the nearest thing that exists: the path itself, or the folder in which it will be made."""
    place = path
    while (found := _kind(place)) is None and place != place.parent:
        place, wanted = place.parent, "a folder"
    if found not in (wanted, "", None):
        yield Obstacle(key, f"{key} {path}: {place} is {found}, and has to be {wanted}", ends_the_start)


def _kind(path: Path) -> str | None:
    """None if nothing is there; empty if this user can't see it."""
    mode: int | None
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = stat.S_IFLNK if path.is_symlink() else None
    except OSError:
        mode = stat.S_IFLNK if _is_loop(path) else 0
    if mode is None:
        return None
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "")


def _is_loop(path: Path) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(path).st_mode)
    except OSError:
        return False
