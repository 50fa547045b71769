"""What a containerd leaves behind when it could not end in good order.

Shims outlive containerd on purpose, containers outlive their shims, and all of them hold mounts. Everything is found
by the directory that this containerd alone uses, never by a name.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from pathlib import Path
from typing import Final

from ipamd.sim.netns import CommandError, command

_ATTEMPTS: Final = 5
_PAUSE: Final = 0.3  # seconds between them
_SHIM_SOCKETS: Final = Path("/run/containerd/s")
_LIBCNI_CACHE: Final = Path("/var/lib/cni/results")


def shims(socket: Path) -> dict[str, int]:
    """The shims that were started with this containerd's socket: id of the pod -> process id."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile
        if b"containerd-shim" in argv[0] and bytes(socket) in argv:
            found[argv[argv.index(b"-id") + 1].decode()] = int(entry.name)
    return found


async def remove(directory: Path, socket: Path) -> None:
    """End what still runs, unmount what is mounted, remove the directory. Raises `netns.CommandError` and OSError."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            await _sweep(directory, socket)
            shutil.rmtree(directory)
        except (OSError, CommandError):
            # A container was on its way when its containerd died, and arrived after we had looked.
            if attempt == _ATTEMPTS:
                raise
            await asyncio.sleep(_PAUSE)
        else:
            return


async def _sweep(directory: Path, socket: Path) -> None:
    for pid in shims(socket).values():
        sockets = _shim_sockets(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        for path in sockets:
            path.unlink(missing_ok=True)
    for container in directory.glob("runc/k8s.io/*"):
        await command("runc", "--root", str(container.parent), "delete", "--force", container.name)
    for cached in _LIBCNI_CACHE.glob("*"):
        # The cached result names the pod's network namespace, which is mounted below our directory.
        with contextlib.suppress(FileNotFoundError):  # another containerd's, gone meanwhile
            if bytes(directory) + b"/" in cached.read_bytes():
                cached.unlink()
    for point in _mounts_below(directory):
        await command("umount", "--lazy", point)


def _shim_sockets(pid: int) -> list[Path]:
    """Where the shims of this one's network namespace listen, which are those of one node.

    containerd keeps these sockets in one directory for the whole machine, whatever its settings.
    """
    try:
        lines = Path(f"/proc/{pid}/net/unix").read_text().splitlines()
    except OSError:
        return []  # it ended meanwhile
    paths = (Path(fields[7]) for line in lines if len(fields := line.split()) > 7)  # proc_pid_net(5)
    return [path for path in paths if path.parent == _SHIM_SOCKETS]


def _mounts_below(directory: Path) -> list[str]:
    """The innermost first. The fifth field is the mount point, proc_pid_mountinfo(5)."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in reversed(points) if point.startswith(f"{directory}/")]
