"""A daemon on a machine that is merely busy counts as alive: nobody restarts it for the load that others make.

It shares one core with programs that never rest and have its own priority; whatever else the machine does has the
others. What is read is its word to systemd and to health checks, on the terms of those who ask.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.netns.boxed import box

pytestmark = pytest.mark.netns

WATCHDOG = 4.0  # seconds; the unit's WatchdogSec is 30
BURNERS = 8
BEATS = 2  # under load; one comes every half of the watchdog's limit
PROBE_TIMEOUT = 1.0  # the least that a Kubernetes probe has


@asynccontextmanager
async def crowded(process: int) -> AsyncIterator[None]:
    """The process, all its threads, has one core, and few turns on it."""
    core = {min(os.sched_getaffinity(0))}
    for thread in Path(f"/proc/{process}/task").iterdir():
        os.sched_setaffinity(int(thread.name), core)
    burners = []
    try:
        for _ in range(BURNERS):
            burners.append(await asyncio.create_subprocess_exec("sh", "-c", "while :; do :; done"))
            os.sched_setaffinity(burners[-1].pid, core)
        yield
    finally:
        for burner in burners:
            burner.kill()
            await burner.wait()


async def beat(manager: socket.socket) -> float:
    """When the next word to the watchdog comes."""
    while b"WATCHDOG=1" not in await asyncio.get_running_loop().sock_recv(manager, 4096):
        pass
    return time.monotonic()


async def test_heartbeat_and_health_go_on_under_load(tmp_path: Path, prefix: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        async with box(tmp_path, prefix) as (daemon, _vpc):
            daemon.settings |= {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": f"{WATCHDOG * 1e6:.0f}"}
            await daemon.ready()
            health = health_pb2_grpc.HealthStub(daemon.channel)
            assert daemon.process is not None
            async with crowded(daemon.process.pid):
                last = await beat(manager)
                for number in range(BEATS):
                    probes = 0
                    waiting = asyncio.ensure_future(beat(manager))
                    while not waiting.done():
                        reply = await health.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_TIMEOUT)
                        assert reply.status == health_pb2.HealthCheckResponse.SERVING
                        await daemon.address(f"pod{number}-{probes}")  # and it still does its work
                        await daemon.release(f"pod{number}-{probes}")
                        probes += 1
                        await asyncio.wait((waiting,), timeout=0.2)
                    assert probes
                    assert waiting.result() - last < WATCHDOG, "systemd would have killed it"
                    last = waiting.result()


async def test_a_daemon_that_stands_still_is_not_taken_for_a_busy_one(tmp_path: Path, prefix: str) -> None:
    """The counterpart: the probe above can fail."""
    async with box(tmp_path, prefix) as (daemon, _vpc):
        await daemon.ready()
        health = health_pb2_grpc.HealthStub(daemon.channel)
        assert daemon.process is not None
        os.kill(daemon.process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(grpc.aio.AioRpcError) as late:
                await health.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_TIMEOUT)
            assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        finally:
            os.kill(daemon.process.pid, signal.SIGCONT)
