"""Tasks beside the main job: whatever such a task meets is a condition and a later try, never the daemon's end.

What the main job needs (the pool, its ledger, api.socket) is not kept here: its failure ends the daemon, which starts
again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from ipamd.telemetry.conditions import Conditions

log = structlog.get_logger("ipamd.daemon")

# Seconds between two tries: the first pause, and the longest.
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0


class Unserved(Exception):
    """A task beside the main job can't do its work now. The message says what is wrong and what to do, in sentences;
    `fields` go into the event."""

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.fields = fields


# Seconds after which a task that runs until it fails has shown that it works.
SURVIVED = 10.0


async def keep_running(conditions: Conditions, name: str, run: Callable[[], Awaitable[None]], what: str) -> None:
    """As `keep`, for a task that never says that it is well."""

    async def work(well: Callable[[], None]) -> None:
        running = asyncio.ensure_future(run())
        try:
            await asyncio.wait((running,), timeout=SURVIVED)
            if not running.done():
                well()
            await running
        finally:
            running.cancel()

    await keep(conditions, name, work, what)


async def keep(
    conditions: Conditions, name: str, work: Callable[[Callable[[], None]], Awaitable[None]], what: str
) -> None:
    """Run `work` until it returns, again and again while it fails; `name` is the condition meanwhile.

    `work` calls its argument each time that all is well, which ends the condition. It raises `Unserved` for a
    foreseen fault; any other exception is logged with `what`, the task in a few words.
    """
    pause = FIRST_PAUSE
    said = ""

    def well() -> None:
        nonlocal pause, said
        pause, said = FIRST_PAUSE, ""
        conditions.end(name)

    while True:
        try:
            await work(well)
            return
        except Unserved as error:
            text, fields = str(error), error.fields
        except Exception as error:
            text = f"{what} failed: {type(error).__name__}: {error}. It is tried again."
            fields = {}
            if text != said and not isinstance(error, OSError):
                log.exception("task.crashed", task=what)
        said = text
        conditions.begin(name, text, **fields)
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)
