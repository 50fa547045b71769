"""Draws docs/pictures/dashboard.png: the panels of deploy/monitoring/dashboard.json, from their own queries.

Grafana is not packaged for Debian, so matplotlib draws the panels, in the dashboard's own grid. All else is real:
a Prometheus that scrapes a daemon on the VPC in a box while pods come and go for some minutes, EC2 throttles for a
while, and its subnet has the last word. Run as root: python tests/bench/draw_dashboard.py [FILE]
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
import urllib.parse
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import matplotlib.pyplot as plt

from ipamd.api.v1 import ipam_pb2
from ipamd.sim import netns
from ipamd.sim.runtimes.process import Child, inside
from tests.e2e import debian
from tests.netns.boxed import Daemon, box, control

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "monitoring" / "dashboard.json").read_text())
SECONDS = 240
STEP = 2
FETCH = (
    "import sys, urllib.request; sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"
)
CONFIG = """
global: {scrape_interval: 1s}
scrape_configs: [{job_name: ipamd, static_configs: [{targets: ["127.0.0.1:61678"]}]}]
"""
CENTRED: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 22}
UNITS = {"s": (1, "s"), "bytes": (1 / 2**20, "MiB"), "percentunit": (100, "%"), "ops": (1, "/s"), "short": (1, "")}


async def load(daemon: Daemon, until: float) -> None:
    """Pods in waves: some deployments, some quiet."""
    dice, running, number = random.Random(7), [], 0
    while time.monotonic() < until:
        wanted = dice.choice([4, 8, 14, 20, 26, 12])
        while len(running) < wanted:
            number += 1
            call = ipam_pb2.CniCall(
                container_id=f"c{number}", ifname="eth0", netns="/run/netns/x",
                args=f"K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-{number}",
                config=b'{"cniVersion":"1.0.0","name":"ipamd","type":"ipamd-cni"}',
            )  # fmt: skip
            with suppress(grpc.aio.AioRpcError):
                await daemon.ipam.Allocate(ipam_pb2.AllocateRequest(cni=call, deadline_ms=8000), timeout=10)
            running.append(call)
            await asyncio.sleep(dice.uniform(0, 0.3))
        await asyncio.sleep(dice.uniform(2, 8))
        while len(running) > max(wanted // 2, 2):
            call = running.pop(dice.randrange(len(running)))
            await daemon.ipam.Release(ipam_pb2.ReleaseRequest(cni=call), timeout=5)
        await asyncio.sleep(dice.uniform(2, 8))


async def recorded(folder: Path) -> tuple[float, dict[str, list[Any]]]:
    """(when it ended, the series of each query)."""
    prometheus = debian.unpacked("bookworm", "prometheus") / "usr" / "bin" / "prometheus"
    settings = {
        "POOL_COOLDOWN": 8,
        "POOL_REUSE_COOLING_AFTER": 4,
        "POOL_SLACK": 4,
        "POOL_RELEASE_DELAY": 12,
        "POOL_WARM_IPS": 2,
    }
    async with box(folder / "box", "dash", **settings) as (daemon, vpc):
        daemon.python = ("-c", HASTY)
        await daemon.ready()
        (folder / "prometheus.yml").write_text(CONFIG)
        command = (
            prometheus, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
            "--web.listen-address=127.0.0.1:9090",
        )  # fmt: skip
        watching = await Child.start(inside(daemon.node.netns, *map(str, command)), folder / "prometheus.log", {})
        try:
            loading = asyncio.create_task(load(daemon, time.monotonic() + SECONDS))
            await asyncio.sleep(SECONDS * 0.4)
            throttled = {"action": "AssignPrivateIpAddresses", "error": "RequestLimitExceeded", "times": 6}
            await control(vpc, "faults", throttled)
            await loading
            end = time.time()
            series = {
                target["expr"]: await asked(daemon, target["expr"], end)
                for panel in DASHBOARD["panels"]
                for target in panel["targets"]
            }
        finally:
            await watching.stop(10)
    return end, series


async def asked(daemon: Daemon, expression: str, end: float) -> list[Any]:
    for name, value in (("$__rate_interval", "20s"), ("$job", "ipamd"), ("$instance", ".*")):
        expression = expression.replace(name, value)
    words = urllib.parse.urlencode({"query": expression, "start": end - SECONDS, "end": end, "step": STEP})
    url = f"http://127.0.0.1:9090/api/v1/query_range?{words}"
    answer = json.loads(
        await netns.command("ip", "netns", "exec", daemon.node.netns, sys.executable, "-c", FETCH, url)
    )
    assert answer["status"] == "success", answer
    return list(answer["data"]["result"])


# Audits read what is left in the subnets; here they come every ten seconds.
HASTY = """
import sys
from ipamd.__main__ import main
from ipamd.pool import audit
audit.AUDIT_INTERVAL = 10.0
sys.exit(main(sys.argv[1:]))
"""


def drawn(end: float, series: dict[str, list[Any]], file: Path) -> None:
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in DASHBOARD["panels"])
    plt.rcParams.update({"font.size": 7, "axes.titlesize": 8.5, "axes.grid": True, "grid.alpha": 0.25})
    wide, high = 16.0, rows * 0.3
    figure = plt.figure(figsize=(wide, high))
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        left, top = place["x"] / 24 * wide + 0.45, place["y"] / rows * high + 0.3
        size = place["w"] / 24 * wide - 0.6, place["h"] / rows * high - 0.55
        axes = figure.add_axes((left / wide, 1 - (top + size[1]) / high, size[0] / wide, size[1] / high))
        axes.set_title(panel["title"], loc="left", fontweight="bold")
        scale, unit = UNITS[panel["fieldConfig"]["defaults"]["unit"]]
        lines = [
            (label(target["legendFormat"], found["metric"]), points(found, end, scale))
            for target in panel["targets"]
            for found in series[target["expr"]]
        ]
        if panel["type"] == "stat":
            value = lines[0][1][-1][1] if lines and lines[0][1] else 0.0
            steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
            colour = [s["color"] for s in steps if s["value"] is None or value / scale >= s["value"]][-1]
            axes.set_facecolor({"green": "#d5efd8", "red": "#f6c9c9"}[colour])
            axes.text(0.5, 0.45, f"{value:.3g} {unit}", transform=axes.transAxes, **CENTRED)
            axes.set(xticks=[], yticks=[])
            continue
        if panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal" and lines:
            times = sorted({t for _, line in lines for t, _ in line})
            layers = [[dict(line).get(t, 0.0) for t in times] for _, line in lines]
            axes.stackplot(times, layers, labels=[name for name, _ in lines], alpha=0.75)
        else:
            for name, line in lines:
                axes.plot(*zip(*line, strict=True), label=name, linewidth=1.3, marker=".", markersize=2)
        axes.set_xlim(-SECONDS, 0)
        axes.set_xticks(range(-SECONDS, 1, 60))
        axes.set_ylim(bottom=0, top=1.12 * axes.get_ylim()[1])
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 60:+.0f} min")
        axes.set_ylabel(unit)
        if lines:
            axes.legend(loc="upper left", fontsize=6, framealpha=0.6, ncols=1 + (len(lines) > 6))
    figure.savefig(file, dpi=75)


def points(found: dict[str, Any], end: float, scale: float) -> list[tuple[float, float]]:
    """(seconds from the end, value in the panel's unit)."""
    return [(float(t) - end, float(v) * scale) for t, v in found["values"]]


def label(form: str, metric: dict[str, str]) -> str:
    for name, value in metric.items():
        form = form.replace("{{" + name + "}}", value)
    return form or " "


def main() -> None:
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "pictures" / "dashboard.png"
    with tempfile.TemporaryDirectory(prefix="ipamd-dashboard-") as folder:
        drawn(*asyncio.run(recorded(Path(folder))), file)
    print(file)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
