"""One part of a cluster: a program that runs on a machine and may be killed and started again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ipamd.sim.machine import Machine, MachineProcess

_USUAL_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_STOP_PATIENCE: Final = 20.0


class ClusterError(Exception):
    """A part of the cluster can't be started or failed to do what it was asked; the message holds its words."""


class Part:
    """`argv` begins with the program. `folder` comes first in its PATH; else its environment is bare."""

    def __init__(
        self, machine: Machine, name: str, argv: Sequence[str | Path], log: Path, folder: Path | None = None
    ) -> None:
        self.name = name
        self.log = log
        self._machine = machine
        self._argv = argv
        path = _USUAL_PATH if folder is None else f"{folder}{os.pathsep}{_USUAL_PATH}"
        self._environment = {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8"}
        self._process: MachineProcess | None = None

    @property
    def environment(self) -> dict[str, str]:
        return dict(self._environment)

    @property
    def pid(self) -> int:
        """Here, not on its machine. Raises `ClusterError` when it does not run."""
        if self._process is None or self._process.exit_code is not None:
            raise ClusterError(f"{self._machine.name}: {self.name} does not run")
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.exit_code is None

    async def start(self) -> None:
        """Raises `MachineError` and OSError."""
        assert not self.runs, f"{self.name} runs already"
        self._process = await self._machine.start(self._argv, self.log, self._environment)

    async def kill(self) -> None:
        """SIGKILL, and wait. Nothing happens when it does not run."""
        if self._process is not None:
            await self._process.kill()

    async def stop(self) -> None:
        """SIGTERM, and wait. Raises `ClusterError` if it does not end of itself."""
        if self._process is not None and not await self._process.stop(_STOP_PATIENCE):
            raise ClusterError(
                f"{self._machine.name}: {self.name} did not end within {_STOP_PATIENCE:.0f} s of SIGTERM"
            )

    def check(self) -> None:
        """Raises `ClusterError` when it has ended."""
        if self._process is not None and (code := self._process.exit_code) is not None:
            raise ClusterError(f"{self._machine.name}: {self.name} ended with {code}: {self.last_words()}")

    def last_words(self, lines: int = 12) -> str:
        """The end of its log, and where the rest is."""
        text = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        return "\n".join([*text[-lines:], f"(all of it: {self.log})"])
