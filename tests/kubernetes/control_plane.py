"""The control plane of a cluster, on a host of its own in the VPC: etcd, API server, controller manager and
scheduler."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Final

from ipamd.sim import netns
from ipamd.sim.machine import Machine
from ipamd.sim.vpc import SimulatedNode
from tests.kubernetes.certificates import Authority, signing_pair, write_secret
from tests.kubernetes.parts import ClusterError, Part

SERVICES: Final = "172.20.0.0/16"  # as EKS has it
API_SERVICE: Final = "172.20.0.1"
DNS_SERVICE: Final = "172.20.0.10"
DOMAIN: Final = "cluster.local"

_ADMIN: Final = "/etc/kubernetes/admin.conf"
_PKI: Final = "/etc/kubernetes/pki"
_ETCD: Final = "http://127.0.0.1:2379"
_PATIENCE: Final = 120.0
_POLL: Final = 0.3


class ControlPlane:
    """`programs` is the folder of the executables."""

    def __init__(self, host: SimulatedNode, programs: Path) -> None:
        assert host.machine is not None
        self.host = host
        self.machine: Machine = host.machine
        self.authority = Authority("kubernetes")
        self.url = f"https://{host.primary_ip}:6443"
        self._kubectl = programs / "kubectl"
        logs = host.dir / "logs"
        logs.mkdir(exist_ok=True)
        self._write_credentials(host.dir / "etc/kubernetes")

        def part(name: str, *options: str) -> Part:
            return Part(self.machine, name, [programs / name, *options], logs / f"{name}.log")

        self.etcd = part("etcd", *_etcd())
        self.api_server = part("kube-apiserver", *_api_server(host.primary_ip))
        self.controller_manager = part("kube-controller-manager", *_controller_manager())
        self.scheduler = part("kube-scheduler", *_client("scheduler"), "--leader-elect=false")

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.etcd, self.api_server, self.controller_manager, self.scheduler

    @property
    def kubeconfig(self) -> Path:
        """The administrator's. Its server answers in the VPC alone: enter a machine's network namespace first."""
        return self.host.dir / "etc/kubernetes/admin.conf"

    async def start(self) -> None:
        """Returns when the API server is ready. Raises `ClusterError`, `MachineError` and OSError."""
        await self.etcd.start()
        await self.api_server.start()
        try:
            async with asyncio.timeout(_PATIENCE):
                while not await self._is_ready():
                    self.etcd.check()
                    self.api_server.check()
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            raise ClusterError(
                f"the API server is not ready after {_PATIENCE:.0f} s: {self.api_server.last_words()}"
            ) from None
        await self.controller_manager.start()
        await self.scheduler.start()

    async def _is_ready(self) -> bool:
        try:
            return await self.kubectl("get", "--raw=/readyz") == "ok"
        except ClusterError:
            return False

    async def kubectl(self, *words: str, stdin: str = "") -> str:
        """Run kubectl as the cluster's administrator; returns what it prints. Raises `ClusterError`."""
        argv = self.machine.inside(self._kubectl, f"--kubeconfig={_ADMIN}", *words)
        try:
            return await netns.command(*argv, stdin=stdin)
        except netns.CommandError as error:
            _, _, said = str(error).partition(": exit code ")
            raise ClusterError(f"kubectl {' '.join(words)}: exit code {said}") from None

    async def get(self, kind: str, name: str = "", namespace: str = "") -> dict[str, Any]:
        """An object of the API, or a list of all (`namespace` "*": in all namespaces). Raises `ClusterError`."""
        where = {"": [], "*": ["--all-namespaces"]}.get(namespace, [f"--namespace={namespace}"])
        found: dict[str, Any] = json.loads(
            await self.kubectl("get", kind, *([name] if name else []), *where, "--output=json")
        )
        return found

    def _write_credentials(self, folder: Path) -> None:
        pki = folder / "pki"
        pki.mkdir(parents=True, exist_ok=True)
        (pki / "ca.crt").write_bytes(self.authority.certificate)
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{DOMAIN}"]
        addresses = ["127.0.0.1", API_SERVICE, self.host.primary_ip]
        self.authority.issue("kube-apiserver", hosts=["localhost", *names, *addresses]).write(pki / "apiserver")
        self.authority.issue("kube-apiserver-kubelet-client", ["system:masters"]).write(pki / "kubelet-client")
        private, public = signing_pair()
        write_secret(pki / "sa.key", private)
        (pki / "sa.pub").write_bytes(public)
        for file, user, groups in (
            ("admin", "admin", ["system:masters"]),
            ("controller-manager", "system:kube-controller-manager", []),
            ("scheduler", "system:kube-scheduler", []),
        ):
            config = self.authority.kubeconfig(self.url, user, groups)
            write_secret(folder / f"{file}.conf", config.encode())


def _etcd() -> list[str]:
    return [
        "--data-dir=/var/lib/etcd",
        "--unsafe-no-fsync",
        f"--listen-client-urls={_ETCD}",
        f"--advertise-client-urls={_ETCD}",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--log-level=warn",
    ]


def _api_server(address: str) -> list[str]:
    return [
        f"--etcd-servers={_ETCD}",
        f"--service-cluster-ip-range={SERVICES}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--client-ca-file={_PKI}/ca.crt",
        f"--tls-cert-file={_PKI}/apiserver.crt",
        f"--tls-private-key-file={_PKI}/apiserver.key",
        f"--service-account-issuer=https://kubernetes.default.svc.{DOMAIN}",
        f"--service-account-key-file={_PKI}/sa.pub",
        f"--service-account-signing-key-file={_PKI}/sa.key",
        f"--kubelet-client-certificate={_PKI}/kubelet-client.crt",
        f"--kubelet-client-key={_PKI}/kubelet-client.key",
        "--kubelet-preferred-address-types=InternalIP",
        f"--advertise-address={address}",
        "--secure-port=6443",
    ]


def _controller_manager() -> list[str]:
    return [
        *_client("controller-manager"),
        "--use-service-account-credentials",
        f"--service-account-private-key-file={_PKI}/sa.key",
        f"--root-ca-file={_PKI}/ca.crt",
        "--leader-elect=false",
        "--allocate-node-cidrs=false",  # addresses are ipamd's
    ]


def _client(name: str) -> list[str]:
    config = f"/etc/kubernetes/{name}.conf"
    return [
        f"--{option}={config}" for option in ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")
    ]
