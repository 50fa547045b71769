"""How soon a daemon that starts serves its node, where that time goes, and what memory it takes.

    python tests/bench/bench_start.py [--rounds 9] [--reply 0.1] [--json FILE]      (as root)

The node is warm, as after a restart of the daemon: an m5.4xlarge of the VPC in a box with three ENIs, pods in place
and their records on tmpfs. EC2 is reached by TLS, with a bundle of certificates as large as the real one, and takes
`--reply` seconds for each call, as the real one does.

Each round starts the real daemon, and together with it the real plugin for one more pod, which waits for the socket.
All times are from exec, medians of the rounds; CPU time is the daemon's until it was ready. The timeline is the
daemon's own log. The time of the imports comes from a separate process for each round (`-X importtime`, which adds
about a third: each package's own modules, without those that they import).

Memory is /proc/PID/smaps_rollup of the last daemon: RSS as `ps` tells it, USS what would be free without it. The
steps come from a process that imports one thing after the other. `ipamctl status` is timed from exec to exit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import certifi
from aiohttp import web
from aiohttp.typedefs import Handler
from caller import ALLOCATE, CONFIG, RELEASE, TIMEOUT
from output import write_lines

from cni_shim import grpc_call, protobuf
from ipamd.install.plugin import InstalledPlugin, install_plugin
from ipamd.sim import netns
from ipamd.sim.ec2.api import Ec2Api
from ipamd.sim.ec2.faults import CallLog, Faults
from ipamd.sim.fabric import EC2_ADDRESS
from ipamd.sim.runtimes.process import Child, inside
from ipamd.sim.vpc import SimulatedNode, SimulatedVpc

PODS = 70  # on three ENIs
PATIENCE = 30.0  # seconds
REST = 3.0  # seconds until a daemon that is ready has done what it puts off
AIM_MS, AIM_MIB = 1500, 70
POOL = f"\n[pool]\nwarm_ips = 8\nminimum_ips = {PODS + 8}\ncooldown = 0\n"

# The daemon as it is without the simulator, which brings rich; structlog would import it (5 MiB, 40 ms).
WITHOUT_RICH = "import sys; sys.modules['rich'] = None"
DAEMON = f"{WITHOUT_RICH}\nfrom ipamd.__main__ import main\nsys.exit(main())"
IMPORTS = f"""{WITHOUT_RICH}
import ipamd.__main__
from ipamd.process.startup import quick_imports
with quick_imports():
    import ipamd.daemon.run, ipamd.api.server, ipamd.process.reload
