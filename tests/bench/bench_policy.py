"""What telling AWS's network policy agent costs an ADD, from exec to exit.

    python tests/bench/bench_policy.py [--rounds 40] [--json FILE]      (as root, with Go)

Three nodes of the VPC in a box with the same plugin: one without policy.mode, one in the standard mode without an
agent, and one with a stand-in for it that finds the link and attaches a qdisc, built from tests/peers/policy_agent.
They take turns in random order. Last comes the link's further name alone, which the daemon gives it in a thread.
Trust the ratios, which are medians over rounds; the milliseconds are the machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from bench_plugin import pods
from output import write_lines

from cni_shim.static.build import BuildError, build
from ipamd.host.altnames import give
from ipamd.install.placing import InstallError
from ipamd.install.plugin import install_plugin
from ipamd.sim import netns
from ipamd.sim.demo.node import Node
from ipamd.sim.runtimes.process import inside
from ipamd.sim.vpc import SimulatedVpc
from tests.golang import build as build_peer

OFF, ABSENT, TOLD = "policy.mode off", "standard, no agent", "standard, agent told"
LINKS = 200
SETTINGS = "\n[pool]\nwarm_ips = 8\ncooldown = 0\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write each measurement as a line of JSON")
    args = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root")
    try:
        program = build_peer("policy_agent")
    except pytest.skip.Exception as why:
        parser.error(str(why))
    rows = asyncio.run(measure(program, args.rounds))
    names = naming()
    print(table(rows))
    print(f"the link's further name: {statistics.median(names):.3f} ms, at least {min(names):.3f}")
    if args.json:
        write_lines(args.json, [{"bench": "policy", **row} for row in rows])


async def measure(program: Path, rounds: int) -> list[dict[str, Any]]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ipb", dir="/dev/shm")))
        vpc = await stack.enter_async_context(
            SimulatedVpc.build(
                dir=folder, nodes=dict.fromkeys(("n1", "n2", "n3"), "m5.large"), subnets=["10.0.0.0/22"]
            )
        )
        executable = folder / "executable"
        try:
            await asyncio.to_thread(build, executable)
        except (BuildError, InstallError) as error:
            sys.exit(f"without the static executable: {error}")
        cases = []
        for spec, name in zip(vpc.nodes, (OFF, ABSENT, TOLD), strict=True):
            agents = spec.dir / "aws-node"
            with spec.config.open("a") as config:
                config.write(SETTINGS)
                if name != OFF:
                    config.write(f'[policy]\nmode = "standard"\ndir = "{agents}"\n')
            node = Node(spec)
            stack.callback(node.close)
            await node.start()
            stack.push_async_callback(node.stop)
            await node.wait_until_ready()
            await node.wait_until_settled()
            if name == TOLD:
                await stack.enter_async_context(agent(program, spec.netns, agents))
            (path,) = await stack.enter_async_context(pods(node, 1))
            plugin = install_plugin(spec.dir / "bin", spec.socket, packaging="static", executable=executable).launcher
            file = spec.dir / "bench.json"
            file.write_text(json.dumps({"cniVersion": "1.0.0", "type": "ipamd-cni", "name": "ipamd"}))
            cases.append({"name": name, "argv": [str(plugin)], "config": str(file), "netns": spec.netns, "pod": path})
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, Path(__file__).with_name("policy_runs.py")),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate(json.dumps({"cases": cases, "rounds": rounds}).encode())
        if process.returncode:
            sys.exit("the measurement failed")
    result: list[dict[str, Any]] = json.loads(out)
    return result


def naming() -> list[float]:
    """Milliseconds for each of many links, in a namespace of their own."""
    name = f"ipb-{secrets.token_hex(4)}"
    asyncio.run(netns.create(name))
    try:
        links = [f"ipm{number:012x}" for number in range(LINKS)]
        asyncio.run(netns.ip_batch(name, [f"link add {link} type veth peer name p{link[4:]}" for link in links]))
        return netns.run_in(name, lambda: [timed(link, f"eni{link[4:]}") for link in links])
    finally:
        asyncio.run(netns.delete(name))


def timed(link: str, altname: str) -> float:
    started = time.perf_counter()
    give(link, altname)
    return (time.perf_counter() - started) * 1000


@asynccontextmanager
async def agent(program: Path, host: str, folder: Path) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        *inside(host, program, folder), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    reading = None
    try:
        while (line := await process.stdout.readline()) != b"ready\n":
            assert line, "the agent has ended"
        reading = asyncio.ensure_future(process.stdout.read())  # it writes a line for each call
        yield
    finally:
        process.stdin.close()
        await process.wait()
        if reading is not None:
            await reading


def table(rows: list[dict[str, Any]]) -> str:
    plain = {row["round"]: row for row in rows if row["case"] == OFF}
    head = f"ms, medians; x, more: of, than {OFF}"
    lines = [f"{head:44} {'ADD':>7} {'min':>7} {'x':>6} {'more':>6}   {'DEL':>7} {'x':>6}"]
    for name in (OFF, ABSENT, TOLD):
        mine = [row for row in rows if row["case"] == name]
        words = [f"  {name:42}"]
        for verb in ("ADD", "DEL"):
            taken = [row[verb] for row in mine]
            ratio = statistics.median(row[verb] / plain[row["round"]][verb] for row in mine)
            more = statistics.median(row[verb] - plain[row["round"]][verb] for row in mine)
            words.append(f"{statistics.median(taken):7.2f}")
            words += [f"{min(taken):7.2f}", f"{ratio:6.2f}", f"{more:6.2f}  "] if verb == "ADD" else [f"{ratio:6.2f}"]
        lines.append(" ".join(words))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
