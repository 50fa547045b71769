"""Kubernetes' own network tests on ipamd's pods, compared with the pinned lists.

    python -m tests.kubernetes.conformance [--mode MODE]... [--group GROUP]... [--write]

runs them and says what is not as the lists expect; `--write` puts the results into docs/kubernetes-conformance.md.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Before grpc is imported: its fork handlers would slow down and endanger every subprocess.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from tests.kubernetes import ginkgo, page
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.junit import Result
from tests.kubernetes.killing import Kills, killed_in_turn
from tests.kubernetes.parts import ClusterError
from tests.kubernetes.pinned import GROUPS, Spec, drift, focus, listed, pinned, surprises
from tests.kubernetes.programs import ALL, built
from tests.kubernetes.worker import Daemon, Node, ProxyMode, Worker

PROGRAMS: Final = ALL - {"netpol"}
PROCESSES: Final = 4
KILL_EVERY: Final = 5.0  # seconds
_IMAGES: Final = ("agnhost", "nginx", "regression-issue-74839")  # their archives have all that the specs use

_WHAT: Final = "Run Kubernetes' own network tests on ipamd's pods, and compare the results with the pinned lists."

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Mode:
    """How the cluster is made: kube-proxy's mode on each worker, and whether daemons are killed meanwhile."""

    proxies: Sequence[ProxyMode]
    killing: bool = False


MODES: Final = {
    "mixed": Mode(("nftables", "iptables")),
    "nftables": Mode(("nftables", "nftables")),
    "iptables": Mode(("iptables", "iptables")),
    "killed": Mode(("nftables", "iptables"), killing=True),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """`problems`: what the lists do not expect, and what is not in order on a node afterwards, a line each."""

    run: page.Run
    problems: Sequence[str]


async def run(mode: Mode, specs: Sequence[Spec], folder: Path, say: Say) -> Outcome:
    """Run `specs` in a cluster of its own; logs and the report are left in `folder`. Raises what the parts raise."""
    programs = await built(PROGRAMS, say)
    workers = [Worker(f"w{number}", type="m5.xlarge", proxy=proxy) for number, proxy in enumerate(mode.proxies, 1)]
    async with Cluster.up(folder / "cluster", _prefix(), workers, archives=_IMAGES, say=say) as cluster:
        place = ginkgo.Place(programs, cluster.plane.machine.netns, cluster.plane.kubeconfig, len(workers))
        begun = time.monotonic()
        results, kills = await _specs(mode, cluster, place, focus(specs), folder)
        seconds = round(time.monotonic() - begun)
        problems = surprises(specs, results)
        for node in cluster.nodes.values():
            problems += await _audit(node)
    return Outcome(page.Run(len(results), seconds, PROCESSES, kills.number, page.outcomes(results)), problems)


def _prefix() -> str:
    """Begins the names of this cluster's namespaces: other clusters may stand beside it."""
    return f"conf{os.getpid()}"


async def _specs(
    mode: Mode, cluster: Cluster, place: ginkgo.Place, focused: str, folder: Path
) -> tuple[list[Result], Kills]:
    async with AsyncExitStack() as stack:
        kills = Kills()
        if mode.killing:
            again = [functools.partial(_kill_and_start, node.daemon) for node in cluster.nodes.values()]
            kills = await stack.enter_async_context(killed_in_turn(again, KILL_EVERY))
        results = await ginkgo.run(place, focused, folder, PROCESSES)
    return results, kills


async def _kill_and_start(daemon: Daemon) -> None:
    await daemon.kill()
    await daemon.start()


async def _audit(node: Node) -> list[str]:
    """What EC2, the records and the kernel of a node disagree on; empty: nothing."""
    try:
        await node.ipamctl("audit")
    except ClusterError as error:
        return [str(error)]
    return []


async def drift_of(programs: Path) -> list[str]:
    """How the pinned lists differ from what the e2e program has, a line each. Raises `netns.CommandError`."""
    return drift(pinned(), listed(await ginkgo.names(programs)))


def main() -> int:
    """0: all is as the lists say; 1: it is not, and the output says where."""
    parser = argparse.ArgumentParser(prog="python -m tests.kubernetes.conformance", description=_WHAT)
    parser.add_argument("--mode", action="append", choices=MODES, help="may be repeated (default: all)")
    parser.add_argument("--group", action="append", choices=GROUPS, help="may be repeated (default: all)")
    parser.add_argument("--only", metavar="TEXT", default="", help="only specs whose name has this text")
    parser.add_argument("--write", action="store_true", help=f"put the results into docs/{page.PAGE.name}")
    parser.add_argument("--folder", type=Path, help="where logs and reports are left (default: a temporary one)")
    args = parser.parse_args()
    modes = args.mode or list(MODES)
    specs = [spec for spec in pinned(args.group or GROUPS) if args.only in spec.name]
    if args.folder:
        return asyncio.run(_run_all(modes, specs, args.folder, args.write))
    with tempfile.TemporaryDirectory(prefix="ipamd-") as folder:
        return asyncio.run(_run_all(modes, specs, Path(folder), args.write))


async def _run_all(modes: Sequence[str], specs: Sequence[Spec], folder: Path, write: bool) -> int:
    problems: list[str] = []
    for mode in modes:
        _say(f"{mode}: {len(specs)} specs")
        outcome = await run(MODES[mode], specs, folder / mode, _say)
        _say(f"{mode}: {outcome.run.seconds} s, {outcome.run.kills} kills; {len(outcome.problems)} problems")
        for problem in outcome.problems:
            _say(f"    {problem}")
        problems += outcome.problems
        if write:
            page.write(mode, outcome.run)
    return 1 if problems else 0


def _say(line: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
