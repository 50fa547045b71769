"""What one ADD and one DEL cost, from exec to exit: the installed plugin beside Debian's ptp with host-local.

    python tests/bench/bench_plugin.py [--rounds N]

Needs root and the package containernetworking-plugins. Every round runs each case once, in random order, in network
namespaces of its own; the daemon is a stand-in that answers at once, in a process of its own. Trust the ratios: the
other figures depend on the machine and on what else it does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from cni_shim.names import host_ifname
from ipamd.api.v1 import ipam_pb2, ipam_pb2_grpc
from ipamd.install import install_plugin
from ipamd.sim import netns

PTP = Path("/usr/lib/cni/ptp")
CONTAINER = "7d0f" * 16


class StandIn(ipam_pb2_grpc.IpamServicer):
    async def Allocate(self, request: Any, context: Any) -> ipam_pb2.AllocateReply:
        return ipam_pb2.AllocateReply(
            address=b"\x0a\x4d\0\5",
            prefix_length=32,
            gateway=b"\xa9\xfe\1\1",
            ifname=request.cni.ifname,
            host_ifname=host_ifname(request.cni.container_id, request.cni.ifname),
            mac=b"\2\0\x0a\x4d\0\5",
            host_mac=b"\2\1\x0a\x4d\0\5",
            mtu=1500,
            link_group=1501,
            table=1500,
            route_protocol=158,
            result=b'{"cniVersion":"1.0.0","ips":[{"address":"10.77.0.5/32"}]}',
        )

    async def Release(self, request: Any, context: Any) -> ipam_pb2.ReleaseReply:
        return ipam_pb2.ReleaseReply(released=True)


async def serve(socket: str) -> None:
    server = grpc.aio.server()
    ipam_pb2_grpc.add_IpamServicer_to_server(StandIn(), server)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)  # until the bench closes it
    await server.stop(None)


@contextmanager
def stand_in(socket: Path) -> Iterator[None]:
    with subprocess.Popen(
        [sys.executable, __file__, "--serve", socket], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.communicate()


@contextmanager
def namespaces() -> Iterator[tuple[str, str]]:
    prefix = f"b{secrets.token_hex(4)}"
    names = (f"{prefix}h", f"{prefix}p")
    for name in names:
        subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", names[0], "link", "set", "lo", "up"], check=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=True)


def execute(command: list[str], environment: dict[str, str], stdin: Path) -> float:
    """Milliseconds from exec to exit. Raises CalledProcessError."""
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, str(stdin), os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
    ]
    started = time.perf_counter()
    pid = os.posix_spawn(command[0], command, environment, file_actions=actions)
    _, status = os.waitpid(pid, 0)
    elapsed = time.perf_counter() - started
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    return elapsed * 1000


def measure(rounds: int, pod: str, directory: Path, interpreter: Path, launcher: Path) -> dict[str, list[float]]:
    """Run inside the host's namespace."""
    configs = {
        "ipamd-cni": {"cniVersion": "1.0.0", "name": "ipamd", "type": "ipamd-cni"},
        "ptp": {
            "cniVersion": "1.0.0",
            "name": "bench",
            "type": "ptp",
            "ipam": {"type": "host-local", "dataDir": str(directory / "host-local"), "subnet": "10.78.0.0/16"},
        },
    }
    binaries = {"ipamd-cni": str(launcher), "ptp": str(PTP)}
    for name, config in configs.items():
        (directory / f"{name}.json").write_text(json.dumps(config))
    environment = {
        "CNI_CONTAINERID": CONTAINER,
        "CNI_NETNS": str(netns.DIRECTORY / pod),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(PTP.parent),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    times: dict[str, list[float]] = {}

    def add_and_delete(name: str) -> Callable[[], None]:
        def run() -> None:
            for verb in ("ADD", "DEL"):
                taken = execute([binaries[name]], environment | {"CNI_COMMAND": verb}, directory / f"{name}.json")
                times.setdefault(f"{name} {verb}", []).append(taken)

        return run

    def start_interpreter() -> None:
        taken = execute([str(interpreter), "-IS", "-c", "pass"], environment, Path(os.devnull))
        times.setdefault("bare interpreter", []).append(taken)

    cases = [add_and_delete("ipamd-cni"), add_and_delete("ptp"), start_interpreter]
    for _ in range(rounds + 2):
        for case in random.sample(cases, len(cases)):
            case()
    return {name: taken[2:] for name, taken in times.items()}  # without the two rounds that warm up


def report(times: dict[str, list[float]]) -> str:
    lines = [f"{'exec to exit, ms':20} {'median':>8} {'min':>8} {'max':>8}   ratio to ptp"]
    for name in sorted(times):
        taken = times[name]
        reference = times.get(f"ptp {name.rpartition(' ')[2]}")
        pairs = zip(taken, reference, strict=True) if reference else ()
        ratio = f"{statistics.median(a / b for a, b in pairs):.2f}" if reference else ""
        lines.append(f"{name:20} {statistics.median(taken):8.2f} {min(taken):8.2f} {max(taken):8.2f}   {ratio}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="(default: %(default)s)")
    parser.add_argument("--serve", metavar="SOCKET", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve(args.serve))
        return
    if os.geteuid() != 0 or not PTP.exists():
        parser.error(f"needs root and {PTP} (Debian: containernetworking-plugins)")
    directory = Path(tempfile.mkdtemp(prefix="ipm"))
    try:
        plugin = install_plugin(directory / "bin", directory / "s.sock")
        with stand_in(directory / "s.sock"), namespaces() as (host, pod):
            times = netns.run_in(
                host, lambda: measure(args.rounds, pod, directory, plugin.interpreter.path, plugin.launcher)
            )
    finally:
        shutil.rmtree(directory)
    sys.stdout.write(report(times) + "\n")


if __name__ == "__main__":
    main()
