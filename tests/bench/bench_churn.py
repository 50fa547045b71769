"""A day of churn on one node or more, in virtual time: the pool beside a model of the AWS VPC CNI's address daemon.

    python tests/bench/bench_churn.py [--type m5.4xlarge] [--nodes 1] [--hours 24] [--json FILE] [--plots DIR]

Jobs of two minutes arrive as a Poisson process, ten times as many at noon as at midnight; 40 service pods run all the
time, and every two hours all of them are replaced at once (deploy wave). All systems get the same pods at the same
times. Idle is an address that the node holds and no pod has, whether free, cooling or the primary one of a further
ENI, summed over time. A wait is from the pod's arrival until it has its address, failed ADDs included.

The incumbent's WARM_IP_TARGET has to exceed the addresses that cool at a time, since it takes those for available:
here 10 at noon (a job every three seconds, 30 s of cooldown). With 5 it never catches up: pods wait for hours. So it
gets 20, twice what it needs.

ipamd stands there twice: with its defaults, which keep what is idle for two hours, and with `release_delay` 1800.
Calls count all, hourly audits and the incumbent's hourly search for leaked ENIs included.

What the model takes over and where it favours the incumbent: ipamd/sim/virtual/incumbent.py.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import output

from ipamd.pool.model import Targets
from ipamd.sim.virtual.day import Day, Load
from ipamd.sim.virtual.fleet import Fleet
from ipamd.sim.virtual.incumbent import IncumbentTargets

HOUR = 3600.0


def main() -> None:
    load = Load()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", default="m5.4xlarge", help="instance type of the nodes")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--jobs", type=float, default=load.peak_rate * HOUR, help="per hour and node, at noon")
    parser.add_argument("--services", type=int, default=load.services, help="service pods per node")
    parser.add_argument("--warm-ips", type=int, default=Targets().warm_ips, help="for ipamd")
    parser.add_argument("--warm-ip-target", type=int, default=20, help="for the incumbent")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plots", type=Path, default=output.PLOTS, metavar="DIR")
    args = parser.parse_args()
    load = Load(peak_rate=args.jobs * args.nodes / HOUR, services=args.services * args.nodes)
    systems: dict[str, Targets | IncumbentTargets] = {
        "ipamd": Targets(warm_ips=args.warm_ips),
        "ipamd, 30 min": Targets(warm_ips=args.warm_ips, release_delay=1800.0),
        "WARM_ENI_TARGET=1": IncumbentTargets(),
        f"WARM_IP_TARGET={args.warm_ip_target}": IncumbentTargets(warm_ip=args.warm_ip_target),
    }
    started = time.monotonic()
    rows = []
    fleets = {}
    for system, targets in systems.items():
        fleets[system] = spend_a_day(targets, args.type, args.nodes, args.hours * HOUR, load, args.seed)
        rows.append(row(system, args.type, args.hours, fleets[system]))
    report(rows, args.type, args.nodes, args.hours)
    print(f"\n{time.monotonic() - started:.1f} s for all of it")
    if args.json:
        output.write_lines(args.json, rows)
    draw(fleets, rows, args.type, args.hours, args.plots)


def spend_a_day(
    targets: Targets | IncumbentTargets, instance_type: str, nodes: int, seconds: float, load: Load, seed: int
) -> Fleet:
    fleet = Fleet(seed=seed)
    for _ in range(nodes):
        fleet.add(instance_type, targets).boot()
    Day(fleet.clock, fleet.kubelets, load, Random(seed)).begin()
    fleet.clock.run_until(seconds)
    return fleet


def row(system: str, instance_type: str, hours: float, fleet: Fleet) -> dict[str, Any]:
    waits = sorted(wait for kubelet in fleet.kubelets for wait in kubelet.waits.values())
    calls: Counter[str] = Counter()
    for kubelet in fleet.kubelets:
        calls += kubelet.node.instance.calls
    idle = sum(kubelet.node.instance.meter.idle_seconds() for kubelet in fleet.kubelets) / HOUR
    return {
        "bench": "churn",
        "type": instance_type,
        "nodes": len(fleet.kubelets),
        "hours": hours,
        "system": system,
        "pods": len(waits),
        "idle_address_hours": round(idle, 1),
        "idle_addresses_per_node": round(idle / hours / len(fleet.kubelets), 1),
        "ec2_calls": calls.total(),
        "ec2_calls_per_1000_pods": round(1000 * calls.total() / len(waits), 1),
        "wait_p50_s": round(waits[len(waits) // 2], 3),
        "wait_p99_s": round(waits[int(0.99 * len(waits))], 3),
        "wait_p999_s": round(waits[int(0.999 * len(waits))], 3),
        "wait_max_s": round(waits[-1], 3),
        "pods_that_waited": sum(wait > 0 for wait in waits),
        "failed_adds": sum(kubelet.failures for kubelet in fleet.kubelets),
        "calls_by_action": dict(calls),
    }


def report(rows: list[dict[str, Any]], instance_type: str, nodes: int, hours: float) -> None:
    print(f"{nodes} x {instance_type}, {hours:g} hours, {rows[0]['pods']} pods")
    print(
        f"{'':18}{'idle':>10}{'idle per':>10}{'EC2':>7}{'per 1000':>9}{'p50':>7}{'p99':>7}{'p99.9':>7}"
        f"{'max':>7}{'pods that':>11}{'failed':>8}"
    )
    print(
        f"{'':18}{'address-h':>10}{'node':>10}{'calls':>7}{'pods':>9}{'s':>7}{'s':>7}{'s':>7}{'s':>7}{'waited':>11}{'ADDs':>8}"
    )
    for found in rows:
        print(
            f"{found['system']:18}{found['idle_address_hours']:10.0f}{found['idle_addresses_per_node']:10.1f}"
            f"{found['ec2_calls']:7}{found['ec2_calls_per_1000_pods']:9.1f}{found['wait_p50_s']:7.2f}"
            f"{found['wait_p99_s']:7.2f}{found['wait_p999_s']:7.2f}{found['wait_max_s']:7.2f}{found['pods_that_waited']:11}"
            f"{found['failed_adds']:8}"
        )
    ours = rows[0]
    for found in rows[1:]:
        idle = found["idle_address_hours"] / ours["idle_address_hours"]
        calls = found["ec2_calls"] / ours["ec2_calls"]
        print(f"{found['system']}: {idle:.1f} times the idle address-hours and {calls:.1f} times the calls of ipamd")


def draw(
    fleets: dict[str, Fleet], rows: list[dict[str, Any]], instance_type: str, hours: float, folder: Path
) -> None:
    """Held and used addresses over the day, all nodes together."""
    plt = output.pyplot()
    if plt is None:
        return
    figure, axes = plt.subplots(len(fleets), 1, figsize=(10, 10), layout="constrained", sharex=True, sharey=True)
    for axis, (system, fleet), found in zip(axes, fleets.items(), rows, strict=True):
        times, held, used = timeline(fleet)
        axis.fill_between(times, used, step="post", color="#dddddd", label="in use")
        axis.fill_between(
            times, used, held, step="post", color=output.colour(system), alpha=0.25, linewidth=0, label="idle"
        )
        axis.step(times, held, where="post", color=output.colour(system), linewidth=1.0, label="held")
        axis.set_title(
            f"{system}: {found['idle_address_hours']:.0f} idle address-hours, {found['ec2_calls']} EC2 calls, "
            f"wait p99 {found['wait_p99_s']:.2f} s, worst {found['wait_max_s']:.2f} s",
            fontsize=10,
        )
        axis.set_ylabel("addresses")
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8, loc="upper left")
    axes[-1].set_xlabel("hour of the day")
    axes[-1].set_xlim(0, hours)
    axes[-1].set_ylim(0)
    axes[-1].xaxis.set_major_locator(plt.MultipleLocator(2 if hours > 6 else 1))
    nodes = len(fleet.kubelets)
    figure.suptitle(f"{hours:g} hours of churn on {nodes} x {instance_type}: ipamd, and a model of the AWS VPC CNI")
    output.save(figure, folder, "churn.png")


def timeline(fleet: Fleet) -> tuple[list[float], list[int], list[int]]:
    """Hours, addresses held and addresses used, summed over the nodes, at each change."""
    changes = []
    for kubelet in fleet.kubelets:
        history = kubelet.node.instance.meter.history
        for (_, held, used), (at, held_after, used_after) in pairwise(history):
            changes.append((at, held_after - held, used_after - used))
    changes.sort()
    times, held_sums, used_sums = [0.0], [0], [0]
    for at, held_change, used_change in changes:
        times.append(at / HOUR)
        held_sums.append(held_sums[-1] + held_change)
        used_sums.append(used_sums[-1] + used_change)
    return times, held_sums, used_sums


if __name__ == "__main__":
    main()
