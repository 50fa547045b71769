from __future__ import annotations


class NotEnforced(Exception):
    """The pod must not start; the message says why. `stopping`: as the daemon stops, whose successor may be asked."""

    def __init__(self, message: str, *, stopping: bool = False) -> None:
        super().__init__(message)
        self.stopping = stopping
