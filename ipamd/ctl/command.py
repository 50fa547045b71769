"""Parts that the commands of `ipamctl` share."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping

from ipamd.ctl.terminal import width

# Exit codes. 2, a wrong command line, is argparse's.
DONE, NOT_DONE, USAGE, ATTENTION, UNKNOWN = 0, 1, 2, 3, 4

# Longer lines are hard to read, however wide the terminal is.
_WIDEST = 100


class Failed(Exception):
    """The command can't do what it was asked for; the message says why and what to do, one line or more."""

    def __init__(self, message: str, code: int = NOT_DONE) -> None:
        super().__init__(message)
        self.code = code


def manual(
    parser: argparse.ArgumentParser,
    purpose: str = "",
    *,
    examples: Mapping[str, str] | None = None,
    codes: Mapping[int, str] | None = None,
) -> None:
    """Make `--help` read like a manual page.

    `purpose` goes below the command's one line; `examples` maps command lines to what they do; `codes` exit codes to
    what they mean here, where that differs from what they mean everywhere: nothing, where the command never ends so.
    """
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    if purpose:
        text = textwrap.fill(" ".join(purpose.split()), min(width(), _WIDEST))
        parser.description = f"{parser.description}\n\n{text}"
    parts = []
    if examples:
        longest = max(map(len, examples))
        parts.append(
            "\n".join(["examples:", *(f"  {line:{longest}}  {text}".rstrip() for line, text in examples.items())])
        )
    meanings = {DONE: "done", NOT_DONE: "the daemon is not there or refused", USAGE: "wrong command line"}
    meanings.update(codes or {})
    parts.append(
        "\n".join(["exit codes:", *(f"  {code}  {text}" for code, text in sorted(meanings.items()) if text)])
    )
    parser.epilog = "\n\n".join(parts)
