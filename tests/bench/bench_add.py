"""What one ADD costs with everything real: the installed plugin, the daemon, the kernel, on the VPC in a box.

    python tests/bench/bench_add.py [--pods 50] [--type m5.4xlarge] [--json FILE]      (as root)

Each ADD is one process, executed in the node's namespace as a runtime would, into a fresh network namespace; wall
time is exec to exit, CPU time is the plugin's own (wait4). The pool is warm, so EC2 is not part of it. The floor is
the same interpreter doing nothing, interleaved with the ADDs.
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
import time
from pathlib import Path

CONFIG = b'{"cniVersion":"1.0.0","name":"ipamd","type":"ipamd-cni"}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=50)
    parser.add_argument("--type", default="m5.4xlarge", help="instance type of the node")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        measure(args.inside, args.pods)
        return
    if os.geteuid() != 0:
        sys.exit("run it as root: it makes network namespaces")
    result = asyncio.run(build_and_measure(args.pods, args.type))
    report(result)
    if args.json:
        args.json.write_text(json.dumps(result) + "\n")


async def build_and_measure(pods: int, instance_type: str) -> dict[str, list[dict[str, float]]]:
    from ipamd.sim.demo_node import Node
    from ipamd.sim.vpc import SimulatedVpc

    with tempfile.TemporaryDirectory(prefix="ipb") as folder:
        async with SimulatedVpc.build(dir=Path(folder), nodes={"n1": instance_type}, subnets=["10.0.0.0/22"]) as vpc:
            node = Node(vpc.nodes[0])
            with node.spec.config.open("a") as config:
                config.write(f"\n[pool]\nwarm_ips = {pods}\n")
            await node.start()
            try:
                node.install_plugin()
                await node.wait_until_ready()
                while (await node.status())["free"] < pods:
                    await asyncio.sleep(0.1)
                command = [sys.executable, __file__, "--pods", str(pods), "--inside", str(node.bin_dir)]
                process = await asyncio.create_subprocess_exec(
                    "ip", "netns", "exec", node.spec.netns, *command, stdout=asyncio.subprocess.PIPE
                )
                out, _ = await process.communicate()
                if process.returncode != 0:
                    sys.exit("the measurement failed")
            finally:
                await node.stop()
    found: dict[str, list[dict[str, float]]] = json.loads(out)
    return found


def measure(bin_dir: Path, pods: int) -> None:
    """In the node's namespace: ADD, floor, ADD, floor, ...; then the DELs."""
    plugin = bin_dir / "ipamd-cni"
    interpreter = plugin.read_text().splitlines()[0].removeprefix("#!").split()[0]
    prefix = f"bench{secrets.token_hex(3)}"
    result: dict[str, list[dict[str, float]]] = {"ADD": [], "floor": [], "DEL": []}
    names = [f"{prefix}-{number}" for number in range(pods)]
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
        for name in names:
            result["ADD"].append(execute([str(plugin)], environment("ADD", name, bin_dir)))
            result["floor"].append(execute([interpreter, "-IS", "-c", "pass"], {}))
        for name in names:
            result["DEL"].append(execute([str(plugin)], environment("DEL", name, bin_dir)))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)
    print(json.dumps(result))


def environment(command: str, name: str, bin_dir: Path) -> dict[str, str]:
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": name,
        "CNI_NETNS": f"/run/netns/{name}",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(bin_dir),
        "CNI_ARGS": f"K8S_POD_NAMESPACE=bench;K8S_POD_NAME={name}",
    }


def execute(argv: list[str], environ: dict[str, str]) -> dict[str, float]:
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout:
        stdin.write(CONFIG)
        stdin.seek(0)
        started = time.perf_counter()
        pid = os.posix_spawn(
            argv[0],
            argv,
            environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, stdin.fileno(), 0), (os.POSIX_SPAWN_DUP2, stdout.fileno(), 1)],
        )
        _, status, usage = os.wait4(pid, 0)
        wall = time.perf_counter() - started
        if status != 0:
            stdout.seek(0)
            sys.exit(f"{argv[0]} failed: {stdout.read().decode()}")
    return {"wall_ms": wall * 1000, "cpu_ms": (usage.ru_utime + usage.ru_stime) * 1000}


def report(result: dict[str, list[dict[str, float]]]) -> None:
    print(f"{'':8}{'runs':>6}{'min':>9}{'median':>9}{'p99':>9}{'CPU median':>12}   ms")
    for name, runs in result.items():
        walls = sorted(run["wall_ms"] for run in runs)
        cpu = statistics.median(run["cpu_ms"] for run in runs)
        p99 = walls[min(len(walls) - 1, round(0.99 * len(walls)))]
        median = statistics.median(walls)
        print(f"{name:8}{len(runs):6}{walls[0]:9.2f}{median:9.2f}{p99:9.2f}{cpu:12.2f}")


if __name__ == "__main__":
    main()
