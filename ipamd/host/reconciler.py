"""Keeps the kernel as it should be, whoever changes it.

Three things lead to a look at the kernel: the pool wants something else (at once), the kernel tells that somebody
changed what was right (a moment later, so that one repair covers the whole of it), and, every ten minutes, nothing at
all, for what no event tells. A look that finds all as it should be writes nothing and says nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from ipamd.host.desired import NodeNetwork, PodNetwork
from ipamd.host.difference import Step
from ipamd.host.disputes import FREE_REPAIRS, LONGEST_DELAY, Dispute, Disputes
from ipamd.host.errors import HostError
from ipamd.host.network import Applied, Disturbance, HostNetwork

log = structlog.get_logger("ipamd.host")

# Seconds from the first sign of a disturbance to the repair: who flushes a table tells of each line of it.
GATHER = 0.1
# Seconds between looks without a reason, and by how much they vary.
AUDIT, AUDIT_JITTER = 600.0, 60.0
# Seconds from a repair that the kernel refused to the next try: doubled each time.
FIRST_RETRY, LONGEST_RETRY = 1.0, 30.0

UNKNOWN = "somebody unknown"


@dataclass(frozen=True, slots=True)
class Health:
    """How the node's network fares. `repairs` counts objects put right since the start, the last of them at
    `last_repair` by the reconciler's clock (None: none yet); `error` is why the last look could not do what it
    should, empty when it could."""

    repairs: int
    last_repair: float | None
    last_what: str
    last_by: str
    disputes: tuple[Dispute, ...]
    error: str


class Reconciler:
    """`node` tells what the node should serve, `on_device_gone` is told the id of an ENI whose device vanished."""

    def __init__(
        self,
        network: HostNetwork,
        node: Callable[[], Awaitable[NodeNetwork]],
        pod_at: Callable[[str], PodNetwork | None],
        on_device_gone: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._network = network
        self._node = node
        self._on_device_gone = on_device_gone
        self._clock = clock
        self._lock = asyncio.Lock()
        self._disputes = Disputes()
        self._signs: dict[str, Disturbance] = {}  # of each object the first
        self._disturbed = asyncio.Event()
        self._repairs = 0
        self._last: tuple[float, str, str] | None = None
        self._error = ""
        self._retry = 0.0
        self._audit_at = clock() + _until_audit()
        network.listen(self._on_disturbance, pod_at)

    async def apply(self) -> None:
        """Bring about what the node should serve now. Raises `HostError`."""
        async with self._lock:
            # Asked for within the lock: what was right when the wait began may not be any more.
            self._audit_at = self._clock() + _until_audit()
            node = await self._node()
            # Taken before the look: what is done to the kernel from here on may be seen by the next one only.
            signs, self._signs = self._signs, {}
            try:
                applied = await self._network.apply(node, self._is_withheld)
            except BaseException:
                self._signs = signs | self._signs
                raise
        culprits = {sign.what: sign.by for sign in signs.values()}
        self._tell(applied, culprits)

    async def run(self) -> None:
        """Watch and repair until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._patience()):
                    await self._disturbed.wait()
            except TimeoutError:
                await self._repair()
                continue
            await asyncio.sleep(GATHER)
            self._disturbed.clear()
            if not all(sign.passed() for sign in self._signs.values()):
                await self._repair()
            else:
                self._signs.clear()

    def health(self) -> Health:
        at, what, by = self._last or (None, "", "")
        return Health(self._repairs, at, what, by, self._disputes.open(), self._error)

    def _patience(self) -> float:
        """Seconds until the next look, if nobody disturbs anything."""
        if self._error:
            return self._retry
        now = self._clock()
        due = self._disputes.next(now)
        return max(min(self._audit_at, due or self._audit_at) - now, 0.0)

    async def _repair(self) -> None:
        for dispute in self._disputes.settled(self._clock()):
            log.info("host.settled", what=dispute.what, repairs=dispute.repairs)
        try:
            await self.apply()
        except HostError as error:
            self._failed(str(error))

    def _failed(self, error: str) -> None:
        self._retry = min(max(self._retry * 2, FIRST_RETRY), LONGEST_RETRY)
        if error != self._error:
            log.error("host.unrepaired", error=error, retry_in=self._retry)
        self._error = error

    def _on_disturbance(self, disturbance: Disturbance) -> None:
        self._signs.setdefault(disturbance.what, disturbance)
        self._disturbed.set()
        if disturbance.eni:
            self._on_device_gone(disturbance.eni)

    def _is_withheld(self, step: Step) -> bool:
        return self._disputes.withheld(step.what, self._clock())

    def _tell(self, applied: Applied, culprits: dict[str, str]) -> None:
        if applied.failed:
            self._failed(str(applied.failed[0]))
        elif self._error:
            log.info("host.in_order_again")
            self._error, self._retry = "", 0.0
        quiet = []
        for step in applied.done:
            # A pod that came since the last look is known from the sign alone.
            if step not in applied.restored and step.what not in culprits:
                log.debug("host.changed", change=str(step))
                continue
            by = culprits.get(step.what) or next(iter(culprits.values()), UNKNOWN)
            now = self._clock()
            dispute = self._disputes.repaired(step.what, by, now)
            self._repairs += 1
            self._last = (now, step.what, by)
            if not dispute.open:
                quiet.append((str(step), by))
            elif dispute.repairs == FREE_REPAIRS:
                log.error(
                    "host.disputed",
                    what=step.what,
                    by=by,
                    repairs=dispute.repairs,
                    effect=f"from now on it is repaired at most every {dispute.delay:.0f} to {LONGEST_DELAY:.0f} s",
                    remedy="run ipamctl doctor on the node",
                )
        for by in dict.fromkeys(by for _, by in quiet):
            log.warning("host.repaired", what=[what for what, who in quiet if who == by], by=by)


def _until_audit() -> float:
    """Seconds, not the same on all nodes that were started together."""
    return AUDIT + random.uniform(-AUDIT_JITTER, AUDIT_JITTER)
