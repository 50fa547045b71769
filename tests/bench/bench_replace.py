"""How long a node is without a serving daemon when the DaemonSet's pod is replaced, without the kubelet's own part.

    python tests/bench/bench_replace.py [--rounds 9] [--reply 0.1] [--json FILE]      (as root)

The warm node of bench_start.py. Each round does what a kubelet does, one step after the other: SIGTERM to the daemon
until it has ended, then the init container's `ipamd install`, then a new daemon until the first ADD is granted. An
observer follows the events (`ipamctl events -f`), as an operator who watches the replacement does.

`ipamd install` is also run with an empty folder for the plugin, in turns: that is the node's first time. Figures are
milliseconds from exec or signal, medians of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from bench_start import PODS, Stage, warm_node
from output import write_lines

from ipamd.install.executable import find_executable
from ipamd.install.placing import InstallError
from ipamd.sim.runtimes.process import Child, inside

AIM_MS = 3000
PARTS = (
    ("stop_ms", "the old daemon ends"),
    ("again_ms", "init container: the plugin is there"),
    ("start_ms", "the new daemon grants"),
    ("gap_ms", "without a serving daemon"),
    ("cpu_ms", "CPU time of the last two"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pods", type=int, default=PODS, help="that run on the node")
    parser.add_argument("--reply", type=float, default=0.1, help="seconds that EC2 takes for a call")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("run it as root: it makes network namespaces")
    rows = asyncio.run(measure(args.rounds, args.pods, args.reply))
    report(rows)
    if args.json:
        write_lines(args.json, rows)


async def measure(rounds: int, number: int, reply: float) -> list[dict[str, Any]]:
    rows = []
    packaging = await asyncio.to_thread(packaging_here)
    async with warm_node(number, reply) as (stage, pods):
        there, fresh = stage.node.dir / "plugin", stage.node.dir / "fresh"
        await install(stage, packaging, there)
        for _ in range(rounds):
            shutil.rmtree(fresh, ignore_errors=True)
            anew, _ = await install(stage, packaging, fresh)
            observer = await observe(stage)
            stopped = await taken(stage.stop())
            again, cpu = await install(stage, packaging, there)
            started = await stage.timed_start(pods[-1])
            await observer.stop(5.0)
            row = {"stop_ms": stopped, "again_ms": again, "start_ms": started["granted_ms"], "anew_ms": anew}
            row["gap_ms"] = stopped + again + started["granted_ms"]
            rows.append({"bench": "replace", "packaging": packaging, **row, "cpu_ms": cpu + started["cpu_ms"]})
    return rows


def packaging_here() -> str:
    """The DaemonSet's own where its executable was built (`make shim`)."""
    from cni_shim.static import block

    try:
        find_executable(None, block.sources())
    except InstallError:
        return "launcher"
    return "static"


async def taken(step: Any) -> float:
    begun = time.monotonic()
    await step
    return (time.monotonic() - begun) * 1000


async def install(stage: Stage, packaging: str, folder: Path) -> tuple[float, float]:
    """Wall and CPU time; the latter of all children that ended meanwhile, and there are no others."""
    words = ("-m", "ipamd", "install", "--plugin", packaging, "--bin-dir", folder, "--socket", stage.node.socket)
    begun, before = time.monotonic(), os.times()
    process = await asyncio.create_subprocess_exec(
        sys.executable, *map(str, words), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    if process.returncode:
        sys.exit(f"ipamd install failed: {output.decode()}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return (time.monotonic() - begun) * 1000, cpu * 1000


async def observe(stage: Stage) -> Child:
    """Returns once its stream is open."""
    log = stage.node.dir / "events.log"
    log.write_text("")
    words = (sys.executable, "-m", "ipamd.ctl", "events", "-f", "--socket", stage.node.socket)
    child = await Child.start(inside(stage.node.netns, *words), log, dict(os.environ))
    async with asyncio.timeout(30):
        while not log.stat().st_size:  # the events that it begins with
            await asyncio.sleep(0.02)
    return child


def report(rows: list[dict[str, Any]]) -> None:
    print(f"replacement of the daemon, ms (medians of {len(rows)}; lowest, highest), {rows[0]['packaging']} plugin")
    for key, name in PARTS:
        figures = [row[key] for row in rows]
        aim = f"   (aim: {AIM_MS})" if key == "gap_ms" else ""
        print(f"  {name:36}{statistics.median(figures):7.0f}{min(figures):7.0f}{max(figures):7.0f}{aim}")
    ratio = statistics.median(row["again_ms"] / row["anew_ms"] for row in rows)
    anew = statistics.median(row["anew_ms"] for row in rows)
    print(f"\nipamd install anew: {anew:.0f} ms; with the same plugin there: {ratio:.2f} times as long")


if __name__ == "__main__":
    main()
