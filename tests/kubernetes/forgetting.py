"""How long other nodes send to the address of a pod that is gone: what `pool.reuse_cooling_after` has to outlast.

    python -m tests.kubernetes.forgetting [--pods 12] [--rounds 2]

On one worker all pods of a Service are deleted at once, in three ways. For each address: the seconds from its release
(ipamd's `attachment.released`, the pod's DEL) until kube-proxy has taken it out of its rules, on each node. It does
so after the EndpointSlices have lost it, so these are no later. Below 0 it was forgotten before it was released.
To read the rules takes a moment, so the figures are upper bounds; a busy machine makes them larger.

    graceful  kubectl delete; the pod's process ends at SIGTERM
    at once   kubectl delete --grace-period=0 of pods with terminationGracePeriodSeconds 0
    forced    kubectl delete --force: the pod's object goes before its containers do
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
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

# Before grpc is imported: its fork handlers would slow down and endanger every subprocess.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from ipamd.sim import netns
from ipamd.sim.runtimes.process import inside
from tests.kubernetes import images
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.worker import Worker

# The first has the pods; each kube-proxy forgets them.
WORKERS: Final = (Worker("w1", proxy="nftables"), Worker("w2", proxy="iptables"))
ADDRESS: Final = re.compile(r"\b\d+\.\d+\.\d+\.\d+\b")
WAYS: Final = {
    "graceful": (30, ()),
    "at once": (0, ("--grace-period=0",)),
    "forced": (30, ("--force", "--grace-period=0")),
}
# Seconds that may pass until all is forgotten, and between two looks.
PATIENCE, PAUSE = 120.0, 0.05

Reader = Callable[[], Awaitable[str]]


@dataclass
class Watch:
    """When each of the addresses was first not to be seen in what is read again and again."""

    read: Reader
    gone: dict[str, float] = field(default_factory=dict)

    async def until_known(self, addresses: set[str]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not addresses <= set(ADDRESS.findall(await self.read())):  # noqa: ASYNC110
                await asyncio.sleep(PAUSE)

    async def until_gone(self, addresses: set[str]) -> None:
        async with asyncio.timeout(PATIENCE):
            while addresses - self.gone.keys():
                seen = set(ADDRESS.findall(await self.read()))
                self.gone |= dict.fromkeys(addresses - seen - self.gone.keys(), time.time())
                await asyncio.sleep(PAUSE)


def web(pods: int, grace: int) -> str:
    """A Deployment on the first worker and its Service."""
    labels = {"app": "web"}
    command = "httpd -p 8080 -h /tmp; trap 'exit 0' TERM; while :; do sleep 0.1; done"
    container = {
        "name": "web",
        "image": images.reference("busybox"),
        "command": ["/bin/sh", "-c", command],
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
    }
    spec = {"nodeName": WORKERS[0].name, "terminationGracePeriodSeconds": grace, "containers": [container]}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": pods,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": [deployment, service]})


async def addresses(cluster: Cluster) -> set[str]:
    return {pod["status"]["podIP"] for pod in (await cluster.get("pods"))["items"]}


def released(cluster: Cluster, since: float) -> dict[str, float]:
    """When each address was released last, by the daemon's log."""
    found = {}
    for line in (cluster.nodes[WORKERS[0].name].spec.dir / "logs/ipamd.log").read_text().splitlines():
        if '"attachment.released"' not in line:
            continue
        event: dict[str, Any] = json.loads(line)
        at = datetime.fromisoformat(event["timestamp"]).timestamp()
        if at >= since:
            found[event["ip"]] = at
    return found


def watches(cluster: Cluster) -> dict[str, Watch]:
    def rules(place: str) -> Reader:
        return lambda: netns.command(*inside(place, "nft", "list", "ruleset"))

    return {f"kube-proxy, {worker.proxy}": Watch(rules(cluster.nodes[worker.name].spec.netns)) for worker in WORKERS}


async def measured(cluster: Cluster, way: str, pods: int) -> dict[str, list[float]]:
    grace, words = WAYS[way]
    await cluster.apply(web(pods, grace))
    await cluster.rolled_out("deployment/web")
    ours, found = await addresses(cluster), watches(cluster)
    await asyncio.gather(*(watch.until_known(ours) for watch in found.values()))
    begin = time.time()
    watching = [asyncio.create_task(watch.until_gone(ours)) for watch in found.values()]
    await cluster.kubectl("delete", "pods", "--selector=app=web", "--wait=false", *words)
    await asyncio.gather(*watching)
    async with asyncio.timeout(PATIENCE):
        while ours - (when := released(cluster, begin)).keys():  # noqa: ASYNC110
            await asyncio.sleep(PAUSE)
    await cluster.kubectl("delete", "deployment,service", "web", "--wait=true")
    after = {name: [watch.gone[ip] - when[ip] for ip in ours] for name, watch in found.items()}
    return {"released after the wish": [when[ip] - begin for ip in ours], **after}


async def run(pods: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    prefix = f"kf{secrets.token_hex(2)}"
    found: dict[str, dict[str, list[float]]] = {way: {} for way in WAYS}
    with tempfile.TemporaryDirectory(prefix=prefix) as folder:
        async with Cluster.up(Path(folder), prefix, WORKERS, dns=False) as cluster:
            for _ in range(rounds):
                for way in WAYS:
                    for name, seconds in (await measured(cluster, way, pods)).items():
                        found[way].setdefault(name, []).extend(seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=12, help="deleted at once")
    parser.add_argument("--rounds", type=int, default=2, help="of the three ways, one after the other")
    args = parser.parse_args()
    write = sys.stdout.write
    write(f"{'':10} {'seconds':26} {'median':>7} {'longest':>8}\n")
    for way, figures in asyncio.run(run(args.pods, args.rounds)).items():
        for name, seconds in figures.items():
            write(f"{way:10} {name:26} {statistics.median(seconds):7.2f} {max(seconds):8.2f}\n")


if __name__ == "__main__":
    main()
