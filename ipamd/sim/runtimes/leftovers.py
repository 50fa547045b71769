"""What a containerd leaves behind when it could not end in good order.

Shims outlive containerd on purpose, containers outlive their shims, and all of them hold mounts. Everything is found
by the directory that this containerd alone uses, never by a name.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Final

from ipamd.sim.netns import command

_LIBCNI_CACHE: Final = Path("/var/lib/cni/results")


def shims(socket: Path) -> list[int]:
    """The process ids of shims that were told this containerd's socket."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile
        if bytes(socket) in argv and b"containerd-shim" in argv[0]:
            found.append(int(entry.name))
    return found


async def remove(directory: Path, socket: Path) -> None:
    """End what still runs, unmount what is mounted, remove the directory. Raises `netns.CommandError` and OSError."""
    for pid in shims(socket):
        os.kill(pid, signal.SIGKILL)
    for container in directory.glob("runc/k8s.io/*"):
        await command("runc", "--root", str(container.parent), "delete", "--force", container.name)
    for bundle in directory.glob("state/io.containerd.runtime.v2.task/k8s.io/*"):
        address = bundle / "address"
        if address.exists():
            Path(address.read_text().strip().removeprefix("unix://")).unlink(missing_ok=True)
        for cached in _LIBCNI_CACHE.glob(f"*-{bundle.name}-*"):
            cached.unlink(missing_ok=True)
    for point in _mounts_below(directory):
        await command("umount", "--lazy", point)
    shutil.rmtree(directory)


def _mounts_below(directory: Path) -> list[str]:
    """The innermost first. The fifth field is the mount point, proc_pid_mountinfo(5)."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in reversed(points) if point.startswith(f"{directory}/")]
