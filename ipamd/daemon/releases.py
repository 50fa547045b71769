"""Applies the DELs in the spool: to the ledger before the pool starts, to the pool as soon as they come, and always
before their attachment is granted anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from asyncinotify import Mask

from ipamd.api.spool import Spool, Spooled
from ipamd.host.veth import host_link, recovered_key
from ipamd.ledger import Ledger, LedgerError
from ipamd.pool.model import Attachment, AttachmentKey, Cooling, DropAttachment, PutCooling, Reason, Record
from ipamd.process.directory_watch import DirectoryWatch
from ipamd.shell.turn import PoolRunner, Refused
from ipamd.telemetry.conditions import Conditions

log = structlog.get_logger("ipamd.daemon")

# Seconds between two looks while the kernel does not tell of changes, or the folder can't be used.
INTERVAL = 5.0


def settle(ledger: Ledger, spool: Spool, now: float) -> list[Attachment]:
    """Bring the ledger up to date with the DELs that came while nobody served: like replaying a journal. What can't
    be recorded stays in the spool, for `SpooledReleases`. Returns what was released. Raises `LedgerError` when the
    ledger can't be read."""
    spool.make()
    held = {attachment.key: attachment for attachment in ledger.contents().attachments}
    ended: list[Attachment] = []
    for spooled in spool.batches():
        records: list[Record] = []
        released: list[tuple[Spooled, Attachment]] = []
        for release in spooled:
            attachment = held.get(release.key) or held.get(recovered_key(release.key))
            if attachment is not None:
                del held[attachment.key]
                released.append((release, attachment))
                records += [
                    DropAttachment(attachment.key),
                    PutCooling(Cooling(attachment.address, now - release.age)),
                ]
        try:
            ledger.commit(records)
        except LedgerError as error:
            log.error("ledger.unwritable", error=str(error))
            return ended
        for release in spooled:
            spool.done(release)
        for release, attachment in released:
            ended.append(attachment)
            log.info("attachment.released", key=str(release.key), ip=attachment.address, spooled=True)
    return ended


class SpooledReleases:
    """For as long as the pool serves."""

    def __init__(self, spool: Spool, runner: PoolRunner, conditions: Conditions) -> None:
        self._spool = spool
        self._runner = runner
        self._conditions = conditions

    async def run(self, well: Callable[[], None]) -> None:
        """Apply what waits, and what comes, until cancelled."""
        mask = Mask.MOVED_TO | Mask.CLOSE_WRITE
        watch = DirectoryWatch(lambda: self._spool.directories, mask, INTERVAL, self._conditions, "spool.polled")
        try:
            while True:
                self._spool.make()
                try:
                    async with asyncio.timeout(INTERVAL if self._spool.trouble() else None):
                        await watch.changed()
                except TimeoutError:
                    pass
                self._spool.make()
                for waiting in self._spool.batches():
                    for spooled in waiting:
                        await self._apply_once_recorded(spooled)
                    await asyncio.sleep(0)  # between two batches of what makes no sense, too
                self._say(well)
        except Refused:
            return  # the daemon is at its end: its successor applies what is left
        finally:
            watch.close()

    async def before_grant(self, key: AttachmentKey) -> None:
        """Apply what waits for this attachment: its DEL came before the ADD that asks now. One look into a folder
        that is empty, as a rule."""
        for waiting in self._spool.batches(host_link(key)):
            for spooled in waiting:
                await self._apply(spooled)

    async def _apply_once_recorded(self, spooled: Spooled) -> None:
        """While the ledger has no room, the file is all that a restart would know of the release."""
        while True:
            try:
                return await self._apply(spooled)
            except Refused as refused:
                if refused.refusal.reason is not Reason.LEDGER_UNWRITABLE:
                    raise
                await asyncio.sleep(refused.refusal.retry_after or INTERVAL)

    def _say(self, well: Callable[[], None]) -> None:
        if trouble := self._spool.trouble():
            self._conditions.begin("spool.unusable", trouble)
        else:
            well()

    async def _apply(self, spooled: Spooled) -> None:
        if not self._spool.waits(spooled):
            return
        request = f"spool {spooled.file.name[:100]}"
        attachment = await self._runner.release(request, spooled.key, recovered_key(spooled.key))
        # In the same step of the loop as the release's end: no grant can come in between.
        self._spool.done(spooled)
        if attachment is not None:
            log.info("attachment.released", key=str(spooled.key), ip=attachment.address, spooled=True)
