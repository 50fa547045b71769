"""What goes on after EC2 has answered: ENIs on their way to an instance or from it, one move at a time for each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from ipamd.sim.ec2.resources import Eni


class Moves:
    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], Eni] = {}

    def start(self, eni: Eni, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work` in the background, after what is under way for that ENI."""

        async def run() -> None:
            async with eni.moving:
                await work()

        task = asyncio.create_task(run(), name=f"move {eni.id}")
        self._tasks[task] = eni
        task.add_done_callback(self._tasks.pop)

    async def settle(self, enis: Iterable[Eni] | None = None) -> None:
        """Wait for the moves of these ENIs (None: of all), but for those that are stuck."""
        wanted = list(self._tasks.values() if enis is None else enis)
        if tasks := [task for task, eni in self._tasks.items() if eni in wanted and not _stuck(eni)]:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Stop them where they are."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def _stuck(eni: Eni) -> bool:
    return eni.attachment is not None and not eni.attachment.unstuck.is_set()
