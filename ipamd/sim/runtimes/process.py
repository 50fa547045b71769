"""A long-running child process: started apart from the terminal, watched, and ended for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

_NSENTER: Final = "nsenter"
_LAST_LINES: Final = 12


def inside(netns: str | Path, *argv: str | Path) -> list[str]:
    """The command line that runs `argv` in a network namespace (a name of ip-netns(8), or a path).

    nsenter(1) rather than `ip netns exec`: the latter also mounts another /sys, which hides the control groups.
    """
    path = Path("/run/netns") / netns
    return [_NSENTER, f"--net={path}", *map(str, argv)]


class Child:
    """A process with its output in a file."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self.log = log

    @classmethod
    async def start(cls, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Child:
        """Append its output to `log`. Raises OSError."""
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=env,
                process_group=0,  # Ctrl-C is for the parent, which ends its children in good order
            )
        return cls(process, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        return await self._process.wait()

    def kill(self) -> None:
        """SIGKILL, unless it is over."""
        if self._process.returncode is None:
            self._process.kill()

    async def stop(self, patience: float) -> bool:
        """SIGTERM, and SIGKILL after `patience` seconds. Returns whether it ended of itself."""
        if self._process.returncode is not None:
            return True
        try:
            self._process.terminate()
            async with asyncio.timeout(patience):
                await self._process.wait()
        except TimeoutError:
            return False
        finally:
            self.kill()
            await self._process.wait()
        return True

    def last_words(self) -> str:
        """The end of its output."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-_LAST_LINES:])
