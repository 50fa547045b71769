"""A terminal for tests: a pseudo-terminal, and an emulator that has nothing in common with what is tested."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pyte


class Terminal:
    """A command on a pseudo-terminal, whose screen pyte draws. `raw` is all that the command wrote."""

    def __init__(self, command: Sequence[str], columns: int, lines: int, **environment: str) -> None:
        self.ours, self.theirs = pty.openpty()
        self.screen = pyte.Screen(columns, lines)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self._set_size(columns, lines)
        self.before = termios.tcgetattr(self.theirs)
        self.process = subprocess.Popen(
            # The terminal must be its session's own, so that Ctrl-C is a signal.
            ["setsid", "--ctty", *command],
            stdin=self.theirs, stdout=self.theirs, stderr=self.theirs,
            env={**{k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")},
                 "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **environment},
        )  # fmt: skip

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        self._set_size(columns, lines)
        self.screen.resize(lines, columns)
        self.process.send_signal(signal.SIGWINCH)

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def until(self, condition: Callable[[list[str]], bool], what: str) -> list[str]:
        end = time.monotonic() + 30
        while not condition(self.screen.display):
            assert time.monotonic() < end, f"{what}: {self.screen.display}"
            self._pump(0.1)
        return list(self.screen.display)

    def shows(self, text: str) -> list[str]:
        return self.until(lambda lines: any(text in line for line in lines), text)

    def _pump(self, patience: float) -> None:
        if select.select([self.ours], [], [], patience)[0]:
            try:
                self.raw += (new := os.read(self.ours, 65536))
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                return
            self.stream.feed(new)

    def watch(self, seconds: float) -> None:
        """Draw for so long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._pump(left)

    def ended(self) -> int:
        """Exit code, once everything is drawn."""
        end = time.monotonic() + 30
        while self.process.poll() is None:
            assert time.monotonic() < end, f"it does not end: {self.screen.display}"
            self._pump(0.05)
        while select.select([self.ours], [], [], 0)[0]:
            self._pump(0)
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for each in (self.ours, self.theirs):
            with suppress(OSError):
                os.close(each)


@contextmanager
def top(socket: Path, columns: int = 90, lines: int = 30, **environment: str) -> Iterator[Terminal]:
    """`ipamctl top` on it."""
    command = [sys.executable, "-m", "ipamd.ctl", "top", "--interval", "0.1", "--socket", str(socket)]
    terminal = Terminal(command, columns, lines, **environment)
    try:
        yield terminal
    finally:
        terminal.close()