"""

# What is imported one after the other, each as (what it is called, Python's words).
STEPS = (
    ("interpreter", ""),
    ("asyncio, ssl, sqlite3", "import asyncio, ssl, sqlite3"),
    ("structlog", "import structlog"),
    ("pydantic", "import pydantic; from pydantic import AfterValidator, BaseModel, Field, ValidationError"),
    ("settings", "import ipamd.config.load"),
    ("aiohttp", "import aiohttp"),
    ("botocore, aiobotocore", "import aiobotocore.session"),
    ("grpcio", "import grpc, grpc.aio"),
    (
        "protobuf, our messages, health, reflection",
        "import ipamd.api.v1.introspection_pb2_grpc\n"
        "import ipamd.api.v1.ipam_pb2_grpc, ipamd.api.v1.administration_pb2_grpc\n"
        "import grpc_health.v1.health, grpc_reflection.v1alpha.reflection",
    ),
    ("ipamd", "import ipamd.daemon.run, ipamd.api.server"),
    ("metrics", "import ipamd.metrics.server"),
    (
        "client of EC2, its model cut",
        "from ipamd.cloud.connection import Connection\n"
        "from ipamd.settings import Ec2Settings, ImdsSettings\n"
        "async def connect():\n"
        "    await Connection(Ec2Settings(), ImdsSettings(), 'eu-central-1').client('DescribeNetworkInterfaces')\n"
        "asyncio.run(connect())",
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--allocations", type=int, default=10_000, help="before the last look at the memory")
    parser.add_argument("--pairs", type=int, default=100, help="of ADD and DEL, before a look at the memory")
    parser.add_argument("--pods", type=int, default=PODS, help="that run on the node")
    parser.add_argument("--reply", type=float, default=0.1, help="seconds that EC2 takes for a call")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("run it as root: it makes network namespaces")
    rows = asyncio.run(measure(args.rounds, args.pods, args.pairs, args.allocations, args.reply))
    rows += [{"bench": "start steps", **row} for row in steps()]
    rows += [{"bench": "start imports", **row} for row in imports(args.rounds)]
    report(rows)
    if args.json:
        write_lines(args.json, rows)


async def measure(rounds: int, number: int, pairs: int, allocations: int, reply: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    async with warm_node(number, reply) as (stage, pods):
        for _ in range(rounds):
            await stage.stop()
            rows.append({"bench": "start", **await stage.timed_start(pods[-1])})
        await asyncio.sleep(REST)
        rows.append({"bench": "start memory", "when": "ready", **stage.memory()})
        for _ in range(pairs):
            await stage.plugin("ADD", pods[-1])
            await stage.plugin("DEL", pods[-1])
        rows.append({"bench": "start memory", "when": f"{pairs} ADD and DEL", **stage.memory()})
        await asyncio.to_thread(allocate_and_release, str(stage.node.socket), allocations)
        rows.append({"bench": "start memory", "when": f"{allocations:,} allocations", **stage.memory()})
        for _ in range(rounds):
            rows.append({"bench": "start status", "ms": await stage.status()})
    return rows


# The stage


class Stage:
    """A node whose daemon is started again and again."""

    def __init__(self, node: SimulatedNode, plugin: InstalledPlugin, bundle: Path) -> None:
        self.node = node
        self._plugin = plugin
        self._log = node.dir / "ipamd.log"
        self._environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(node.dir)}
        self._bundle = bundle
        self._config = node.dir / "plugin.json"
        self._config.write_text(
            json.dumps({"cniVersion": "1.0.0", "name": "ipamd", "type": "ipamd-cni", "socket": str(node.socket)})
        )
        self._daemon: Child | None = None

    async def start(self, notify: Path | None = None) -> Child:
        environment = {
            **self._environment,
            "AWS_CA_BUNDLE": str(self._bundle),
            "IPAMD_EC2_ENDPOINT": f"https://{EC2_ADDRESS}",
            "IPAMD_LOG_LEVEL": "debug",
        }
        if notify is not None:
            environment["NOTIFY_SOCKET"] = str(notify)
        self._log.write_text("")
        command = inside(self.node.netns, sys.executable, "-c", DAEMON, "run", "--config", self.node.config)
        self._daemon = await Child.start(command, self._log, environment)
        return self._daemon

    async def stop(self) -> None:
        if self._daemon is not None and not await self._daemon.stop(PATIENCE):
            sys.exit(f"the daemon does not end; {self._daemon.last_words()}")
        self._daemon = None

    async def timed_start(self, pod: str) -> dict[str, Any]:
        """Milliseconds since exec until each of the signs, and the log's events with theirs."""
        notify = self.node.dir / "notify"
        notify.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            notified.bind(str(notify))
            notified.setblocking(False)
            wall, begun = time.time(), time.monotonic()
            adding = asyncio.ensure_future(self.plugin("ADD", pod))
            daemon = await self.start(notify)
            async with asyncio.timeout(PATIENCE):
                ready = asyncio.ensure_future(said_ready(notified))
                granted = asyncio.ensure_future(asyncio.to_thread(first_grant, str(self.node.socket)))
                await ready
                found = {"ready_ms": (time.monotonic() - begun) * 1000, "cpu_ms": cpu_ms(daemon.pid)}
                found["granted_ms"] = (await granted - begun) * 1000
                found["added_ms"] = (await adding - begun) * 1000
        await self.plugin("DEL", pod)
        await asyncio.sleep(0.2)
        return {**found, "timeline": self._timeline(wall)}

    def _timeline(self, since: float) -> dict[str, float]:
        """The first of each event until the daemon was ready, and each call of EC2."""
        found: dict[str, float] = {}
        for line in self._log.read_text().splitlines():
            event = json.loads(line)
            name = event["event"] + (f" {event['action']}" if event["event"] == "ec2.call" else "")
            while name in found and name.startswith("ec2.call"):
                name += "'"
            at = datetime.fromisoformat(event["timestamp"]).timestamp() - since
            found.setdefault(name, at * 1000)
            if name == "daemon.ready":
                break
        return found

    async def plugin(self, verb: str, pod: str) -> float:
        """Run the plugin for the only interface of that namespace; returns when it ended."""
        environment = {
            **self._environment,
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": Path(pod).name,
            "CNI_NETNS": pod,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self._plugin.launcher.parent),
        }
        with self._config.open("rb") as config:
            process = await asyncio.create_subprocess_exec(
                *inside(self.node.netns, self._plugin.launcher),
                stdin=config,
                stdout=asyncio.subprocess.PIPE,
                env=environment,
            )
            output, _ = await process.communicate()
        if process.returncode:
            sys.exit(f"{verb} of the plugin failed: {output.decode()}")
        return time.monotonic()

    async def status(self) -> float:
        """Milliseconds that `ipamctl status` takes."""
        begun = time.monotonic()
        command = [sys.executable, "-m", "ipamd.ctl", "status", "--socket", str(self.node.socket)]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
        if await process.wait():
            sys.exit("ipamctl failed")
        return (time.monotonic() - begun) * 1000

    def memory(self) -> dict[str, float]:
        assert self._daemon is not None
        return memory(self._daemon.pid)


