"""Pods per second through containerd: with the installed plugin, and with Debian's ptp + host-local in its place.

    python tests/bench/bench_pods.py [--rounds 5] [--sizes 1 20 50] [--json FILE]      (as root)

Each plugin has a node of its own in one VPC in a box, with a containerd of its own that is driven through CRI as a
kubelet does it: RunPodSandbox for all pods of a round at once, then StopPodSandbox and RemovePodSandbox. Ours ask
their nodes' real daemons, whose pools are warm; the node with ptp has no daemon. The nodes take turns, in random
order, and one is busy only when the one before has not a single pod's link left, so that what our DEL leaves to the
daemon is nobody else's burden; "gone" is how long that took after the last pod was removed.

"plugin" is what containerd itself measured of the plugins' work for one pod (loopback included). Trust the ratios,
medians of each round's; "from - to" are the lowest and highest round. Most of a pod's time is containerd's and
runc's.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import os
import random
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from output import write_lines

from cni_shim.static.build import BuildError, build
from ipamd.install.placing import InstallError
from ipamd.install.plugin import install_plugin
from ipamd.sim import netns
from ipamd.sim.demo.node import Node
from ipamd.sim.runtimes.containerd import Containerd, PluginTimes, containerd
from ipamd.sim.vpc import SimulatedNode, SimulatedVpc

DEBIAN_PLUGINS: Final = Path("/usr/lib/cni")
PTP, LAUNCHER, STATIC = "ptp + host-local", "ipamd-cni, launcher", "ipamd-cni, static"
VPC_NETWORK: Final = "10.0.0.0/22"
PTP_NETWORK: Final = "10.78.0.0/16"
POD_LINKS: Final = ("ipm", "veth")  # how ours and ptp's begin
PATIENCE: Final = 15.0  # seconds for the links of removed pods to go
MOST_PODS: Final = 200  # what an m5.4xlarge has room for, less what its pool holds back


@dataclass(frozen=True, slots=True)
class Case:
    """A plugin, on its node."""

    name: str
    netns: str
    runtime: Containerd
    network: str  # which the pods' addresses come from


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of each size (default: %(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 20, 50], help="pods at once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write each measurement as a line of JSON")
    args = parser.parse_args()
    if os.geteuid() != 0 or not (DEBIAN_PLUGINS / "ptp").exists():
        parser.error(f"needs root and {DEBIAN_PLUGINS / 'ptp'} (Debian: containernetworking-plugins)")
    if args.rounds < 1 or min(args.sizes) < 1 or max(args.sizes) > MOST_PODS:
        parser.error(f"--rounds starts at 1, --sizes takes numbers from 1 to {MOST_PODS}")
    rows = asyncio.run(measure(args.rounds, sorted(set(args.sizes))))
    print(table(rows))
    if args.json:
        write_lines(args.json, rows)


async def measure(rounds: int, sizes: list[int]) -> list[dict[str, Any]]:
    async with AsyncExitStack() as stack:
        # In memory, as the ledger is on a node (/run). host-local's leases, on disk by default, gain by it too.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ipb", dir="/dev/shm")))
        executable: Path | None = folder / "executable"
        try:
            build(folder / "executable")
        except BuildError as error:
            print(f"without the static executable: {error}", file=sys.stderr)
            executable = None
        names = {"l": LAUNCHER, "p": PTP} | ({"s": STATIC} if executable else {})
        types = dict.fromkeys(names, "m5.4xlarge")
        vpc = await stack.enter_async_context(SimulatedVpc.build(dir=folder, nodes=types, subnets=[VPC_NETWORK]))
        cases = [
            await with_ptp(stack, spec)
            if names[spec.name] == PTP
            else await with_ours(stack, spec, names[spec.name], executable, max(sizes))
            for spec in vpc.nodes
        ]
        for case in cases:
            await one_round(case, 1, "warm")  # does not count
        rows = []
        for number in range(rounds):
            for size in sizes:
                for case in random.sample(cases, len(cases)):
                    row = await one_round(case, size, f"r{number}")
                    rows.append({"bench": "pods", "round": number, "pods": size, "case": case.name, **row})
        return rows


async def with_ours(
    stack: AsyncExitStack, spec: SimulatedNode, name: str, executable: Path | None, pods: int
) -> Case:
    node = Node(spec)
    with spec.config.open("a") as config:
        config.write(f"\n[pool]\nwarm_ips = {pods}\ncooldown = 0\n")
    try:
        if name == STATIC:
            install_plugin(node.bin_dir, spec.socket, node.spool_dir, packaging="static", executable=executable)
        else:
            node.install_plugin()
    except InstallError as error:
        sys.exit(f"{name} can't be installed: {error}")
    stack.callback(node.close)
    await node.start()
    stack.push_async_callback(node.stop)
    await node.wait_until_ready()
    await node.wait_until_settled()
    return Case(name, spec.netns, await started(stack, spec, node.bin_dir, node.conf_dir), VPC_NETWORK)


async def with_ptp(stack: AsyncExitStack, spec: SimulatedNode) -> Case:
    bin_dir, conf_dir = spec.dir / "bin", spec.dir / "net.d"
    bin_dir.mkdir(exist_ok=True)
    conf_dir.mkdir(exist_ok=True)
    for plugin in ("ptp", "host-local"):
        (bin_dir / plugin).symlink_to(DEBIAN_PLUGINS / plugin)
    ipam = {"type": "host-local", "dataDir": str(spec.dir / "host-local"), "subnet": PTP_NETWORK}
    network = {"cniVersion": "1.0.0", "name": "bench", "plugins": [{"type": "ptp", "ipam": ipam}]}
    (conf_dir / "10-ptp.conflist").write_text(json.dumps(network))
    return Case(PTP, spec.netns, await started(stack, spec, bin_dir, conf_dir), PTP_NETWORK)


async def started(stack: AsyncExitStack, spec: SimulatedNode, bin_dir: Path, conf_dir: Path) -> Containerd:
    runtime = await stack.enter_async_context(containerd(spec.netns, spec.dir / "ctd", bin_dir, conf_dir))
    await runtime.wait_until_ready()
    return runtime


async def one_round(case: Case, size: int, name: str) -> dict[str, float | None]:
    """So many pods at once, up and down again. Ends the benchmark when a pod's address is not from its plugin."""
    before = await case.runtime.plugin_times()
    started = time.monotonic()
    pods = await asyncio.gather(*(case.runtime.run_pod(f"{name}-{size}-{number}") for number in range(size)))
    up = time.monotonic()
    foreign = [pod.ip for pod in pods if ipaddress.ip_address(pod.ip) not in ipaddress.ip_network(case.network)]
    if foreign or len({pod.ip for pod in pods}) != size:
        sys.exit(f"{case.name}: addresses {[pod.ip for pod in pods]}, wanted {size} of {case.network}")
    after = await case.runtime.plugin_times()
    removing = time.monotonic()
    await asyncio.gather(*(case.runtime.remove_pod(pod) for pod in pods))
    removed = time.monotonic()
    await until_gone(case)
    return {
        "up_seconds": up - started,
        "down_seconds": removed - removing,
        "gone_ms": (time.monotonic() - removed) * 1000,
        "plugin_ms": plugin_ms(before, after),
    }


