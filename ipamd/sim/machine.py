"""A node of the VPC in a box as a machine: it has file systems, processes and a host name of its own.

Everything stands where it stands on an instance (/run/ipamd, /etc/cni, /var/lib/containerd, ...), so that a kubelet,
a containerd and a DaemonSet run on it as they are. `machine_init` says what the machine has of its own; the rest, the
programs above all, it shares with the machine that it runs on. Its folders survive a power cut; its processes, its
/run and its mounts do not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ipamd.sim import cgroups, machine_init
from ipamd.sim.runtimes.process import Child

_INIT: Final = Path(machine_init.__file__)
_POLL: Final = 0.005
_BOOT_PATIENCE: Final = 60.0
_END_PATIENCE: Final = 30.0


class MachineError(Exception):
    """A machine could not be booted or does not end; the message says why."""


class MachineProcess:
    """A process on a machine. `pid` is its number here, not there; 0 if it ended before anybody could see it."""

    def __init__(self, entering: Child, pid: int) -> None:
        self._entering = entering
        self.pid = pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._entering.exit_code

    @property
    def log(self) -> Path:
        return self._entering.log

    def signal(self, number: signal.Signals) -> None:
        """Nothing happens when it is over."""
        if self.exit_code is None:
            _signal(self.pid, number)

    async def wait(self) -> int:
        return await self._entering.wait()

    async def kill(self) -> None:
        """SIGKILL, and wait."""
        self.signal(signal.SIGKILL)
        await self.wait()

    async def stop(self, patience: float) -> bool:
        """SIGTERM, and SIGKILL after `patience` seconds. Returns whether it ended of itself."""
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(patience):
                await self.wait()
        except TimeoutError:
            return False
        finally:
            if self.exit_code is None:
                await self.kill()
        return True

    def last_words(self) -> str:
        """The end of its output."""
        return self._entering.last_words()


class Machine:
    """`directory` holds its folders, `name` is its host name, `netns` its node's network namespace."""

    def __init__(self, name: str, netns: str, directory: Path, nameserver: str) -> None:
        self.name = name
        self.netns = netns
        self.directory = directory
        self._nameserver = nameserver
        self._unshare: asyncio.subprocess.Process | None = None
        self._init = 0

    @property
    def cgroup(self) -> str:
        """The parent of its control groups, as a kubelet's `cgroupRoot` has it."""
        return f"/{self.netns}"

    @property
    def is_up(self) -> bool:
        return self._init != 0 and self._unshare is not None and self._unshare.returncode is None

    @property
    def pid(self) -> int:
        """Of its first process, here. Raises `MachineError` when it is off."""
        if not self.is_up:
            raise MachineError(f"{self.name} is off")
        return self._init

    @property
    def log(self) -> Path:
        return self.directory / "machine.log"

    def path(self, path: str | Path) -> Path:
        """A file of the machine, as seen from here. Raises `MachineError` when it is off."""
        return Path(f"/proc/{self.pid}/root", str(path).lstrip("/"))

    def inside(self, *argv: str | Path) -> list[str]:
        """The command line that runs `argv` on the machine. Raises `MachineError` when it is off."""
        return inside(self.pid, *argv)

    async def boot(self) -> None:
        """Raises `MachineError` and OSError."""
        cgroups.make(self.cgroup.lstrip("/"))
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._unshare = await asyncio.create_subprocess_exec(
                *("nsenter", f"--net=/run/netns/{self.netns}", "unshare", "--mount", "--uts", "--ipc", "--pid"),
                *("--propagation=slave", "--fork", "--kill-child", "--mount-proc", sys.executable, "-I", "-S", _INIT),
                *(self.directory, self.name, self._nameserver),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                process_group=0,  # Ctrl-C is for the parent, which ends its machines in good order
            )
        try:
            assert self._unshare.stdout is not None
            async with asyncio.timeout(_BOOT_PATIENCE):
                up = await self._unshare.stdout.readline()
            if not up:
                words = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
                raise MachineError(f"{self.name} can't be booted: {words[-1] if words else 'no message'}")
            [self._init] = _children(self._unshare.pid)
        except TimeoutError:
            await self._end()
            raise MachineError(f"{self.name} is not up after {_BOOT_PATIENCE:.0f} s; see {self.log}") from None
        except BaseException:
            await self._end()
            raise

    async def power_cut(self) -> None:
        """End all its processes at once; only its folders are left. Nothing happens when it is off. Raises
        `MachineError` and OSError."""
        await self._end()
        await cgroups.remove(self.cgroup.lstrip("/"))

    async def _end(self) -> None:
        unshare, self._unshare = self._unshare, None
        init, self._init = self._init, 0
        if unshare is None or unshare.returncode is not None:
            return
        assert unshare.stdin is not None
        unshare.stdin.close()
        if init:
            _signal(init, signal.SIGKILL)
        try:
            async with asyncio.timeout(_END_PATIENCE):
                await unshare.wait()
        except TimeoutError:
            raise MachineError(f"{self.name}: process {init or unshare.pid} does not end") from None
        finally:
            if unshare.returncode is None:
                unshare.kill()

    async def start(
        self, argv: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None
    ) -> MachineProcess:
        """Start a process there; its output is appended to `log`. Raises `MachineError` and OSError."""
        entering = await Child.start(self.inside(*argv), log, environment)
        while not (children := _children(entering.pid)) and entering.exit_code is None:  # noqa: ASYNC110
            await asyncio.sleep(_POLL)
        return MachineProcess(entering, children[0] if children else 0)


def inside(pid: int, *argv: str | Path) -> list[str]:
    """The command line that runs `argv` in the namespaces of a machine whose first process is `pid`."""
    return ["nsenter", f"--target={pid}", "--mount", "--uts", "--ipc", "--net", "--pid", *map(str, argv)]


def _signal(pid: int, number: signal.Signals) -> None:
    """To a process whose parent still runs, as far as is known here: the parent may have reaped it a moment ago."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _children(pid: int) -> list[int]:
    """proc_tid_children(5)."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []  # it has ended
