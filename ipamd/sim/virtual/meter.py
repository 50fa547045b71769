"""How many addresses an instance holds and how many of them pods use, summed over time."""

from __future__ import annotations

from collections.abc import Callable


class Meter:
    """`history` has a row (time, held, used) for each change, for plots."""

    def __init__(self, clock: Callable[[], float], start: float) -> None:
        self._clock = clock
        self._since = start
        self._idle_seconds = 0.0
        self.held = 0
        self.used = 0
        self.history: list[tuple[float, int, int]] = [(start, 0, 0)]

    def hold(self, change: int) -> None:
        self._settle()
        self.held += change
        self.history.append((self._since, self.held, self.used))

    def use(self, change: int) -> None:
        self._settle()
        self.used += change
        self.history.append((self._since, self.held, self.used))

    def idle_seconds(self) -> float:
        """Address-seconds so far in which an address was held and no pod had it, cooling ones included."""
        self._settle()
        return self._idle_seconds

    def _settle(self) -> None:
        now = self._clock()
        self._idle_seconds += (self.held - self.used) * (now - self._since)
        self._since = now
