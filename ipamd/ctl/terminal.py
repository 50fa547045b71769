"""The abilities of standard output: colours and width. No library, because ipamctl runs on nodes."""

from __future__ import annotations

import os
import shutil
import sys

# SGR parameters (ECMA-48, 8.3.117) of the eight colours that every terminal has, so that a theme can choose them.
STYLES = {"bold": "1", "dim": "2", "good": "32", "warn": "33", "bad": "31", "cool": "36", "busy": "34"}


def colours() -> bool:
    """Whether standard output takes colours and the user wants them (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def styled(text: str, style: str) -> str:
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m" if text and colours() else text


def width() -> int:
    """Columns of the terminal, or what COLUMNS says; 100 where neither tells, so that a file has no short lines."""
    return max(40, shutil.get_terminal_size((100, 24)).columns)
