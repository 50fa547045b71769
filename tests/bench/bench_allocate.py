"""Allocate and Release over the real socket: calls per second, and how long each takes, by callers and pool size.

    python tests/bench/bench_allocate.py [--seconds 0.8] [--folder /dev/shm] [--json FILE]      (as root)

The daemon is the real one, with its records on tmpfs as by default (`--folder` on a disk: every commit is synced), on
nodes of a VPC in a box that hold 50, 250 and 735 addresses (all that a c5n.18xlarge takes beside the ENIs' own), a
fifth of them in use throughout. A caller sends what the plugin sends: an Allocate, and then its Release, again and
again. The callers are threads of two processes of their own.

- persistent: each caller is grpcio's client with one connection, which it keeps.
- per call: each caller is the plugin's own client, with a new connection for each call.
- rest: a caller rests for 100 ms on average after each pair. Without rest the callers keep the daemon busy all the
  time, and each of n callers waits for the n - 1 others.
- bare: the same server of grpcio in a process that does nothing but answer: what no daemon on grpcio can beat.

CPU time is the daemon's alone, all its threads together, divided by the calls. Trust the ratios: everything else
depends on the machine and on what else it does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import secrets
import statistics
import sys
import tempfile
import threading
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import output

from cni_shim import grpc_call, protobuf
from ipamd.api.v1 import ipam_pb2, ipam_pb2_grpc

SIZES = (50, 250, 735)
CALLERS = (1, 16, 64)
PERSISTENT, PER_CALL = "persistent", "per call"
REST = 0.1  # seconds
COOLDOWN = 0.005  # seconds; short, so that 50 addresses do for 16 callers
PROCESSES = 2  # of callers
FILL_TIMEOUT = 60.0
TIMEOUT = 10.0  # of a call

ALLOCATE, RELEASE = "/ipamd.v1.Ipam/Allocate", "/ipamd.v1.Ipam/Release"
CONFIG = b'{"cniVersion":"1.0.0","name":"ipamd","type":"ipamd-cni"}'

# Sends the request to the method and waits for the answer.
Call = Callable[[str, bytes], object]


@dataclass(frozen=True, slots=True)
class Job:
    """What one process of callers is to do. `start` is a time of `time.monotonic`."""

    socket: str
    callers: int
    connections: str
    rest: float
    start: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Server:
    """What is measured: a daemon with so many addresses, or the bare server with none."""

    socket: Path
    pid: int
    addresses: int = 0
    in_use: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.8, help="for each line of the table")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where the daemons keep their records")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--as-callers", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--as-bare-server", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.as_callers:
        serve_jobs()
        return
    if args.as_bare_server:
        asyncio.run(serve_bare(args.as_bare_server))
        return
    if os.geteuid() != 0:
        sys.exit("run it as root: it makes network namespaces")
    rows = asyncio.run(build_and_measure(args.folder, args.seconds))
    report(rows)
    if args.json:
        output.write_lines(args.json, rows)


async def build_and_measure(folder: Path, seconds: float) -> list[dict[str, Any]]:
    rows = []
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ipb", dir=folder)))
        servers = await stack.enter_async_context(daemons(directory))
        bare = await stack.enter_async_context(bare_server(directory / "bare.sock"))
        processes = [await stack.enter_async_context(callers()) for _ in range(PROCESSES)]
        for connections in (PERSISTENT, PER_CALL):
            for count, rest in (*((count, 0.0) for count in CALLERS), (16, REST)):
                for server in (*servers, bare):
                    if server is bare or server.addresses > count + server.in_use:
                        rows.append(await measure(processes, server, count, connections, rest, seconds))
    return rows


@asynccontextmanager
async def daemons(directory: Path) -> AsyncIterator[list[Server]]:
    """One daemon for each size, its pool filled. All run all the time, so that the sizes can take turns."""
    from ipamd.sim.demo_node import Node
    from ipamd.sim.vpc import SimulatedVpc

    async with AsyncExitStack() as stack:
        types = {f"n{size}": "c5n.18xlarge" for size in SIZES}
        vpc = await stack.enter_async_context(SimulatedVpc.build(dir=directory, nodes=types, subnets=["10.0.0.0/20"]))
        nodes = [Node(spec) for spec in vpc.nodes]
        for node, size in zip(nodes, SIZES, strict=True):
            with node.spec.config.open("a") as config:
                config.write(f"\n[pool]\nwarm_ips = 0\nminimum_ips = {size}\ncooldown = {COOLDOWN}\n")
            stack.callback(node.close)
            stack.push_async_callback(node.stop)
            await node.start()
        found = []
        for node, size in zip(nodes, SIZES, strict=True):
            async with asyncio.timeout(FILL_TIMEOUT):
                await node.wait_until_ready()
                while (await node.status())["free"] < size:
                    await asyncio.sleep(0.1)
            in_use = size // 5
            await asyncio.to_thread(hold, str(node.spec.socket), in_use)
            found.append(Server(node.spec.socket, node.daemon.pid, size, in_use))
        yield found
        for node, size in zip(nodes, SIZES, strict=True):
            total = (await node.status())["total"]
            if total != size:
                sys.exit(f"the pool of {size} has {total} addresses now: EC2 was part of what was measured")


@asynccontextmanager
async def bare_server(socket: Path) -> AsyncIterator[Server]:
    async with started("--as-bare-server", str(socket)) as process:
        assert process.stdout is not None
        await process.stdout.readline()
        yield Server(socket, process.pid)


@asynccontextmanager
async def callers() -> AsyncIterator[Process]:
    async with started("--as-callers") as process:
        yield process


@asynccontextmanager
async def started(*arguments: str) -> AsyncIterator[Process]:
    """This file as another process, until its standard input ends."""
    environ = {**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, *arguments, stdin=PIPE, stdout=PIPE, env=environ, limit=1 << 24
    )
    assert process.stdin is not None
    try:
        yield process
    finally:
        process.stdin.close()
        await process.wait()


async def measure(
    processes: list[Process], server: Server, count: int, connections: str, rest: float, seconds: float
) -> dict[str, Any]:
    """One line of the table."""
    at_work = processes[: min(count, len(processes))]
    start = time.monotonic() + 0.2  # by then all have connected
    job = Job(str(server.socket), count // len(at_work), connections, rest, start, seconds)
    running = asyncio.gather(*(ask(process, job) for process in at_work))
    await asyncio.sleep(start - time.monotonic())
    before = cpu_seconds(server.pid)
    results = await running
    used = cpu_seconds(server.pid) - before
    allocate, release = (
        sorted(time for result in results for time in result[kind]) for kind in ("allocate", "release")
    )
    calls = len(allocate) + len(release)
    return {
        "bench": "allocate",
        "server": "daemon" if server.addresses else "bare",
        "addresses": server.addresses,
        "in_use": server.in_use,
        "connections": connections,
        "callers": count,
        "rest_ms": rest * 1000,
        "calls": calls,
        "pairs_per_s": round(len(release) / max(result["seconds"] for result in results)),
        "allocate_p50_ms": round(statistics.median(allocate) * 1000, 2),
        "allocate_p99_ms": round(percentile(allocate, 0.99) * 1000, 2),
        "release_p50_ms": round(statistics.median(release) * 1000, 2),
        "release_p99_ms": round(percentile(release, 0.99) * 1000, 2),
        "cpu_us_per_call": round(used / calls * 1e6),
    }


async def ask(process: Process, job: Job) -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
    line = await process.stdout.readline()
    if not line:
        sys.exit("the measurement failed")
    found: dict[str, Any] = json.loads(line)
    return found


def cpu_seconds(pid: int) -> float:
    """Of all threads of the process, user and system: fields 14 and 15 of proc(5) /proc/pid/stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def percentile(values: list[float], part: float) -> float:
    """Of sorted values."""
    return values[min(len(values) - 1, int(part * len(values)))]


