"""Where the daemon of this node listens: as its own settings say, so that nobody has to repeat them.

Only the two keys are read, without the module of the settings: to import that takes longer than most commands.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from ipamd.config.text import Unreadable, read

DEFAULT_SOCKET = Path("/run/ipamd/ipamd.sock")
DEFAULT_READ_SOCKET = Path("/run/ipamd/read/ipamd.sock")

# ipamd.settings.DEFAULT_PATH.
SETTINGS = Path("/etc/ipamd/config.toml")
_LARGEST = 1 << 20  # bytes, as the daemon has it

# sun_path of unix(7), without its final zero.
LONGEST = 107


def socket_path(text: str) -> Path:
    """As the daemon's settings take it: unix:///run/x.sock, as containerd and crictl write it, is /run/x.sock."""
    return Path(text.removeprefix("unix:").removeprefix("//") if text.startswith("unix:") else text)


def daemon_socket() -> Path:
    """For root: IPAMD_API_SOCKET, or api.socket of the settings file, or the default."""
    return _configured("socket") or DEFAULT_SOCKET


def read_socket(beside: Path) -> Path:
    """For the group of `api.read_group`. Of a daemon that has the default folder or was named by `--socket`, the one
    beside its main socket."""
    configured = _configured("read_socket")
    if configured is not None and beside == daemon_socket():
        return configured
    return beside.parent / DEFAULT_READ_SOCKET.parent.name / DEFAULT_READ_SOCKET.name


def _configured(key: str) -> Path | None:
    """A file that can't be read says nothing: the daemon has told what is wrong with it (`ipamd config check`)."""
    if value := os.environ.get(f"IPAMD_API_{key.upper()}"):
        return socket_path(value)
    try:
        value = tomllib.loads(read(SETTINGS, _LARGEST))["api"][key]
    except (OSError, Unreadable, ValueError, KeyError, TypeError, RecursionError):
        return None
    return socket_path(value) if isinstance(value, str) and value else None
