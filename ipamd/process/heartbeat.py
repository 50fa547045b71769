"""The watchdog's heartbeat: each beat is the proof that the daemon moves, part by part.

The loop runs this task. The pool takes an event and the turn that the event is in comes to its end, which is the way
of every request. The ledger begins a transaction and ends it, as with every grant.

A fault that a restart would not mend does not cause one. If the ledger refuses records (full, not writable, held by
another process, a failing device), the log and each refusal say so, and the runner goes on without it and tries
again; one whose file is damaged or gone is written anew from memory, and the transaction here is what notices it on a
node where nothing changes. It writes nothing, so it needs no room. EC2, the metadata service and the kernel are not
asked: they have deadlines and retries of their own. And nothing here has a deadline: on a machine that is merely busy
a beat comes late, and how late is too late is the watchdog's to say.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from ipamd.ledger import Ledger, LedgerError
from ipamd.process.service_manager import ServiceManager
from ipamd.shell.turn import PoolRunner

log = structlog.get_logger("ipamd.daemon")


async def heartbeat(manager: ServiceManager, interval: float, runner: PoolRunner, ledger: Ledger) -> None:
    """Beat every `interval` seconds."""
    while True:
        with suppress(LedgerError):  # the runner tells, once it has something to record
            ledger.commit(())
        if await runner.moves():
            manager.notify("WATCHDOG=1")
        else:
            log.error("daemon.stuck", effect="no heartbeat: the pool's turn did not come to its end")
        await asyncio.sleep(interval)
