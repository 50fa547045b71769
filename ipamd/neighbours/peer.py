"""Which process listens at a Unix socket: for messages that name it."""

from __future__ import annotations

import struct
from pathlib import Path
from socket import AF_UNIX, SO_PEERCRED, SOCK_STREAM, SOL_SOCKET, socket


def listener(path: Path) -> int | None:
    """Its process id, 0 when it is in another namespace; None: nobody listens (unix(7), SO_PEERCRED)."""
    with socket(AF_UNIX, SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            return None
        pid: int = struct.unpack("3i", probe.getsockopt(SOL_SOCKET, SO_PEERCRED, struct.calcsize("3i")))[0]
        return pid
