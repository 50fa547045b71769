"""What one ADD and one DEL cost, from exec to exit: the installed plugin beside what there is instead.

    python tests/bench/bench_plugin.py [--rounds 40] [--bursts 7] [--beside FILE] [--json FILE]      (as root)

Compared are the plugin in its packagings, Debian's ptp with host-local (Go, no daemon), and `naive_plugin`, the same
plugin as one writes it first. Ours ask the real daemon on a node of the VPC in a box, whose pool is warm; all run in
that node's network namespace, in turns and in random order, into the same pods' namespaces. CPU is that of the
process and its children; "all CPU" adds what the daemon spent meanwhile, also after DEL has returned, when it deletes
the pair. Last comes where the time of an ADD goes (`timed_plugin`). Trust the ratios, which are medians over rounds;
the milliseconds are the machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import naive_plugin
from output import write_lines

from cni_shim.static import block
from cni_shim.static.build import BuildError, build
from ipamd.install.placing import InstallError
from ipamd.install.plugin import install_plugin
from ipamd.sim import netns
from ipamd.sim.demo.node import Node
from ipamd.sim.vpc import SimulatedVpc

DEBIAN_PLUGINS = Path("/usr/lib/cni")
BESIDE = "beside (--beside), static"
YARDSTICK = "ptp + host-local"
BURST = 32
POOL = f"\n[pool]\nwarm_ips = {2 * BURST}\ncooldown = 0\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="of one at a time (default: %(default)s)")
    parser.add_argument("--bursts", type=int, default=7, help=f"rounds of {BURST} at once (default: %(default)s)")
    parser.add_argument(
        "--beside", type=Path, metavar="FILE", help="also a static executable of another version (`make shim` there)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write each measurement as a line of JSON")
    args = parser.parse_args()
    if os.geteuid() != 0 or not (DEBIAN_PLUGINS / "ptp").exists():
        parser.error(f"needs root and {DEBIAN_PLUGINS / 'ptp'} (Debian: containernetworking-plugins)")
    found = asyncio.run(measure(args.rounds, args.bursts, args.beside))
    print(f"{table(found)}\n\n{breakdown(found['parts'])}")
    if args.json:
        rows = [{"bench": f"plugin {kind}", **row} for kind in ("alone", "bursts", "parts") for row in found[kind]]
        write_lines(args.json, rows)


async def measure(rounds: int, bursts: int, beside: Path | None) -> dict[str, Any]:
    async with node_with_daemon() as node, pods(node, BURST) as paths:
        cases = make_cases(node, beside)
        wanted = {
            "cases": cases,
            "pods": paths,
            "rounds": rounds,
            "bursts": bursts,
            "daemon": node.daemon.pid,
            "timed": timed_plugin(node),
        }
        process = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", node.spec.netns, sys.executable, Path(__file__).with_name("plugin_runs.py")),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        out, _ = await process.communicate(json.dumps(wanted).encode())
        if process.returncode:
            sys.exit("the measurement failed")
    result: dict[str, Any] = json.loads(out)
    return result


@asynccontextmanager
async def node_with_daemon() -> AsyncIterator[Node]:
    # In memory, as /run is on a node: the ledger is there.
    with tempfile.TemporaryDirectory(prefix="ipb", dir="/dev/shm") as folder:
        async with SimulatedVpc.build(dir=Path(folder), nodes={"n1": "m5.4xlarge"}, subnets=["10.0.0.0/22"]) as vpc:
            node = Node(vpc.nodes[0])
            with node.spec.config.open("a") as config:
                config.write(POOL)
            await node.start()
            try:
                await node.wait_until_ready()
                await node.wait_until_settled()
                yield node
            finally:
                node.close()
                await node.stop()


@asynccontextmanager
async def pods(node: Node, number: int) -> AsyncIterator[list[str]]:
    """Paths of so many empty network namespaces."""
    names = [f"{node.spec.netns}-{secrets.token_hex(4)}" for _ in range(number)]
    made = []
    try:
        for name in names:
            await netns.create(name)
            made.append(name)
        yield [str(netns.DIRECTORY / name) for name in names]
    finally:
        for name in made:
            await netns.delete(name)


def make_cases(node: Node, beside: Path | None) -> list[dict[str, Any]]:
    folder = node.spec.dir
    launcher = install_plugin(folder / "launcher", node.spec.socket).launcher
    ours = {"type": "ipamd-cni", "name": "ipamd", "socket": str(node.spec.socket)}
    cases = [case(folder, "ipamd-cni, launcher", launcher, ours)]
    try:
        build(folder / "executable")
        static = install_plugin(
            folder / "static", node.spec.socket, packaging="static", executable=folder / "executable"
        )
        cases.append(case(folder, "ipamd-cni, static", static.launcher, ours))
    except (BuildError, InstallError) as error:
        print(f"without the static executable: {error}")
    if beside is not None:
        cases.append(case(folder, BESIDE, another(folder / "beside", beside, node.spec.socket), ours))
    naive = folder / "naive"
    naive.write_text(f"#!{sys.executable}\n{Path(naive_plugin.__file__).read_text()}")
    naive.chmod(0o755)
    ipam = {"type": "host-local", "dataDir": str(folder / "host-local"), "subnet": "10.78.0.0/16"}
    return [
        *cases,
        case(folder, YARDSTICK, DEBIAN_PLUGINS / "ptp", {"type": "ptp", "name": "bench", "ipam": ipam}),
        case(folder, "naive Python", naive, ours, slow=True),
    ]


def another(plugin: Path, executable: Path, socket: Path) -> Path:
    """The static executable of another version, with this node's paths in it."""
    settings = block.Settings(str(socket), str(socket.parent / "released"), "", 35.0)
    plugin.write_bytes(block.fill(executable.read_bytes(), settings))
    plugin.chmod(0o755)
    return plugin