@asynccontextmanager
async def warm_node(number: int, reply: float) -> AsyncIterator[tuple[Stage, list[str]]]:
    """A node with so many running pods, and the namespaces of all of them and of one more."""
    # In memory, as /run is on a node.
    with tempfile.TemporaryDirectory(prefix="ipb", dir="/dev/shm") as folder:
        async with (
            SimulatedVpc.build(dir=Path(folder), nodes={"n1": "m5.4xlarge"}, subnets=["10.0.0.0/22"]) as vpc,
            ec2_by_tls(vpc, Path(folder), reply) as bundle,
            namespaces(vpc.nodes[0], number + 1) as pods,
        ):
            node = vpc.nodes[0]
            with node.config.open("a") as config:
                config.write(POOL)
            stage = Stage(node, install_plugin(node.dir / "bin", node.socket, node.dir / "released"), bundle)
            await stage.start()
            try:
                for pod in pods[:-1]:
                    await stage.plugin("ADD", pod)
                yield stage, pods
            finally:
                await stage.stop()


@asynccontextmanager
async def ec2_by_tls(vpc: SimulatedVpc, folder: Path, reply: float) -> AsyncIterator[Path]:
    """The same EC2 by HTTPS; yields the file with the certificates to trust."""
    key, certificate, bundle = folder / "ec2.key", folder / "ec2.pem", folder / "bundle.pem"
    words = f"req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=ec2 -addext subjectAltName=IP:{EC2_ADDRESS}"
    files = ["-keyout", str(key), "-out", str(certificate)]
    await asyncio.to_thread(subprocess.run, ["openssl", *words.split(), *files], check=True, capture_output=True)
    shutil.copyfile(certifi.where(), bundle)
    with bundle.open("a") as more:
        more.write(certificate.read_text())

    @web.middleware
    async def slow(request: web.Request, handler: Handler) -> web.StreamResponse:
        await asyncio.sleep(reply)
        return await handler(request)

    application = Ec2Api(vpc.cloud, Faults(), CallLog()).application()
    application.middlewares.append(slow)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.SockSite(runner, vpc.fabric.listen(EC2_ADDRESS, 443), ssl_context=context).start()
        yield bundle
    finally:
        await runner.cleanup()


@asynccontextmanager
async def namespaces(node: SimulatedNode, number: int) -> AsyncIterator[list[str]]:
    """Paths of so many empty network namespaces."""
    made: list[str] = []
    try:
        for _ in range(number):
            name = f"{node.netns}-{secrets.token_hex(4)}"
            await netns.create(name)
            made.append(name)
        yield [str(netns.DIRECTORY / name) for name in made]
    finally:
        for name in made:
            await netns.delete(name)


async def said_ready(notified: socket.socket) -> None:
    while b"READY=1" not in await asyncio.get_running_loop().sock_recv(notified, 4096):
        pass


def calls() -> tuple[bytes, bytes]:
    container = secrets.token_hex(32).encode()
    attachment = protobuf.cni_call(container, b"eth0", b"/run/netns/none", b"", b"/opt/cni/bin", CONFIG)
    return protobuf.allocate_request(attachment, int(TIMEOUT * 1000)), protobuf.request(attachment)


def first_grant(path: str) -> float:
    """When somebody who asks again and again has got an address."""
    allocate, release = calls()
    while True:
        with suppress(grpc_call.Unreachable):
            grpc_call.unary(path, ALLOCATE.encode(), allocate, time.monotonic() + TIMEOUT)
            break
        time.sleep(0.002)
    granted = time.monotonic()
    grpc_call.unary(path, RELEASE.encode(), release, time.monotonic() + TIMEOUT)
    return granted


