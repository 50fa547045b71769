"""Go's own command: found, judged by its version, and run for minutes with a word now and then on how far it is."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.golang import executables

OLDEST: Final = (1, 24)  # what Kubernetes 1.34 asks for in its go.mod
_INSTALL: Final = "install Go 1.24 or newer: https://go.dev/dl, or on Debian 13 apt-get install golang-go"


class Unbuilt(Exception):
    """The programs can't be made on this machine; the message says why and what to do."""


class GoMissing(Unbuilt):
    """There is no Go, or only one that is too old."""


class ModulesMissing(Unbuilt):
    """Go could not fetch the modules."""


class DoesNotCompile(Exception):
    """The message is the end of what Go said."""


@dataclass(frozen=True)
class Program:
    """An executable: the folder of its module, its package, the values that the linker gives to its variables, and
    the names by which it is called if they are not its own."""

    name: str
    module: str
    package: str = "."
    test: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)
    called: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return self.called or (self.name,)

    @property
    def command(self) -> tuple[str, ...]:
        """go's command line, without the output and the package."""
        linker = ["-s", "-w", *(f"-X={name}={value}" for name, value in self.variables.items())]
        # -vet=off: else "go vet" runs over all packages of a test, after it has been linked.
        build = ("test", "-c", "-vet=off") if self.test else ("build",)
        return (*build, "-v", "-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags", " ".join(linker))


@dataclass(frozen=True)
class Go:
    path: str
    version: str  # as "go version" says it, which names the system and the architecture, too


async def find() -> Go:
    """The first go command that is new enough. Raises `GoMissing`."""
    old = []
    for path in executables():
        process = await asyncio.create_subprocess_exec(
            path, "version", stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, env=_environment()
        )
        out, _ = await process.communicate()
        version = out.decode().strip()
        if new_enough(version):
            return Go(path, version)
        old.append(f"{path} is {version.removeprefix('go version ') or 'no Go'}")
    raise GoMissing(
        f"the programs of Kubernetes are built by Go, and {'; '.join(old) or 'there is none'}; {_INSTALL}"
    )


def new_enough(version: str) -> bool:
    """By the answer of `go version`; of a development version the number counts, as in "devel go1.27-1234567"."""
    found = re.search(r"\bgo(\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) >= OLDEST


def _environment() -> dict[str, str]:
    fixed = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    return {"HOME": str(Path.home()), **os.environ, **fixed}


async def compile_program(
    go: Go, program: Program, modules: Path, folder: Path, say: Callable[[str], None], every: float
) -> None:
    """Write the program into `folder`, from its module's folder in `modules`. Raises `ModulesMissing` and
    `DoesNotCompile`."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # gone with `folder`, should this process be killed
        # A copy: the checkout may come to another commit while this builds.
        module = shutil.copytree(modules / program.module, Path(scratch, "module"))
        run = _Run(go, module, _environment() | {"GOTMPDIR": scratch}, say, every)
        test = ("-test",) if program.test else ()
        listing = ("list", "-mod=readonly", "-deps", *test, program.package)
        packages, failure = await run(f"fetching the modules of {program.name}", *listing)
        if failure:
            raise ModulesMissing(f"the Go modules of {program.name} can't be fetched: {failure}")
        building = (*program.command, "-o", str(folder / program.name), program.package)
        _, failure = await run(f"building {program.name}, {len(packages)} packages", *building, counted="compiled")
        if failure:
            raise DoesNotCompile(f"{program.name} does not compile: {failure}")


@dataclass(frozen=True)
class _Run:
    go: Go
    module: Path
    environment: Mapping[str, str]
    say: Callable[[str], None]
    every: float

    async def __call__(self, doing: str, *words: str, counted: str = "") -> tuple[list[str], str]:
        """Run go; returns the lines of its output and, if it failed, the end of its complaints."""
        async with self._started(*words) as process:
            assert process.stdout is not None and process.stderr is not None
            seen = _Seen()
            async with asyncio.TaskGroup() as tasks:
                teller = tasks.create_task(self._tell(doing, seen, counted))
                out = tasks.create_task(process.stdout.read())
                await seen.follow(process.stderr)
                code = await process.wait()
                teller.cancel()
            failure = ("\n".join(seen.last) or f"go ended with {code}") if code else ""
            return out.result().decode().splitlines(), failure

    @asynccontextmanager
    async def _started(self, *words: str) -> AsyncIterator[Process]:
        """go, and the compilers that it starts, end with the block, also when this task is cancelled.

        If this process is killed, the kernel ends go, whose compilers end within seconds.
        """
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "nice", "-n", "10", self.go.path, *words),
            cwd=self.module,
            env=self.environment,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            limit=2**20,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()

    async def _tell(self, doing: str, seen: _Seen, counted: str) -> None:
        begin = time.monotonic()
        while True:
            minutes, seconds = divmod(int(time.monotonic() - begin), 60)
            count = f", {seen.lines} {counted}" if counted else ""
            self.say(f"{doing}{count} ({minutes}:{seconds:02d})")
            await asyncio.sleep(self.every)


class _Seen:
    """What go writes to standard error: with -v a line for each package that it compiles, else complaints."""

    def __init__(self) -> None:
        self.lines = 0
        self.last: deque[str] = deque(maxlen=15)

    async def follow(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            self.lines += 1
            self.last.append(line.decode(errors="replace").rstrip())