def timed_plugin(node: Node) -> dict[str, Any]:
    """The launcher with a clock in it."""
    plugin = install_plugin(node.spec.dir / "timed", node.spec.socket)
    assert plugin.interpreter is not None
    words = [plugin.interpreter.path, "-IS", Path(__file__).with_name("timed_plugin.py"), plugin.modules]
    return {"argv": [str(word) for word in words], "config": str(node.spec.dir / "ipamd-cni,-launcher.json")}


def case(folder: Path, name: str, plugin: Path, config: dict[str, Any], slow: bool = False) -> dict[str, Any]:
    file = folder / f"{name.replace(' ', '-')}.json"
    file.write_text(json.dumps({"cniVersion": "1.0.0", **config}))
    path = str(DEBIAN_PLUGINS)
    return {"name": name, "argv": [str(plugin)], "config": str(file), "path": path, "slow": slow}


def table(found: dict[str, Any]) -> str:
    names = list(dict.fromkeys(row["case"] for row in found["alone"]))
    names.sort(key=lambda name: median(row["ADD"]["ms"] for row in of(found["alone"], name)))
    lines = [
        f"{'ms, medians; x: of ' + YARDSTICK:24} {'ADD':>7} {'min':>7} {'CPU':>7} {'x':>6}"
        f"   {'DEL':>7} {'min':>7} {'CPU':>7} {'x':>6}   {'gone':>6} {'all CPU':>8}"
    ]
    lines.append("one at a time")
    for name in names:
        rows = of(found["alone"], name)
        words = [figures(rows, verb, of(found["alone"], YARDSTICK)) for verb in ("ADD", "DEL")]
        lines.append(f"  {name:22} {words[0]}   {words[1]}   {cost(rows)}")
    lines.append(f"{BURST} at once, per pod")
    for name in names:
        rows = of(found["bursts"], name)
        words = [figures(rows, verb, of(found["bursts"], YARDSTICK)) for verb in ("ADD", "DEL")]
        lines.append(f"  {name:22} {words[0]}   {words[1]}   {cost(rows)}")
    lines.append("gone: from the end of the last DEL until no link is left; all CPU: of ADD, DEL and the daemon")
    return "\n".join([*lines, *beside(found)])


def beside(found: dict[str, Any]) -> list[str]:
    """How today's static executable compares with the other version: medians over rounds."""
    lines = []
    for kind in ("alone", "bursts"):
        other = {row["round"]: row for row in of(found[kind], BESIDE)}
        rows = [row for row in of(found[kind], "ipamd-cni, static") if row["round"] in other]
        if rows:
            ratios = {
                verb: median(row[verb]["ms"] / other[row["round"]][verb]["ms"] for row in rows)
                for verb in ("ADD", "DEL")
            }
            words = ", ".join(f"{verb} {ratio:.3f}" for verb, ratio in ratios.items())
            lines.append(f"static, {kind}: of the other version's time {words} ({len(rows)} rounds)")
    return lines


def cost(rows: list[dict[str, Any]]) -> str:
    everything = median(row["ADD"]["cpu_ms"] + row["DEL"]["cpu_ms"] + row["daemon_ms"] for row in rows)
    return f"{median(row['gone_ms'] for row in rows):6.1f} {everything:8.1f}"


def breakdown(runs: list[dict[str, float]]) -> str:
    """Of the ADD of the launcher that took the median time, so that its parts add up to it; and the medians of each
    part, which need not."""
    typical = sorted(runs, key=lambda run: run["the whole"])[len(runs) // 2]
    lines = [f"{'Where the time of an ADD of the launcher goes, ms':50} {'median run':>10} {'medians':>8}"]
    for name in runs[0]:
        lines.append(f"  {name:48} {typical[name]:10.2f} {median(run[name] for run in runs):8.2f}")
    return "\n".join(lines)


def of(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["case"] == name]


def figures(rows: list[dict[str, Any]], verb: str, yardstick: list[dict[str, Any]]) -> str:
    taken = [row[verb]["ms"] for row in rows]
    other = {row["round"]: row[verb]["ms"] for row in yardstick}
    ratio = median(row[verb]["ms"] / other[row["round"]] for row in rows)
    cpu = median(row[verb]["cpu_ms"] for row in rows)
    return f"{median(taken):7.2f} {min(taken):7.2f} {cpu:7.2f} {ratio:6.2f}"


def median(values: Iterable[float]) -> float:
    return statistics.median(list(values))


if __name__ == "__main__":
    main()
