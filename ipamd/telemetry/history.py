"""The last events in memory: what the log says, for `ipamctl events`, `status` and `explain`.

A journal can be rotated away, or belong to somebody who is asleep; this is there as long as the daemon is.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice, takewhile
from typing import Any

# Some hundred bytes each.
KEPT = 1000

LEVELS = ("debug", "info", "warning", "error", "critical")


@dataclass(frozen=True, slots=True)
class Event:
    """`number` counts from 1; `at` is in seconds since the epoch."""

    number: int
    at: float
    level: str
    name: str
    fields: Mapping[str, Any]

    def at_least(self, level: str) -> bool:
        return LEVELS.index(self.level) >= LEVELS.index(level)


class History:
    """Filled from any thread, read in the event loop alone."""

    def __init__(self, kept: int = KEPT) -> None:
        self._events: deque[Event] = deque(maxlen=kept)
        self._numbers = count(1)
        self._followers: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self._closed = False
        self.counts: Counter[tuple[str, str]] = Counter()  # by name and level, since the start

    def add(self, level: str, name: str, fields: Mapping[str, Any]) -> None:
        self.counts[name, level] += 1
        self._events.append(Event(next(self._numbers), time.time(), level, name, fields))
        self._wake()

    def __len__(self) -> int:
        return len(self._events)

    def last(self, most: int, level: str = "info") -> list[Event]:
        """The latest of at least that level, oldest first."""
        fitting = (event for event in self._latest_first() if event.at_least(level))
        return list(islice(fitting, most))[::-1]

    @property
    def newest(self) -> int:
        """The number of the latest event; 0: there was none."""
        return self._events[-1].number if self._events else 0

    async def follow(self, seen: int, level: str = "info") -> AsyncIterator[Event]:
        """What came and comes after event number `seen`, until `close`. Who reads too slowly misses some: the numbers
        show it."""
        changed = asyncio.Event()
        self._followers[changed] = asyncio.get_running_loop()
        try:
            while not self._closed:
                changed.clear()
                for event in self._after(seen):
                    seen = event.number
                    if event.at_least(level):
                        yield event
                if not changed.is_set():
                    await changed.wait()
        finally:
            del self._followers[changed]

    def close(self) -> None:
        """End all followers."""
        self._closed = True
        self._wake()

    def _after(self, number: int) -> list[Event]:
        return list(takewhile(lambda event: event.number > number, self._latest_first()))[::-1]

    def _latest_first(self) -> Iterator[Event]:
        return reversed(tuple(self._events))  # a copy: another thread may add to them meanwhile

    def _wake(self) -> None:
        for changed, loop in tuple(self._followers.items()):
            loop.call_soon_threadsafe(changed.set)
