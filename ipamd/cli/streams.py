"""The standard streams of a command: a closed one is stood in for, and output that can't be written ends in one line.

Python makes None of a standard stream that is closed; the next file or socket then gets its number, and what is meant
for the terminal goes there. A full disk shows as a traceback after the command has ended.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

_NUMBERS = {"stdin": 0, "stdout": 1, "stderr": 2}


class OutputFailed(Exception):
    """Standard output does not take what a command prints; the message says why."""


def run(program: str, command: Callable[[], int]) -> int:
    """The exit code: that of `command`; 1 with a line on standard error when its output can't be written; 0 when the
    reader has gone (`ipamctl events -f | head`) before the command had one: it has seen enough."""
    closed = _stand_in()
    with _checked_output("stdout" in closed):
        code = 0
        try:
            try:
                code = command()
            finally:
                sys.stdout.flush()  # also after argparse's SystemExit
            return code
        except BrokenPipeError:
            discard_output()
            return code
        except OutputFailed as failure:
            discard_output()
            sys.stderr.write(f"{program}: standard output: {failure}\n")
            return 1
        finally:
            _settle_errors()


def _stand_in() -> set[str]:
    """Open /dev/null in place of each standard stream that was closed at the start. Their names: stdin, stdout,
    stderr."""
    closed = {name for name in _NUMBERS if getattr(sys, name) is None}
    for name in sorted(closed, key=_NUMBERS.__getitem__):
        number = os.open(os.devnull, os.O_RDWR)  # the lowest that is free, hence the stream's own as a rule
        os.set_inheritable(number, True)
        setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w"))
    return closed


class _Checked(io.FileIO):
    """Standard output whose errors have a type of their own, so that those of other files are not taken for them."""

    def __init__(self, closed: bool) -> None:
        super().__init__(1, "w", closefd=False)
        self._closed_by_caller = closed

    def write(self, data: bytes | bytearray | memoryview, /) -> int:  # type: ignore[override]
        if self._closed_by_caller:
            raise OutputFailed(os.strerror(errno.EBADF))
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputFailed(error.strerror) from None


@contextmanager
def _checked_output(closed: bool) -> Iterator[None]:
    before = sys.stdout
    if not closed and before is not sys.__stdout__:
        yield  # a caller in this process has its own
        return
    sys.stdout = _text_over(_Checked(closed), before)
    try:
        yield
    finally:
        sys.stdout = before


def _text_over(raw: io.RawIOBase, like: TextIO) -> TextIO:
    return io.TextIOWrapper(
        io.BufferedWriter(raw), like.encoding, like.errors, line_buffering=getattr(like, "line_buffering", False)
    )


def _settle_errors() -> None:
    """What standard error does not take is dropped: the interpreter would try once more at its end, and exit with
    120 whatever the command's code is."""
    try:
        sys.stderr.flush()
    except OSError:
        _to_nowhere(2)


def _to_nowhere(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def discard_output() -> None:
    """What is left in the buffers goes nowhere."""
    _to_nowhere(1)
    if isinstance(sys.stdout, io.TextIOWrapper) and isinstance(raw := sys.stdout.buffer.raw, _Checked):
        raw._closed_by_caller = False
