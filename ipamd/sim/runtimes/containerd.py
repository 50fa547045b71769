"""A containerd of its own for one node, 1.6 to 2.x, driven through the CRI socket as a kubelet drives it.

It runs in the node's network namespace with all its folders under one directory, so many run on one machine beside
the system's own. What it leaves outside that directory (libcni's cache, the sockets of its shims) goes with the
pods; whatever a failure leaves behind is removed at the end by process id and by path.

Each pod is its sandbox: the process that keeps the network namespace, from an image made on the spot.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar

import grpc
from google.protobuf.message import Message

from ipamd.sim import netns as namespaces
from ipamd.sim.runtimes import Pod, RuntimeFailure, containerd_config, image, leftovers
from ipamd.sim.runtimes.cri import cri_pb2 as cri
from ipamd.sim.runtimes.process import Child, inside

_START_TIMEOUT: Final = 30.0
_CALL_TIMEOUT: Final = 120.0
_STOP_PATIENCE: Final = 10.0
_GONE_PATIENCE: Final = 5.0
_LATE_PATIENCE: Final = 10.0  # for pods that are being made while all is taken down
_POLL: Final = 0.05
_LOOPBACK_FOLDERS: Final = (Path("/usr/lib/cni"), Path("/opt/cni/bin"), Path("/usr/libexec/cni"))
_LIBCNI_CACHE: Final = Path("/var/lib/cni/results")
_COMMANDS: Final = {"containerd": "containerd", "ctr": "containerd", "runc": "runc", "nsenter": "util-linux"}

# Prometheus' text format, "Histograms and summaries"
_SET_UP_TIMES: Final = re.compile(
    r"^containerd_cri_network_plugin_operations_duration_seconds_seconds_(sum|count)"
    r'\{operation_type="set_up_pod"\} (\S+)$',
    re.MULTILINE,
)

Reply = TypeVar("Reply", bound=Message)


class _NotFound(RuntimeFailure):
    """containerd does not know the pod."""


@dataclass(frozen=True, slots=True)
class PluginTimes:
    """What containerd itself measured of the network plugins' work for pods: all plugins of a pod together."""

    calls: int
    mean_seconds: float


@dataclass(frozen=True, slots=True)
class _Command:
    """How this containerd is started."""

    argv: list[str]
    environment: Mapping[str, str]
    log: Path

    async def start(self) -> Child:
        return await Child.start(self.argv, self.log, self.environment)


