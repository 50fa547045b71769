"""Daemons and other parts that are ended again and again while something else is under way."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass
class Kills:
    """How many so far."""

    number: int = 0


@asynccontextmanager
async def killed_in_turn(kill: Sequence[Callable[[], Awaitable[None]]], every: float) -> AsyncIterator[Kills]:
    """While the block lasts, call the next of `kill` every so many seconds: it ends something, most often a daemon by
    SIGKILL, and sees to it that it is started again. What one of them raises ends the block."""
    kills = Kills()

    async def go_on() -> None:
        for once in itertools.cycle(kill):
            await asyncio.sleep(every)
            await once()
            kills.number += 1

    async with asyncio.TaskGroup() as tasks:
        killer = tasks.create_task(go_on())
        try:
            yield kills
        finally:
            killer.cancel()