def plugin_ms(before: PluginTimes | None, after: PluginTimes | None) -> float | None:
    """Of one pod, from containerd's sums before and after; None when it keeps none."""
    if after is None:
        return None
    calls, seconds = after.calls, after.calls * after.mean_seconds
    if before is not None:
        calls, seconds = calls - before.calls, seconds - before.calls * before.mean_seconds
    return seconds * 1000 / calls


async def until_gone(case: Case) -> None:
    deadline = time.monotonic() + PATIENCE
    while any(name.startswith(POD_LINKS) for _, name in netns.run_in(case.netns, socket.if_nameindex)):
        if time.monotonic() > deadline:
            sys.exit(f"{case.name}: links of removed pods stay")
        await asyncio.sleep(0.002)


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'pods/s, medians; x: of ' + PTP:40} {'up':>6} {'x':>5} {'from - to':>11}"]
    lines[0] += f"   {'down':>6} {'x':>5} {'from - to':>11}   {'plugin ms':>9} {'gone ms':>8}"
    for size in sorted({row["pods"] for row in rows}):
        lines.append(f"{size} at once")
        ptp = {row["round"]: row for row in rows if row["pods"] == size and row["case"] == PTP}
        for name in sorted({row["case"] for row in rows}):
            mine = [row for row in rows if row["pods"] == size and row["case"] == name]
            words = [rate(mine, ptp, size, key) for key in ("up_seconds", "down_seconds")]
            plugin = [row["plugin_ms"] for row in mine if row["plugin_ms"] is not None]
            plugin_word = f"{median(plugin):9.1f}" if plugin else f"{'-':>9}"
            gone = median(row["gone_ms"] for row in mine)
            lines.append(f"  {name:38} {words[0]}   {words[1]}   {plugin_word} {gone:8.1f}")
    lines.append("x above 1: more pods per second than with ptp. gone: from the last removal until no link is left")
    return "\n".join(lines)


def rate(mine: list[dict[str, Any]], ptp: dict[int, dict[str, Any]], size: int, key: str) -> str:
    ratios = [ptp[row["round"]][key] / row[key] for row in mine]
    per_second = size / median(row[key] for row in mine)
    return f"{per_second:6.1f} {median(ratios):5.2f} {min(ratios):4.2f} - {max(ratios):4.2f}"


def median(values: Iterable[float]) -> float:
    return statistics.median(list(values))


if __name__ == "__main__":
    main()