def allocate_and_release(path: str, number: int) -> None:
    for _ in range(number):
        for method, request in zip((ALLOCATE, RELEASE), calls(), strict=True):
            grpc_call.unary(path, method.encode(), request, time.monotonic() + TIMEOUT)


# What the kernel and the interpreter say


def cpu_ms(pid: int) -> float:
    """Of all threads (proc(5), /proc/[pid]/task/[tid]/schedstat: nanoseconds)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6


def memory(pid: int | str) -> dict[str, float]:
    """In MiB."""
    kibibytes: dict[str, int] = defaultdict(int)
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, _ = line.split()
        kibibytes[name.rstrip(":")] = int(value)
    own = kibibytes["Private_Clean"] + kibibytes["Private_Dirty"]
    return {"rss": kibibytes["Rss"] / 1024, "pss": kibibytes["Pss"] / 1024, "uss": own / 1024}


def steps() -> list[dict[str, Any]]:
    """What each import adds."""
    program = (
        f"{WITHOUT_RICH}\n"
        "def rss():\n"
        "    with open('/proc/self/smaps_rollup') as file:\n"
        "        return int(next(line for line in file if line.startswith('Rss:')).split()[1]) / 1024\n"
        "for line in sys.argv[1:]:\n"
        "    exec(line)\n"
        "    print(rss())\n"
    )
    environment = {
        **os.environ,
        "GRPC_ENABLE_FORK_SUPPORT": "0",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }
    command = [sys.executable, "-c", program, *(words for _, words in STEPS)]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    figures = [float(line) for line in output.split()]
    return [
        {"step": name, "rss": rss, "added": rss - before}
        for (name, _), rss, before in zip(STEPS, figures, [0.0, *figures], strict=False)
    ]


def imports(rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of each package's own modules."""
    runs: list[dict[str, float]] = []
    environment = {**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"}
    for _ in range(rounds):
        command = [sys.executable, "-X", "importtime", "-c", IMPORTS]
        told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stderr
        own: dict[str, float] = defaultdict(float)
        for line in told.splitlines()[1:]:
            microseconds, _, module = line.removeprefix("import time:").split("|")
            package = module.strip().partition(".")[0]
            own["standard library" if package in sys.stdlib_module_names else package] += int(microseconds) / 1000
        runs.append(own)
    names = {name for run in runs for name in run}
    medians = {name: statistics.median(run.get(name, 0.0) for run in runs) for name in names}
    return [{"package": name, "ms": ms} for name, ms in sorted(medians.items(), key=lambda item: -item[1])]


# What is shown


def report(rows: list[dict[str, Any]]) -> None:
    def of(bench: str) -> list[dict[str, Any]]:
        return [row for row in rows if row["bench"] == bench]

    starts = of("start")
    print(f"from exec, ms (medians of {len(starts)}; lowest, highest)")
    for key, name in (
        ("granted_ms", "first address granted"),
        ("added_ms", "first ADD of the plugin done"),
        ("ready_ms", "ready (systemd, health, conflist)"),
        ("cpu_ms", "CPU time until ready"),
    ):
        figures = [row[key] for row in starts]
        aim = f"   (aim: {AIM_MS})" if key == "added_ms" else ""
        print(f"  {name:36}{statistics.median(figures):7.0f}{min(figures):7.0f}{max(figures):7.0f}{aim}")
    print("\ntimeline of the daemon, ms from exec")
    times: dict[str, list[float]] = defaultdict(list)
    for row in starts:
        for name, at in row["timeline"].items():
            times[name].append(at)
    median: Callable[[tuple[str, list[float]]], float] = lambda item: statistics.median(item[1])  # noqa: E731
    for name, at in sorted(times.items(), key=median):
        print(f"  {name:48}{statistics.median(at):7.0f}")
    print("\nimports, ms")
    for row in of("start imports")[:14]:
        print(f"  {row['package']:36}{row['ms']:7.1f}")
    print(f"\nmemory of the daemon, MiB (aim: RSS {AIM_MIB})" + f"{'RSS':>12}{'PSS':>8}{'USS':>8}")
    for row in of("start memory"):
        print(f"  {row['when']:48}{row['rss']:8.1f}{row['pss']:8.1f}{row['uss']:8.1f}")
    print("\nRSS of one import after the other, MiB")
    for row in of("start steps"):
        print(f"  {row['step']:48}{row['rss']:8.1f}{row['added']:+8.1f}")
    print(f"\nipamctl status, ms: {statistics.median(row['ms'] for row in of('start status')):.0f}")


if __name__ == "__main__":
    main()
