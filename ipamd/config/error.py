"""The error for bad settings: the place of the setting, what is wrong, and what is allowed."""

from __future__ import annotations

from dataclasses import dataclass


class SettingsError(Exception):
    """The settings can't be used; the message has one line per fault."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from: `source` is a file's path, "environment NAME" or "command line"; `line` is a line of
    the file, 0 where it is not known."""

    source: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source
