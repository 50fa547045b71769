"""`ipamctl support-bundle`: all that helps to find a fault, in one file.

It is made when something is wrong, so it depends on nothing that may be wrong: the bundle notes each piece that can't
be read, and has the others. The daemon may be dead.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import sys
import tarfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TextIO

from ipamd.config.error import SettingsError
from ipamd.config.load import load
from ipamd.ctl.command import DONE, USAGE, Failed, manual
from ipamd.ctl.pieces import Pieces, pieces
from ipamd.ctl.redaction import redacted
from ipamd.settings import DEFAULT_PATH, Settings

# Bytes of one piece; a longer one is cut to its end.
_MOST = 20_000_000
_PROBLEMS = "problems.txt"
_STDOUT = Path("-")


def set_up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--file", type=Path, metavar="FILE.tar.gz", help="or - for standard output (default: in this directory)"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"the daemon's settings (default: {DEFAULT_PATH})"
    )
    manual(
        parser,
        "The daemon's state and events, the journal of its unit, the kernel's links, rules, routes and nftables, "
        "versions, settings, what ipamctl doctor says, a copy of the records, the CNI configuration. Secrets are "
        "taken out by their names and looks; addresses and names of pods are in it. The file is its owner's alone. "
        f"What can't be had is noted in it, in {_PROBLEMS}. Run it as root.",
        examples={
            "ipamctl support-bundle": "ipamd-support-HOST-TIME.tar.gz in this directory",
            "ipamctl support-bundle --file /tmp/x.tar.gz": "there",
            "kubectl ipamd on NODE support-bundle --file - > x.tar.gz": "from the DaemonSet's pod",
        },
        codes={1: "the file could not be written"},
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    name = f"ipamd-support-{platform.node()}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    problems = []
    try:
        settings = load(args.config).settings
    except SettingsError as error:
        # The defaults at least say where to look.
        settings = Settings()
        problems.append(f"settings in force: {error}")
    found = pieces(args.socket, args.config, settings)
    if args.file == _STDOUT:
        if sys.stdout.isatty():
            raise Failed("the bundle is no text for a terminal: lead standard output to a file", USAGE)
        _tell("standard output", _write(sys.stdout.buffer, name, found, problems), problems, sys.stderr)
    else:
        file = args.file or Path(f"{name}.tar.gz")
        _tell(str(file), _write_file(file, name, found, problems), problems, sys.stdout)
    return DONE


def _write_file(file: Path, name: str, found: Pieces, problems: list[str]) -> dict[str, int]:
    """As `_write`. A file that is not whole is removed. Raises `Failed`."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Failed(f"{file} is there already: name another one with --file") from None
    except OSError as error:
        raise Failed(f"{file}: {error.strerror}; --file names another place, or - for standard output") from None
    try:
        with os.fdopen(descriptor, "wb") as out:
            return _write(out, name, found, problems)
    except BaseException as error:
        file.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise Failed(f"{file}: {error.strerror}") from None
        raise


def _tell(where: str, sizes: dict[str, int], problems: list[str], out: TextIO) -> None:
    print(*(f"{size:9}  {piece}" for piece, size in sizes.items()), sep="\n", file=out)
    print(*(f"not in it: {problem}" for problem in problems), sep="\n", file=sys.stderr)
    print(f"\n{where}: {len(sizes)} files", file=out)
    print(
        "Addresses and names of pods are in it. Secrets were taken out as far as their names and looks tell:",
        file=out,
    )
    print("look into it before you give it away.", file=out)


def _write(out: IO[bytes], name: str, found: Pieces, problems: list[str]) -> dict[str, int]:
    """Sizes in bytes by name. Adds pieces that could not be read to `problems`, with the reason. Raises OSError if
    `out` can't be written."""
    sizes: dict[str, int] = {}
    now = int(time.time())
    with tarfile.open(fileobj=out, mode="w:gz") as tar:

        def put(piece: str, content: bytes) -> None:
            entry = tarfile.TarInfo(f"{name}/{piece}")
            entry.size, entry.mtime, entry.mode = len(content), now, 0o600
            tar.addfile(entry, io.BytesIO(content))
            sizes[piece] = len(content)

        for piece, get in found:
            try:
                content = get()[-_MOST:]
            except Exception as error:  # any exception: the other pieces are needed all the more
                problems.append(f"{piece}: {' '.join(str(error).split()) or type(error).__name__}")
                continue
            put(piece, content if piece.endswith(".db") else redacted(content.decode(errors="replace")).encode())
        if problems:
            put(_PROBLEMS, redacted("".join(f"{problem}\n" for problem in problems)).encode())
    return sizes
