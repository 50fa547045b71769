"""A demo on a terminal: Ctrl-C and SIGTERM end it in good order, and a failure is reported with what began it."""

from __future__ import annotations

import asyncio
import signal
from typing import Protocol

from ipamd.sim.demo.report import Reporter


class Interruptible(Protocol):
    @property
    def reporter(self) -> Reporter: ...

    def end_keeping(self) -> bool:
        """End the pause in which all is left up; returns whether there was one."""

    async def run(self) -> int:
        """The command's exit code."""


async def until_signal(demo: Interruptible) -> int:
    """Run the demo. SIGINT and SIGTERM end it in good order, however often they come."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(demo.run())
    received: list[int] = []

    def on_signal(number: int) -> None:
        if demo.end_keeping():
            return
        if received:
            demo.reporter.say("still cleaning up")
            return
        received.append(number)
        demo.reporter.say("interrupted: cleaning up")
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not received:
            raise
        return 128 + received[0]


def story(error: BaseException, kinds: tuple[type[BaseException], ...]) -> list[str]:
    """The failure that began it comes first: the clean-up after it may have failed, too."""
    begun = error
    while isinstance(begun.__context__, kinds) and not begun.__suppress_context__:
        begun = begun.__context__
    return [str(begun)] if begun is error else [str(begun), f"and then, while cleaning up: {error}"]
