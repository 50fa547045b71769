"""A worker of a cluster: a machine with its own containerd, kubelet and kube-proxy, and with ipamd on it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import grpc

from ipamd.sim import netns
from ipamd.sim.machine import Machine
from ipamd.sim.runtimes.cri import cri_pb2 as cri
from ipamd.sim.vpc import SimulatedNode, SimulatedVpc
from tests.e2e import debian
from tests.kubernetes import node_files as files
from tests.kubernetes.certificates import Authority, write_secret
from tests.kubernetes.parts import ClusterError, Part

Release = Literal["1.6", "1.7", "2"]
ProxyMode = Literal["nftables", "iptables"]
Packaging = Literal["host", "daemonset"]

SOCKET: Final = "/run/ipamd/ipamd.sock"
CONFLIST: Final = "/etc/cni/net.d/10-ipamd.conflist"

_DEBIAN: Final = {"1.7": "trixie", "2": "sid"}  # the releases of Debian that have these containerds
_IPAMD: Final = (sys.executable, "-m", "ipamd")
_IPAMCTL: Final = (sys.executable, "-m", "ipamd.ctl")
_PATIENCE: Final = 60.0
_POLL: Final = 0.05


@dataclass(frozen=True, slots=True)
class Worker:
    """What a worker consists of. `containerd`: "1.6" is the machine's own (Debian 12). `ipamd`: None for a node
    without a network. `max_pods`: the kubelet's; an m5.large has addresses for 27 pods."""

    name: str
    type: str = "m5.large"
    containerd: Release = "1.6"
    proxy: ProxyMode = "nftables"
    ipamd: Packaging | None = "host"
    max_pods: int = 27


class Node:
    """A worker that is up. Its parts may be killed and started again one by one."""

    def __init__(
        self, worker: Worker, vpc: SimulatedVpc, node: SimulatedNode, programs: Path, images: Sequence[Path]
    ) -> None:
        assert node.machine is not None
        self.worker = worker
        self.name = worker.name
        self.spec = node
        self.machine: Machine = node.machine
        self._vpc = vpc
        self._images = list(images)  # those that it does not have yet: they survive a power cut
        release = containerd_folder(worker.containerd)
        logs = node.dir / "logs"
        logs.mkdir(exist_ok=True)

        def part(name: str, *argv: str | Path, folder: Path | None = None) -> Part:
            return Part(self.machine, name, argv, logs / f"{name}.log", folder)

        self.containerd = part("containerd", "containerd", f"--config={files.CONTAINERD_CONFIG}", folder=release)
        self.kubelet = part(
            "kubelet",
            programs / "kubelet",
            f"--config={files.KUBELET_CONFIG}",
            f"--kubeconfig={files.KUBELET_USER}",
            f"--hostname-override={worker.name}",
            f"--node-ip={node.primary_ip}",
            *(["--node-labels=ipamd.io/node=true"] if worker.ipamd == "daemonset" else []),
        )
        self.proxy = part("kube-proxy", programs / "kube-proxy", f"--config={files.PROXY_CONFIG}")
        self.daemon = Daemon(self, part("ipamd", *_IPAMD, "run") if worker.ipamd == "host" else None)

    def configure(self, authority: Authority, url: str, sandbox_image: str) -> None:
        """Write what survives a power cut. `url` is the API's."""
        etc = self.spec.dir / "etc"
        (etc / "kubernetes/pki").mkdir(parents=True, exist_ok=True)
        (etc / "kubernetes/pki/ca.crt").write_bytes(authority.certificate)
        users = {
            files.KUBELET_USER: authority.kubeconfig(url, f"system:node:{self.name}", ["system:nodes"]),
            files.PROXY_USER: authority.kubeconfig(url, "system:kube-proxy"),
        }
        for path, text in users.items():
            write_secret(self._kept(path), text.encode())
        self._kept(files.CONTAINERD_CONFIG).write_text(files.containerd(sandbox_image))
        self._kept(files.KUBELET_CONFIG).write_text(files.kubelet(self.machine.cgroup, self.worker.max_pods))
        self._kept(files.PROXY_CONFIG).write_text(files.kube_proxy(self.name, self.worker.proxy))
        files.place_cni_plugins(self.spec.dir / "opt/cni/bin")

    def _kept(self, path: str) -> Path:
        """A file that survives a power cut, also while the machine is off."""
        return self.spec.dir / path.lstrip("/")

    async def start(self) -> None:
        """Start all that runs on it. Raises `ClusterError`, `MachineError` and OSError."""
        await self.start_containerd()
        while self._images:
            await self._import(self._images.pop())
        await self.kubelet.start()
        await self.proxy.start()
        if self.worker.ipamd == "host":
            await self.enter(*_IPAMD, "install")
            await self.daemon.start()

    async def start_containerd(self) -> None:
        """Returns when it answers a kubelet. Raises `ClusterError`, `MachineError` and OSError."""
        listens = self.machine.path(files.CONTAINERD_SOCKET)
        listens.unlink(missing_ok=True)  # of one that was killed
        await self.containerd.start()
        try:
            async with asyncio.timeout(_PATIENCE):
                while not await _serves_cri(listens):
                    self.containerd.check()
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            raise ClusterError(f"{self.name}: containerd does not serve: {self.containerd.last_words()}") from None

    async def _import(self, archive: Path) -> None:
        # containerd 2 would read the archive itself, and needs a service more for that.
        where = ("--local",) if self.worker.containerd == "2" else ()
        await self.ctr("images", "import", *where, str(archive))

    async def ctr(self, *words: str) -> str:
        """containerd's own command, for what the kubelet has there. Raises `ClusterError`."""
        environment = [f"{name}={value}" for name, value in self.containerd.environment.items()]
        return await self.enter("env", "-i", *environment, "ctr", "--namespace=k8s.io", *words)

    async def enter(self, *argv: str | Path, stdin: str = "") -> str:
        """Run a command on the machine to its end; returns what it prints. Raises `ClusterError`."""
        try:
            return await netns.command(*self.machine.inside(*argv), stdin=stdin)
        except netns.CommandError as error:
            raise ClusterError(f"{self.name}: {error}") from None

    async def ipamctl(self, *words: str) -> str:
        """That something calls for attention, exit code 3, is no failure. Raises `ClusterError`."""
        return await self.enter("sh", "-c", '"$@" || test $? = 3', "ipamctl", *_IPAMCTL, *words)

    async def power_cut(self) -> None:
        """All its processes end at once. Raises `MachineError`."""
        await self.machine.power_cut()
        for part in self.parts:
            await part.kill()  # which only takes notice of its end

    async def boot(self) -> None:
        """Boot it after its power cut and start all that runs on it. Raises `ClusterError`, `MachineError`,
        `netns.CommandError` and OSError."""
        await self._vpc.boot(self.spec)
        await self.start()

    @property
    def parts(self) -> list[Part]:
        own = [self.daemon.part] if self.daemon.part is not None else []
        return [*own, self.proxy, self.kubelet, self.containerd]


