"""Structured logs: one line per event on standard error, JSON for machines and readable text on a terminal."""

from __future__ import annotations

import atexit
import logging
import queue
import select
import sys
import threading
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from ipamd.pool.quoting import cut, shown
from ipamd.settings import LogSettings
from ipamd.telemetry.history import LEVELS, History

# Lines that wait for a reader who has stopped reading, a few MB; more are lost, and counted.
LINES_WAITING = 10_000

# A pipe or a socket that polls as writable takes so many characters at once (pipe(7), PIPE_BUF; a fourth of it, as
# each may take four bytes).
AT_ONCE = 1024

# Of one event: characters of a traceback, items of a list or a mapping, and lists within one another.
TRACEBACK = 8000
ITEMS = 32
NESTED = 3

# Seconds that the end of the process waits for them.
AT_THE_END = 1.0


class Writer:
    """A stream that holds nobody up: what can't be written at once, because its reader does not read, such as a
    stopped journald, is left to a thread. A full disk loses lines, and nothing else. Of `structlog.WriteLogger` and
    `logging.StreamHandler` it knows what they call; each of them lets one caller in at a time."""

    def __init__(self, stream: TextIO, on_lost: Callable[[int], None]) -> None:
        self._stream = stream
        self._on_lost = on_lost
        self._lines: queue.Queue[str | None] = queue.Queue(LINES_WAITING)
        self._unwritten = 0  # in the queue, or in the thread's hand
        self._lock = threading.Lock()
        self._lost = 0
        self._poll = _watched(stream)
        self._thread = threading.Thread(target=self._write_out, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> None:
        if not self._unwritten and len(text) <= AT_ONCE and self._poll is not None and self._poll.poll(0):
            self._put(text)
            return
        with self._lock:
            try:
                self._lines.put_nowait(text)
            except queue.Full:
                self._lost += 1
            else:
                self._unwritten += 1

    def flush(self) -> None:
        """Each line is, when it is written."""

    def close(self) -> None:
        try:
            self._lines.put(None, timeout=AT_THE_END)
        except queue.Full:
            return
        self._thread.join(AT_THE_END)

    def _put(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: the stream is closed
            pass

    def _write_out(self) -> None:
        while (text := self._lines.get()) is not None:
            self._put(text)
            with self._lock:
                self._unwritten -= 1
                lost, self._lost = (self._lost, 0) if not self._unwritten else (0, self._lost)
            if lost:
                self._on_lost(lost)


def _watched(stream: TextIO) -> select.poll | None:
    """Tells whether a line can be written without waiting; None where nothing does."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return None
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return poll


def bounded(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Cut the fields of an event to what fits into a line, before it is kept and written."""
    for name, value in event.items():
        event[name] = cut_end(value) if name == "exception" else _bounded(value, NESTED)
    return event


def _bounded(value: Any, levels: int) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping) and levels:
        return {cut(str(key), 100): _bounded(item, levels - 1) for key, item in islice(value.items(), ITEMS)}
    if isinstance(value, list | tuple) and levels:
        return [_bounded(item, levels - 1) for item in value[:ITEMS]]
    return cut(value if isinstance(value, str) else str(value))


def cut_end(text: Any) -> Any:
    """Of a traceback the end says what is wrong."""
    return text if not isinstance(text, str) or len(text) <= TRACEBACK else f"...{text[-TRACEBACK:]}"


def _printable(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """For a terminal, which would obey what names of others may hold."""
    return {name: shown(v) if isinstance(v, str) and name != "exception" else v for name, v in event.items()}


def set_up(settings: LogSettings, history: History) -> Writer:
    """From now on all lines go through the returned writer, and into `history`: those from level info on, whatever
    the settings leave out."""
    text = settings.format == "text" or (settings.format == "auto" and sys.stderr.isatty())
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if text else structlog.processors.JSONRenderer()
    )
    writer = Writer(sys.stderr, lambda lines: structlog.get_logger("ipamd.logs").error("log.lost", lines=lines))
    atexit.register(writer.close)

    def remember(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        if event["level"] != "debug":
            fields = {key: value for key, value in event.items() if key not in ("event", "level")}
            history.add(event["level"], event["event"], fields)
        return event

    def choose(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        if LEVELS.index(event["level"]) < LEVELS.index(settings.level):
            raise structlog.DropEvent
        return event

    least = min("info", settings.level, key=LEVELS.index)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            bounded,
            remember,
            choose,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([_printable] if text else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, least.upper())),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, writer)),
        cache_logger_on_first_use=True,
    )
    # Libraries that use the standard module: only what is wrong.
    logging.basicConfig(
        level=logging.WARNING,
        format="%(levelname)s %(name)s: %(message).2000s",
        stream=cast(TextIO, writer),
        force=True,
    )
    return writer
