"""How far the start is, since when, and what the last try was answered: for `status`, `explain`, metrics, systemd,
and the error of an ADD that waited for it.

A start can last as long as EC2 or the metadata service is away. All that time somebody asks why.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TypeVar

import structlog

from ipamd.cloud.port import CloudError
from ipamd.pool.model import Reason, Refusal
from ipamd.process.service_manager import ServiceManager

log = structlog.get_logger("ipamd.daemon")

T = TypeVar("T")

# Seconds between two tries of what does not answer: the first pause, and the longest.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0

# Of an error's words: what one screen and one CNI error have room for.
LONGEST_ERROR = 400


class Phase(StrEnum):
    """The steps of a start that can last, in their order. The values are stable names."""

    METADATA = "metadata"
    EC2 = "ec2"
    HOST = "host"
    ADDRESS = "address"

    @property
    def words(self) -> str:
        return _WORDS[self]


_WORDS = {
    Phase.METADATA: "asking the instance metadata service who this node is",
    Phase.EC2: "asking EC2 for this node's network interfaces",
    Phase.HOST: "setting up this node's network",
    Phase.ADDRESS: "waiting for the first address for a pod",
}


class Start:
    """For the thread of the event loop alone. `phase` is None once an address can be granted; `since` is in seconds
    since the epoch; `tries` failed in this phase, the last one with `error`."""

    def __init__(self, manager: ServiceManager) -> None:
        self._manager = manager
        self._entered = 0.0
        self.phase: Phase | None = None
        self.since = 0.0
        self.tries = 0
        self.error = ""
        self.enter(Phase.METADATA)

    def enter(self, phase: Phase) -> None:
        self.phase, self.tries, self.error = phase, 0, ""
        self._entered, self.since = time.monotonic(), time.time()
        self._manager.notify(f"STATUS={phase.words}")

    def waits_for_address(self) -> None:
        """All is set up, and EC2 gives no address yet."""
        if self.phase is Phase.HOST:
            self.enter(Phase.ADDRESS)

    def failed(self, error: str) -> None:
        self.tries += 1
        self.error = error if len(error) <= LONGEST_ERROR else error[:LONGEST_ERROR] + "..."
        self._manager.notify(f"STATUS={self.words()}".replace("\n", " "))

    def over(self) -> None:
        self.phase, self.tries, self.error = None, 0, ""

    @property
    def lasted(self) -> float:
        """Seconds of this phase."""
        return time.monotonic() - self._entered

    def words(self) -> str:
        """As "asking EC2 for this node's network interfaces for 24 s, 3 tries; last answer: ..."."""
        if self.phase is None:
            return "the start is over"
        text = f"{self.phase.words} for {self.lasted:.0f} s"
        if self.tries:
            text += f", {self.tries} {'try' if self.tries == 1 else 'tries'}; last answer: {self.error}"
        return text

    def refusal(self) -> Refusal:
        """For a call that needs what the daemon does not know yet."""
        return Refusal(Reason.NOT_READY, f"the daemon is starting: {self.words()}", 5.0, (("tries", self.tries),))

    async def until_answered(self, who: str, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask until it answers: a node whose metadata service or EC2 is away for a while must not need a restart."""
        delay = FIRST_PAUSE
        while True:
            try:
                return await ask()
            except CloudError as error:
                failure = error.failure
                self.failed(str(error))
                log.error(
                    f"{who}.unavailable",
                    action=failure.action,
                    code=failure.code,
                    kind=failure.kind.value,
                    error=failure.message,
                    retry_in=delay,
                )
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_PAUSE)
