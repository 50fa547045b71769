"""What it takes to bring a node's whole state about, to look whether it is still there, and to put it right again.

The subject is what the daemon runs: `HostNetwork`, kept right by a `Reconciler` that hears of changes from the
kernel. What is wiped is wiped by ip(8) and nft(8), as an operator or another program would. A repair's wall time is
from the start of the wipe until all is back; the wait for further events, with which the reconciler begins, is part
of it. CPU time is this process's and, told apart, that of the nft processes it starts.

After each step the state is looked at again: nothing may be left to do, and a ping of a pod must be answered.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from datapath_probes import Ping
from datapath_stage import IPAMD, Namespaces, Stage

from ipamd.host import HostNetwork, NodeNetwork, Reconciler
from ipamd.sim import netns

REPAIRED_WITHIN: Final = 30.0
STEP: Final = 0.002  # seconds between two looks whether the repair is done
AUDITS: Final = 5

# The flush takes the host's own rules as well, which are not ipamd's to bring back.
_RULES: Final = "ip rule flush; ip rule add prio 32766 lookup main; ip rule add prio 32767 lookup default"
WIPES: Final = {
    "all rules": _RULES,
    "the pods' routes": "ip route flush table {table}",
    "the nft table": "nft delete table inet {nft_table}",
    "all of it": f"{_RULES}; ip route flush table all proto {{route_protocol}}; nft delete table inet {{nft_table}}",
}


@dataclass(frozen=True, slots=True)
class Took:
    """Milliseconds. `objects` is how many were written."""

    what: str
    wall_ms: float
    cpu_ms: float
    nft_cpu_ms: float
    objects: int


def measure_state(namespaces: Namespaces, pods: int) -> list[Took]:
    """One round on a new node with so many other pods: everything from nothing, audits, repairs. Raises `HostError`,
    and TimeoutError when something is not repaired."""
    stage = Stage(namespaces, IPAMD, pods)
    try:
        stage.prepare()
        return netns.run_in(stage.node, lambda: asyncio.run(_measure(stage)))
    finally:
        stage.remove()


async def _measure(stage: Stage) -> list[Took]:
    network, node = HostNetwork(stage.settings), stage.network
    clock = _Clock()
    await network.open()
    try:
        applied = await network.apply(node)
        took = [clock.read("build", len(applied.done))]
        await asyncio.to_thread(_check, stage)
        for _ in range(AUDITS):
            clock = _Clock()
            applied = await network.apply(node)
            took.append(clock.read("audit", len(applied.done)))
        reconciler = _reconciler(network, node)
        async with _running(reconciler):
            for what, script in WIPES.items():
                script = script.format(**stage.settings.model_dump())
                took.append(await _repair(what, script, reconciler, lambda: _is_whole(network, node)))
                await asyncio.to_thread(_check, stage)
    finally:
        await network.close()
    return took


async def _repair(what: str, script: str, reconciler: Reconciler, is_whole: Callable[[], Awaitable[bool]]) -> Took:
    before = seen = reconciler.health().repairs
    clock = _Clock()
    await netns.command("sh", "-ec", script)
    clock.leave_out_children()
    async with asyncio.timeout(REPAIRED_WITHIN):
        while True:
            while (now := reconciler.health().repairs) == seen:
                await asyncio.sleep(STEP)
            took = clock.read(f"repair {what}", now - before)
            # On a busy machine the reconciler may have begun before the script was done.
            if await is_whole():
                return took
            seen = now


async def _is_whole(network: HostNetwork, node: NodeNetwork) -> bool:
    """Looks, and writes nothing."""
    return not (await network.apply(node, withheld=lambda step: True)).withheld


def _check(stage: Stage) -> None:
    """Raises OSError when the pod does not reach the host beyond."""
    ping = Ping(stage)
    try:
        ping.piece()
    finally:
        ping.close()


def _reconciler(network: HostNetwork, node: NodeNetwork) -> Reconciler:
    pods = {pod.address: pod for pod in node.pods}
    return Reconciler(network, lambda: node, pods.get, lambda eni: None, time.monotonic)


@asynccontextmanager
async def _running(reconciler: Reconciler) -> AsyncIterator[None]:
    task = asyncio.create_task(reconciler.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class _Clock:
    def __init__(self) -> None:
        self._wall, self._cpu, self._children = time.perf_counter(), time.process_time(), _children()

    def leave_out_children(self) -> None:
        """That have ended until now."""
        self._children = _children()

    def read(self, what: str, objects: int) -> Took:
        wall, cpu, children = time.perf_counter(), time.process_time(), _children()
        return Took(
            what,
            (wall - self._wall) * 1000,
            (cpu - self._cpu) * 1000,
            (children - self._children) * 1000,
            objects,
        )


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
