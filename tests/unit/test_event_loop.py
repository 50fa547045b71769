"""Names are looked up beside the loop, and hold up neither it nor the end of the process."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from ipamd.process.event_loop import EventLoop


def run(steps: Callable[[EventLoop], Awaitable[None]]) -> None:
    async def inside() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, EventLoop)
        await steps(loop)

    with asyncio.Runner(loop_factory=EventLoop) as runner:
        runner.run(inside())


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set while names are looked up, which never ends."""
    asked, never = threading.Event(), threading.Event()

    def look_up(*_: object, **__: object) -> None:
        asked.set()
        never.wait()

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield asked
    never.set()


def test_names_are_found_and_errors_are_those_of_the_system() -> None:
    async def steps(loop: EventLoop) -> None:
        (found, *_) = await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
        assert found[4] == ("127.0.0.1", 80)
        with pytest.raises(socket.gaierror):
            await loop.getaddrinfo("no-such-name.invalid", 80)
        with pytest.raises(UnicodeError):
            await loop.getaddrinfo("x" * 64 + ".example", 80)

    run(steps)


def test_a_lookup_under_way_and_later_ones_are_given_up(stuck: threading.Event) -> None:
    async def steps(loop: EventLoop) -> None:
        async with aiohttp.ClientSession() as session:
            asking = asyncio.ensure_future(session.get("http://proxy.example:3128/"))
            await asyncio.to_thread(stuck.wait)
            loop.give_up_names()
            with pytest.raises(aiohttp.ClientConnectorDNSError, match="given up"):
                await asking
            with pytest.raises(aiohttp.ClientConnectorDNSError):
                await session.get("http://other.example/")

    run(steps)


def test_the_process_ends_while_a_name_is_looked_up() -> None:
    program = """
import asyncio, socket, threading
from ipamd.process.event_loop import EventLoop
socket.getaddrinfo = lambda *_, **__: threading.Event().wait()
async def main():
    looking = asyncio.ensure_future(asyncio.get_running_loop().getaddrinfo("proxy.example", 3128))
    await asyncio.wait((looking,), timeout=0.1)
    print("ends", flush=True)
with asyncio.Runner(loop_factory=EventLoop) as runner:
    runner.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ends\n", "")
