"""`ipamd demo`: the main job on one machine, from nothing to pods that ping each other, and back to nothing.

Here is the command around it; what it does stands in `run`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# Before grpc is imported: its fork handlers would slow down and endanger every subprocess.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from rich.console import Console

from ipamd.cloud import limits
from ipamd.install.placing import InstallError
from ipamd.sim import preflight
from ipamd.sim.demo.node import DaemonFailed
from ipamd.sim.demo.report import Reporter
from ipamd.sim.demo.run import Demo
from ipamd.sim.demo.until_signal import story, until_signal
from ipamd.sim.fabric import FabricError
from ipamd.sim.netns import CommandError
from ipamd.sim.runtimes import RuntimeFailure
from ipamd.sim.vpc import SpecError

_FAILURES = (SpecError, FabricError, CommandError, RuntimeFailure, DaemonFailed, InstallError, OSError)

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_parser(subparsers: Subparsers) -> None:
    """Add the command `demo`."""
    parser = subparsers.add_parser(
        "demo",
        help="see it work: a VPC in a box, real daemons, pods that ping each other (needs root)",
        description="Build a VPC in a box with a real daemon on each node, make pods, let everybody ping everybody, "
        "remove the pods and look for leaks. Exit code 0: every ping was answered and nothing leaked.",
    )
    parser.add_argument("--nodes", type=_at_least_one, default=2, help="how many nodes (default: %(default)s)")
    parser.add_argument("--pods", type=_at_least_one, default=12, help="pods on EACH node (default: %(default)s)")
    parser.add_argument(
        "--runtime",
        choices=("containerd", "direct"),
        default="containerd",
        help="what makes the pods: a containerd for each node, or the bare calls of a runtime (default: %(default)s)",
    )
    parser.add_argument("--keep", action="store_true", help="leave all up until Ctrl-C or SIGTERM")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found to FILE")
    parser.set_defaults(run=run)


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too few; give 1 or more")
    return number


def run(args: argparse.Namespace) -> int:
    """0: all is well; 1: it is not, and standard error says why; 128 + n: ended early by signal n."""
    programs = preflight.VPC | (preflight.CONTAINERD if args.runtime == "containerd" else {})
    if missing := preflight.lacking(programs):
        return _fail("\n".join(missing))
    types = {f"n{number}": "c5.large" if number == 2 else "m5.large" for number in range(1, args.nodes + 1)}
    for instance_type in types.values():
        room = limits.table()[instance_type]
        most = room.max_enis * room.secondary_per_eni
        if args.pods > most:
            return _fail(f"--pods {args.pods}: an {instance_type} has addresses for {most} pods at most")
    demo = Demo(types, args.pods, args.runtime, args.keep, args.json, Reporter(Console()))
    try:
        return asyncio.run(until_signal(demo))
    except _FAILURES as error:
        return _fail("\n".join(story(error, _FAILURES)))


def _fail(message: str) -> int:
    for line in message.splitlines():
        sys.stderr.write(f"ipamd demo: {line}\n")
    return 1
