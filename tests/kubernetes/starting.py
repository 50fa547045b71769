"""How long a pod's start takes by a kubelet's own measure, with ipamd and with Debian's ptp and host-local.

    python -m tests.kubernetes.starting [--pods 8] [--rounds 7]

Two workers that differ in their network alone. In each round each of them gets so many pods at once, first the one,
then the other; the next round begins with the other. The figure is podStartE2EDuration from the kubelet's log: from
the pod's creation, which the API server rounds down to a second, until the kubelet has seen it run. So pods are
created when a second has just begun. The pool has as many free addresses as a round needs: this is a warm start.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

# Before grpc is imported: its fork handlers would slow down and endanger every subprocess.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from tests.kubernetes import workloads
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.observing import until
from tests.kubernetes.worker import Node, Worker

OURS, THEIRS = "ipamd", "ptp"
# Enough addresses that those of the last rounds may cool down.
WORKERS: Final = (Worker(OURS, type="m5.2xlarge"), Worker(THEIRS, type="m5.2xlarge", ipamd=None))
PTP: Final = {
    "cniVersion": "1.0.0",
    "name": "ptp",
    "plugins": [
        {
            "type": "ptp",
            "ipMasq": False,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.200.0.0/24"}]]},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}
STARTED: Final = re.compile(r'"Observed pod startup duration" pod="default/(\S+)".* podStartE2EDuration="([^"]+)"')
UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def seconds(text: str) -> float:
    """Of Go's time.Duration.String, such as 1m2.5s."""
    return sum(float(number) * UNITS[unit] for number, unit in re.findall(r"([\d.]+)(ms|h|m|s)", text))


def durations(log: str, prefix: str) -> dict[str, float]:
    """Pod -> seconds of its start, of the pods whose names begin with the prefix."""
    return {pod: seconds(text) for pod, text in STARTED.findall(log) if pod.startswith(prefix)}


async def round_of(cluster: Cluster, node: Node, pods: int, prefix: str) -> list[float]:
    names = [f"{prefix}-{number}" for number in range(pods)]
    items = [json.loads(workloads.pod(name, "default", workloads.pod_spec(node.name))) for name in names]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    await asyncio.sleep(1.0 - time.time() % 1.0)
    await cluster.kubectl("create", "--filename=-", stdin=text)

    async def all_started() -> bool:
        return len(durations(node.kubelet.log.read_text(), f"{prefix}-")) == pods

    await until(all_started, f"{node.name} has started {pods} pods")
    await cluster.kubectl("delete", "pods", "--all", "--wait=true")
    return list(durations(node.kubelet.log.read_text(), f"{prefix}-").values())


async def warm(node: Node, pods: int) -> None:
    async def enough() -> bool:
        free: int = json.loads(await node.ipamctl("status", "-o", "json"))["free"]
        return free >= pods

    await until(enough, f"{node.name} has {pods} free addresses")


async def run(pods: int, rounds: int) -> dict[str, list[list[float]]]:
    """Node -> the figures of each round."""
    prefix = f"kt{secrets.token_hex(2)}"
    found: dict[str, list[list[float]]] = {OURS: [], THEIRS: []}
    with tempfile.TemporaryDirectory(prefix=prefix) as folder:
        async with Cluster.up(Path(folder), prefix, WORKERS, dns=False) as cluster:
            ours, theirs = cluster.nodes[OURS], cluster.nodes[THEIRS]
            with ours.spec.config.open("a") as config:
                config.write(f"\n[pool]\nwarm_ips = {pods}\n")
            (theirs.spec.dir / "etc/cni/net.d/10-ptp.conflist").write_text(json.dumps(PTP))
            await cluster.kubectl("wait", "--for=condition=Ready", "--timeout=120s", "node", "--all")
            for number in range(rounds + 1):
                for node in (ours, theirs) if number % 2 else (theirs, ours):
                    await warm(ours, pods)
                    figures = await round_of(cluster, node, pods, f"r{number}-{node.name}")
                    if number:  # the first one reads programs and images from the disk
                        found[node.name].append(figures)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=8, help="started at once")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    found = asyncio.run(run(args.pods, args.rounds))
    middle = {name: [statistics.median(figures) for figures in rounds] for name, rounds in found.items()}
    for name, medians in middle.items():
        each = " ".join(f"{median:.2f}" for median in medians)
        sys.stdout.write(f"{name:6} median {statistics.median(medians):.2f} s of the rounds' medians: {each}\n")
    ratio = statistics.median(ours / theirs for ours, theirs in zip(middle[OURS], middle[THEIRS], strict=True))
    sys.stdout.write(f"{OURS} / {THEIRS}: {ratio:.3f} (median of the rounds)\n")


if __name__ == "__main__":
    main()
