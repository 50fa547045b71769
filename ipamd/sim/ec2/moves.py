"""What goes on after EC2 has answered: ENIs on their way to an instance or from it, one move at a time for each, and
attachments that are stuck on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from ipamd.sim.ec2.rules import Attachment, Eni


class Moves:
    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], Eni] = {}
        self._stuck: dict[str, asyncio.Event] = {}  # by the attachment's id; set when it is free again

    def start(self, eni: Eni, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work` in the background, after what is under way for that ENI."""
        before = [task for task, other in self._tasks.items() if other is eni]

        async def run() -> None:
            if before:
                await asyncio.wait(before)
            await work()

        task = asyncio.create_task(run(), name=f"move {eni.id}")
        self._tasks[task] = eni
        task.add_done_callback(self._tasks.pop)

    def stick(self, attachment: Attachment) -> None:
        self._stuck.setdefault(attachment.id, asyncio.Event())

    def unstick(self, attachment_id: str) -> None:
        if (event := self._stuck.pop(attachment_id, None)) is not None:
            event.set()

    async def pass_by(self, attachment: Attachment) -> None:
        """Wait while it is stuck."""
        if (event := self._stuck.get(attachment.id)) is not None:
            await event.wait()

    async def settle(self, enis: Iterable[Eni] | None = None) -> None:
        """Wait for the moves of these ENIs (None: of all), except those that are stuck."""
        wanted = list(self._tasks.values() if enis is None else enis)
        if tasks := [task for task, eni in self._tasks.items() if eni in wanted and not self._is_stuck(eni)]:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Stop them where they are."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _is_stuck(self, eni: Eni) -> bool:
        return eni.attachment is not None and eni.attachment.id in self._stuck
