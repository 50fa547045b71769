"""What the commands of `ipamctl` have in common."""

from __future__ import annotations

from pathlib import Path

DEFAULT_SOCKET = Path("/run/ipamd/ipamd.sock")


class Failed(Exception):
    """The command can't do what it was asked for; the message says why and what to do, one line or more."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code
