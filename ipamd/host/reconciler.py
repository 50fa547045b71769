"""Keeps the kernel in the desired state when other programs change it.

Three things lead to a look at the kernel: the pool wants something else (at once), the kernel tells that somebody
changed what was right (a moment later, so that one repair covers the whole of it), and, every ten minutes, nothing at
all, for what no event tells. A look that finds all as it should be writes nothing and says nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from ipamd.host.culprit import processes_behind
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
# Seconds for which the kernel has to refuse what every pod needs before the node counts as broken.
BROKEN_AFTER = 20.0

UNKNOWN = "somebody unknown"


@dataclass(frozen=True, slots=True)
class Health:
    """State of the node's network. `repairs` counts objects repaired since the start; `last_repair` is the time of
    the last one by the reconciler's clock (None: none yet). `error`: why the last look failed, or ""."""

    repairs: int
    last_repair: float | None
    last_what: str
    last_by: str
    disputes: tuple[Dispute, ...]
    error: str


class Reconciler:
    """`node()` returns what the node should serve. `on_device_gone(eni_id)` is called when an ENI's device goes,
    `on_look()` after each look at the kernel."""

    def __init__(
        self,
        network: HostNetwork,
        node: Callable[[], NodeNetwork],
        pod_at: Callable[[str], PodNetwork | None],
        on_device_gone: Callable[[str], None],
        clock: Callable[[], float],
        on_look: Callable[[], None] = lambda: None,
    ) -> None:
        self._network = network
        self._node = node
        self._on_device_gone = on_device_gone
        self._clock = clock
        self._on_look = on_look
        self._lock = asyncio.Lock()
        self._disputes = Disputes()
        self._signs: dict[str, Disturbance] = {}  # of each object the first
        self._wake = asyncio.Event()
        self._repairs = 0
        self._last: tuple[float, str, str] | None = None
        self._error = ""
        self._lacking: tuple[float, str] | None = None  # what every pod needs and the kernel refuses, since when
        # Points in time: the next look without a reason, the next try of what the kernel refused, and the next repair
        # of what is disputed.
        self._audit_at = clock() + _until_audit()
        self._retry_at: float | None = None
        self._retry_after = 0.0
        self._withheld_until: float | None = None
        network.listen(self._on_disturbance, pod_at)

    async def apply(self, eni_id: str = "") -> None:
        """Bring about what the node should serve now.

        Raises `HostError` when something stands in the way of that ENI or of all; what stands in the way of another
        ENI or of a pod is tried again by itself.
        """
        async with self._lock:
            # Taken before the look: what is done to the kernel from here on may be seen by the next one only.
            signs, self._signs = self._signs, {}
            self._audit_at, self._withheld_until = self._clock() + _until_audit(), None
            try:
                applied = await self._network.apply(self._node(), self._is_withheld)
            except BaseException as error:
                self._signs = signs | self._signs
                if isinstance(error, HostError):
                    self._refused(error)
                raise
            self._looked(applied)
        await self._tell(applied, signs)
        for failure in applied.failed:
            if not failure.pod and failure.eni in ("", eni_id):
                raise failure.error

    async def run(self) -> None:
        """Watch and repair until cancelled."""
        while True:
            try:
                async with asyncio.timeout(max(self._next_look() - self._clock(), 0.0)):
                    await self._wake.wait()
            except TimeoutError:
                await self._look()
                continue
            await asyncio.sleep(GATHER)
            self._wake.clear()
            if all(sign.passed() for sign in self._signs.values()):
                self._signs.clear()
            else:
                await self._look()

    def health(self) -> Health:
        at, what, by = self._last or (None, "", "")
        return Health(self._repairs, at, what, by, self._disputes.open(), self._error)

    @property
    def broken(self) -> str:
        """What the kernel has refused for a while now although every pod needs it; empty when there is nothing. A
        kernel that can't be read is not known to be broken."""
        if self._lacking is None or self._clock() < self._lacking[0] + BROKEN_AFTER:
            return ""
        return self._lacking[1]

    def _next_look(self) -> float:
        """When to look at the kernel, if nobody disturbs anything until then."""
        times = (self._audit_at, self._retry_at, self._withheld_until, self._disputes.calm_at())
        return min(time for time in times if time is not None)

    async def _look(self) -> None:
        for dispute in self._disputes.settled(self._clock()):
            log.info("host.settled", what=dispute.what, repairs=dispute.repairs)
        with suppress(HostError):  # told already
            await self.apply()

    def _looked(self, applied: Applied) -> None:
        """Set the times of the next look."""
        self._withheld_until = min((self._disputes.due(step.what) for step in applied.withheld), default=None)
        if applied.failed:
            self._refused(applied.failed[0].error)
        elif self._error:
            log.info("host.in_order_again")
            self._error, self._retry_at, self._retry_after = "", None, 0.0
        lacking = next((str(failure.error) for failure in applied.failed if failure.every_pod), "")
        since = self._clock() if self._lacking is None else self._lacking[0]
        self._lacking = (since, lacking) if lacking else None
        self._on_look()

    def _refused(self, error: HostError) -> None:
        now = self._clock()
        if self._retry_at is None or now >= self._retry_at:
            self._retry_after = min(max(self._retry_after * 2, FIRST_RETRY), LONGEST_RETRY)
            self._retry_at = now + self._retry_after
            self._wake.set()  # the waiting task must wait for another time
        if str(error) != self._error:
            log.error("host.unrepaired", error=str(error), retry_in=self._retry_after)
        self._error = str(error)

    def _on_disturbance(self, disturbance: Disturbance) -> None:
        self._signs.setdefault(disturbance.what, disturbance)
        self._wake.set()
        if disturbance.eni:
            self._on_device_gone(disturbance.eni)

    def _is_withheld(self, step: Step) -> bool:
        return self._clock() < self._disputes.due(step.what)

    async def _tell(self, applied: Applied, signs: dict[str, Disturbance]) -> None:
        """Of what others did."""
        # A pod that came since the last look is known from the sign alone.
        restored = {step.what: step for step in applied.done if step in applied.restored or step.what in signs}
        for step in applied.done:
            if step.what not in restored:
                log.debug("host.changed", change=str(step))
        if not restored:
            return
        now = self._clock()
        behind = await asyncio.to_thread(processes_behind, {sign.port for sign in signs.values() if not sign.by})
        culprits = {sign.what: sign.by or behind[sign.port] for sign in signs.values()}
        quiet: dict[str, list[str]] = {}
        for what, step in restored.items():
            by = culprits.get(what) or next(iter(culprits.values()), UNKNOWN)
            dispute = self._disputes.repaired(what, by, now)
            self._repairs += 1
            self._last = (now, what, by)
            if not dispute.open:
                quiet.setdefault(by, []).append(str(step))
            elif dispute.repairs == FREE_REPAIRS:
                log.error(
                    "host.disputed",
                    what=what,
                    by=by,
                    repairs=dispute.repairs,
                    effect=f"from now on it is repaired at most every {dispute.delay:.0f} to {LONGEST_DELAY:.0f} s",
                    remedy="run ipamctl doctor on the node",
                )
        for by, what_done in quiet.items():
            log.warning("host.repaired", what=what_done, by=by)


def _until_audit() -> float:
    """Seconds, not the same on all nodes that were started together."""
    return AUDIT + random.uniform(-AUDIT_JITTER, AUDIT_JITTER)