# The callers


def serve_jobs() -> None:
    sys.setswitchinterval(0.0005)
    for line in sys.stdin:
        print(json.dumps(work(Job(**json.loads(line)))), flush=True)


def work(job: Job) -> dict[str, Any]:
    results: list[tuple[list[float], list[float]]] = []
    faults: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call_until_the_end(job))
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=run) for _ in range(job.callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    return {
        "allocate": [time for allocate, _ in results for time in allocate],
        "release": [time for _, release in results for time in release],
        "seconds": time.monotonic() - job.start,
    }


def call_until_the_end(job: Job) -> tuple[list[float], list[float]]:
    """One caller: the times of its calls, in seconds."""
    allocate: list[float] = []
    release: list[float] = []
    container = secrets.token_hex(28)
    with client(job) as call:
        pair(call, f"{container}first")
        time.sleep(max(0.0, job.start - time.monotonic()) + random.uniform(0, job.rest))
        while time.monotonic() < job.start + job.seconds:
            first, second = pair(call, f"{container}{len(release):08x}")
            allocate.append(first)
            release.append(second)
            if job.rest:
                time.sleep(random.uniform(0, 2 * job.rest))
    return allocate, release


def pair(call: Call, container: str) -> tuple[float, float]:
    attachment = protobuf.cni_call(
        container.encode(),
        b"eth0",
        b"/run/netns/" + container.encode(),
        b"IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME=" + container[-12:].encode(),
        b"/opt/cni/bin",
        CONFIG,
    )
    allocate, release = protobuf.allocate_request(attachment, int(TIMEOUT * 1000)), protobuf.request(attachment)
    begun = time.perf_counter()
    call(ALLOCATE, allocate)
    between = time.perf_counter()
    call(RELEASE, release)
    return between - begun, time.perf_counter() - between


@contextmanager
def client(job: Job) -> Iterator[Call]:
    if job.connections == PER_CALL:
        yield lambda method, request: grpc_call.unary(
            job.socket, method.encode(), request, time.monotonic() + TIMEOUT
        )
        return
    # Otherwise all channels of a process would share one connection.
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"unix:{job.socket}", own_connection) as channel:
        methods: dict[str, Callable[..., object]] = {
            method: channel.unary_unary(method) for method in (ALLOCATE, RELEASE)
        }
        yield lambda method, request: methods[method](request, timeout=TIMEOUT)


