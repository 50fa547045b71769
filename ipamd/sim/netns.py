"""Named network namespaces: make them, remove them, and work inside one without leaving one's own.

A network namespace is a property of a thread (setns(2)), so whatever has to happen inside one that only Python can
do (open a socket, write a sysctl) is done by a thread of its own, which enters the namespace and ends there: no
thread that serves anybody else ever stands in the wrong namespace. A socket belongs for life to the namespace it
was opened in, so the event loop of this process can serve sockets of many. Everything else is left to ip(8) and
nft(8), as child processes that enter the namespace themselves.

The names are those of ip-netns(8): files under /run/netns.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

DIRECTORY: Final = Path("/run/netns")

_CLONE_NEWNET: Final = 0x4000_0000  # <linux/sched.h>
_libc: Final = ctypes.CDLL(None, use_errno=True)  # os.setns came only with Python 3.12

T = TypeVar("T")


class CommandError(Exception):
    """A system command could not be started or failed; the message holds the command and what it wrote."""


async def command(*argv: str, stdin: str = "") -> str:
    """Run a command to its end and return its standard output. Raises `CommandError`."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            process_group=0,  # Ctrl-C is for this process, which then cleans up by further commands
        )
    except FileNotFoundError:
        raise CommandError(f"{argv[0]}: command not found; install the package that provides it") from None
    try:
        out, err = await process.communicate(stdin.encode())
    finally:
        if process.returncode is None:  # cancelled
            process.kill()
            await process.wait()
    if process.returncode != 0:
        said = err.decode().strip() or out.decode().strip() or "no message"
        raise CommandError(f"{' '.join(argv)}: exit code {process.returncode}: {said}")
    return out.decode()


async def create(name: str) -> None:
    """Make the namespace. Raises `CommandError`, also when it is there already."""
    await command("ip", "netns", "add", name)


async def delete(name: str) -> None:
    """Remove the name; the namespace itself ends with the last process or socket in it. Raises `CommandError`."""
    await command("ip", "netns", "delete", name)


async def ip_batch(name: str, commands: Iterable[str]) -> None:
    """Run ip(8) commands in the namespace, stopping at the first that fails. Raises `CommandError`."""
    await command("ip", "-n", name, "-batch", "-", stdin="\n".join([*commands, ""]))


async def nft(name: str, script: str) -> None:
    """Apply an nftables script in the namespace, as one transaction. Raises `CommandError`."""
    await command("ip", "netns", "exec", name, "nft", "-f", "-", stdin=script)


def run_in(name: str, function: Callable[[], T]) -> T:
    """Call `function` inside the namespace and return what it returns.

    Blocks the caller for as long as `function` takes. Raises OSError when the namespace can't be entered, and
    whatever `function` raises.
    """

    def enter() -> T:
        descriptor = os.open(DIRECTORY / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
                code = ctypes.get_errno()
                raise OSError(code, f"cannot enter network namespace {name}: {os.strerror(code)}")
        finally:
            os.close(descriptor)
        return function()

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(enter).result()


def listen_in(name: str, host: str, port: int) -> socket.socket:
    """A TCP socket that listens inside the namespace. Raises OSError."""
    return run_in(name, lambda: socket.create_server((host, port), backlog=512))


def write_sysctls(name: str, values: dict[str, int]) -> None:
    """Set sysctls of the namespace, each given by its path below /proc/sys/net. Raises OSError."""

    def write() -> None:
        for path, value in values.items():
            Path("/proc/sys/net", path).write_text(str(value))

    run_in(name, write)
