"""Who waits for an address: in the order of their coming, by deadline, by attachment, and by the one address that
some of them asked for. Only bookkeeping: who is served or refused is the pool's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from heapq import heappop, heappush
from typing import TypeVar

from ipamd.pool.model import AttachmentKey, Owner

K = TypeVar("K")


class WaitsFor(StrEnum):
    """The values are those of `Waiting.waits_for` in proto/ipamd/v1/introspection.proto."""

    EC2 = "ec2"
    COOLDOWN = "cooldown"
    RELEASE = "release"


@dataclass(slots=True, eq=False)
class Waiting:
    """`wanted` and `blocks_releases` as in `events.AllocationRequested`. `since` and `deadline` are in seconds since
    the epoch."""

    request: str
    key: AttachmentKey
    owner: Owner
    since: float
    deadline: float
    wanted: str = ""
    blocks_releases: bool = False


class Queue:
    """`waiting`, by request, is in the order of their coming. `wished` has, by address, those that wait for this one
    alone, in the same order; `for_any` is how many take any. Changed by the methods alone."""

    def __init__(self) -> None:
        self._waiting: dict[str, Waiting] = {}
        self._wished: dict[str, list[Waiting]] = {}
        self.waiting: Mapping[str, Waiting] = self._waiting
        self.wished: Mapping[str, list[Waiting]] = self._wished
        self.for_any = 0
        # The first request of each attachment, and those that repeat it.
        self._first: dict[AttachmentKey, Waiting] = {}
        self._repeated: dict[AttachmentKey, list[Waiting]] = {}
        # In order of time; those of requests that wait no longer are dropped when they come up.
        self._deadlines: list[tuple[float, str]] = []

    def wishes(self) -> Iterator[Waiting]:
        return (waiting for wishing in self._wished.values() for waiting in wishing)

    def of(self, key: AttachmentKey) -> tuple[Waiting, ...]:
        """The requests for this attachment, in the order of their coming."""
        first = self._first.get(key)
        return () if first is None else (first, *self._repeated.get(key, ()))

    def join(self, waiting: Waiting) -> None:
        self._waiting[waiting.request] = waiting
        if self._first.setdefault(waiting.key, waiting) is not waiting:
            self._repeated.setdefault(waiting.key, []).append(waiting)
        if waiting.wanted:
            self._wished.setdefault(waiting.wanted, []).append(waiting)
        else:
            self.for_any += 1
        heappush(self._deadlines, (waiting.deadline, waiting.request))

    def leave(self, request: str) -> None:
        """The request was answered, or nobody asks any more; it may be unknown."""
        waiting = self._waiting.get(request)
        if waiting is None:
            return
        self._forget(waiting)
        if self._first[waiting.key] is not waiting:
            _remove(self._repeated, waiting.key, waiting)
        elif waiting.key in self._repeated:
            self._first[waiting.key] = self._repeated[waiting.key][0]
            _remove(self._repeated, waiting.key, self._first[waiting.key])
        else:
            del self._first[waiting.key]

    def leave_together(self, key: AttachmentKey) -> tuple[Waiting, ...]:
        """All requests for this attachment, in the order of their coming."""
        first = self._first.pop(key, None)
        if first is None:
            return ()
        together = (first, *self._repeated.pop(key, ())) if self._repeated else (first,)
        for waiting in together:
            self._forget(waiting)
        return together

    def _forget(self, waiting: Waiting) -> None:
        del self._waiting[waiting.request]
        if waiting.wanted:
            _remove(self._wished, waiting.wanted, waiting)
        else:
            self.for_any -= 1

    def next_due(self) -> Waiting | None:
        """Whose deadline is the first to come."""
        while self._deadlines:
            deadline, request = self._deadlines[0]
            waiting = self._waiting.get(request)
            if waiting is not None and waiting.deadline == deadline:
                return waiting
            heappop(self._deadlines)
        return None


def _remove(index: dict[K, list[Waiting]], at: K, waiting: Waiting) -> None:
    index[at].remove(waiting)
    if not index[at]:
        del index[at]
