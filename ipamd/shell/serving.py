"""One answer to "can this daemon do its work on this node?", and its record for the plugin.

`pool.serving` decides; here the facts are brought together, changes are waited for, and the answer is left beside the
socket for STATUS (cni_shim/served.py says why). The record outlives the daemon, so that a restart is no event for the
node, and belongs to one boot of it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from cni_shim.names import served_record
from cni_shim.served import since_boot
from ipamd.host import Reconciler
from ipamd.ledger.place import boot_id
from ipamd.pool.serving import NotServing
from ipamd.shell.turn import PoolRunner
from ipamd.telemetry.conditions import Conditions

# Seconds after which the record is looked at: it could not be written, or somebody removed it.
AGAIN = 10.0

UNRECORDED = "serving.unrecorded"


class Record:
    """That the node serves, as the plugin looks for it."""

    def __init__(self, socket: Path) -> None:
        self.path = Path(served_record(str(socket)))
        self._socket = socket

    def holds(self) -> bool:
        """Whether it was written in this boot."""
        return since_boot(str(self._socket))

    def write(self) -> None:
        """Whole at any moment; with the socket's folder it may be anybody's who writes beside it. Raises OSError."""
        new = self.path.with_name(f"{self.path.name}.new")
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{boot_id()}\n")
        new.rename(self.path)

    def remove(self) -> None:
        """Raises OSError."""
        self.path.unlink(missing_ok=True)


class Serving:
    """`changed` is set whenever the answer may be another one. For the thread of the event loop alone."""

    def __init__(
        self,
        runner: PoolRunner,
        reconciler: Reconciler,
        record: Record,
        conditions: Conditions,
        changed: asyncio.Event,
    ) -> None:
        self._runner = runner
        self._reconciler = reconciler
        self._record = record
        self._conditions = conditions
        self._changed = changed
        self._served = record.holds()

    def obstacle(self) -> NotServing | None:
        """Why it can't; None when it can."""
        runner = self._runner
        found = runner.view.not_serving(self._served, self._reconciler.broken, runner.clock())
        self._served = self._served or found is None
        return found

    async def changes(self) -> AsyncIterator[NotServing | None]:
        """The obstacle as it is now, and then each other one."""
        told = self.obstacle()
        yield told
        while True:
            self._changed.clear()
            now = self.obstacle()
            if now != told:
                told = now
                yield now
            else:
                await self._changed.wait()

    def record(self) -> None:
        """Leave the answer for the plugin. While that fails, STATUS asks the daemon."""
        try:
            if self.obstacle() is None:
                if not self._record.holds():
                    self._record.write()
            else:
                self._record.remove()
            self._conditions.end(UNRECORDED)
        except OSError as error:
            reason = error.strerror or str(error)
            self._conditions.begin(
                UNRECORDED,
                f"{self._record.path} can't be written: {reason}. Until it is, a restart of the daemon makes the "
                "runtime report this node as not ready. Make room there, or remove what stands in its place.",
                path=str(self._record.path),
                error=reason,
            )

    async def keep_recorded(self) -> None:
        """Until cancelled. To begin once the node serves: before that an older record may hold."""
        while True:
            await asyncio.sleep(AGAIN)
            self._changed.set()  # the answer may be another one by the time that has passed: who follows it says so
            self.record()
