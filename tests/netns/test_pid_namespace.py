"""A daemon in a PID namespace of its own, as in its DaemonSet: the kernel tells it pids that it can't look up."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ipamd.host.culprit import CLOSED
from tests.netns.node_stage import Topology

pytestmark = pytest.mark.netns

# Keeps the network of the namespace that it runs in. For each line of standard input: the events until then, and how
# often the kernel was looked at. It answers once all that the kernel has told is dealt with.
KEEPER = """
import asyncio, json, sys
from ipamd.host import HostNetwork, reconciler
from ipamd.settings import HostSettings
from tests.netns.test_reconciler import keeping

async def main():
    network = HostNetwork(HostSettings())
    await network.open()
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with keeping(network) as keeper:
        while await lines.readline():
            await asyncio.sleep(3 * reconciler.GATHER)
            print(json.dumps([keeper.looks, keeper.events("host.repaired")]), flush=True)
    await network.close()

asyncio.run(main())
"""


@pytest.fixture
def stage(prefix: str) -> Iterator[Topology]:
    with Topology(prefix) as topology:
        yield topology


class Contained:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def says(self) -> tuple[int, list[Any]]:
        """Looks, and repairs so far."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(b"\n")
        looks, repairs = json.loads(await self._process.stdout.readline())
        return looks, repairs

    async def repaired(self, number: int) -> list[Any]:
        async with asyncio.timeout(30):
            while len(repairs := (await self.says())[1]) < number:
                pass
        return repairs


@asynccontextmanager
async def contained(stage: Topology) -> AsyncIterator[Contained]:
    argv = ("ip", "netns", "exec", stage.node, "unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    process = await asyncio.create_subprocess_exec(
        *argv, sys.executable, "-c", KEEPER, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    try:
        yield Contained(process)
        process.stdin.close()
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_what_it_loads_itself_is_no_disturbance(stage: Topology) -> None:
    async with contained(stage) as keeper:
        assert await keeper.says() == (1, []), "the look that set up everything"
        stage.nft(stage.node, "flush chain inet ipamd from_pod\n")
        (told,) = await keeper.repaired(1)
        assert told["what"] == ["set nft table inet ipamd"]
        looks, repairs = await keeper.says()
        assert (looks, len(repairs)) == (2, 1), "none for what the repair loaded"


async def test_a_process_out_of_sight_is_named_as_the_kernel_does(stage: Topology) -> None:
    async with contained(stage) as keeper:
        await keeper.says()
        stage.nft(stage.node, "delete table inet ipamd\n")
        (told,) = await keeper.repaired(1)
        assert re.fullmatch(r"nft \(pid \d+ on the host\)", told["by"])
        manager = await asyncio.create_subprocess_exec(
            "ip", "-n", stage.node, "-batch", "-", stdin=asyncio.subprocess.PIPE
        )
        assert manager.stdin is not None
        manager.stdin.write(b"rule delete prio 1501\n")
        told = (await keeper.repaired(2))[-1]
        manager.stdin.close()
        assert await manager.wait() == 0
        assert told["by"] == CLOSED, "it still runs"