def hold(socket: str, count: int) -> None:
    """Allocate so many addresses, and keep them."""
    for _ in range(count):
        container = secrets.token_hex(32).encode()
        attachment = protobuf.cni_call(container, b"eth0", b"/run/netns/held", b"", b"/opt/cni/bin", CONFIG)
        request = protobuf.allocate_request(attachment, int(TIMEOUT * 1000))
        grpc_call.unary(socket, ALLOCATE.encode(), request, time.monotonic() + TIMEOUT)


# The bare server


class Bare(ipam_pb2_grpc.IpamServicer):
    async def Allocate(self, request: Any, context: Any) -> ipam_pb2.AllocateReply:
        return ipam_pb2.AllocateReply(
            address=b"\x0a\0\0\5",
            prefix_length=32,
            gateway=b"\xa9\xfe\1\1",
            ifname=request.cni.ifname,
            host_ifname="bare0123456789",
            mac=b"\x0a\x58\x0a\0\0\5",
            host_mac=b"\x0a\x59\x0a\0\0\5",
            mtu=9001,
            link_group=1500,
            table=1500,
            route_protocol=158,
            netns=request.cni.netns,
            result=b"r" * 350,  # as long as the daemon's
            request_id="0123456789ab",
        )

    async def Release(self, request: Any, context: Any) -> ipam_pb2.ReleaseReply:
        return ipam_pb2.ReleaseReply(released=True, address=b"\x0a\0\0\5", request_id="0123456789ab")


async def serve_bare(socket: Path) -> None:
    server = grpc.aio.server()
    ipam_pb2_grpc.add_IpamServicer_to_server(Bare(), server)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


# The table


def report(rows: list[dict[str, Any]]) -> None:
    print(f"{'callers':35}{'pairs':>11}{'Allocate ms':>16}{'Release ms':>16}{'CPU us':>9}")
    print(f"{'':26}{'addresses':>12}{'per s':>8}" + f"{'p50':>8}{'p99':>8}" * 2 + f"{'a call':>9}")
    before = None
    for row in rows:
        kind = (row["connections"], row["callers"], row["rest_ms"])
        if kind != before:
            print()
        before = kind
        callers = f"{row['callers']:7} {row['connections']:12}{' rest' if row['rest_ms'] else '':6}"
        print(
            f"{callers}{row['addresses'] or 'bare':>12}{row['pairs_per_s']:8}"
            f"{row['allocate_p50_ms']:8.2f}{row['allocate_p99_ms']:8.2f}"
            f"{row['release_p50_ms']:8.2f}{row['release_p99_ms']:8.2f}{row['cpu_us_per_call']:9}"
        )
    print(f"\nCallers that rest do so for {REST * 1000:.0f} ms after each pair, on average.")


if __name__ == "__main__":
    main()