class Containerd:
    """See `containerd`. Implements `ipamd.sim.runtimes.Runtime`."""

    def __init__(self, netns: str, command: _Command, process: Child, channel: grpc.aio.Channel) -> None:
        self._netns = netns
        self._command = command
        self._process = process
        self._channel = channel
        self._starting: set[asyncio.Task[cri.RunPodSandboxResponse]] = set()

    async def kill(self) -> None:
        """SIGKILL for containerd alone: its pods run on, and so do the plugins that it has started."""
        self._process.kill()
        await self._process.wait()

    async def start(self) -> None:
        """Start it again, after `kill`. Raises OSError."""
        self._process = await self._command.start()

    async def stop(self) -> None:
        """End containerd alone."""
        await self._process.stop(_STOP_PATIENCE)

    async def wait_until_ready(self) -> None:
        """Wait until it serves and has found a network configuration. Raises `RuntimeFailure`."""
        not_ready = "no answer"
        try:
            async with asyncio.timeout(_START_TIMEOUT):
                while not_ready:
                    await asyncio.sleep(_POLL)
                    _check_alive(self._process)
                    try:
                        not_ready = await self.why_not_ready()
                    except RuntimeFailure as error:
                        not_ready = str(error)
        except TimeoutError:
            raise RuntimeFailure(
                f"containerd is not ready after {_START_TIMEOUT:.0f} s: {not_ready}\n{self._process.last_words()}"
            ) from None

    async def why_not_ready(self) -> str:
        """Why no pods can be made now, in containerd's words; empty when they can. Raises `RuntimeFailure`."""
        reply = await self._call("Status", cri.StatusRequest(), cri.StatusResponse, timeout=5.0)
        return "; ".join(f"{c.type}: {c.message}" for c in reply.status.conditions if not c.status)

    async def run_pod(
        self,
        name: str,
        namespace: str = "default",
        host_ports: Mapping[int, int] = MappingProxyType({}),
        annotations: Mapping[str, str] = MappingProxyType({}),
        udp_ports: Mapping[int, int] = MappingProxyType({}),
    ) -> Pod:
        """`host_ports`: TCP port of the pod by that of the node; `udp_ports`: the same for UDP."""
        before = time.monotonic()
        # Shielded: containerd leaves shims and cached results behind when this call is broken off.
        starting = asyncio.ensure_future(
            self._run_sandbox(_sandbox(name, namespace, host_ports, annotations, udp_ports))
        )
        self._starting.add(starting)
        starting.add_done_callback(self._starting.discard)
        made = await asyncio.shield(starting)
        took = time.monotonic() - before
        status = await self._call(
            "PodSandboxStatus",
            cri.PodSandboxStatusRequest(pod_sandbox_id=made.pod_sandbox_id, verbose=True),
            cri.PodSandboxStatusResponse,
        )
        details = json.loads(status.info["info"])
        kinds = {entry["type"]: entry.get("path", "") for entry in details["runtimeSpec"]["linux"]["namespaces"]}
        return Pod(name, namespace, made.pod_sandbox_id, status.status.network.ip, Path(kinds["network"]), took)

    async def _run_sandbox(self, config: cri.PodSandboxConfig) -> cri.RunPodSandboxResponse:
        request = cri.RunPodSandboxRequest(config=config)
        return await self._call("RunPodSandbox", request, cri.RunPodSandboxResponse)

    async def remove_pod(self, pod: Pod) -> None:
        await self.remove_id(pod.id)

    async def remove_id(self, pod_id: str) -> None:
        """As `remove_pod`, for what `pod_ids` names."""
        with contextlib.suppress(_NotFound):
            await self._stop(pod_id)
            request = cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id)
            await self._call("RemovePodSandbox", request, cri.RemovePodSandboxResponse)

    async def stop_pod(self, pod: Pod) -> None:
        """End what runs in the pod and take its network down, but keep it on the list."""
        await self._stop(pod.id)

    async def _stop(self, pod_id: str) -> None:
        request = cri.StopPodSandboxRequest(pod_sandbox_id=pod_id)
        await self._call("StopPodSandbox", request, cri.StopPodSandboxResponse)

    async def pod_ids(self) -> list[str]:
        """All that it has, running or not."""
        reply = await self._call("ListPodSandbox", cri.ListPodSandboxRequest(), cri.ListPodSandboxResponse)
        return [item.id for item in reply.items]

    async def clear(self, socket: Path) -> None:
        """Remove all pods, those that are just being made too. What it fails to remove is left to `leftovers`."""
        if self._starting:
            _, late = await asyncio.wait(self._starting, timeout=_LATE_PATIENCE)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if self._process.exit_code is not None:
            return
        try:
            ids = await self.pod_ids()
        except RuntimeFailure:
            return
        await asyncio.gather(*(self.remove_id(pod_id) for pod_id in ids), return_exceptions=True)
        # A shim ends some milliseconds after its pod; killed before, it leaves its socket behind.
        for _ in range(int(_GONE_PATIENCE / _POLL)):
            if not leftovers.shims(socket).keys() & set(ids):
                break
            await asyncio.sleep(_POLL)

    async def execute(self, pod: Pod, *argv: str, timeout: float = 30.0) -> tuple[int, str]:
        """Run a command in a new container of the pod; returns its exit code and all its output."""
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=f"x{secrets.token_hex(4)}"),
            image=cri.ImageSpec(image=image.REFERENCE),
        )
        made = await self._call(
            "CreateContainer",
            cri.CreateContainerRequest(
                pod_sandbox_id=pod.id, config=config, sandbox_config=_sandbox(pod.name, pod.namespace)
            ),
            cri.CreateContainerResponse,
        )
        container = made.container_id
        await self._call(
            "StartContainer", cri.StartContainerRequest(container_id=container), cri.StartContainerResponse
        )
        request = cri.ExecSyncRequest(container_id=container, cmd=argv, timeout=int(timeout))
        reply = await self._call("ExecSync", request, cri.ExecSyncResponse)
        return reply.exit_code, (reply.stdout + reply.stderr).decode(errors="replace")

    async def plugin_times(self) -> PluginTimes | None:
        """From its own metrics; None when it has none (they came with containerd 1.6)."""
        text = await asyncio.to_thread(namespaces.run_in, self._netns, _read_metrics)
        values = {kind: float(value) for kind, value in _SET_UP_TIMES.findall(text)}
        if not values.get("count"):
            return None
        return PluginTimes(int(values["count"]), values["sum"] / values["count"])

    async def _call(self, method: str, request: Message, reply: type[Reply], timeout: float = _CALL_TIMEOUT) -> Reply:
        call = self._channel.unary_unary(
            f"/runtime.v1.RuntimeService/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        try:
            answer: Reply = await call(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            kind = _NotFound if error.code() is grpc.StatusCode.NOT_FOUND else RuntimeFailure
            raise kind(f"containerd, {method}: {error.details()}") from None
        return answer


@asynccontextmanager
async def containerd(
    netns: str, directory: Path, bin_dir: Path, conf_dir: Path, *, release: Path | None = None, networks: int = 1
) -> AsyncIterator[Containerd]:
    """A containerd in the network namespace `netns`; ended with all its pods at the end.

    `release` is a folder with the executables of another containerd than the machine's own; each pod is in the first
    `networks` networks of `conf_dir`.

    `directory` must not exist; its path must be short, for the sockets in it. `bin_dir` gets a link to the plugin
    `loopback`, which containerd calls for each pod. The pods can be made after `wait_until_ready`. Raises
    `RuntimeFailure` and OSError.
    """
    path = os.pathsep.join([*([str(release)] if release else []), os.environ.get("PATH", os.defpath)])
    for command, package in _COMMANDS.items():
        if shutil.which(command, path=path) is None:
            raise RuntimeFailure(f"{command}: command not found; install the package {package}")
    _link_loopback(bin_dir)
    directory.mkdir(parents=True)
    socket = directory / "c.sock"
    async with AsyncExitStack() as stack:
        stack.push_async_callback(leftovers.remove, directory, socket)
        archive = directory / "image.tar"
        image.write_image(archive)
        config = directory / "config.toml"
        modern = await containerd_config.is_modern(_executable("containerd", path))
        config.write_text(containerd_config.text(directory, socket, bin_dir, conf_dir, networks, modern=modern))
        argv = inside(netns, _executable("containerd", path), "--config", config)
        command_line = _Command(argv, os.environ | {"PATH": path}, directory / "log")
        process = await command_line.start()
        channel = grpc.aio.insecure_channel(f"unix:{socket}", options=[("grpc.max_reconnect_backoff_ms", 200)])
        stack.push_async_callback(channel.close)
        runtime = Containerd(netns, command_line, process, channel)
        stack.push_async_callback(runtime.stop)
        await _until_listening(process, socket)
        await _import(_executable("ctr", path), socket, archive, modern=modern)
        stack.push_async_callback(runtime.clear, socket)
        yield runtime


def _executable(name: str, path: str) -> str:
    found = shutil.which(name, path=path)
    assert found is not None, "checked before"
    return found


def _sandbox(
    name: str,
    namespace: str,
    host_ports: Mapping[int, int] = MappingProxyType({}),
    annotations: Mapping[str, str] = MappingProxyType({}),
    udp_ports: Mapping[int, int] = MappingProxyType({}),
) -> cri.PodSandboxConfig:
    mappings = [(cri.Protocol.TCP, *pair) for pair in host_ports.items()]
    mappings += [(cri.Protocol.UDP, *pair) for pair in udp_ports.items()]
    return cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=name, uid=f"{namespace}.{name}", namespace=namespace),
        hostname=name,
        port_mappings=[cri.PortMapping(protocol=how, host_port=at, container_port=to) for how, at, to in mappings],
        annotations=annotations,
        linux=cri.LinuxPodSandboxConfig(
            security_context=cri.LinuxSandboxSecurityContext(
                namespace_options=cri.NamespaceOption(pid=cri.NamespaceMode.CONTAINER)
            )
        ),
    )


