"""`make demo-kubernetes`: a Kubernetes on the VPC in a box, from nothing to pods that serve, and back to nothing.

Here is the command around it; what it shows stands in `demo_steps`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

# Before grpc is imported: its fork handlers would slow down and endanger every subprocess.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from rich.console import Console

from ipamd.sim import preflight
from ipamd.sim.demo.report import Reporter
from ipamd.sim.demo.until_signal import story, until_signal
from tests.kubernetes import golang
from tests.kubernetes.demo_steps import FAILURES, Demo


def main() -> int:
    """0: all went well; 1: it did not, and the output says why; 128 + n: ended early by signal n."""
    parser = argparse.ArgumentParser(
        prog="make demo-kubernetes",
        description="Start a Kubernetes whose pods have their addresses from ipamd, use it, and take it down.",
    )
    parser.add_argument("--keep", action="store_true", help="leave all up until Ctrl-C or SIGTERM")
    args = parser.parse_args()
    if missing := asyncio.run(_lacking()):
        return _fail(missing)
    demo = Demo(Reporter(Console()), args.keep)
    try:
        return asyncio.run(until_signal(demo))
    except FAILURES as error:
        return _fail(story(error, FAILURES))


async def _lacking() -> list[str]:
    """A sentence for each thing that this machine lacks: all of it is said before anything is built."""
    missing = preflight.lacking(preflight.VPC | preflight.CONTAINERD)
    try:
        await golang.find()
    except golang.GoMissing as error:
        missing.append(str(error))
    return missing


def _fail(lines: list[str]) -> int:
    for line in "\n".join(lines).splitlines():
        sys.stderr.write(f"demo-kubernetes: {line}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
