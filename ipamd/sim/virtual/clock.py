"""Time that jumps from event to event."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Coroutine, Generator
from itertools import count
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Timer:
    """Something that is to happen at a time, unless it is cancelled before."""

    __slots__ = ("action", "cancelled")

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


# A sequence of steps as a generator: it yields how many seconds to wait before its next step.
Process = Generator[float, None, None]


class Wait(Generic[T]):
    """What a coroutine awaits in virtual time. `begin` is called with a function that must be called once, now or
    later, with the value that the coroutine goes on with."""

    __slots__ = ("_begin",)

    def __init__(self, begin: Callable[[Callable[[T], None]], object]) -> None:
        self._begin = begin

    def __await__(self) -> Generator[Callable[[Callable[[T], None]], object], T, T]:
        value = yield self._begin
        return value


class VirtualClock:
    """Seconds since the epoch; what is due at the same time happens in the order in which it was asked for."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._order = count()
        self._due: list[tuple[float, int, Timer]] = []

    def __call__(self) -> float:
        return self._now

    def call_at(self, time: float, action: Callable[[], None]) -> Timer:
        """`time` may have passed: then it happens next, without turning time back."""
        timer = Timer(action)
        heapq.heappush(self._due, (max(time, self._now), next(self._order), timer))
        return timer

    def call_later(self, delay: float, action: Callable[[], None]) -> Timer:
        return self.call_at(self._now + delay, action)

    def spawn(self, process: Process) -> None:
        """Start the process now; it goes on until it returns or the simulation stops."""

        def step() -> None:
            for delay in process:
                self.call_later(delay, step)
                return

        self.call_later(0.0, step)

    def sleep(self, seconds: float) -> Wait[None]:
        return Wait(lambda go_on: self.call_later(seconds, lambda: go_on(None)))

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the coroutine until it waits; it goes on when that is over. It may await nothing but a `Wait`."""

        def go_on(value: Any) -> None:
            try:
                begin = work.send(value)
            except StopIteration:
                return
            begin(go_on)

        go_on(None)

    def run_until(self, end: float) -> None:
        """Let everything happen that is due by `end`, which then is the time."""
        while self._due and self._due[0][0] <= end:
            self._now, _, timer = heapq.heappop(self._due)
            if not timer.cancelled:
                timer.action()
        self._now = max(self._now, end)
