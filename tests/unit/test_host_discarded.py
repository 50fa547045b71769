"""What becomes of the veth pairs that are out of service."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from ipamd.host import discarded, netlink
from ipamd.host.discarded import Discarded


class Kernel:
    def __init__(self) -> None:
        self.asked = 0
        self.refusals: list[int] = []
        self.done = asyncio.Event()

    def change(self, protocol: int, kind: int, payload: bytes) -> None:
        assert kind == netlink.RTM_DELLINK
        self.asked += 1
        if self.refusals:
            code = self.refusals.pop(0)
            raise OSError(code, "refused")
        self.loop.call_soon_threadsafe(self.done.set)

    loop: asyncio.AbstractEventLoop


@pytest.fixture
async def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    made.loop = asyncio.get_running_loop()
    monkeypatch.setattr(netlink, "change", made.change)
    monkeypatch.setattr(discarded, "RETRY", 0.01)
    return made


@pytest.fixture
async def running(kernel: Kernel) -> AsyncIterator[Discarded]:
    made = Discarded()
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_those_of_one_moment_are_deleted_together(kernel: Kernel, running: Discarded) -> None:
    for _ in range(5):
        running.seen()
        await asyncio.sleep(0)
    await kernel.done.wait()
    assert kernel.asked == 1


async def test_that_they_are_gone_already_is_fine(kernel: Kernel, running: Discarded) -> None:
    kernel.refusals = [errno.ENODEV]
    with capture_logs() as logs:
        running.seen()
        while kernel.refusals:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        running.seen()
        await kernel.done.wait()
    assert (kernel.asked, logs) == (2, [])


async def test_a_refusal_is_told_once_and_tried_again(kernel: Kernel, running: Discarded) -> None:
    kernel.refusals = [errno.EPERM, errno.EPERM]
    with capture_logs() as logs:
        running.seen()
        await kernel.done.wait()
    assert kernel.asked == 3
    assert [entry["event"] for entry in logs] == ["host.links_not_deleted"]
