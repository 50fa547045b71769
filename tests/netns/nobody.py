"""A process without privilege in a node's network namespace, as any pod with `hostNetwork` has it: uid 65534, and no
capability."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ipamd.sim import netns

NOBODY = "65534"


@asynccontextmanager
async def nobody(namespace: str, program: str, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python program that writes a line once it is at work, and is killed in the end. Its standard input and output
    are pipes; its working directory is one that it can read."""
    process = await asyncio.create_subprocess_exec(
        *("nsenter", f"--net={netns.DIRECTORY / namespace}", "setpriv", "--reuid", NOBODY, "--regid", NOBODY),
        *("--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--"),
        *(Path(sys.executable).resolve(), "-I", "-c", program, *words),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd="/",
    )
    try:
        await line(process)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def line(process: asyncio.subprocess.Process) -> str:
    """The next line that it writes."""
    assert process.stdout is not None
    async with asyncio.timeout(60):
        found = await process.stdout.readline()
    assert found, f"the program ended with status {process.returncode}"
    return found.decode().strip()
