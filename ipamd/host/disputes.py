"""Decides how often to repair an object that another program keeps changing.

The first repairs come at once: a wiped rule set must not cost pods a second. If the same object changes again and
again, another program wants it otherwise, and an immediate repair each time would only burn CPU time of both. So the
repairs become rarer and an event names the program. The dispute ends when the object has stayed the same for a while.

Pure: the time is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass

FREE_REPAIRS = 3
FIRST_DELAY = 1.0  # seconds, doubled with every further repair
# Pods need our side of the dispute: a repair is never delayed for longer.
LONGEST_DELAY = 10.0
CALM = 300.0  # seconds without a change after which an object is no longer disputed


@dataclass(slots=True)
class Dispute:
    """`what` was repaired `repairs` times since `since`, the last time at `last`; `by` is the program that had
    changed it then, if known. Times are those that the caller passed."""

    what: str
    by: str
    since: float
    last: float
    repairs: int = 1

    @property
    def delay(self) -> float:
        """Seconds from one repair to the next."""
        beyond = self.repairs - FREE_REPAIRS
        return min(FIRST_DELAY * 2.0**beyond, LONGEST_DELAY) if beyond >= 0 else 0.0

    @property
    def open(self) -> bool:
        return self.repairs >= FREE_REPAIRS


class Disputes:
    def __init__(self) -> None:
        self._by_object: dict[str, Dispute] = {}

    def repaired(self, what: str, by: str, now: float) -> Dispute:
        """Record a repair."""
        dispute = self._by_object.get(what)
        if dispute is None:
            dispute = self._by_object[what] = Dispute(what, by, now, now)
        else:
            dispute.by, dispute.last, dispute.repairs = by, now, dispute.repairs + 1
        return dispute

    def due(self, what: str) -> float:
        """The time of the next repair; in the past if it may happen at once."""
        dispute = self._by_object.get(what)
        return 0.0 if dispute is None else dispute.last + dispute.delay

    def calm_at(self) -> float | None:
        """When the first dispute ends if its object stays unchanged until then."""
        return min((dispute.last + CALM for dispute in self._by_object.values()), default=None)

    def settled(self, now: float) -> list[Dispute]:
        """Disputes that have ended; they are forgotten now."""
        over = [dispute for dispute in self._by_object.values() if now >= dispute.last + CALM]
        for dispute in over:
            del self._by_object[dispute.what]
        return [dispute for dispute in over if dispute.open]

    def open(self) -> tuple[Dispute, ...]:
        return tuple(dispute for dispute in self._by_object.values() if dispute.open)
