"""`ipamctl top`: the node live, on a terminal.

A thread asks the daemon, so that keys and a new size take effect at once even if the daemon does not answer. The
control sequences are ECMA-48 and xterm's alternate screen, which every terminal of the last decades and tmux support.
The terminal is restored however the command ends.
"""

from __future__ import annotations

import argparse
import os
import select
import shutil
import signal
import sys
import termios
import threading
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.ctl import screen
from ipamd.ctl.command import DONE, USAGE, Failed, manual
from ipamd.ctl.connection import introspection
from ipamd.ctl.terminal import STYLES, colours

_INTERVAL = 1.0
# The widest terminal, and a little more.
_SAMPLES = 1000
_EVENTS = 200
_TIMEOUT = 2.0

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[2J"  # alternate screen, no cursor
_LEAVE = "\x1b[0m\x1b[?25h\x1b[?1049l"


def set_up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--interval",
        type=float,
        default=_INTERVAL,
        metavar="SECONDS",
        help="between two looks (default: %(default)g)",
    )
    manual(
        parser,
        "Gauge, curves of the last minutes, each ENI's addresses as signs, pods that wait, and events. q quits. A "
        "daemon that restarts is waited for. Colours go with NO_COLOR; where there is no terminal, or TERM is dumb, "
        "one screen is printed and that is all.",
        examples={
            "ipamctl top": "until q or Ctrl-C",
            "ssh -t node ipamctl top": "from afar: -t gives it a terminal",
            "ipamctl top --interval 5": "for a slow line",
        },
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.output != "table":
        raise Failed("top shows a screen; for programs there is ipamctl status -o json", USAGE)
    if args.interval < 0.1:
        raise Failed("--interval: at least 0.1", USAGE)
    watcher = _Watcher(args.socket, args.interval)
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM", "dumb") == "dumb":
        watcher.look()
        print(*_once(watcher.known), sep="\n")
        return DONE
    _live(watcher)
    return DONE


def _once(known: screen.Known) -> list[str]:
    """One screen as plain lines, without the help for keys."""
    size = shutil.get_terminal_size((80, 40))
    lines = screen.render(known, size.columns, size.lines, ascii_only=_ascii_only())[:-1]
    texts = ["".join(text for text, _ in line).rstrip() for line in lines]
    while texts and not texts[-1]:
        texts.pop()
    return texts


class _Watcher:
    """Asks the daemon again and again, in a thread of its own. `known` is replaced as a whole, so that the screen
    never shows half of an answer."""

    def __init__(self, socket: Path, interval: float) -> None:
        self.known = screen.Known(time.time())
        self._socket = socket
        self._interval = interval
        self._samples: deque[screen.Sample] = deque(maxlen=_SAMPLES)
        self._stop = threading.Event()
        self._news, self._told = os.pipe()

    @property
    def news(self) -> int:
        """A descriptor that can be read from when there is something new."""
        return self._news

    def look(self) -> None:
        """Once. Raises `Failed`."""
        with introspection(self._socket) as stub:
            node = stub.GetNode(pb.GetNodeRequest(), timeout=_TIMEOUT)
            # A daemon that has not learnt who its node is has not learnt its ENIs either.
            enis = stub.ListEnis(pb.ListEnisRequest(), timeout=_TIMEOUT).enis if node.instance_id else ()
            waiting = stub.ListWaiting(pb.ListWaitingRequest(), timeout=_TIMEOUT).waiting
            events = tuple(stub.WatchEvents(pb.WatchEventsRequest(last=_EVENTS), timeout=_TIMEOUT))
        counts = node.counts
        self._samples.append(screen.Sample(counts.free, counts.assigned, counts.cooling, counts.waiting))
        self.known = screen.Known(time.time(), node, enis, waiting, events, tuple(self._samples))

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
            except Failed as failed:
                self.known = replace(self.known, problem=str(failed))
            os.write(self._told, b".")
            self._stop.wait(self._interval)


def _live(watcher: _Watcher) -> None:
    stdin = sys.stdin.fileno()
    with _terminal() as resized, watcher.running():
        while True:
            _draw(watcher)
            ready, _, _ = select.select([stdin, watcher.news, resized], [], [], 1.0)
            read = {each: os.read(each, 4096) for each in ready}
            # Readable and empty: the terminal is gone.
            if stdin in read and (not read[stdin] or b"q" in read[stdin]):
                return


def _draw(watcher: _Watcher) -> None:
    known = replace(watcher.known, now=time.time())
    size = os.get_terminal_size(sys.stdout.fileno())
    lines = screen.render(known, size.columns, size.lines, ascii_only=_ascii_only())
    # Overwrite line by line: clearing the whole screen first would flicker.
    text = "\r\n".join(f"{_painted(line)}\x1b[K" for line in lines)
    # Past the buffer of standard output: what a signal left in it would come after the screen was put back.
    rest = f"\x1b[H{text}\x1b[J".encode(sys.stdout.encoding, "replace")
    while rest:
        rest = rest[os.write(sys.stdout.fileno(), rest) :]


def _painted(line: screen.Line) -> str:
    if not colours():
        return "".join(text for text, _ in line)
    return "".join(f"\x1b[{STYLES[style]}m{text}\x1b[0m" if style else text for text, style in line)


def _ascii_only() -> bool:
    return "utf" not in (sys.stdout.encoding or "").lower()


@contextmanager
def _terminal() -> Iterator[int]:
    """Without echo and line editing, on the alternate screen; back as it was afterwards, whatever happens, and while
    the job is stopped by Ctrl-Z. Yields a descriptor that can be read from when the size has changed."""
    stdin, before = sys.stdin.fileno(), termios.tcgetattr(sys.stdin)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)

    def enter() -> None:
        tty.setcbreak(stdin)
        os.write(sys.stdout.fileno(), _ENTER.encode())

    def leave() -> None:
        os.write(sys.stdout.fileno(), _LEAVE.encode())
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)

    def end(number: int, _: FrameType | None) -> None:
        # As a shell counts a death by signal. It unwinds the stack, so that `leave` is reached.
        raise SystemExit(128 + number)

    def pause(*_: object) -> None:
        leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        enter()

    def resize(*_: object) -> None:
        pass  # that there is a handler makes the signal known through `woken`

    handlers: dict[int, Callable[[int, FrameType | None], None]] = {
        signal.SIGTERM: end, signal.SIGHUP: end, signal.SIGTSTP: pause, signal.SIGWINCH: resize,
    }  # fmt: skip
    old = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    old_wake = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        enter()
        yield woken
    except KeyboardInterrupt:
        pass  # Ctrl-C is a way to quit
    finally:
        try:
            leave()
        except (OSError, termios.error):
            pass  # the terminal is gone: nothing to put back
        signal.set_wakeup_fd(old_wake)
        for number, handler in old.items():
            signal.signal(number, handler)
        os.close(woken)
        os.close(wake)
