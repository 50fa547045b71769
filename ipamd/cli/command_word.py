"""The first word of a command line, when it is not there or no command: help, or what may have been meant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence

USAGE = 2


def wrong(parser: argparse.ArgumentParser, names: Collection[str], words: Sequence[str]) -> int | None:
    """The exit code if the first of `words` is none of `names`, once what helps was printed; else None. `words` begin
    where the command is to stand: what comes before it is taken off. Options are the parser's."""
    if not words:
        parser.print_help()
        return USAGE
    word = words[0]
    if word.startswith("-") or word in names:
        return None
    from difflib import get_close_matches

    meant = get_close_matches(word, names, 1)
    question = f" Did you mean {meant[0]}?" if meant else ""
    sys.stderr.write(f"{parser.prog}: no command {word!r}.{question} ({parser.prog} --help lists them)\n")
    return USAGE
