"""The daemon is restarted again and again while containers come and go: no call fails, nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from ipamd.sim.runtimes.direct import Direct, direct
from tests.e2e.single_node import Box, single_node

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

CALLS = 200  # ADDs, and as many DELs
AT_ONCE = 20
RESTARTS = 2  # at least
UP = 1.2  # seconds that a daemon is let work before its end


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box() -> AsyncIterator[Box]:
    # Each container has an address of its own for as long as it lives, and released ones cool.
    async with single_node("m5.4xlarge", "[pool]\nwarm_ips = 30\n", subnet="10.0.0.0/22") as made:
        yield made


@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
async def test_no_call_notices_that_the_daemon_comes_and_goes(box: Box, end: str) -> None:
    node = box.node
    async with direct(node.spec.netns, node.bin_dir, node.conf_dir) as runtime:
        names = iter(range(CALLS))
        lives = asyncio.gather(*(_live(runtime, names) for _ in range(AT_ONCE)))
        restarts = 0
        while not lives.done():
            await asyncio.sleep(UP)
            await (node.stop() if end == "SIGTERM" else node.kill())
            await node.start()
            await node.wait_until_ready()
            restarts += 1
        await lives  # raises what any of the calls ended in
        assert restarts >= RESTARTS
    await box.assert_nothing_left()


async def _live(runtime: Direct, names: Iterator[int]) -> None:
    for name in names:
        pod = await runtime.run_pod(f"p{name}")
        await runtime.remove_pod(pod)
