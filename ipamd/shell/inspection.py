"""What an operator has looked at: do EC2, the records and the kernel agree, and which attachments have vanished?"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from ipamd.cloud.port import Cloud, Priority
from ipamd.ledger import Ledger
from ipamd.pool import events as on
from ipamd.pool.model import Attachment
from ipamd.pool.pool import COLLECT_MINIMUM_AGE
from ipamd.shell.comparison import Compared, compare
from ipamd.shell.readings import Readings
from ipamd.shell.turn import PoolRunner

# Seconds between the two looks of an audit: longer than a change takes to show everywhere, as a rule.
SECOND_LOOK = 2.0


class Inspection:
    def __init__(self, runner: PoolRunner, readings: Readings, ledger: Ledger, cloud: Cloud) -> None:
        self._runner = runner
        self._readings = readings
        self._ledger = ledger
        self._cloud = cloud

    async def vanished(self) -> list[Attachment]:
        """Attachments that have left no trace, and are old enough not to be in the middle of their ADD. Raises
        `HostError`."""
        view = self._runner.view
        gone = await self._readings.gone(view.attachments())
        held = (view.attachment(key) for key in gone)
        return [a for a in held if a is not None and self._runner.clock() - a.since > COLLECT_MINIMUM_AGE]

    async def compare(self) -> Compared:
        """What EC2, the ledger and the kernel say differently, in each of two looks. Raises `CloudError`, `HostError`
        or `LedgerError`."""
        first, _ = await self._compare_once()
        if not first.mismatches:
            return first
        await asyncio.sleep(SECOND_LOOK)
        second, seen = await self._compare_once()
        before = {(mismatch.kind, mismatch.subject) for mismatch in first.mismatches}
        lasting = tuple(m for m in second.mismatches if (m.kind, m.subject) in before)
        # What an operator has found is the pool's knowledge from now on, too.
        self._runner.feed(
            on.Inspected(seen.enis, frozenset(m.subject for m in lasting if m.kind == "address_missing"))
        )
        return replace(second, mismatches=lasting)

    async def _compare_once(self) -> tuple[Compared, on.Audited]:
        seen = await self._readings.read_all(self._cloud.at(Priority.WARM))
        return compare(self._runner.view, self._ledger.load().attachments, seen, self._runner.clock()), seen
