"""A burst of pods on one node, in virtual time: the pool beside a model of the AWS VPC CNI's address daemon.

    python tests/bench/bench_burst.py [--repeat 5] [--json FILE] [--plots DIR]

"cold": all pods are there when the daemon starts on a fresh node; they start as soon as it lets them. "idle": they
come to a node whose warm pool is full, at a random moment of the incumbent's five-second turn. EC2 takes the same
time for both (create 1 s, attach 2 s, assign 0.3 s, link 0.5 s; see --help). Calls are all those from the start of
the burst, with the node's boot when cold, until nothing moves any more. Of several runs each figure is the median.

What the model takes over and where it favours the incumbent: ipamd/sim/virtual/incumbent.py.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random
from typing import Any

import output

from ipamd.pool.model import Targets
from ipamd.sim.virtual.ec2 import Latencies
from ipamd.sim.virtual.fleet import Fleet
from ipamd.sim.virtual.incumbent import IncumbentTargets

TYPES = ("m5.large", "m5.4xlarge", "c5n.18xlarge")
BURSTS = (10, 50, 230)
STARTS = ("cold", "idle")
TURN = 5.0
QUIET = 1800.0  # long enough for whatever still moves


@dataclass(frozen=True, slots=True)
class Result:
    """Seconds, sorted: one for each pod."""

    waits: list[float]
    failed_adds: int
    calls: dict[str, int]
    held: int

    @property
    def median(self) -> float:
        return statistics.median(self.waits)

    @property
    def last(self) -> float:
        return self.waits[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, metavar="N")
    parser.add_argument("--warm-ips", type=int, default=5, help="both for ipamd and as WARM_IP_TARGET")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plots", type=Path, default=output.PLOTS, metavar="DIR")
    for latency in fields(Latencies):
        parser.add_argument(f"--{latency.name}", type=float, default=latency.default, metavar="S")
    args = parser.parse_args()
    latencies = Latencies(**{latency.name: getattr(args, latency.name) for latency in fields(Latencies)})
    systems: dict[str, Targets | IncumbentTargets] = {
        "ipamd": Targets(warm_ips=args.warm_ips),
        "WARM_ENI_TARGET=1": IncumbentTargets(),
        f"WARM_IP_TARGET={args.warm_ips}": IncumbentTargets(warm_ip=args.warm_ips),
    }
    started = time.monotonic()
    rows = [
        row(
            start,
            instance_type,
            pods,
            system,
            [burst(start, instance_type, pods, targets, latencies, seed) for seed in range(args.repeat)],
        )
        for start in STARTS
        for instance_type in TYPES
        for pods in BURSTS
        for system, targets in systems.items()
        if pods <= most_pods(instance_type)
    ]
    report(rows)
    print(f"\n{time.monotonic() - started:.1f} s for all of it")
    if args.json:
        output.write_lines(args.json, rows)
    draw(rows, systems, args.plots)


def most_pods(instance_type: str) -> int:
    return Fleet().add(instance_type, Targets()).node.instance.limits.max_pods


def burst(
    start: str,
    instance_type: str,
    pods: int,
    targets: Targets | IncumbentTargets,
    latencies: Latencies,
    seed: int,
) -> Result:
    fleet = Fleet(seed=seed, latencies=latencies)
    kubelet = fleet.add(instance_type, targets)
    instance = kubelet.node.instance
    calls_before = instance.calls.copy()
    kubelet.boot()
    if start == "idle":
        fleet.clock.run_until(300.0 + Random(seed).uniform(0.0, TURN))
        calls_before = instance.calls.copy()
    for number in range(pods):
        kubelet.run(f"pod-{number}")
    fleet.clock.run_until(fleet.clock() + QUIET)
    if kubelet.pending:
        raise RuntimeError(f"{kubelet.pending} of {pods} pods on {instance_type} have no address after {QUIET:.0f} s")
    return Result(
        sorted(kubelet.waits.values()), kubelet.failures, dict(instance.calls - calls_before), instance.meter.held
    )


def row(start: str, instance_type: str, pods: int, system: str, results: list[Result]) -> dict[str, Any]:
    middle = sorted(results, key=lambda result: result.last)[len(results) // 2]
    return {
        "bench": "burst",
        "start": start,
        "type": instance_type,
        "pods": pods,
        "system": system,
        "median_s": round(statistics.median(result.median for result in results), 3),
        "last_s": round(statistics.median(result.last for result in results), 3),
        "ec2_calls": round(statistics.median(sum(result.calls.values()) for result in results)),
        "failed_adds": round(statistics.median(result.failed_adds for result in results)),
        "addresses_held": round(statistics.median(result.held for result in results)),
        "calls_by_action": middle.calls,
        "waits_s": [round(wait, 3) for wait in middle.waits],
    }


def report(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'start':5} {'type':13}{'pods':>5}  {'system':18}{'median':>8}{'last':>8}{'calls':>7}"
        f"{'failed':>8}{'held':>6}   {'last':>6} {'calls':>6}"
    )
    print(f"{'':43}{'s':>8}{'s':>8}{'':>7}{'ADDs':>8}{'':>6}   {'(times ipamd)':>13}")
    ours: dict[str, Any] = {}
    for found in rows:
        if found["system"] == "ipamd":
            ours = found
            print()
        print(
            f"{found['start']:5} {found['type']:13}{found['pods']:5}  {found['system']:18}{found['median_s']:8.2f}"
            f"{found['last_s']:8.2f}{found['ec2_calls']:7}{found['failed_adds']:8}{found['addresses_held']:6}",
            end="",
        )
        if found is ours:
            print()
        else:
            last = times(found["last_s"], ours["last_s"])
            print(f"   {last:>6} {times(found['ec2_calls'], ours['ec2_calls']):>6}")


def times(theirs: float, ours: float) -> str:
    if theirs == ours:
        return "1.0"
    return f"{theirs / ours:.1f}" if ours else "-"


def draw(rows: list[dict[str, Any]], systems: dict[str, Any], folder: Path) -> None:
    """The largest burst of each type: how many pods have their address after how long."""
    plt = output.pyplot()
    if plt is None:
        return
    figure, axes = plt.subplots(len(STARTS), len(TYPES), figsize=(12, 7.4), layout="constrained", squeeze=False)
    for line, start in zip(axes, STARTS, strict=True):
        for axis, instance_type in zip(line, TYPES, strict=True):
            of_type = [found for found in rows if (found["start"], found["type"]) == (start, instance_type)]
            pods = max(found["pods"] for found in of_type)
            for found in (found for found in of_type if found["pods"] == pods):
                steps = [0.0, *found["waits_s"]]
                label = f"{found['system']}: last pod {found['last_s']:.2f} s, {found['ec2_calls']} EC2 calls"
                axis.step(
                    [max(wait, 0.05) for wait in steps],
                    range(pods + 1),
                    where="post",
                    color=output.colour(found["system"]),
                    linewidth=1.8,
                    label=label,
                )
            axis.set_xscale("log")
            axis.set_xlim(0.05, 1000)
            axis.set_ylim(0, pods * 1.03)
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_title(f"{instance_type}, {pods} pods, {start} node", fontsize=10)
            axis.set_ylabel("pods with an address")
            axis.set_xlabel("seconds since the burst (log; at the edge: none)")
            axis.grid(alpha=0.25)
            axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)
    figure.suptitle(
        "A burst of pods on one node in virtual time: ipamd, and a model of the AWS VPC CNI with its settings"
    )
    output.save(figure, folder, "burst.png")


if __name__ == "__main__":
    main()
