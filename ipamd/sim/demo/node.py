"""One node of a VPC in a box, brought to life: the real daemon in its namespace, and the plugin in its directory."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc

from ipamd.api.v1 import introspection_pb2 as pb
from ipamd.api.v1.introspection_pb2_grpc import IntrospectionStub
from ipamd.ctl import lists, status
from ipamd.install.files import CONFLIST
from ipamd.install.plugin import InstalledPlugin, install_plugin
from ipamd.sim.runtimes.process import Child
from ipamd.sim.vpc import SimulatedNode

_POLL: Final = 0.1
_READY_TIMEOUT: Final = 60.0
_SETTLE_TIMEOUT: Final = 15.0
_STOP_PATIENCE: Final = 15.0  # more than the daemon's own grace
_ASK_TIMEOUT: Final = 5.0

T = TypeVar("T")


class DaemonFailed(Exception):
    """The daemon did not do what it must; the message says what, and ends with its log where that helps."""


class DaemonSilent(DaemonFailed):
    """The daemon does not answer: it is not there (yet), or busy."""


class Node:
    """A node and its daemon, which may be stopped, killed and started again."""

    def __init__(self, spec: SimulatedNode) -> None:
        self.spec = spec
        self._daemon: Child | None = None
        self._channel = grpc.insecure_channel(
            f"unix:{spec.socket}", options=[("grpc.initial_reconnect_backoff_ms", 100)]
        )
        self._stub = IntrospectionStub(self._channel)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def bin_dir(self) -> Path:
        return self.spec.dir / "bin"

    @property
    def conf_dir(self) -> Path:
        return self.spec.dir / "net.d"

    @property
    def spool_dir(self) -> Path:
        return self.spec.dir / "released"

    @property
    def log(self) -> Path:
        return self.spec.dir / "ipamd.log"

    @property
    def daemon(self) -> Child:
        """Raises `DaemonFailed` when none was started."""
        if self._daemon is None:
            raise DaemonFailed(f"{self.name}: the daemon was not started")
        return self._daemon

    def install_plugin(self) -> InstalledPlugin:
        """Raises `ipamd.install.InstallError`."""
        return install_plugin(self.bin_dir, self.spec.socket, self.spool_dir)

    async def start(self) -> None:
        """Start the daemon, with an environment as bare as a service manager's. Raises OSError."""
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.spec.dir), "LANG": "C.UTF-8"}
        command = [sys.executable, "-m", "ipamd", "run", "--config", str(self.spec.config)]
        self._daemon = await Child.start(["ip", "netns", "exec", self.spec.netns, *command], self.log, environment)

    async def stop(self) -> None:
        """SIGTERM, and wait. Raises `DaemonFailed` when it does not end of itself, or not well."""
        daemon = self._daemon
        if daemon is None or daemon.exit_code is not None:
            return
        if not await daemon.stop(_STOP_PATIENCE):
            complaint = f"did not end within {_STOP_PATIENCE:.0f} s of SIGTERM, and was killed"
        elif daemon.exit_code != 0:
            complaint = f"ended with exit code {daemon.exit_code} after SIGTERM"
        else:
            return
        raise DaemonFailed(f"{self.name}: the daemon {complaint}; the end of {self.log}:\n{daemon.last_words()}")

    async def kill(self) -> None:
        """SIGKILL, and wait."""
        self.daemon.kill()
        await self.daemon.wait()

    def close(self) -> None:
        """Close the connection to the daemon."""
        self._channel.close()

    async def wait_until_ready(self) -> None:
        """Wait until the daemon says that it can serve and the runtime can see it. Raises `DaemonFailed`."""

        async def ready() -> bool:
            return (self.conf_dir / CONFLIST).exists() and bool((await self.status())["ready"])

        await self._until(ready, _READY_TIMEOUT, "is not ready")

    async def wait_until_settled(self) -> None:
        """Wait until the daemon has all that it asked EC2 for. Raises `DaemonFailed`."""

        async def settled() -> bool:
            status = await self.status()
            missing = status["pending"] or status["waiting"] or status["releasing"]
            return not missing and all(eni["state"] == "ready" for eni in await self.enis())

        await self._until(settled, _SETTLE_TIMEOUT, "still waits for EC2")

    async def _until(self, condition: Callable[[], Awaitable[bool]], timeout: float, complaint: str) -> None:
        daemon = self.daemon
        last = ""
        try:
            async with asyncio.timeout(timeout):
                while True:
                    if daemon.exit_code is not None:
                        raise DaemonFailed(
                            f"{self.name}: the daemon ended with exit code {daemon.exit_code}; "
                            f"the end of {self.log}:\n{daemon.last_words()}"
                        )
                    try:
                        if await condition():
                            return
                    except DaemonSilent as error:
                        last = f" ({error})"
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            raise DaemonFailed(
                f"{self.name}: the daemon {complaint} after {timeout:.0f} s{last}; the end of {self.log}:\n"
                f"{daemon.last_words()}"
            ) from None

    # What the daemon says. These raise `DaemonSilent`.

    async def status(self) -> dict[str, Any]:
        """As `ipamctl status -o json`."""
        return await self._ask(_status)

    async def enis(self) -> list[dict[str, Any]]:
        """As `ipamctl enis -o json`."""
        return await self._ask(lists.ENIS.data)

    async def pods(self) -> list[dict[str, Any]]:
        """As `ipamctl pods -o json`."""
        return await self._ask(lists.PODS.data)

    async def addresses(self) -> dict[str, set[str]]:
        """The addresses that the daemon knows, in whatever state, by ENI."""

        def ask(stub: IntrospectionStub) -> pb.ListAddressesReply:
            reply: pb.ListAddressesReply = stub.ListAddresses(pb.ListAddressesRequest(), timeout=_ASK_TIMEOUT)
            return reply

        found: dict[str, set[str]] = {}
        for address in (await self._ask(ask)).addresses:
            found.setdefault(address.eni, set()).add(address.ip)
        return found

    async def _ask(self, question: Callable[[IntrospectionStub], T]) -> T:
        try:
            return await asyncio.to_thread(question, self._stub)
        except grpc.RpcError as error:
            why = error.details() if isinstance(error, grpc.Call) else str(error)
            raise DaemonSilent(f"{self.name}: the daemon does not answer: {why}") from None


def _status(stub: IntrospectionStub) -> dict[str, Any]:
    node = stub.GetNode(pb.GetNodeRequest(), timeout=_ASK_TIMEOUT)
    waiting = stub.ListWaiting(pb.ListWaitingRequest(), timeout=_ASK_TIMEOUT).waiting
    return status.data(node, waiting, time.time())
