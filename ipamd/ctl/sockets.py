"""Where the daemon of this node listens: as its own settings say, so that nobody has to repeat them.

Only the two keys are read, without the module of the settings: to import that takes longer than most commands.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

DEFAULT_SOCKET = Path("/run/ipamd/ipamd.sock")
DEFAULT_READ_SOCKET = Path("/run/ipamd/read.sock")

# ipamd.settings.DEFAULT_PATH.
SETTINGS = Path("/etc/ipamd/config.toml")


def daemon_socket() -> Path:
    """For root: IPAMD_API_SOCKET, or api.socket of the settings file, or the default."""
    return _configured("socket") or DEFAULT_SOCKET


def read_socket(beside: Path) -> Path:
    """For the group of `api.read_group`. Of a daemon that has the default folder or was named by `--socket`, the one
    beside its main socket."""
    configured = _configured("read_socket")
    if configured is not None and beside == daemon_socket():
        return configured
    return beside.with_name(DEFAULT_READ_SOCKET.name)


def _configured(key: str) -> Path | None:
    """A file that can't be read says nothing: the daemon has told what is wrong with it (`ipamd config check`)."""
    if value := os.environ.get(f"IPAMD_API_{key.upper()}"):
        return Path(value)
    try:
        value = tomllib.loads(SETTINGS.read_text(encoding="utf-8-sig"))["api"][key]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Path(value) if isinstance(value, str) and value else None