class Daemon:
    """ipamd on a node, in either packaging. One of the DaemonSet is started again by its kubelet."""

    def __init__(self, node: Node, part: Part | None) -> None:
        self.part = part
        self._node = node

    @property
    def pid(self) -> int:
        """Here, not on its machine: of the process that listens at the daemon's socket. Raises OSError."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(self._node.machine.path(SOCKET)))
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            pid: int = struct.unpack("3i", credentials)[0]
            return pid

    async def start(self) -> None:
        """Raises `MachineError` and OSError."""
        assert self.part is not None, "the kubelet starts it"
        await self.part.start()

    async def kill(self) -> None:
        """kill -9, and wait for its end. Raises OSError when it does not run."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """SIGTERM, and wait for its end. Raises OSError when it does not run."""
        await self._end(signal.SIGTERM)

    async def wait_until_serving(self) -> None:
        """Until it answers and the runtime has its configuration. Raises `ClusterError`."""
        conflist = self._node.machine.path(CONFLIST)
        last = ""
        try:
            async with asyncio.timeout(_PATIENCE):
                while True:
                    if self.part is not None:
                        self.part.check()
                    try:
                        status = json.loads(await self._node.ipamctl("status", "--output=json"))
                        if status["ready"] and conflist.exists():
                            return
                        last = "it is not ready"
                    except ClusterError as error:
                        last = str(error)
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            raise ClusterError(f"{self._node.name}: ipamd does not serve: {last}") from None

    async def _end(self, number: signal.Signals) -> None:
        if self.part is not None:
            await (self.part.kill() if number is signal.SIGKILL else self.part.stop())
            return
        pid = self.pid
        descriptor = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(descriptor, number)
            ended = asyncio.Event()
            asyncio.get_running_loop().add_reader(descriptor, ended.set)
            try:
                await asyncio.wait_for(ended.wait(), _PATIENCE)
            finally:
                asyncio.get_running_loop().remove_reader(descriptor)
        finally:
            os.close(descriptor)


async def _serves_cri(listens: Path) -> bool:
    """containerd listens before it has found its pods again, and refuses all calls of the CRI until then. A kubelet
    that is refused this one ends (validateServiceConnection in k8s.io/cri-client)."""
    options = [
        ("grpc.use_local_subchannel_pool", 1)
    ]  # a new connection each time, without gRPC's pauses between them
    async with grpc.aio.insecure_channel(f"unix:{listens}", options=options) as channel:
        version = channel.unary_unary(
            "/runtime.v1.RuntimeService/Version",
            request_serializer=cri.VersionRequest.SerializeToString,
            response_deserializer=cri.VersionResponse.FromString,
        )
        try:
            await version(cri.VersionRequest(), timeout=5.0)
        except grpc.aio.AioRpcError:
            return False
    return True


def containerd_folder(release: Release) -> Path | None:
    """Where the programs of the release are; None: where they always are. Skips the test if they can't be fetched."""
    if release == "1.6":
        return None
    return debian.unpacked(_DEBIAN[release], "containerd") / "usr" / "bin"


def lacking() -> list[str]:
    """Programs of this machine that a cluster needs and that are missing."""
    return [name for name in ("containerd", "runc", "conntrack", "iptables", "nft") if shutil.which(name) is None]
