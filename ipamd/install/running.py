"""Reloads the running systemd after units were installed, and stops them before their removal."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ipamd.install.placing import InstallError

_PATIENCE = 120.0  # seconds: more than the unit's TimeoutStopSec


def booted(root: Path) -> bool:
    """Whether the file system at `root` is that of a running systemd: sd_booted(3)."""
    return root == Path("/") and Path("/run/systemd/system").is_dir()


def tell(*argv: str) -> None:
    """Run a command of systemd's. Raises InstallError."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{' '.join(argv)}: {error}") from None
    if done.returncode != 0:
        raise InstallError(f"{' '.join(argv)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
