"""File descriptors: the doors that others open leave enough of them for the main job.

Each connection takes one, and without one left nothing can be done: no ADD taken in, no call of EC2 made. So each
door has its share, by the limit that the process has.
"""

from __future__ import annotations

import resource
from contextlib import suppress

# What the daemon opens for itself: 30 at rest, 10 connections to EC2, and what it reads for a moment.
OWN = 64

# Connections at once, at most an eighth of all descriptors.
SIDE_DOORS = {"metrics": 32, "readers": 16}


def raise_limit() -> None:
    """As far as the hard limit allows. Where a service manager's filter forbids to ask, it stays as it is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections(door: str) -> int:
    """How many the side door may have."""
    return max(min(SIDE_DOORS[door], _limit() // 8), 4)


def main_connections() -> int:
    """How many the plugins' door may have: thousands, where the limit is as the systemd unit sets it."""
    return max(_limit() - OWN - sum(map(connections, SIDE_DOORS)), 16)


def _limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft
