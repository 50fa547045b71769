"""The control groups of one machine of the VPC in a box: a parent of its own in every hierarchy.

Two kubelets with the same parent would remove each other's pods.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")

_PATIENCE: Final = 10.0  # the kernel empties the groups of processes that were killed a moment after their end
_POLL: Final = 0.05


def make(name: str) -> None:
    """Make the parent `/name`. Raises OSError."""
    for hierarchy in _hierarchies():
        group = hierarchy / name
        group.mkdir(exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems"):  # version 1 has them empty, which lets no process in
            if not (group / "cgroup.controllers").exists() and (group / file).exists():
                (group / file).write_text((hierarchy / file).read_text())


async def remove(name: str) -> None:
    """Remove the parent and all groups in it; their processes have ended or are about to. Raises OSError."""
    for hierarchy in _hierarchies():
        try:
            async with asyncio.timeout(_PATIENCE):
                while not _removed(hierarchy / name):  # noqa: ASYNC110
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            (hierarchy / name).rmdir()  # says why


def _removed(group: Path) -> bool:
    if not group.exists():
        return True
    for folder in sorted((path for path in group.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts)):
        with contextlib.suppress(OSError):
            folder.rmdir()
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()


def _hierarchies() -> list[Path]:
    """Of version 2 the one; of version 1, or of both side by side, every one that is mounted."""
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    return sorted(path for path in ROOT.iterdir() if path.is_dir() and not path.is_symlink() and path.is_mount())
