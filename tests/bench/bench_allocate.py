"""Allocate and Release over the real socket: calls per second, and how long each takes, by callers and pool size.

    python tests/bench/bench_allocate.py [--rounds 3] [--seconds 0.3] [--folder /dev/shm] [--json FILE]   (as root)

The daemon is the real one, with its records on tmpfs as by default (`--folder` on a disk: every commit is synced), on
nodes of a VPC in a box that hold 50, 250 and 735 addresses (all that a c5n.18xlarge takes beside the ENIs' own), a
fifth of them in use throughout. A caller sends what the plugin sends: an Allocate, and then its Release, again and
again. The callers are threads of two processes of their own.

- persistent: each caller is grpcio's client with one connection, which it keeps.
- per call: each caller is the plugin's own client, with a new connection for each call.
- rest: a caller rests for 100 ms on average after each pair. Without rest the callers keep the daemon busy all the
  time, and each of n callers waits for the n - 1 others.
- bare: the same server of grpcio in a process that does nothing but answer: what no daemon on grpcio can beat.

Each round measures every line of the table once, the servers of a line one right after the other, in an order of its
own; the printed figure is the median of the rounds. CPU time is the server's alone, all its threads together, divided
by the calls. Trust the ratios: everything else depends on the machine and on what else it does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import caller
import grpc
import output
from caller import PER_CALL, PERSISTENT, Job

from ipamd.api.v1 import ipam_pb2, ipam_pb2_grpc

SIZES = (50, 250, 735)
REST = 0.1  # seconds
RESTED = 4  # times as long are callers measured that rest, for they make few calls
COOLDOWN = 0.005  # seconds; short, so that 50 addresses do for 16 callers
PROCESSES = 2  # of callers
FILL_TIMEOUT = 60.0

# What the issue of this pool's speed asks of an Allocate by 16 callers, in milliseconds.
AIM = {"p50": 1.0, "p99": 5.0}


@dataclass(frozen=True, slots=True)
class Load:
    """Who calls, and how. `rest` is in seconds."""

    callers: int
    connections: str = PERSISTENT
    rest: float = 0.0

    @property
    def label(self) -> str:
        resting = " resting" if self.rest else ""
        return f"{self.callers}{resting}{', each call anew' if self.connections == PER_CALL else ''}"


LOADS = (
    Load(1),
    Load(16, rest=REST),
    Load(16),
    Load(64),
    Load(1, PER_CALL),
    Load(16, PER_CALL, REST),
)


@dataclass(frozen=True, slots=True)
class Server:
    """What is measured: a daemon with so many addresses, or the bare server with none."""

    socket: Path
    pid: int
    addresses: int = 0
    in_use: int = 0

    def bears(self, load: Load) -> bool:
        """Whether all callers can hold an address at once."""
        return not self.addresses or self.addresses - self.in_use > load.callers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=0.3, help=f"for each line in each round; {RESTED} times that if callers rest"
    )
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where the daemons keep their records")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plots", type=Path, default=output.PLOTS, metavar="DIR")
    parser.add_argument("--as-bare-server", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.as_bare_server:
        asyncio.run(serve_bare(args.as_bare_server))
        return
    if os.geteuid() != 0:
        sys.exit("run it as root: it makes network namespaces")
    rows = asyncio.run(build_and_measure(args.folder, args.rounds, args.seconds))
    report(rows)
    if args.json:
        output.write_lines(args.json, rows)
    draw(rows, args.plots)


async def build_and_measure(folder: Path, rounds: int, seconds: float) -> list[dict[str, Any]]:
    found: dict[tuple[Load, Server], list[dict[str, float]]] = {}
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ipb", dir=folder)))
        servers = await stack.enter_async_context(daemons(directory))
        servers.append(await stack.enter_async_context(bare_server(directory / "bare.sock")))
        processes = [await stack.enter_async_context(callers()) for _ in range(PROCESSES)]
        lines = [(load, server) for load in LOADS for server in servers if server.bears(load)]
        for _ in range(rounds):
            for load in LOADS:
                for server in random.sample(servers, len(servers)):
                    if server.bears(load):
                        measured = await measure(processes, server, load, seconds)
                        found.setdefault((load, server), []).append(measured)
    return [row(load, server, found[load, server]) for load, server in lines]


@asynccontextmanager
async def daemons(directory: Path) -> AsyncIterator[list[Server]]:
    """One daemon for each size, its pool filled. All run all the time, so that the sizes can take turns."""
    from ipamd.sim.demo.node import Node
    from ipamd.sim.vpc import SimulatedVpc

    async with AsyncExitStack() as stack:
        types = {f"n{size}": "c5n.18xlarge" for size in SIZES}
        vpc = await stack.enter_async_context(SimulatedVpc.build(dir=directory, nodes=types, subnets=["10.0.0.0/20"]))
        nodes = [Node(spec) for spec in vpc.nodes]
        for node, size in zip(nodes, SIZES, strict=True):
            with node.spec.config.open("a") as config:
                config.write(f"\n[pool]\nwarm_ips = 0\nslack = 0\nminimum_ips = {size}\ncooldown = {COOLDOWN}\n")
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
            await asyncio.to_thread(caller.hold, str(node.spec.socket), in_use)
            found.append(Server(node.spec.socket, node.daemon.pid, size, in_use))
        yield found
        for node, size in zip(nodes, SIZES, strict=True):
            total = (await node.status())["total"]
            if total != size:
                sys.exit(f"the pool of {size} has {total} addresses now: EC2 was part of what was measured")


@asynccontextmanager
async def bare_server(socket: Path) -> AsyncIterator[Server]:
    async with started(__file__, "--as-bare-server", str(socket)) as process:
        assert process.stdout is not None
        await process.stdout.readline()
        yield Server(socket, process.pid)


@asynccontextmanager
async def callers() -> AsyncIterator[Process]:
    async with started(caller.__file__) as process:
        yield process


@asynccontextmanager
async def started(*arguments: str) -> AsyncIterator[Process]:
    """A file of this folder as another process, until its standard input ends."""
    environ = {**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdin=PIPE, stdout=PIPE, env=environ, limit=1 << 24
    )
    assert process.stdin is not None
    try:
        yield process
    finally:
        process.stdin.close()
        await process.wait()


async def measure(processes: list[Process], server: Server, load: Load, seconds: float) -> dict[str, float]:
    """One line of the table in one round."""
    at_work = processes[: min(load.callers, len(processes))]
    start = time.monotonic() + 0.2  # by then all have connected
    seconds *= RESTED if load.rest else 1
    job = Job(str(server.socket), load.callers // len(at_work), load.connections, load.rest, start, seconds)
    running = asyncio.gather(*(ask(process, job) for process in at_work))
    await asyncio.sleep(start - time.monotonic())
    before = cpu_seconds(server.pid)
    results = await running
    used = cpu_seconds(server.pid) - before
    times = {
        kind: sorted(time * 1000 for result in results for time in result[kind]) for kind in ("allocate", "release")
    }
    calls = sum(map(len, times.values()))
    figures = {f"{kind}_p50_ms": statistics.median(times[kind]) for kind in times}
    figures |= {f"{kind}_p99_ms": percentile(times[kind], 0.99) for kind in times}
    pairs_per_s = len(times["release"]) / max(result["seconds"] for result in results)
    return {"calls": calls, "pairs_per_s": pairs_per_s, "cpu_us_per_call": used / calls * 1e6, **figures}


def row(load: Load, server: Server, rounds: list[dict[str, float]]) -> dict[str, Any]:
    """What all rounds say of one line."""
    figures = {name: statistics.median(measured[name] for measured in rounds) for name in rounds[0]}
    return {
        "bench": "allocate",
        "server": "daemon" if server.addresses else "bare",
        "addresses": server.addresses,
        "in_use": server.in_use,
        "connections": load.connections,
        "callers": load.callers,
        "rest_ms": load.rest * 1000,
        "rounds": len(rounds),
        **{name: round(figure, 2 if name.endswith("_ms") else None) for name, figure in figures.items()},
        "calls": sum(int(measured["calls"]) for measured in rounds),
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


# What is shown


def report(rows: list[dict[str, Any]]) -> None:
    print(f"{'callers':24}{'addresses':>11}{'pairs':>8}{'Allocate ms':>16}{'Release ms':>16}{'CPU us':>9}")
    print(f"{'':35}{'per s':>8}" + f"{'p50':>8}{'p99':>8}" * 2 + f"{'a call':>9}")
    for load in LOADS:
        print()
        for found in of(load, rows):
            print(
                f"{load.label:24}{found['addresses'] or 'bare':>11}{found['pairs_per_s']:8}"
                f"{found['allocate_p50_ms']:8.2f}{found['allocate_p99_ms']:8.2f}"
                f"{found['release_p50_ms']:8.2f}{found['release_p99_ms']:8.2f}{found['cpu_us_per_call']:9}"
            )
    print(
        f"\nMedians of {rows[0]['rounds']} rounds. Callers that rest do so for {REST * 1000:.0f} ms after each pair,"
    )
    print("on average; the others call again at once, and each of them waits for all others.")


def of(load: Load, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kind = (load.callers, load.connections, load.rest * 1000)
    return [found for found in rows if (found["callers"], found["connections"], found["rest_ms"]) == kind]


def draw(rows: list[dict[str, Any]], folder: Path) -> None:
    plt = output.pyplot()
    if plt is None:
        return
    figure, axes = plt.subplots(2, 1, figsize=(8, 6.5), sharex=True, layout="constrained")
    servers = [*SIZES, 0]
    shades = ["#9ecae1", "#4a98c9", output.COLOURS["ipamd"], "#999999"]
    width = 0.8 / len(servers)
    for axis, part in zip(axes, AIM, strict=True):
        for place, (addresses, shade) in enumerate(zip(servers, shades, strict=True)):
            points = [
                (at + (place - (len(servers) - 1) / 2) * width, found[f"allocate_{part}_ms"])
                for at, load in enumerate(LOADS)
                for found in of(load, rows)
                if found["addresses"] == addresses
            ]
            label = f"ipamd, {addresses} addresses" if addresses else "a server of grpcio that only answers"
            bars = axis.bar(*zip(*points, strict=True), width, color=shade, label=label)
            axis.bar_label(bars, fmt="%.2g", fontsize=6)
        axis.axhline(AIM[part], color="#D55E00", linewidth=0.8, linestyle="--", label="the aim")
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
        axis.set_ylabel(f"Allocate, {part}, milliseconds")
        axis.grid(axis="y", alpha=0.25)
    axes[0].legend(fontsize=7, loc="upper left")
    axes[1].set_xticks(range(len(LOADS)), [load.label.replace(", ", ",\n") for load in LOADS])
    axes[1].set_xlabel(
        f"callers; those that rest do so for {REST * 1000:.0f} ms on average, the others call again at once"
    )
    axes[0].set_title("Allocate over the socket, its record committed", fontsize=10)
    output.save(figure, folder, "allocate.png")


if __name__ == "__main__":
    main()
