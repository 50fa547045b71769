"""What a chained plugin costs each pod: ADD and DEL of a whole list by libcni, from exec to exit.

    python tests/bench/bench_chain.py [--rounds 60] [--plugins FOLDER] [--json FILE]      (as root; needs Go)

Compared are the list with ipamd-cni alone, the same with portmap for a pod without host ports, and for one with a
host port. They run in turns and in random order, in the network namespace of a node of the VPC in a box, whose daemon
is the real one and whose pool is warm. libcni and its caller (tests/peers/libcni-1.3) are in all of the figures, so
the cost of the chained plugin is the difference: the median of the differences within a round. Trust the ratios; the
milliseconds are the machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench_plugin import DEBIAN_PLUGINS, node_with_daemon, pods
from output import write_lines

from cni_shim.static.build import BuildError, build
from ipamd.install.placing import InstallError
from ipamd.install.plugin import install_plugin
from ipamd.neighbours.chain import Binaries, Wanted, chain
from ipamd.sim import netns
from ipamd.sim.demo.node import Node

PEER = Path(__file__).resolve().parents[1] / "peers" / "libcni-1.3"
ALONE, CHAINED, MAPPED = "ipamd-cni alone", "and portmap, no host port", "and portmap, one host port"
# Where no backend is named, portmap 1.6 and later run iptables to find one, also for a pod without host ports.
NAMED = "the same, backend named"
LISTS: dict[str, Wanted] = {
    ALONE: [],
    CHAINED: ["portmap"],
    NAMED: [{"type": "portmap", "backend": "iptables"}],
    MAPPED: ["portmap"],
}
PORTS = {"portMappings": [{"hostPort": 18080, "containerPort": 8080, "protocol": "tcp"}]}
VERBS = ("add", "del")
WARM_UP = 3  # rounds that don't count

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="(default: %(default)s)")
    parser.add_argument("--plugins", type=Path, default=DEBIAN_PLUGINS, help="portmap's (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write each measurement as a line of JSON")
    args = parser.parse_args()
    if os.geteuid() != 0 or not (args.plugins / "portmap").exists():
        parser.error(f"needs root and {args.plugins / 'portmap'} (Debian: containernetworking-plugins)")
    rows = asyncio.run(measure(args.rounds, args.plugins))
    print(table(rows))
    if args.json:
        write_lines(args.json, [{"bench": "chain", **row} for row in rows])


async def measure(rounds: int, plugins: Path) -> list[Row]:
    async with node_with_daemon() as node, pods(node, 1) as (pod,):
        folder = node.spec.dir
        libcni = folder / "libcni"
        await asyncio.to_thread(install, node, libcni)
        lists = {}
        for number, (name, wanted) in enumerate(LISTS.items()):
            lists[name] = folder / f"{number}.conflist"
            lists[name].write_bytes(chain(wanted, Binaries().look(wanted, plugins), plugins).conflist())
        runs = Runs(libcni, lists, f"{node.bin_dir}{os.pathsep}{plugins}", folder / "cache", pod)
        return await asyncio.to_thread(netns.run_in, node.spec.netns, lambda: runs.all(rounds))


def install(node: Node, libcni: Path) -> None:
    """The plugin as the static executable where that can be built, and the caller of libcni."""
    environment = os.environ | {"CGO_ENABLED": "0"}
    subprocess.run(["go", "build", "-o", libcni, "."], cwd=PEER, env=environment, check=True)
    try:
        build(node.spec.dir / "executable")
        executable = node.spec.dir / "executable"
        install_plugin(node.bin_dir, node.spec.socket, packaging="static", executable=executable)
    except (BuildError, InstallError) as error:
        print(f"with the launcher, without the static executable: {error}")
        install_plugin(node.bin_dir, node.spec.socket)


class Runs:
    def __init__(self, libcni: Path, lists: dict[str, Path], path: str, cache: Path, pod: str) -> None:
        self._libcni = libcni
        self._lists = lists
        self._environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "CNI_PATH": path, "CNI_CACHE": str(cache)}
        self._pod = pod

    def all(self, rounds: int) -> list[Row]:
        rows = [row for number in range(rounds + WARM_UP) for row in self._round(number)]
        return [row for row in rows if row["round"] >= WARM_UP]

    def _round(self, number: int) -> list[Row]:
        rows = []
        for case in random.sample(list(self._lists), len(self._lists)):
            container = secrets.token_hex(32)
            row: Row = {"round": number, "case": case}
            for verb in VERBS:
                row[verb] = self._run(case, verb, container)
            rows.append(row)
        return rows

    def _run(self, case: str, verb: str, container: str) -> float:
        """Milliseconds."""
        wishes = {"CNI_CAPABILITIES": json.dumps(PORTS)} if case == MAPPED else {}
        argv = [self._libcni, verb, self._lists[case], container, self._pod, "eth0"]
        started = time.perf_counter()
        done = subprocess.run(argv, env=self._environment | wishes, capture_output=True, check=False)
        taken = (time.perf_counter() - started) * 1000
        if done.returncode:
            sys.exit(f"{case}, {verb}: {done.stdout.decode()}{done.stderr.decode()}")
        return taken


def table(rows: list[Row]) -> str:
    base = {row["round"]: row for row in rows if row["case"] == ALONE}
    lines = [f"{'ms, medians':28}" + "".join(f" {verb.upper():>8} {'more':>7} {'x':>6}" for verb in VERBS)]
    for case in LISTS:
        line = f"{case:28}"
        for verb in VERBS:
            own = [(row[verb], base[row["round"]][verb]) for row in rows if row["case"] == case]
            more, ratio = median(ms - other for ms, other in own), median(ms / other for ms, other in own)
            line += f" {median(ms for ms, _ in own):8.2f} {more:7.2f} {ratio:6.2f}"
        lines.append(line)
    return "\n".join(lines)


def median(values: Iterable[float]) -> float:
    return statistics.median(list(values))


if __name__ == "__main__":
    main()