def _link_loopback(bin_dir: Path) -> None:
    link = bin_dir / "loopback"
    if link.exists():
        return
    for folder in _LOOPBACK_FOLDERS:
        if (folder / "loopback").exists():
            link.symlink_to(folder / "loopback")
            return
    raise RuntimeFailure("the CNI plugin loopback is missing; install the package containernetworking-plugins")


async def _until_listening(process: Child, socket: Path) -> None:
    try:
        async with asyncio.timeout(_START_TIMEOUT):
            while not socket.exists():
                _check_alive(process)
                await asyncio.sleep(_POLL)
    except TimeoutError:
        raise RuntimeFailure(
            f"containerd made no socket in {_START_TIMEOUT:.0f} s:\n{process.last_words()}"
        ) from None


def _check_alive(process: Child) -> None:
    if process.exit_code is not None:
        raise RuntimeFailure(f"containerd ended with exit code {process.exit_code}:\n{process.last_words()}")


async def _import(ctr: str, socket: Path, archive: Path, *, modern: bool) -> None:
    # containerd 2 would read the archive itself, and needs a service more for that.
    where = ("--local",) if modern else ()
    try:
        await namespaces.command(
            ctr, "--address", str(socket), "--namespace", "k8s.io", "images", "import", *where, str(archive)
        )
    except namespaces.CommandError as error:
        raise RuntimeFailure(str(error)) from None


def _read_metrics() -> str:
    connection = http.client.HTTPConnection("127.0.0.1", containerd_config.METRICS_PORT, timeout=5)
    try:
        connection.request("GET", "/v1/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()
